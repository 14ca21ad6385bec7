"""Bytes: any file as it is.

In: a path. Out: a segment whose data is the file, memory-mapped read-only. Cost: no memory; pages are read when they
are touched. The file must not shrink while the segment is in use.
"""

import os
import stat
from os import PathLike

import numpy as np

from byteloom.documents import DataError, Segment

MODALITY = "bytes"
MARK = 259
HEADER_BYTES = 0
FILE_SUFFIX = ".bin"
FILE_IS_PAYLOAD = True
SUFFIXES = frozenset(
    ".7z .a .bin .bz2 .class .dll .dylib .elf .exe .gz .lz4 .o .obj .pdf .pyc .so .tar .tgz .wasm .xz .zip .zst".split()
)


def encode(path: str | PathLike[str]) -> tuple[Segment, ...]:
    """The file as it is. Raises DataError when it cannot be mapped."""
    return (Segment(modality=MODALITY, data=map_file(path)),)


def decode(segment: Segment, suffix: str = "") -> bytes:
    """The bytes of the segment, whatever the suffix. Raises ValueError when its ids are not bytes."""
    return payload(segment).tobytes()


def payload_size(header: bytes) -> int | None:
    """None: a file is as long as it is."""
    return None


def payload(segment: Segment) -> np.ndarray:
    """The data of a segment of bytes, (N,) uint8. Raises ValueError when its ids are not bytes."""
    if segment.data.dtype != np.uint8 and (segment.data > 255).any():
        raise ValueError(f"a {segment.modality} segment holds ids above 255; its payload must be bytes")
    return segment.data.astype(np.uint8, copy=False)


def map_file(path: str | PathLike[str]) -> np.ndarray:
    """The content of a file (N,) uint8, mapped read-only; an empty array for an empty file.

    Raises:
        DataError: it is missing, not a regular file, or unreadable.
    """
    if file_size(path) == 0:
        return np.empty(0, np.uint8)
    try:
        return np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); check its permissions") from error


def file_size(path: str | PathLike[str]) -> int:
    """Size of a readable regular file in bytes, without opening it.

    Raises:
        DataError: it is missing, not a regular file, or unreadable.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be found ({reason}); check the path") from error
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{path}: is a folder where a file is wanted; name a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: is not a regular file; copy its content to one")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: cannot be read (Permission denied); check its permissions")
    return status.st_size
