"""Where documents come from: paths in, documents whose payload has not been read out.

In: files, folders and manifests. Out: name and `Source`s of each document, in the order of the names. Cost: a look at
each file's name and size, and at the start of those that a suffix does not settle; media are decoded when their
document is due.
"""

import os
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from byteloom import codecs, manifests
from byteloom.codecs import MediaConfig, raw
from byteloom.documents import DataError

AnyPath = str | PathLike[str]


class PayloadFile(NamedTuple):
    """A file that holds payload and nothing else."""

    path: Path
    dtype: str
    length: int  # in ids


class Source(NamedTuple):
    """A segment whose payload has not been read."""

    modality: str
    header: bytes
    payload: PayloadFile | np.ndarray


def each_document(
    paths: AnyPath | Sequence[AnyPath], modality: str | None, media: MediaConfig, skipped: list[tuple[str, str]]
) -> Iterator[tuple[str, list[Source]]]:
    """Name and segments of every document of `paths`; what gives none goes to `skipped`. As `Corpus.from_paths`.

    Media are decoded when their document is due; files that are payload are not opened.

    Raises:
        DataError: as `each_file`.
        ValueError: `modality` is unknown.
    """
    for file_name, path, size in each_file(paths, skipped):
        if modality is None and manifests.is_manifest(path):
            documents = manifests.each_line(path, file_name, media, skipped)
        else:
            documents = iter([(file_name, [manifests.Part(modality, path, size, media)])])
        for name, parts in documents:
            try:
                sources = [source for part in parts for source in _sources(part)]
                if not any(payload_length(source.payload) for source in sources):
                    raise DataError("holds no bytes; put something in")
            except DataError as error:
                skipped.append((name, str(error)))
            else:
                yield name, sources


def each_file(paths: AnyPath | Sequence[AnyPath], skipped: list[tuple[str, str]]) -> Iterator[tuple[str, Path, int]]:
    """Name, path and size of every file of `paths` that has bytes; what is passed over for a reason goes to `skipped`.

    A file in a folder is named by its path in it, with the folder's name in front where there are several paths.

    Raises:
        DataError: a path is missing, or a file that was named itself is unreadable or empty.
    """
    roots = path_list(paths)
    for root in roots:
        if not root.is_dir():
            size = raw.file_size(root)
            if size == 0:
                raise DataError(f"{root}: is empty; name a file with something in it")
            yield root.name, root, size
            continue
        for path in _walk(root, skipped):
            name = path.relative_to(root).as_posix()
            name = f"{root.resolve().name}/{name}" if len(roots) > 1 else name
            try:
                size = raw.file_size(path)
            except DataError as error:
                skipped.append((name, str(error)))
                continue
            if size == 0:
                skipped.append((name, "is empty"))
            else:
                yield name, path, size


def path_list(paths: AnyPath | Sequence[AnyPath]) -> list[Path]:
    """One path or several, as a list."""
    return [Path(paths)] if isinstance(paths, (str, PathLike)) else [Path(path) for path in paths]


def map_payload(file: PayloadFile | np.ndarray) -> np.ndarray:
    """Payload, mapped where it is a file. Raises DataError when the file is gone or has shrunk."""
    if isinstance(file, np.ndarray):
        return file
    try:
        size = file.path.stat().st_size
        if size < file.length * np.dtype(file.dtype).itemsize:
            raise DataError(f"{file.path}: has shrunk since it was opened; start again")
        return (
            np.memmap(file.path, file.dtype, mode="r", shape=(file.length,)) if file.length else np.empty(0, np.uint8)
        )
    except (OSError, ValueError) as error:
        raise DataError(f"{file.path}: cannot be read ({error}); start again") from error


def payload_length(payload: PayloadFile | np.ndarray) -> int:
    """Length of payload in ids."""
    return payload.length if isinstance(payload, PayloadFile) else len(payload)


def _walk(root: Path, skipped: list[tuple[str, str]]) -> list[Path]:
    """The files below a folder in the order of their relative paths, without hidden ones and links that leave it."""
    home = root.resolve()
    found: list[Path] = []

    def unreadable(error: OSError) -> None:
        skipped.append((str(error.filename), f"cannot be read ({error.strerror})"))

    for folder, folders, files in os.walk(root, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        shards = "manifest.json" in files and any(name.endswith(".lengths.npy") for name in files)
        if shards and Path(folder) != root:  # prepared data are no raw files
            folders.clear()
            continue
        for name in files:
            path = Path(folder, name)
            inside = not path.is_symlink() or Path(os.path.realpath(path)).is_relative_to(home)
            if not name.startswith(".") and inside:
                found.append(path)
    return sorted(found, key=lambda path: path.relative_to(root).as_posix().encode("utf-8", "surrogateescape"))


def _sources(part: manifests.Part) -> list[Source]:
    """What a codec makes of a file; a file that is payload is left alone."""
    if isinstance(part.source, bytes):
        return [Source(str(part.modality), b"", np.frombuffer(part.source, np.uint8))]
    codec = codecs.by_modality(part.modality) if part.modality is not None else codecs.for_path(part.source, part.media)
    if getattr(codec, "FILE_IS_PAYLOAD", False):
        return [Source(codec.MODALITY, b"", PayloadFile(part.source, "|u1", part.size))]
    segments = codecs.read(part.source, part.modality, part.media).segments
    return [Source(segment.modality, segment.header, segment.data) for segment in segments]
