"""Codecs: a file becomes a segment, and a segment the content of a file.

In: a path. Out: `Segment`, or a `Document` of one. Cost: text and bytes are memory-mapped and cost nothing until they
are read; media are decoded.

A codec is a module in this folder; a new modality is a new file here and nothing else. It has
`MODALITY` (its name), `MARK` (the reserved id that opens its segments), `SUFFIXES` (lower-case file suffixes that it
takes), `encode(path) -> Segment` and `decode(segment) -> bytes` (the content of a file). A codec whose payload is the
file itself, byte for byte, also says `FILE_IS_PAYLOAD = True`, and a corpus then maps the file and never calls
`encode`. Heavy imports go inside its functions: all codecs are imported with this package.
"""

import codecs as _python_codecs
import importlib
import pkgutil
from os import PathLike
from pathlib import Path
from types import ModuleType

from byteloom.codecs import raw
from byteloom.documents import DataError, Document

SNIFFED_BYTES = 64 << 10

_CODECS: dict[str, ModuleType] = {
    codec.MODALITY: codec
    for codec in (importlib.import_module(f"{__name__}.{entry.name}") for entry in pkgutil.iter_modules(__path__))
}

MARKS: dict[str, int] = {modality: codec.MARK for modality, codec in _CODECS.items()}
"""The MARK id of each modality."""


def by_modality(name: str) -> ModuleType:
    """The codec module of a modality.

    Raises:
        ValueError: no codec has that name.
    """
    if name not in _CODECS:
        raise ValueError(f"modality {name!r} is unknown; known: {', '.join(sorted(_CODECS))}")
    return _CODECS[name]


def for_path(path: str | PathLike[str]) -> ModuleType:
    """The codec module for a file: by its suffix, else text or bytes by its first 64 KiB.

    Text is valid UTF-8 without a NUL; a character that the end of the 64 KiB cuts is allowed.

    Raises:
        DataError: the suffix says nothing and the file cannot be read.
    """
    suffix = Path(path).suffix.lower()
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


def read(path: str | PathLike[str], modality: str | None = None) -> Document:
    """Reads a file as a document of one segment, with the codec of `modality` or else the one for its name and content.

    Raises:
        DataError: the file is missing, a folder, unreadable or damaged.
        ValueError: `modality` is unknown.
    """
    codec = by_modality(modality) if modality is not None else for_path(path)
    return Document(segments=(codec.encode(path),), name=Path(path).name)


def _is_text(head: bytes) -> bool:
    if b"\0" in head:
        return False
    try:
        _python_codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < SNIFFED_BYTES)
    except UnicodeDecodeError:
        return False
    return True
