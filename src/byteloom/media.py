"""What the codecs of media share: one limit, checked options, and errors that name the file.

Cost: none, but that what a library prints while it decodes is thrown away, whichever thread prints it.
"""

import contextlib
import dataclasses
import math
import os
import threading
import types
import typing
import warnings
from collections.abc import Iterator
from os import PathLike
from typing import Any

import numpy as np

from byteloom.documents import DataError

MAX_PAYLOAD = 1 << 28
"""The most bytes of samples that one file of media may hold once it is decoded: the bound on memory and time."""

FORMATS = (
    "3g2,3gp,aac,ac3,aiff,amr,ape,apng,asf,au,avi,caf,dv,flac,flv,gif,h264,hevc,ivf,m4a,m4v,matroska,mj2,mjpeg,mov,mp3,"
    "mp4,mpeg,mpegts,mpegvideo,nut,ogg,rm,tta,voc,w64,wav,webm,wv,yuv4mpegpipe"
)
"""The containers that PyAV may open: none of them names other files, as playlists do."""


@contextlib.contextmanager
def decoding(path: str | PathLike[str], cure: str) -> Iterator[None]:
    """Whatever a library raises while it decodes a file becomes one error that names the file; warnings are silenced.

    Raises:
        DataError: as it was raised inside, or in place of any other exception; its last part is `cure`.
    """
    try:
        with _SILENCE:
            yield
    except DataError:
        raise
    except ImportError as error:
        raise DataError(f"{path}: needs a library that is not here ({error}); install byteloom[media]") from error
    except Exception as error:  # on hostile files decoders raise anything: struct.error, IndexError, MemoryError, ...
        raise DataError(f"{path}: cannot be decoded ({reason(error)}); {cure}") from error


def reason(error: Exception) -> str:
    """What went wrong, without the names of files that soundfile and PyAV put around it."""
    return getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error) or repr(error)


@contextlib.contextmanager
def container(path: str | PathLike[str]) -> Iterator[Any]:
    """An `av` container of a file with sound or pictures in time. It opens no other file, whatever the content asks.

    Raises:
        DataError: an AVI or WAV file is shorter than it says.
    """
    import av

    # As an open file: the library could take a name such as "http:x" as the address of something else.
    with open(path, "rb") as file:
        head = file.read(8)
        if head[:4] == b"RIFF" and file.seek(0, os.SEEK_END) < int.from_bytes(head[4:], "little") + 8 < 1 << 31:
            raise DataError(f"{path}: is cut short; take another copy")
        file.seek(0)
        with av.open(file, options={"format_whitelist": FORMATS}) as opened:
            yield opened


def decoded(path: str | PathLike[str], file: Any, stream: Any) -> Iterator[Any]:
    """The frames of a stream of a container. Raises DataError when the file ends before what its header says."""
    packets, end, longest = 0, 0.0, 0.0
    for packet in file.demux():
        duration = float((packet.duration or 0) * packet.time_base)
        longest = max(longest, duration)
        if packet.pts is not None:
            end = max(end, float(packet.pts * packet.time_base) + duration)
        if packet.stream is stream:
            packets += packet.size > 0
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise DataError(f"{path}: is damaged; take another copy")
                yield frame
    # MP4 says how many packets it has and Matroska how long it is; what others say is a guess of the library.
    name, said = file.format.name, (file.duration or 0) / 1e6
    mp4_is_cut = name.startswith("mov") and packets < stream.frames
    if mp4_is_cut or (name.startswith("matroska") and end + longest + 0.01 < said):
        raise DataError(f"{path}: is cut short; take another copy")


def check_options(config: Any) -> None:
    """Refuses a config of a codec whose values have wrong types or numbers that are not positive; lists become tuples.

    Raises:
        ValueError: a value is not what its field wants; the message names the field.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        object.__setattr__(config, field.name, _checked(hints[field.name], value, field.name))


def _checked(hint: Any, value: Any, name: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if value is None else _checked(options[0], value, name)
    if origin is typing.Literal:
        if value not in options:
            raise ValueError(f"{name} is {value!r:.40}; it must be one of {', '.join(map(repr, options))}")
        return value
    if origin is tuple:
        if not isinstance(value, (tuple, list)) or len(value) != len(options):
            raise ValueError(f"{name} is {value!r:.40}; it must be {len(options)} numbers")
        return tuple(_checked(option, item, name) for option, item in zip(options, value, strict=True))
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise ValueError(f"{name} is {value!r:.40}; it must be of type {hint.__name__}")
    if hint is not bool and not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; it must be more than 0")
    return value


def fit(data: np.ndarray, length: int) -> np.ndarray:
    """The first `length` samples of data (N,) uint8; what a model left out is 0."""
    if len(data) >= length:
        return data[:length]
    return np.concatenate([data, np.zeros(length - len(data), np.uint8)])


class _Silence:
    """While any thread is inside, stderr of the process leads nowhere and warnings are ignored.

    The C libraries write to stderr themselves. What was there is put back by the last thread that leaves.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.outside = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 2)
                os.close(nowhere)
                self.outside.callback(os.close, kept)
                self.outside.callback(os.dup2, kept, 2)
                self.outside.enter_context(warnings.catch_warnings(action="ignore"))
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.outside.close()


_SILENCE = _Silence()
