"""Manifests: documents that are made of several files or of files and text, one document a line.

    [{"modality": "text", "text": "A red square."}, {"modality": "image", "path": "pictures/1.png"}]
    [{"modality": "video", "path": "b.mp4"}, {"modality": "audio", "path": "b.pcm", "raw_rate": 8000}]

In: a .jsonl file whose first line, of at most 64 KiB, is a list of objects that all have a "modality"; any other .jsonl
file is text. Out: for each line its parts, checked but not read. Cost: one line at a time.

A part is a file, its path relative to the manifest's folder, which it must not leave; or text that stands in the
manifest, for modalities whose payload is the file itself. Empty text is a stream that is missing. What else a part says
are options of its codec, over those of the run.
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from byteloom import codecs
from byteloom.codecs import MediaConfig, raw
from byteloom.documents import DataError
from byteloom.remote import RemoteFile

SUFFIX = ".jsonl"
SNIFFED_BYTES = 64 << 10
MAX_LINE_BYTES = 16 << 20


class Part(NamedTuple):
    """A file to be read, or payload as it is."""

    modality: str | None  # None: by the file's suffix and content
    source: Path | RemoteFile | bytes
    size: int  # in bytes
    media: MediaConfig


def is_manifest(path: str | PathLike[str]) -> bool:
    """Whether a file is a manifest, by its suffix and its first line."""
    path = Path(path)
    if path.suffix.lower() != SUFFIX or not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            parts = json.loads(file.readline(SNIFFED_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    return (
        isinstance(parts, list) and parts != [] and all(isinstance(part, dict) and "modality" in part for part in parts)
    )


def each_line(
    path: Path, name: str, media: MediaConfig, skipped: list[tuple[str, str]]
) -> Iterator[tuple[str, list[Part]]]:
    """The documents of a manifest: the name of each, "`name`:17" on line 17, and its parts. Blank lines are none.

    A line that makes no sense, or names a file that is missing, empty or outside the folder, goes to `skipped`.

    Args:
        path: the manifest.
        name: what its documents are named after.
        media: how media files are read where a part does not say otherwise.
        skipped: gets the name of each bad line and what is wrong with it.

    Raises:
        DataError: the manifest cannot be read.
    """
    folder = path.parent.resolve()
    try:
        with open(path, "rb") as file:
            for number in itertools.count(1):
                line = file.readline(MAX_LINE_BYTES)
                if not line:
                    return
                rest = line
                while len(rest) == MAX_LINE_BYTES and not rest.endswith(b"\n"):
                    rest = file.readline(MAX_LINE_BYTES)
                try:
                    if rest is not line:
                        raise ValueError(f"is longer than {MAX_LINE_BYTES} bytes; keep long text in a file of its own")
                    parts = _parse(line, folder, media) if line.strip() else []
                except (ValueError, TypeError, DataError) as error:
                    skipped.append((f"{name}:{number}", str(error)))
                    continue
                if parts:
                    yield f"{name}:{number}", parts
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def _parse(line: bytes, folder: Path, media: MediaConfig) -> list[Part]:
    """The parts of a document. Raises ValueError, TypeError or DataError for the first that makes no sense."""
    try:
        entries = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error}); write one list of objects a line") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError('is not a list of parts; write [{"modality": ..., "path": ...}, ...]')
    return [_part(entry, folder, media) for entry in entries]


def _part(entry: Any, folder: Path, media: MediaConfig) -> Part:
    if not isinstance(entry, dict) or not isinstance(entry.get("modality"), str):
        raise ValueError('has a part that is no object with a "modality"')
    modality, path, text = entry["modality"], entry.get("path"), entry.get("text")
    codec = codecs.by_modality(modality)
    options = {key: value for key, value in entry.items() if key not in ("modality", "path", "text")}
    config = getattr(media, modality, None)
    known = [field.name for field in dataclasses.fields(config)] if config is not None else []
    for option in options:
        if option not in known:
            raise ValueError(f"{modality} has no option {option!r}; it has {', '.join(known) or 'none'}")
    if config is not None and options:
        media = dataclasses.replace(media, **{modality: dataclasses.replace(config, **options)})
    if isinstance(text, str) and path is None:
        if not getattr(codec, "FILE_IS_PAYLOAD", False):
            raise ValueError(f'{modality} cannot be written as "text"; name a file as its "path"')
        content = text.encode("utf-8")
        return Part(modality, content, len(content), media)
    if not isinstance(path, str) or text is not None:
        raise ValueError(f'{modality} needs a "path" or a "text", one of them, a string')
    file = _inside(folder, path)
    size = raw.file_size(file)
    if size == 0:
        raise ValueError(f'{path} is empty; write "text": "" with modality text for a stream that is missing')
    return Part(modality, file, size, media)


def _inside(folder: Path, path: str) -> Path:
    """A file in a folder. Raises ValueError when its path, or a link in it, leads out of the folder."""
    file = folder / path
    inside = Path(os.path.realpath(file)).is_relative_to(folder)
    if not inside or Path(path).is_absolute() or ".." in Path(path).parts:
        raise ValueError(f"{path} leads out of the manifest's folder; put the file into it")
    return file
