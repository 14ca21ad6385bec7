"""A corpus: ordered documents with random access, wherever their payload lies.

In: files and folders as they are, or the prepared shards of `byteloom.shards`. Out: `Corpus`, whose documents are
read-only views. Cost: about 40 bytes of memory a segment and the names; payload stays on disk, memory-mapped, and may
be larger than memory. The exception is media files used without `prepare`: they are decoded once and kept.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from byteloom import codecs
from byteloom.codecs import raw
from byteloom.documents import DataError, Document, Segment, check_payload

AnyPath = str | PathLike[str]

MAX_OPEN_FILES = 128
LINE_END_WITHIN = 4096


class PayloadFile(NamedTuple):
    """A file that holds payload and nothing else."""

    path: Path
    dtype: str
    length: int  # in ids


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Ordered documents. Make one with `from_paths` or `shards.open_data`; N segments, D documents."""

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
        for name, path, size in each_file(paths, skipped):
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
            raise no_bytes(paths, skipped)
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
    def from_documents(documents: Sequence[Document]) -> "Corpus":
        """Documents in memory. Raises ValueError when a modality is unknown or payload holds reserved ids."""
        segments = [segment for document in documents for segment in document.segments]
        for segment in segments:
            codecs.by_modality(segment.modality)
            check_payload(segment)
        marks = np.array([codecs.MARKS[segment.modality] for segment in segments], np.uint16)
        return Corpus(
            files=tuple(segment.data for segment in segments),
            names=tuple(document.name for document in documents),
            document_starts=np.cumsum([0, *(len(document.segments) for document in documents)]),
            segment_marks=marks,
            segment_lengths=np.array([len(segment.data) for segment in segments], np.int64),
            segment_files=np.arange(len(segments)),
            segment_offsets=np.zeros(len(segments), np.int64),
            modalities={mark: name for name, mark in codecs.MARKS.items() if mark in marks},
        )

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

    def head(self, num_bytes: int) -> "Corpus":
        """The first documents up to `num_bytes` ids of payload, the last one cut where it must be."""
        ends = np.cumsum(self.document_lengths)
        documents = np.arange(min(int(np.searchsorted(ends, num_bytes)) + 1, len(self)))
        lengths = self.document_lengths[documents]
        stops = np.minimum(lengths, num_bytes - (ends[documents] - lengths))
        return self._cut(documents, np.zeros(len(documents), np.int64), stops)

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
        kept = (new_length > 0) | ((new_length == 0) & (length == 0))
        return dataclasses.replace(
            self,
            names=tuple(self.names[i] for i in documents),
            document_starts=np.concatenate([[0], np.cumsum(np.bincount(rows[kept], minlength=len(documents)))]),
            segment_marks=self.segment_marks[segments[kept]],
            segment_lengths=new_length[kept],
            segment_files=self.segment_files[segments[kept]],
            segment_offsets=(self.segment_offsets[segments] + new_begin - begin)[kept],
        )


def split(corpus: Corpus, fraction: float = 0.05) -> tuple[Corpus, Corpus]:
    """Holds out `fraction` of the bytes: (train, valid), the same on every machine and wherever the folder lies.

    Whole documents are taken in the order of the sha256 of their names until the fraction is reached, those that alone
    are more than it last, never one that is more than a quarter of the bytes, never all. Where these do not suffice
    (one large file, or one beside a few small ones), the rest comes from the tail of the large documents, cut at a
    line end where one is near.

    Raises:
        ValueError: `fraction` is not between 0 and 1.
        DataError: there is too little data to divide.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}; it must lie between 0 and 1, such as 0.05")
    lengths = corpus.document_lengths
    total = corpus.num_bytes
    large = lengths > total / 4
    share = missing = fraction * total
    order = [(lengths[i] > share, hashlib.sha256(_name_bytes(corpus.names[i])).digest(), i) for i in range(len(corpus))]
    whole: list[int] = []
    for outweighs, _, i in sorted(entry for entry in order if not large[entry[-1]])[: len(corpus) - 1]:
        if missing <= (share / 2 if outweighs else 0):
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


def concatenate(corpora: Sequence[Corpus]) -> Corpus:
    """The documents of all, in order. Raises DataError when two disagree about a MARK."""
    modalities: dict[int, str] = {}
    for corpus in corpora:
        for mark, name in corpus.modalities.items():
            if modalities.setdefault(mark, name) != name:
                raise DataError(f"mark {mark} is {name} here and {modalities[mark]} there; prepare both anew")
    num_files = np.cumsum([0, *(len(corpus.files) for corpus in corpora)])
    num_segments = np.cumsum([0, *(len(corpus.segment_lengths) for corpus in corpora)])
    starts = [corpus.document_starts[:-1] + base for corpus, base in zip(corpora, num_segments, strict=False)]
    indices = [corpus.segment_files + base for corpus, base in zip(corpora, num_files, strict=False)]

    def joined(arrays: Sequence[np.ndarray], dtype: type[np.generic] = np.int64) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype), *arrays]).astype(dtype)

    return Corpus(
        files=tuple(file for corpus in corpora for file in corpus.files),
        names=tuple(name for corpus in corpora for name in corpus.names),
        document_starts=joined([*starts, num_segments[-1:]]),
        segment_marks=joined([corpus.segment_marks for corpus in corpora], np.uint16),
        segment_lengths=joined([corpus.segment_lengths for corpus in corpora]),
        segment_files=joined(indices),
        segment_offsets=joined([corpus.segment_offsets for corpus in corpora]),
        modalities=modalities,
        skipped=tuple(entry for corpus in corpora for entry in corpus.skipped),
    )


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


def no_bytes(paths: AnyPath | Sequence[AnyPath], skipped: Sequence[tuple[str, str]]) -> DataError:
    """The error of a corpus that would be empty."""
    names = ", ".join(str(path) for path in path_list(paths)) or "data"
    reason = f" ({len(skipped)} skipped; the first, {skipped[0][0]}: {skipped[0][1]})" if skipped else ""
    return DataError(f"{names}: no file with bytes in it{reason}; name files, or a folder that holds some")


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
            inside = not path.is_symlink() or path.resolve().is_relative_to(home)
            if not name.startswith(".") and inside:
                found.append(path)
    return sorted(found, key=lambda path: path.relative_to(root).as_posix().encode("utf-8", "surrogateescape"))


def _map(file: PayloadFile | np.ndarray) -> np.ndarray:
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


def _name_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _line_end_before(corpus: Corpus, document: int, position: int) -> int:
    """The end of the last line that ends at most 4 KiB before a position of a document's payload; else the position."""
    first, stop = corpus.document_starts[document], corpus.document_starts[document + 1]
    begin = 0
    for segment in range(int(first), int(stop)):
        length = int(corpus.segment_lengths[segment])
        if begin < position <= begin + length:
            low = max(0, position - begin - LINE_END_WITHIN)
            ends = np.flatnonzero(corpus.payload(segment, low, position - begin) == ord("\n"))
            return begin + low + int(ends[-1]) + 1 if len(ends) else position
        begin += length
    return position
