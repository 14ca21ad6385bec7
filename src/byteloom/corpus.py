"""A corpus: ordered documents with random access, wherever their payload lies.

In: files, folders and manifests as they are, or the prepared shards of `byteloom.shards`. Out: `Corpus`, whose
documents are read-only views. Cost: about 30 bytes of memory a segment and its header; payload stays on disk,
memory-mapped, and may be larger than memory, as do the names in prepared data. The exception is media files used
without `prepare`: they are decoded once and kept.
"""

import dataclasses
import functools
import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from byteloom import codecs
from byteloom.codecs import DEFAULT_MEDIA, MediaConfig
from byteloom.documents import FIRST_DIGIT, FIRST_MARK, DataError, Document, Segment, check_payload
from byteloom.names import Names
from byteloom.sources import (
    CHECKED_BYTES,
    AnyPath,
    PayloadFile,
    Source,
    check_size,
    each_document,
    map_payload,
    path_list,
    payload_length,
)

MAX_OPEN_FILES = 128
LINE_END_WITHIN = 4096
MEDIA_CUT = 4096
"""A sound or video that is alone is cut after about so many bytes or a multiple: those of whole samples or frames."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Ordered documents. Make one with `from_paths` or `shards.open_data`; N segments, D documents."""

    files: tuple[PayloadFile | np.ndarray, ...]
    """Where payload lies: files, mapped when touched, or arrays that a codec decoded."""
    names: Names
    """Name of each document."""
    document_starts: np.ndarray
    """(D + 1,) int64: the first segment of each document, and N."""
    segment_marks: np.ndarray
    """(N,) uint16: the MARK of each segment."""
    segment_lengths: np.ndarray
    """(N,) int64: its length in ids."""
    segment_files: np.ndarray
    """(N,) int32: index in `files`."""
    segment_offsets: np.ndarray
    """(N,) int64: where in that file it begins, in ids."""
    segment_headers: np.ndarray
    """(N, 1 + W) uint8: length of its header and the header, filled up to the longest, W bytes; W = 0 for text."""
    modalities: dict[int, str]
    """Name of the modality of each MARK that occurs."""
    skipped: tuple[tuple[str, str], ...] = ()
    """Files that gave no document: name and reason."""

    @staticmethod
    def from_paths(
        paths: AnyPath | Sequence[AnyPath], modality: str | None = None, media: MediaConfig = DEFAULT_MEDIA
    ) -> "Corpus":
        """Files, folders and manifests as they are, every file or line of a manifest one document.

        A folder is searched to its bottom, in the order of the relative paths. Hidden files, links that leave the
        folder, linked folders, prepared corpora and runs of `train` inside it are passed over; files and lines that are
        empty, unreadable or damaged are listed in `skipped`. Files that a manifest in the folder mentions are read as
        files of their own as well: name the manifest instead of the folder to have them once.

        Args:
            paths: files, manifests (`byteloom.manifests`) and folders.
            modality: read every file as this one, manifests too; by default each by its suffix and content.
            media: how media files become samples.

        Raises:
            DataError: a path is missing, a folder holds no files, or there are no bytes in any of them.
            ValueError: `modality` is unknown.
        """
        skipped: list[tuple[str, str]] = []
        corpus = _assemble(each_document(paths, modality, media, skipped), codecs.MARKS)
        if not len(corpus):
            raise no_bytes(paths, skipped)
        return dataclasses.replace(corpus, skipped=tuple(skipped))

    @staticmethod
    def from_documents(documents: Sequence[Document], marks: Mapping[str, int] | None = None) -> "Corpus":
        """Documents in memory.

        Args:
            documents: kept, not copied.
            marks: the MARK of each modality that no codec has, such as tokens of a model, 280-303.

        Raises:
            ValueError: a modality is unknown, its mark is taken, or payload holds reserved ids.
        """
        known = known_marks(marks)
        for segment in (segment for document in documents for segment in document.segments):
            if segment.modality not in known:
                raise ValueError(f"modality {segment.modality!r} is unknown; known: {', '.join(sorted(known))}")
            check_payload(segment)
        return _assemble(
            (
                (document.name, [Source(part.modality, part.header, part.data) for part in document.segments])
                for document in documents
            ),
            known,
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
                Segment(
                    modality=self.modalities[int(self.segment_marks[segment])],
                    data=self.payload(segment),
                    header=self.header(segment),
                )
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

        What lies around them in prepared data, up to 64 KiB, is compared with its checksum when it is first read.

        Raises:
            DataError: the file is gone, has shrunk, or is damaged there.
        """
        length = int(self.segment_lengths[segment])
        start, stop, _ = slice(start, stop).indices(length)
        offset = int(self.segment_offsets[segment])
        start, stop = offset + start, offset + max(start, stop)
        number = int(self.segment_files[segment])
        data, file = self._open_file(number), self.files[number]
        if isinstance(file, PayloadFile) and start < stop:
            check_size(file)  # what is mapped beyond the end of a file kills the process that reads it
            if file.checks is not None:
                self._check(number, file, data, start, stop)
        return data[start:stop]

    def header(self, segment: int) -> bytes:
        """The header of a segment, by its number in the corpus."""
        row = self.segment_headers[segment]
        return row[1 : 1 + int(row[0])].tobytes()

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
        return functools.lru_cache(MAX_OPEN_FILES)(lambda index: map_payload(self.files[index]))

    @functools.cached_property
    def _checked(self) -> dict[int, bytearray]:
        """Of each file with checksums, by its number, which blocks were found whole."""
        return {}

    def _check(self, number: int, file: PayloadFile, data: np.ndarray, start: int, stop: int) -> None:
        assert file.checks is not None
        checked = self._checked.setdefault(number, bytearray(len(file.checks)))
        size = data.dtype.itemsize
        for block in range(start * size // CHECKED_BYTES, -(-stop * size // CHECKED_BYTES)):
            if not checked[block]:
                first = block * CHECKED_BYTES
                content = data.view(np.uint8)[first : first + CHECKED_BYTES].tobytes()
                if zlib.crc32(content) != file.checks[block]:
                    raise DataError(
                        f"{file.path}: is damaged: its bytes {first} to {first + len(content)} are not those that were "
                        "written; prepare the data anew"
                    )
                checked[block] = True

    def _cut(self, documents: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> "Corpus":
        """Of each document the payload from `starts` to `stops`, in ids; segments with nothing left are dropped."""
        first = self.document_starts[documents]
        counts = self.document_starts[documents + 1] - first
        rows = np.repeat(np.arange(len(documents)), counts)
        segments = np.arange(len(rows)) + np.repeat(first - np.cumsum(counts) + counts, counts)
        length = self.segment_lengths[segments]
        ends = np.cumsum(length)
        before = np.concatenate([[0], ends])[np.cumsum(counts) - counts]
        begin = ends - length - before[rows]
        del ends
        new_begin = np.maximum(begin, starts[rows])
        new_length = np.minimum(begin + length, stops[rows]) - new_begin
        kept = (new_length > 0) | ((new_length == 0) & (length == 0))
        del length
        segments, num_kept = segments[kept], np.bincount(rows[kept], minlength=len(documents))
        del rows
        return dataclasses.replace(
            self,
            names=self.names.take(documents),
            document_starts=np.concatenate([[0], np.cumsum(num_kept)]),
            segment_marks=self.segment_marks[segments],
            segment_lengths=new_length[kept],
            segment_files=self.segment_files[segments],
            segment_offsets=self.segment_offsets[segments] + (new_begin - begin)[kept],
            segment_headers=self.segment_headers[segments],
        )


def split(corpus: Corpus, fraction: float = 0.05, whole_documents: bool = False) -> tuple[Corpus, Corpus]:
    """Holds out `fraction` of the bytes: (train, valid), the same on every machine and wherever the folder lies.

    Whole documents are taken in the order of the sha256 of their names until the fraction is reached, those that alone
    are more than it last, never one that is more than a quarter of the bytes, never all. Where these do not suffice
    (one large file, or one beside a few small ones), the rest comes from the tail of the large documents: text cut at a
    line end where one is near, media between segments, or where there is one alone between samples or frames.

    Args:
        corpus: what to divide.
        fraction: of the bytes, held out.
        whole_documents: cut none, as fused streams need it, which would no longer run side by side.

    Raises:
        ValueError: `fraction` is not between 0 and 1.
        DataError: there is too little data to divide.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}; it must lie between 0 and 1, such as 0.05")
    lengths = corpus.document_lengths
    total = corpus.num_bytes
    large = (lengths > total / 4) & (not whole_documents)
    whole = _held_out_whole(corpus, fraction * total, large)
    missing = fraction * total - int(lengths[whole].sum())
    cuts = lengths.copy()
    cuts[whole] = 0
    if missing > 0:
        for i in np.flatnonzero(large):
            cuts[i] = _cut_before(corpus, int(i), round(lengths[i] - missing * lengths[i] / lengths[large].sum()))
    in_train, in_valid = np.flatnonzero(cuts > 0), np.flatnonzero(cuts < lengths)
    if not len(in_train) or not len(in_valid):
        raise DataError(f"{corpus.names[0] if len(corpus) else 'corpus'}: too small to hold a part out; add data")
    train = corpus._cut(in_train, np.zeros(len(in_train), np.int64), cuts[in_train])
    return train, corpus._cut(in_valid, cuts[in_valid], lengths[in_valid])


def _held_out_whole(corpus: Corpus, share: float, large: np.ndarray) -> np.ndarray:
    """The documents that `split` takes whole to hold out `share` ids, by number; none that is `large`."""
    digests = (hashlib.sha256(_name_bytes(name)).digest() for name in corpus.names)
    places = np.fromiter((int.from_bytes(digest[:8], "big") for digest in digests), np.uint64, len(corpus))
    lengths = corpus.document_lengths
    order = np.lexsort([places, lengths > share])
    order = order[~large[order]][: max(0, len(corpus) - 1)]
    taken = lengths[order]
    missing = share - np.cumsum(taken) + taken  # before each of them
    enough = missing <= np.where(taken > share, share / 2, 0)
    return order[: int(enough.argmax()) if enough.any() else len(order)].copy()  # not a view, which keeps all of it


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

    width = max((corpus.segment_headers.shape[1] for corpus in corpora), default=1)
    headers = [np.pad(rows, ((0, 0), (0, width - rows.shape[1]))) for rows in (c.segment_headers for c in corpora)]

    def joined(arrays: Sequence[np.ndarray], dtype: type[np.generic] = np.int64) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype), *arrays], dtype=dtype, casting="unsafe")

    return Corpus(
        files=tuple(file for corpus in corpora for file in corpus.files),
        names=Names(corpus.names for corpus in corpora),
        document_starts=joined([*starts, num_segments[-1:]]),
        segment_marks=joined([corpus.segment_marks for corpus in corpora], np.uint16),
        segment_lengths=joined([corpus.segment_lengths for corpus in corpora]),
        segment_files=joined(indices, np.int32),
        segment_offsets=joined([corpus.segment_offsets for corpus in corpora]),
        segment_headers=np.concatenate([np.empty((0, width), np.uint8), *headers]),
        modalities=modalities,
        skipped=tuple(entry for corpus in corpora for entry in corpus.skipped),
    )


def known_marks(marks: Mapping[str, int] | None) -> dict[str, int]:
    """The MARK of each modality: those of the codecs and those that are given.

    Raises:
        ValueError: a mark is none (259-303), or another's.
    """
    known = {**codecs.MARKS, **(marks or {})}
    for name, mark in (marks or {}).items():
        others = {known[other] for other in known if other != name}
        if not FIRST_MARK <= mark < FIRST_DIGIT or mark in others or codecs.MARKS.get(name, mark) != mark:
            raise ValueError(f"modality {name} cannot have mark {mark}; choose one from 280 to 303 that is free")
    return known


def no_bytes(paths: AnyPath | Sequence[AnyPath], skipped: Sequence[tuple[str, str]]) -> DataError:
    """The error of a corpus that would be empty."""
    names = ", ".join(str(path) for path in path_list(paths)) or "data"
    reason = f" ({len(skipped)} skipped; the first, {skipped[0][0]}: {skipped[0][1]})" if skipped else ""
    return DataError(f"{names}: no file with bytes in it{reason}; name files, or a folder that holds some")


def header_rows(headers: Sequence[bytes]) -> np.ndarray:
    """Headers as `Corpus.segment_headers` has them, (N, 1 + W) uint8."""
    width = max(map(len, headers), default=0)
    rows = b"".join(bytes([len(header)]) + header.ljust(width, b"\0") for header in headers)
    return np.frombuffer(rows, np.uint8).reshape(len(headers), 1 + width)


def _assemble(documents: Iterable[tuple[str, Sequence[Source]]], marks: Mapping[str, int]) -> Corpus:
    """Names and segments as a corpus; read once."""
    names, counts, sources = [], [0], []
    for name, parts in documents:
        names.append(name)
        counts.append(len(parts))
        sources += parts
    segment_marks = np.array([marks[source.modality] for source in sources], np.uint16)
    used = set(segment_marks.tolist())
    return Corpus(
        files=tuple(source.payload for source in sources),
        names=Names([names]),
        document_starts=np.cumsum(counts),
        segment_marks=segment_marks,
        segment_lengths=np.array([payload_length(source.payload) for source in sources], np.int64),
        segment_files=np.arange(len(sources), dtype=np.int32),
        segment_offsets=np.zeros(len(sources), np.int64),
        segment_headers=header_rows([source.header for source in sources]),
        modalities={mark: name for name, mark in marks.items() if mark in used},
    )


def _name_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _cut_before(corpus: Corpus, document: int, position: int) -> int:
    """Where a document may be cut, in ids of its payload: near `position`, at most 4 KiB before it in text.

    Media are cut at the border of a segment, one that is alone between samples or frames.
    """
    first, stop = int(corpus.document_starts[document]), int(corpus.document_starts[document + 1])
    ends = np.cumsum(corpus.segment_lengths[first:stop])
    number = int(ends.searchsorted(position))
    segment, end = first + number, int(ends[number])
    begin = end - int(corpus.segment_lengths[segment])
    if corpus.segment_headers[segment, 0]:
        if stop - first == 1:
            unit = _unit(corpus, segment)
            step = unit * max(1, MEDIA_CUT // unit)
            return position // step * step or end
        return begin or end
    low = max(0, position - begin - LINE_END_WITHIN)
    line_ends = np.flatnonzero(corpus.payload(segment, low, position - begin) == ord("\n"))
    return begin + low + int(line_ends[-1]) + 1 if len(line_ends) else position


def _unit(corpus: Corpus, segment: int) -> int:
    """Bytes of a segment that belong together: a sample of every channel, a frame; 1 of what has none."""
    try:
        codec = codecs.by_modality(corpus.modalities[int(corpus.segment_marks[segment])])
        return codec.unit_size(corpus.header(segment)) if hasattr(codec, "unit_size") else 1
    except ValueError:  # no codec has this modality, or no file such a header
        return 1
