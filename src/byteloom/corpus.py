"""A corpus: ordered documents with random access, and the id stream that they make.

In: files and folders as they are, or prepared shards. Out: `Corpus`, and `PackedStream`, which reads any range of the
stream as uint16 ids. Cost: about 40 bytes of memory a segment and the names; payload stays on disk, memory-mapped, and
may be larger than memory. The exception is media files used without `prepare`: they are decoded once and kept.

A prepared corpus is a folder:

    manifest.json         format, counts, modalities, and size and sha256 of every other file
    00000.ids             payload of the shard's segments end to end: uint8, or little-endian uint16 if an id is >= 256
    00000.lengths.npy     (segments,) int64   ids of each segment
    00000.marks.npy       (segments,) uint16  its MARK
    00000.counts.npy      (documents,) int64  segments of each document
    00000.names.json      names of the documents

BOS, MARK, EOS and PAD are structure: they are not stored but put in on reading.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from byteloom import codecs
from byteloom.codecs import raw
from byteloom.documents import BOS, EOS, FIRST_MARK, PAD, VOCAB_SIZE, DataError, Document, Segment, check_payload

type AnyPath = str | PathLike[str]

FORMAT = "byteloom-corpus"
VERSION = 1
MAX_OPEN_FILES = 128
MAX_MANIFEST_BYTES = 256 << 20
CHUNK = 8 << 20


class PayloadFile(NamedTuple):
    """A file that holds payload and nothing else."""

    path: Path
    dtype: str
    length: int  # in ids


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Ordered documents. Make one with `from_paths`, `open` or `open_data`; N segments, D documents."""

    files: tuple[PayloadFile | np.ndarray, ...]
    """Where payload lies: files, mapped when touched, or arrays that a codec decoded."""
    names: tuple[str, ...]
    """Name of each document."""
    document_starts: np.ndarray
    """(D + 1,) int64: the first segment of each document, and N."""
    segment_marks: np.ndarray
    """(N,) uint16: the MARK of each segment."""
    segment_lengths: np.ndarray
    """(N,) int64: its length in ids."""
    segment_files: np.ndarray
    """(N,) int64: index in `files`."""
    segment_offsets: np.ndarray
    """(N,) int64: where in that file it begins, in ids."""
    modalities: dict[int, str]
    """Name of the modality of each MARK that occurs."""
    skipped: tuple[tuple[str, str], ...] = ()
    """Files that gave no document: name and reason."""

    @staticmethod
    def from_paths(paths: AnyPath | Sequence[AnyPath], modality: str | None = None) -> "Corpus":
        """Files and folders as they are, every file one document.

        A folder is searched to its bottom, in the order of the relative paths. Hidden files, links that leave the
        folder, linked folders and prepared corpora inside it are passed over; files that are empty, unreadable or
        damaged are listed in `skipped`.

        Args:
            paths: files and folders.
            modality: read every file as this one; by default each by its suffix and content.

        Raises:
            DataError: a path is missing, a folder holds no files, or there are no bytes in any of them.
            ValueError: `modality` is unknown.
        """
        skipped: list[tuple[str, str]] = []
        files: list[PayloadFile | np.ndarray] = []
        names, marks = [], []
        for name, path, size in _each_file(paths, skipped):
            try:
                codec = codecs.by_modality(modality) if modality is not None else codecs.for_path(path)
                if getattr(codec, "FILE_IS_PAYLOAD", False):
                    files.append(PayloadFile(path, "|u1", size))
                else:
                    files.append(codec.encode(path).data)
            except DataError as error:
                skipped.append((name, str(error)))
                continue
            names.append(name)
            marks.append(codec.MARK)
        if not names:
            raise _no_bytes(paths, skipped)
        lengths = [len(file) if isinstance(file, np.ndarray) else file.length for file in files]
        return Corpus(
            files=tuple(files),
            names=tuple(names),
            document_starts=np.arange(len(names) + 1),
            segment_marks=np.array(marks, np.uint16),
            segment_lengths=np.array(lengths, np.int64),
            segment_files=np.arange(len(names)),
            segment_offsets=np.zeros(len(names), np.int64),
            modalities={mark: name for name, mark in codecs.MARKS.items() if mark in set(marks)},
            skipped=tuple(skipped),
        )

    @staticmethod
    def open(folder: AnyPath, verify: bool = False) -> "Corpus":
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
        for mark, name in modalities.items():
            if codecs.MARKS.get(name, mark) != mark or not FIRST_MARK <= mark < VOCAB_SIZE:
                raise _damaged(path, f"modality {name} cannot have mark {mark}")
        corpus = _join_arrays(shards, modalities)
        if [len(corpus), len(corpus.segment_lengths), corpus.num_bytes] != totals:
            raise _damaged(path, "its totals are not the sum of its shards")
        if not np.isin(corpus.segment_marks, list(modalities)).all():
            raise _damaged(path, "a segment has a modality that it does not list")
        return corpus

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Document:
        """Document `index`; its data are read-only views of the files."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        index %= len(self)
        segments = range(int(self.document_starts[index]), int(self.document_starts[index + 1]))
        return Document(
            segments=tuple(
                Segment(modality=self.modalities[int(self.segment_marks[segment])], data=self.payload(segment))
                for segment in segments
            ),
            name=self.names[index],
        )

    @property
    def num_bytes(self) -> int:
        """Payload of all documents, in ids."""
        return int(self.segment_lengths.sum())

    @functools.cached_property
    def document_lengths(self) -> np.ndarray:
        """(D,) int64: payload of each document, in ids."""
        ends = np.concatenate([[0], np.cumsum(self.segment_lengths)])
        return np.diff(ends[self.document_starts])

    def payload(self, segment: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Ids `start` to `stop` of a segment, by its number in the corpus: a read-only view, nothing is copied.

        Raises:
            DataError: the file is gone or has shrunk.
        """
        length = int(self.segment_lengths[segment])
        start, stop, _ = slice(start, stop).indices(length)
        offset = int(self.segment_offsets[segment])
        return self._open_file(int(self.segment_files[segment]))[offset + start : offset + max(start, stop)]

    def subset(self, document_indices: Sequence[int] | np.ndarray) -> "Corpus":
        """The documents of these indices, in this order."""
        documents = np.asarray(document_indices, np.int64)
        return self._cut(documents, np.zeros(len(documents), np.int64), self.document_lengths[documents])

    @functools.cached_property
    def _open_file(self) -> Any:
        # A folder may hold more files than a process may open; the oldest maps close when nothing views them.
        return functools.lru_cache(MAX_OPEN_FILES)(lambda index: _map(self.files[index]))

    def _cut(self, documents: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> "Corpus":
        """Of each document the payload from `starts` to `stops`, in ids; segments with nothing left are dropped."""
        counts = np.diff(self.document_starts)[documents]
        rows = np.repeat(np.arange(len(documents)), counts)
        nth = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        segments = self.document_starts[documents][rows] + nth
        ends = np.concatenate([[0], np.cumsum(self.segment_lengths)])
        begin = ends[segments] - ends[self.document_starts[documents]][rows]
        length = self.segment_lengths[segments]
        new_begin = np.maximum(begin, starts[rows])
        new_length = np.minimum(begin + length, stops[rows]) - new_begin
        kept = (new_length > 0) | (length == 0)
        return dataclasses.replace(
            self,
            names=tuple(self.names[i] for i in documents),
            document_starts=np.concatenate([[0], np.cumsum(np.bincount(rows[kept], minlength=len(documents)))]),
            segment_marks=self.segment_marks[segments[kept]],
            segment_lengths=new_length[kept],
            segment_files=self.segment_files[segments[kept]],
            segment_offsets=(self.segment_offsets[segments] + new_begin - begin)[kept],
        )


def open_data(paths: AnyPath | Sequence[AnyPath], modality: str | None = None) -> Corpus:
    """Files, folders and prepared corpora, in the order given, as one corpus.

    Args:
        paths: a folder that `prepare` wrote is opened as such, anything else as in `Corpus.from_paths`.
        modality: read every raw file as this one.

    Raises:
        DataError: as `Corpus.from_paths` and `Corpus.open`.
    """
    corpora = []
    for prepared, group in itertools.groupby(_path_list(paths), is_prepared):
        corpora += [Corpus.open(path) for path in group] if prepared else [Corpus.from_paths(list(group), modality)]
    if not corpora:
        raise DataError("no data given; name a file or a folder")
    return corpora[0] if len(corpora) == 1 else concatenate(corpora)


def concatenate(corpora: Sequence[Corpus]) -> Corpus:
    """The documents of all, in order. Raises DataError when two disagree about a MARK."""
    modalities: dict[int, str] = {}
    for corpus in corpora:
        for mark, name in corpus.modalities.items():
            if modalities.setdefault(mark, name) != name:
                raise DataError(f"mark {mark} is {name} here and {modalities[mark]} there; prepare both anew")
    return _join_arrays(corpora, modalities)


def split(corpus: Corpus, fraction: float = 0.05) -> tuple[Corpus, Corpus]:
    """Holds out `fraction` of the bytes: (train, valid), the same on every machine and wherever the folder lies.

    Whole documents are taken in the order of the sha256 of their names until the fraction is reached, never one that
    is more than a quarter of the bytes, never all. Where these do not suffice (one large file, or one beside a few small ones), the rest
    comes from the tail of the large documents, cut at a line end where one is near.

    Raises:
        ValueError: `fraction` is not between 0 and 1.
        DataError: there is too little data to divide.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}; it must lie between 0 and 1, such as 0.05")
    lengths = corpus.document_lengths
    total = corpus.num_bytes
    large = lengths > total / 4
    order = sorted(range(len(corpus)), key=lambda i: hashlib.sha256(_name_bytes(corpus.names[i])).digest())
    small = [i for i in order if not large[i]]
    whole: list[int] = []
    missing = fraction * total
    for i in small[: len(corpus) - 1]:
        if missing <= 0:
            break
        whole.append(i)
        missing -= lengths[i]
    cuts = lengths.copy()
    cuts[whole] = 0
    if missing > 0:
        for i in np.flatnonzero(large):
            cuts[i] = _line_end_before(corpus, int(i), round(lengths[i] - missing * lengths[i] / lengths[large].sum()))
    in_train, in_valid = np.flatnonzero(cuts > 0), np.flatnonzero(cuts < lengths)
    if not len(in_train) or not len(in_valid):
        raise DataError(f"{corpus.names[0] if len(corpus) else 'corpus'}: too small to hold a part out; add data")
    train = corpus._cut(in_train, np.zeros(len(in_train), np.int64), cuts[in_train])
    return train, corpus._cut(in_valid, cuts[in_valid], lengths[in_valid])


def prepare(
    paths: AnyPath | Sequence[AnyPath],
    out: AnyPath,
    *,
    modality: str | None = None,
    shard_bytes: int = 256 << 20,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Reads files, folders and prepared corpora with their codecs and writes one prepared corpus.

    A file that cannot be read or decoded is skipped and counted; it never ends the run.

    Returns:
        `documents`, `segments`, `bytes`, `modalities` (bytes of each) and `skipped` (a list of `file` and `reason`).

    Raises:
        DataError: a path is missing, `out` is taken, or no file gave any bytes.
        ValueError: `modality` is unknown.
    """
    if modality is not None:
        codecs.by_modality(modality)
    skipped: list[tuple[str, str]] = []
    sizes: dict[str, int] = {}

    def documents() -> Iterator[Document]:
        for path in _path_list(paths):
            for document in Corpus.open(path) if is_prepared(path) else _read_each(path, modality, skipped):
                for segment in document.segments:
                    sizes[segment.modality] = sizes.get(segment.modality, 0) + len(segment.data)
                yield document
        if not any(sizes.values()):
            raise _no_bytes(paths, skipped)

    manifest = write(documents(), out, shard_bytes=shard_bytes, overwrite=overwrite)
    return {
        **{key: manifest[key] for key in ("documents", "segments", "bytes")},
        "modalities": sizes,
        "skipped": [{"file": name, "reason": reason} for name, reason in skipped],
    }


def write(
    documents: Iterable[Document], out: AnyPath, *, shard_bytes: int = 256 << 20, overwrite: bool = False
) -> dict[str, Any]:
    """Writes documents as a prepared corpus, whole or not at all, and returns its manifest.

    Args:
        documents: read once; each goes whole into one shard.
        out: the folder to make; its parent folders are made too.
        shard_bytes: a shard is closed when it has reached this size.
        overwrite: replace a corpus that is there. Nothing but a corpus is ever replaced.

    Raises:
        DataError: `out` is taken.
        ValueError: a modality is unknown, or payload holds reserved ids.
    """
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
            shard = shard or _ShardWriter(partial, len(shards))
            shard.add(document)
            if shard.ids.tell() >= shard_bytes:
                shards.append(shard.close())
                shard = None
        if shard:
            shards.append(shard.close())
        marks = {mark for entry in shards for mark in entry.pop("marks")}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            **{key: sum(entry[key] for entry in shards) for key in ("documents", "segments", "bytes")},
            "modalities": {name: mark for name, mark in codecs.MARKS.items() if mark in marks},
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


def is_prepared(path: AnyPath) -> bool:
    """Whether a path is a folder that `write` made, damaged or not."""
    folder = Path(path)
    try:
        with open(folder / "manifest.json", "rb") as file:
            head = file.read(4096)
    except OSError:
        head = b""
    return f'"{FORMAT}"'.encode() in head or (folder / "00000.lengths.npy").exists()


class PackedStream:
    """All documents in order as one virtual stream of ids: nothing is laid out until a range is read.

    It is made of units: the BOS of a document, and each segment with its MARK (and EOS after the document's last).
    Every unit is filled up with PAD to a multiple of `patch_size`, so that all units start on patch borders. A
    document is what `documents.to_ids` makes of it, up to the PADs at its end. Cost: 8 bytes a unit; a read is
    O(ids read + log units).
    """

    def __init__(self, corpus: Corpus, patch_size: int) -> None:
        if patch_size < 1:
            raise ValueError(f"patch_size is {patch_size}; it must be at least 1")
        self.corpus = corpus
        self.patch_size = patch_size
        first, stop = corpus.document_starts[:-1], corpus.document_starts[1:]
        self._bos_units = first + np.arange(len(corpus))
        document_of = np.repeat(np.arange(len(corpus)), stop - first)
        lengths = np.ones(len(corpus) + len(document_of), np.int64)  # BOS or MARK
        lengths[np.arange(len(document_of)) + document_of + 1] += corpus.segment_lengths
        lengths[stop + np.arange(len(corpus))] += 1  # EOS, in the last unit of each document
        self._starts = np.concatenate([[0], np.cumsum(-(-lengths // patch_size) * patch_size)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def num_bytes(self) -> int:
        """Payload in the stream, in ids: its length without BOS, MARK, EOS and PAD."""
        return self.corpus.num_bytes

    def read(self, start: int, stop: int) -> np.ndarray:
        """Ids (stop - start,) uint16, for 0 <= start <= stop <= len; IndexError otherwise."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"range {start} to {stop} of a stream of {len(self)} ids")
        ids = np.full(stop - start, PAD, np.uint16)
        unit = int(self._starts.searchsorted(start, "right")) - 1
        while (begin := int(self._starts[unit])) < stop:
            document, segment = self._locate(unit)
            mark = BOS if segment < 0 else self.corpus.segment_marks[segment]
            end = begin + 1 + (int(self.corpus.segment_lengths[segment]) if segment >= 0 else 0)
            if begin >= start:
                ids[begin - start] = mark
            low, high = max(begin + 1, start), min(end, stop)
            if low < high:
                ids[low - start : high - start] = self.corpus.payload(segment, low - begin - 1, high - begin - 1)
            is_last = segment + 1 == self.corpus.document_starts[document + 1] if segment >= 0 else end == begin
            if is_last and start <= end < stop:
                ids[end - start] = EOS
            unit += 1
        return ids

    def mark_at(self, position: int) -> int:
        """The MARK in force before `position`, so not one that stands at it; PAD where the document has had none yet."""
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of a stream of {len(self)} ids")
        unit = int(self._starts.searchsorted(position, "right")) - 1
        document, segment = self._locate(unit)
        if segment >= 0 and position == self._starts[unit]:
            segment -= 1
        if segment < self.corpus.document_starts[document]:
            return PAD
        return int(self.corpus.segment_marks[segment])

    def _locate(self, unit: int) -> tuple[int, int]:
        """The document of a unit and its segment, -1 for the BOS."""
        document = int(self._bos_units.searchsorted(unit, "right")) - 1
        return document, -1 if unit == self._bos_units[document] else unit - document - 1
