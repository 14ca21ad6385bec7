"""Where documents come from: paths in, documents whose payload has not been read out.

In: files, folders and manifests, and addresses of files and folders elsewhere. Out: name and `Source`s of each
document, in the order of the names. Cost: a look at each file's name and size, and at the start of those that a suffix
does not settle; the names of one folder at a time; media are decoded, and files elsewhere fetched, when their document
is due.
"""

import os
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from byteloom import codecs, manifests
from byteloom.codecs import MediaConfig, raw
from byteloom.documents import DataError
from byteloom.remote import RemoteFile, each_remote_file, fetched, is_address

AnyPath = str | PathLike[str]
CHECKED_BYTES = 64 << 10
"""Bytes of a prepared file for each of its checksums."""
CONFIG_BYTES = 64 << 10
"""Of a model's config.json, whose first fields say that it is of byteloom."""
KEPT_BYTES = 1 << 20
"""A remote file up to this size is kept in memory; a larger one in a file that has no name any more."""


class PayloadFile(NamedTuple):
    """A file that holds payload and nothing else."""

    path: Path
    dtype: str
    length: int  # in ids
    checks: np.ndarray | None = None  # (N,) uint32: the CRC-32 of every `CHECKED_BYTES` of it, where they are known


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
    for name, parts in each_entry(paths, modality, media, skipped):
        try:
            sources = sources_of(parts)
        except DataError as error:
            skipped.append((name, str(error)))
        else:
            yield name, sources


def each_entry(
    paths: AnyPath | Sequence[AnyPath], modality: str | None, media: MediaConfig, skipped: list[tuple[str, str]]
) -> Iterator[tuple[str, list[manifests.Part]]]:
    """Name and parts of every document of `paths`, of which nothing has been read; as `each_document`."""
    for file_name, path, size in each_file(paths, skipped):
        if modality is None and isinstance(path, Path) and manifests.is_manifest(path):
            yield from manifests.each_line(path, file_name, media, skipped)
        else:
            yield file_name, [manifests.Part(modality, path, size, media)]


def sources_of(parts: Sequence[manifests.Part]) -> list[Source]:
    """The segments of a document. Raises DataError where a part cannot be read, or none holds any bytes."""
    sources = [source for part in parts for source in _sources(part)]
    if not any(payload_length(source.payload) for source in sources):
        raise DataError("holds no bytes; put something in")
    return sources


def each_file(
    paths: AnyPath | Sequence[AnyPath], skipped: list[tuple[str, str]]
) -> Iterator[tuple[str, Path | RemoteFile, int]]:
    """Name, path and size of every file of `paths` that has bytes; what is passed over for a reason goes to `skipped`.

    A file in a folder is named by its path in it, with the folder's name in front where there are several paths.

    Raises:
        DataError: a path is missing, or a file that was named itself is unreadable or empty.
    """
    roots = path_list(paths)
    for root in roots:
        if isinstance(root, Path) and not root.is_dir():
            size = raw.file_size(root)
            if size == 0:
                raise DataError(f"{root}: is empty; name a file with something in it")
            yield root.name, root, size
            continue
        title = PurePosixPath(root).name if isinstance(root, str) else root.resolve().name
        prefix = f"{title}/" if len(roots) > 1 else ""
        files = _each_remote(root, prefix) if isinstance(root, str) else _each_below(root, prefix, skipped)
        for name, path, size in files:
            if size == 0:
                skipped.append((name, "is empty"))
            else:
                yield name, path, size


def path_list(paths: AnyPath | Sequence[AnyPath]) -> list[Path | str]:
    """One path or several, as a list: as `located` has each."""
    return [located(path) for path in ([paths] if isinstance(paths, (str, PathLike)) else paths)]


def located(path: AnyPath) -> Path | str:
    """An address as text, anything else as a path, also where it begins with file://."""
    path = path.removeprefix("file://") if isinstance(path, str) else path
    return str(path) if is_address(path) else Path(path)


def map_payload(file: PayloadFile | np.ndarray) -> np.ndarray:
    """Payload, mapped where it is a file. Raises DataError when the file is gone or has shrunk."""
    if isinstance(file, np.ndarray):
        return file
    check_size(file)
    try:
        return (
            np.memmap(file.path, file.dtype, mode="r", shape=(file.length,)) if file.length else np.empty(0, np.uint8)
        )
    except (OSError, ValueError) as error:
        raise DataError(f"{file.path}: cannot be read ({error}); start again") from error


def check_size(file: PayloadFile) -> None:
    """Raises DataError when a file is gone or has shrunk."""
    try:
        size = os.stat(file.path).st_size
    except (OSError, ValueError) as error:
        raise DataError(f"{file.path}: cannot be read ({error}); start again") from error
    if size < file.length * np.dtype(file.dtype).itemsize:
        raise DataError(f"{file.path}: has shrunk since it was opened; start again")


def payload_length(payload: PayloadFile | np.ndarray) -> int:
    """Length of payload in ids."""
    return payload.length if isinstance(payload, PayloadFile) else len(payload)


def _each_below(root: Path, prefix: str, skipped: list[tuple[str, str]]) -> Iterator[tuple[str, Path, int]]:
    """The files below a folder in the order of their relative paths, without hidden ones and links that leave it."""
    home = os.path.realpath(root)
    # A folder stands for its files with a "/" at the end of its name, which puts them where their paths belong; so
    # only the names of folders on the way down are held.
    waiting = [b"/"]
    while waiting:
        place = waiting.pop()
        name = os.fsdecode(place.strip(b"/"))
        path = os.path.join(root, name)
        if not place.endswith(b"/"):
            if os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(home):
                continue
            try:
                yield prefix + name, Path(path), raw.file_size(path)
            except DataError as error:
                skipped.append((prefix + name, str(error)))
            continue
        try:
            with os.scandir(path) as entries:
                inside = [(os.fsencode(entry.name), _is_folder(entry)) for entry in entries]
        except OSError as error:
            skipped.append((str(error.filename), f"cannot be read ({error.strerror})"))
            continue
        names = [found for found, _ in inside]
        if name and b"manifest.json" in names and any(found.endswith(b".lengths.npy") for found in names):
            continue  # prepared data are no raw files
        if name and b"config.json" in names and _is_run(path, names):
            continue  # nor are runs and models, such as one that learns from the folder that it lies in
        before = place.lstrip(b"/")
        inside = [(found, is_folder) for found, is_folder in inside if not found.startswith(b".")]
        waiting += sorted(
            (before + found + b"/" * is_folder for found, is_folder in inside if is_folder is not None), reverse=True
        )


def _is_run(path: str, names: Sequence[bytes]) -> bool:
    """Whether a folder with a config.json, in which these names are, holds a model of byteloom or its checkpoints."""
    if not any(name == b"checkpoints" or name.endswith(b".safetensors") for name in names):
        return False
    try:
        with open(os.path.join(path, "config.json"), "rb") as file:
            return b'"byteloom"' in file.read(CONFIG_BYTES)
    except OSError:
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool | None:
    """Whether an entry is a folder; None for a link to one, which is not followed."""
    if entry.is_dir(follow_symlinks=False):
        return True
    return None if entry.is_symlink() and os.path.isdir(entry.path) else False


def _each_remote(address: str, prefix: str) -> Iterator[tuple[str, RemoteFile, int]]:
    """The files behind an address, without those of prepared data."""
    files = list(each_remote_file(address))
    folders = [PurePosixPath(name).parent for name, _, _ in files if PurePosixPath(name).name == "manifest.json"]
    tables = {PurePosixPath(name).parent for name, _, _ in files if name.endswith(".lengths.npy")}
    prepared = tables.intersection(folders)
    for name, file, size in files:
        if PurePosixPath(name).parent not in prepared:
            yield (prefix if file.name else "") + name, file, size


def _sources(part: manifests.Part) -> list[Source]:
    """What a codec makes of a file; a file that is payload is left alone."""
    if isinstance(part.source, bytes):
        return [Source(str(part.modality), b"", np.frombuffer(part.source, np.uint8))]
    if isinstance(part.source, RemoteFile):
        return _fetched_sources(part.source, part)
    codec = codecs.by_modality(part.modality) if part.modality is not None else codecs.for_path(part.source, part.media)
    if getattr(codec, "FILE_IS_PAYLOAD", False):
        return [Source(codec.MODALITY, b"", PayloadFile(part.source, "|u1", part.size))]
    segments = codecs.read(part.source, part.modality, part.media).segments
    return [Source(segment.modality, segment.header, segment.data) for segment in segments]


def _fetched_sources(file: RemoteFile, part: manifests.Part) -> list[Source]:
    with fetched(file) as copy:
        if part.modality is None and manifests.is_manifest(copy):
            raise DataError(f"{copy}: is a manifest, whose files must lie on this disk; copy its folder here")
        segments = codecs.read(copy, part.modality, part.media).segments
        return [
            Source(part.modality, part.header, np.array(part.data) if part.data.nbytes <= KEPT_BYTES else part.data)
            for part in segments
        ]
