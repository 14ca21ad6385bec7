"""Codecs: a file becomes segments, and a segment the content of a file.

In: a path. Out: `Segment`s, or a `Document` of them. Cost: text and bytes are memory-mapped and cost nothing until they
are read; media are decoded, at most `MAX_PAYLOAD` bytes of samples a file.

A codec is a module in this folder; a new modality is a new file here and nothing else. It has

    MODALITY, MARK      its name, and the reserved id that opens its segments
    SUFFIXES            lower-case file suffixes that it takes
    FILE_SUFFIX         the suffix of what `decode` writes where none is asked for; it loses nothing
    HEADER_BYTES        size of the header of its segments, 0 where they need none
    Config              its options, a frozen dataclass; only where it has any. Its property `headerless` names the
                        suffixes of files that are bare samples by these options
    encode(path, config) -> tuple[Segment, ...]    one segment, or one for each item of a file without a header;
                                                   without `config` where the codec has none
    decode(segment, suffix) -> bytes               the content of a file in the format of that suffix
    payload_size(header) -> int | None             how many ids a header asks for; None where they run until they end

`decode` takes whatever a model wrote: samples that are missing are 0, too many are cut; a header that makes no sense
is a ValueError. Codecs of media have `to_array(segment)` and `from_array(array, ...)` too, and those of sound and video
`unit_size(header)`, the ids of one sample of every channel or of one frame. A codec whose payload is the file itself,
byte for byte, says `FILE_IS_PAYLOAD = True`, and a corpus then maps the file and never calls `encode`. Heavy imports go
inside its functions: all codecs are imported with this package.
"""

import codecs as _python_codecs
import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from byteloom.codecs import raw
from byteloom.documents import DataError, Document
from byteloom.media import MAX_PAYLOAD as MAX_PAYLOAD

SNIFFED_BYTES = 64 << 10

_CODECS: dict[str, ModuleType] = {
    codec.MODALITY: codec
    for codec in (importlib.import_module(f"{__name__}.{entry.name}") for entry in pkgutil.iter_modules(__path__))
}

MARKS: dict[str, int] = {modality: codec.MARK for modality, codec in _CODECS.items()}
"""The MARK id of each modality."""

HEADERS: dict[str, int] = {modality: codec.HEADER_BYTES for modality, codec in _CODECS.items()}
"""Bytes in the header of a segment of each modality."""

if TYPE_CHECKING:

    @dataclasses.dataclass(frozen=True, init=False)
    class MediaConfig:
        """How media files are read: the options of each codec that has some, by the name of its modality."""

        def __init__(self, **options: Any) -> None: ...

        def __getattr__(self, modality: str) -> Any: ...

else:
    MediaConfig = dataclasses.make_dataclass(
        "MediaConfig",
        [(name, codec.Config, codec.Config()) for name, codec in _CODECS.items() if hasattr(codec, "Config")],
        namespace={
            "__doc__": "How media files are read: the options of each codec that has some, by its modality's name.",
            "__module__": __name__,
        },
        frozen=True,
        kw_only=True,
    )

DEFAULT_MEDIA = MediaConfig()


def by_modality(name: str) -> ModuleType:
    """The codec module of a modality.

    Raises:
        ValueError: no codec has that name.
    """
    if name not in _CODECS:
        raise ValueError(f"modality {name!r} is unknown; known: {', '.join(sorted(_CODECS))}")
    return _CODECS[name]


def for_path(path: str | PathLike[str], media: MediaConfig = DEFAULT_MEDIA) -> ModuleType:
    """The codec module for a file: by its suffix, else text or bytes by its first 64 KiB.

    A suffix that stands for bare samples, such as .bin, is that of a codec whose options in `media` say their shape or
    rate. Text is valid UTF-8 without a NUL; a character that the end of the 64 KiB cuts is allowed.

    Raises:
        DataError: the suffix says nothing and the file cannot be read, or two codecs' options ask for it.
    """
    suffix = Path(path).suffix.lower()
    with_options = [field.name for field in dataclasses.fields(MediaConfig)]
    bare = [name for name in with_options if suffix in getattr(media, name).headerless]
    if len(bare) > 1:
        raise DataError(f"{path}: may be {' or '.join(bare)} by the options given; say which with --modality")
    if bare:
        return by_modality(bare[0])
    for codec in _CODECS.values():
        if suffix in codec.SUFFIXES:
            return codec
    raw.file_size(path)  # refuses a pipe, which to open would wait for ever
    try:
        with open(path, "rb") as file:
            head = file.read(SNIFFED_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    return by_modality("text" if _is_text(head) else "bytes")


def read(path: str | PathLike[str], modality: str | None = None, media: MediaConfig = DEFAULT_MEDIA) -> Document:
    """Reads a file as a document, with the codec of `modality` or else the one for its name and content.

    Raises:
        DataError: the file is missing, a folder, unreadable or damaged, or too large as media.
        ValueError: `modality` is unknown.
    """
    codec = by_modality(modality) if modality is not None else for_path(path, media)
    config = (getattr(media, codec.MODALITY),) if hasattr(codec, "Config") else ()
    return Document(segments=codec.encode(path, *config), name=Path(path).name)


def payload_size(modality: str, header: bytes) -> int | None:
    """How many ids of data the header of a segment asks for; None where they run until they end.

    Raises:
        ValueError: the modality is unknown, or no file of it has such a header.
    """
    return by_modality(modality).payload_size(header)


def media_from_dict(values: Mapping[str, Any]) -> MediaConfig:
    """A `MediaConfig` from what `dataclasses.asdict` and JSON made of one; what is missing has its default.

    Raises:
        ValueError: a modality or an option is unknown, or a value is refused by its config; the message names it.
    """
    known = {field.name: by_modality(field.name).Config for field in dataclasses.fields(MediaConfig)}
    configs = {}
    for modality, options in values.items():
        if modality not in known:
            raise ValueError(f"media has no options for {modality!r:.40}; it has some for {', '.join(sorted(known))}")
        if not isinstance(options, Mapping):
            raise ValueError(f"media.{modality} must be an object with options, not {options!r:.40}")
        names = [field.name for field in dataclasses.fields(known[modality])]
        for name in options:
            if name not in names:
                raise ValueError(f"media.{modality}.{name} is no option; there are {', '.join(names)}")
        try:
            configs[modality] = known[modality](**options)
        except ValueError as error:
            raise ValueError(f"media.{modality}.{error}") from error
    return MediaConfig(**configs)


def _is_text(head: bytes) -> bool:
    if b"\0" in head:
        return False
    try:
        _python_codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < SNIFFED_BYTES)
    except UnicodeDecodeError:
        return False
    return True
