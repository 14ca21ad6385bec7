"""Prepared data: documents in memory-mapped shards, written once and read many times.

In: files, folders, documents. Out: a folder that opens as a `Corpus` in a moment, whatever its size:

    manifest.json         format, counts, modalities, how media were read, and size and sha256 of every other file
    00000.ids             payload of the shard's segments end to end: uint8, or as wide as its ids need, little-endian
    00000.lengths.npy     (segments,) int64   ids of each segment
    00000.marks.npy       (segments,) uint16  its MARK
    00000.headers.npy     (segments, 1 + W) uint8  length of its header and the header; only where one is not empty
    00000.counts.npy      (documents,) int64  segments of each document
    00000.names.json      names of the documents

BOS, MARK, EOS and PAD are structure: they are not stored but put in on reading. A folder is written whole
or not at all.
"""

import dataclasses
import hashlib
import itertools
import json
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from byteloom import codecs
from byteloom.codecs import DEFAULT_MEDIA, MediaConfig
from byteloom.corpus import Corpus, concatenate, header_rows, known_marks, no_bytes
from byteloom.documents import MAX_HEADER_BYTES, DataError, Document, Segment, check_payload
from byteloom.sources import AnyPath, PayloadFile, each_document, map_payload, path_list

FORMAT = "byteloom-corpus"
VERSION = 2  # 1 had no headers and says nothing of media; else they are the same, and both are read
MAX_MANIFEST_BYTES = 256 << 20
CHUNK = 8 << 20
DTYPES = ("|u1", "<u2", "<u4")
ARRAYS = {"lengths": np.dtype(np.int64), "marks": np.dtype(np.uint16), "counts": np.dtype(np.int64)}


def is_prepared(path: AnyPath) -> bool:
    """Whether a path is a folder that `write` made, damaged or not."""
    folder = Path(path)
    try:
        with open(folder / "manifest.json", "rb") as file:
            head = file.read(4096)
    except OSError:
        head = b""
    return f'"{FORMAT}"'.encode() in head or (folder / "00000.lengths.npy").exists()


def open_prepared(folder: AnyPath, verify: bool = False) -> "Corpus":
    """A prepared corpus. Sizes are always checked against the manifest, checksums with `verify`.

    Raises:
        DataError: the folder is no corpus, or it is damaged; the message names the file.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    path = folder / "manifest.json"
    try:
        modalities = {_count(mark): str(name) for name, mark in manifest["modalities"].items()}
        shards = [_open_shard(folder, number, shard, verify) for number, shard in enumerate(manifest["shards"])]
        totals = [_count(manifest[key]) for key in ("documents", "segments", "bytes")]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, f"its field {error} is missing or wrong") from error
    try:
        known_marks({name: mark for mark, name in modalities.items()})
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    corpus = dataclasses.replace(concatenate(shards), modalities=modalities)
    if [len(corpus), len(corpus.segment_lengths), corpus.num_bytes] != totals:
        raise _damaged(path, "its totals are not the sum of its shards")
    if not np.isin(corpus.segment_marks, list(modalities)).all():
        raise _damaged(path, "a segment has a modality that it does not list")
    return corpus


def media_of(folder: AnyPath) -> dict[str, Any] | None:
    """How the media in a prepared corpus were read: the options of each modality in it that has some.

    None where it holds no media, or does not say. `codecs.media_from_dict` makes a config of it.

    Raises:
        DataError: the folder is no corpus, or it is damaged.
    """
    folder = Path(folder)
    media = _read_manifest(folder).get("media")
    if media is not None and not (isinstance(media, dict) and all(isinstance(part, dict) for part in media.values())):
        raise _damaged(folder / "manifest.json", "its field media is wrong")
    return media


def open_data(
    paths: AnyPath | Sequence[AnyPath], modality: str | None = None, media: MediaConfig = DEFAULT_MEDIA
) -> Corpus:
    """Files, folders, manifests and prepared corpora, in the order given, as one corpus.

    Args:
        paths: a folder that `prepare` wrote is opened as such, anything else as in `Corpus.from_paths`.
        modality: read every raw file as this one.
        media: how media files become samples.

    Raises:
        DataError: as `Corpus.from_paths` and `open_prepared`.
    """
    corpora = []
    for prepared, group in itertools.groupby(path_list(paths), is_prepared):
        members = list(group)
        corpora += map(open_prepared, members) if prepared else [Corpus.from_paths(members, modality, media)]
    if not corpora:
        raise DataError("no data given; name a file or a folder")
    return corpora[0] if len(corpora) == 1 else concatenate(corpora)


def write(
    documents: Iterable[Document],
    out: AnyPath,
    *,
    marks: Mapping[str, int] | None = None,
    media: Mapping[str, Any] | None = None,
    shard_bytes: int = 256 << 20,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes documents as a prepared corpus, whole or not at all, and returns its manifest.

    Args:
        documents: read once; each goes whole into one shard.
        out: the folder to make; its parent folders are made too.
        marks: the MARK of each modality that no codec has, such as tokens of a model, 280-303.
        media: the options of each modality with which the documents were read, for `media_of`. It is looked at when the
            documents are written; only what belongs to modalities that occur is kept.
        shard_bytes: a shard is closed when it has reached this size.
        overwrite: replace a corpus that is there. Nothing but a corpus is ever replaced.

    Raises:
        DataError: `out` is taken.
        ValueError: a modality is unknown, its mark is taken, or payload holds reserved ids.
    """
    known = known_marks(marks)
    out = Path(out).absolute()
    if out.exists() and not (is_prepared(out) and overwrite) and not (out.is_dir() and not any(out.iterdir())):
        cure = "name another folder, or ask to overwrite it" if is_prepared(out) else "name a folder that does not"
        raise DataError(f"{out}: exists already; {cure}")
    token = secrets.token_hex(4)
    partial = out.with_name(f".{out.name}.{token}.partial")
    partial.mkdir(parents=True)
    try:
        shards, shard = [], None
        for document in documents:
            shard = shard or _ShardWriter(partial, len(shards), known)
            shard.add(document)
            if shard.ids.tell() >= shard_bytes:
                shards.append(shard.close())
                shard = None
        if shard:
            shards.append(shard.close())
        used = {mark for entry in shards for mark in entry.pop("marks")}
        modalities = {name: mark for name, mark in known.items() if mark in used}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            **{key: sum(entry[key] for entry in shards) for key in ("documents", "segments", "bytes")},
            "modalities": modalities,
            "media": {name: options for name, options in (media or {}).items() if name in modalities} or None,
            "shards": shards,
        }
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        if is_prepared(out):
            old = out.with_name(f".{out.name}.{token}.old")
            out.rename(old)
            partial.rename(out)
            shutil.rmtree(old)
        else:
            partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest


def prepare(
    paths: AnyPath | Sequence[AnyPath],
    out: AnyPath,
    *,
    modality: str | None = None,
    media: MediaConfig = DEFAULT_MEDIA,
    shard_bytes: int = 256 << 20,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Reads files, folders, manifests and prepared corpora with their codecs and writes one prepared corpus.

    A file that cannot be read or decoded is skipped and counted, as is a bad line of a manifest; none ends the run.

    Returns:
        `documents`, `segments`, `bytes`, `modalities` (bytes of each) and `skipped` (a list of `file` and `reason`).

    Raises:
        DataError: a path is missing, `out` is taken, no file gave any bytes, or media were read in two ways.
        ValueError: `modality` is unknown.
    """
    if modality is not None:
        codecs.by_modality(modality)
    skipped: list[tuple[str, str]] = []
    sizes: dict[str, int] = {}
    options: dict[str, Any] = {}
    prepared = {path: open_prepared(path) for path in path_list(paths) if is_prepared(path)}
    ours = json.loads(json.dumps(dataclasses.asdict(media)))  # as a manifest has it: lists for tuples

    def documents() -> Iterator[Document]:
        for path in path_list(paths):
            found = prepared[path] if path in prepared else _read_each(path, modality, media, skipped)
            made = (media_of(path) or {}) if path in prepared else ours
            for document in found:
                for segment in document.segments:
                    name = segment.modality
                    sizes[name] = sizes.get(name, 0) + len(segment.data)
                    if name in made and options.setdefault(name, made[name]) != made[name]:
                        raise DataError(
                            f"{path}: has {name} read otherwise than what comes before it; prepare both alike"
                        )
                yield document
        if not any(sizes.values()):
            raise no_bytes(paths, skipped)

    manifest = write(
        documents(),
        out,
        marks={name: mark for corpus in prepared.values() for mark, name in corpus.modalities.items()},
        media=options,
        shard_bytes=shard_bytes,
        overwrite=overwrite,
    )
    return {
        **{key: manifest[key] for key in ("documents", "segments", "bytes")},
        "modalities": sizes,
        "skipped": [{"file": name, "reason": reason} for name, reason in skipped],
    }


def _read_each(
    path: Path, modality: str | None, media: MediaConfig, skipped: list[tuple[str, str]]
) -> Iterator[Document]:
    for name, sources in each_document(path, modality, media, skipped):
        try:
            data = [map_payload(source.payload) for source in sources]
        except DataError as error:
            skipped.append((name, str(error)))
            continue
        segments = (
            Segment(modality=source.modality, data=part, header=source.header) for source, part in zip(sources, data)
        )
        yield Document(segments=tuple(segments), name=name)


class _ShardWriter:
    """One shard being written: payload goes to the disk at once, the small arrays at the end."""

    def __init__(self, folder: Path, number: int, known_marks: Mapping[str, int]):
        self.known_marks = known_marks
        self.stem = folder / f"{number:05d}"
        self.ids = open(f"{self.stem}.ids", "xb")  # noqa: SIM115 -- closed by close()
        self.dtype = np.dtype(DTYPES[0])
        self.lengths: list[int] = []
        self.marks: list[int] = []
        self.headers: list[bytes] = []
        self.counts: list[int] = []
        self.names: list[str] = []

    def add(self, document: Document) -> None:
        """Writes a document's payload."""
        for segment in document.segments:
            check_payload(segment)
            if segment.modality not in self.known_marks:
                known = ", ".join(sorted(self.known_marks))
                raise ValueError(f"modality {segment.modality!r} is unknown; known: {known}")
            if segment.data.dtype.itemsize > self.dtype.itemsize:
                self._make_room(int(segment.data.max(initial=0)))
            for start in range(0, len(segment.data), CHUNK):
                part = segment.data[start : start + CHUNK]
                self.ids.write(part.astype(self.dtype).tobytes())
            self.lengths.append(len(segment.data))
            self.marks.append(self.known_marks[segment.modality])
            self.headers.append(segment.header)
        self.counts.append(len(document.segments))
        self.names.append(document.name)

    def close(self) -> dict[str, Any]:
        """Writes the rest; returns the shard's entry in the manifest."""
        self.ids.close()
        for name, values in (("lengths", self.lengths), ("marks", self.marks), ("counts", self.counts)):
            np.save(f"{self.stem}.{name}.npy", np.array(values, ARRAYS[name]), allow_pickle=False)
        if any(self.headers):
            np.save(f"{self.stem}.headers.npy", header_rows(self.headers), allow_pickle=False)
        Path(f"{self.stem}.names.json").write_text(json.dumps(self.names), "ascii")
        files = {path.name: _checked(path) for path in sorted(self.stem.parent.glob(f"{self.stem.name}.*"))}
        return {
            "documents": len(self.counts),
            "segments": len(self.lengths),
            "bytes": sum(self.lengths),
            "dtype": self.dtype.str,
            "files": files,
            "marks": sorted(set(self.marks)),
        }

    def _make_room(self, largest: int) -> None:
        """Rewrites what is there with more bytes an id, where an id needs them."""
        wide = next(dtype for dtype in map(np.dtype, DTYPES) if largest <= np.iinfo(dtype).max)
        if wide.itemsize <= self.dtype.itemsize:
            return
        self.ids.close()
        narrow = self.stem.with_name(f"{self.stem.name}.narrow")
        Path(f"{self.stem}.ids").rename(narrow)
        self.ids = open(f"{self.stem}.ids", "xb")  # noqa: SIM115 -- closed by close()
        with open(narrow, "rb") as old:
            while chunk := old.read(CHUNK):
                self.ids.write(np.frombuffer(chunk, self.dtype).astype(wide).tobytes())
        narrow.unlink()
        self.dtype = wide


def _checked(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise _damaged(path, "it is too large")
        manifest = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name a folder that `prepare` wrote") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "it is not JSON") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path}: is not a byteloom manifest; name a folder that `prepare` wrote")
    if manifest.get("version") not in (1, VERSION):
        raise DataError(f"{path}: has version {manifest.get('version')}, this byteloom reads {VERSION}; prepare anew")
    return manifest


def _open_shard(folder: Path, number: int, shard: dict[str, Any], verify: bool) -> Corpus:
    """One shard as a corpus, its files checked against each other and against the manifest's entry."""
    stem = f"{number:05d}"
    # Names are made here and never taken from the manifest, so none can lead out of the folder.
    has_headers = f"{stem}.headers.npy" in shard["files"]
    for suffix in ("ids", "lengths.npy", "marks.npy", "counts.npy", "names.json", *["headers.npy"] * has_headers):
        path, entry = folder / f"{stem}.{suffix}", shard["files"][f"{stem}.{suffix}"]
        try:
            size = path.stat().st_size
            if size != _count(entry["size"]):
                raise _damaged(path, f"it has {size} bytes and not {entry['size']}")
            if verify and _checked(path)["sha256"] != entry["sha256"]:
                raise _damaged(path, "its checksum is wrong")
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); prepare the data anew") from error
    arrays = {name: _read_array(folder / f"{stem}.{name}.npy", dtype) for name, dtype in ARRAYS.items()}
    lengths, counts = arrays["lengths"], arrays["counts"]
    path = folder / f"{stem}.names.json"
    try:
        names = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "it is not JSON") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _damaged(path, "it is not a list of names")
    dtype = shard["dtype"]
    if dtype not in DTYPES:
        raise ValueError("dtype")
    total = int(lengths.sum())
    if (
        (lengths < 0).any()
        or (counts < 0).any()
        or total * np.dtype(dtype).itemsize != shard["files"][f"{stem}.ids"]["size"]
    ):
        raise _damaged(folder / f"{stem}.lengths.npy", "its sum is not the size of the payload")
    headers = np.zeros((len(lengths), 1), np.uint8)
    if has_headers:
        headers = _read_headers(folder / f"{stem}.headers.npy", len(lengths))
    if len(arrays["marks"]) != len(lengths) or int(counts.sum()) != len(lengths) or len(names) != len(counts):
        raise _damaged(folder / f"{stem}.counts.npy", "it does not fit the shard's other files")
    return Corpus(
        files=(PayloadFile(folder / f"{stem}.ids", dtype, total),),
        names=tuple(names),
        document_starts=np.concatenate([[0], np.cumsum(counts)]),
        segment_marks=arrays["marks"],
        segment_lengths=lengths,
        segment_files=np.zeros(len(lengths), np.int64),
        segment_offsets=np.cumsum(lengths) - lengths,
        segment_headers=headers,
        modalities={},
    )


def _read_array(path: Path, dtype: np.dtype[Any], ndim: int = 1) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise _damaged(path, f"it is no array ({error})") from error
    if array.ndim != ndim or array.dtype != dtype:
        raise _damaged(path, f"it is {array.dtype} {array.shape} and not {dtype} with {ndim} axes")
    return array


def _read_headers(path: Path, num_segments: int) -> np.ndarray:
    headers = _read_array(path, np.dtype(np.uint8), ndim=2)
    longest = headers.shape[1] - 1
    if len(headers) != num_segments or not 0 <= longest <= MAX_HEADER_BYTES or (headers[:, :1] > longest).any():
        raise _damaged(path, "it does not fit the shard's other files")
    return headers


def _count(value: object) -> int:
    count = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise ValueError(f"{value!r:.40}")
    return count


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: is damaged: {reason}; prepare the data anew")
