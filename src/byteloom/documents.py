"""Documents and the flat id stream that a model sees.

In: segments, each a modality and its payload as a codec gives it. Out: one uint16 array, and back.
Cost: one copy of the payload.

    BOS PAD.. MARK payload.. PAD.. MARK payload.. EOS

Ids 0-255 are bytes, 256-319 are reserved for structure, discrete vocabularies of codecs follow from 320 on. The
stream describes itself: the modality of a position follows from the marks before it. PADs put each MARK on a patch
border, so that a patch never holds two modalities.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

PAD = 256
BOS = 257
EOS = 258
FIRST_MARK = 259
VOCAB_SIZE = 320


class DataError(Exception):
    """Data that cannot be used. The message is one line that names the file and says what to do about it."""

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """A run of one modality: its payload as its codec wrote it, header included.

    Equal to another when modality and values agree; the width of the dtype does not count.

    Raises:
        ValueError: the data is not one-dimensional uint8 or uint16.
    """

    modality: str
    """Name of the modality, such as "text"; the codec's MODALITY."""
    data: np.ndarray
    """Payload ids (N,), uint8 or uint16; no reserved id among them."""

    def __post_init__(self) -> None:
        if self.data.ndim != 1 or self.data.dtype not in (np.uint8, np.uint16):
            raise ValueError(
                f"data of a {self.modality} segment has shape {self.data.shape} and dtype {self.data.dtype}; "
                "it must be one-dimensional uint8 or uint16"
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Segment):
            return NotImplemented
        return self.modality == other.modality and np.array_equal(self.data, other.data)


@dataclass(frozen=True, kw_only=True)
class Document:
    """Segments that belong together, in order: one file, or a page of text and pictures."""

    segments: tuple[Segment, ...]
    """The segments in the order in which a model reads them."""
    name: str = ""
    """Where it came from: a path relative to the folder that was read."""


def to_ids(document: Document, marks: Mapping[str, int], patch_size: int = 1) -> np.ndarray:
    """Lays a document out as ids (T,) uint16.

    BOS; then for each segment PADs up to the next multiple of `patch_size`, its MARK and its data; EOS right after
    the last byte. No PAD follows EOS.

    Args:
        document: what to lay out.
        marks: the MARK id of each modality, `codecs.MARKS`.
        patch_size: in ids; every MARK lands on a multiple of it.

    Raises:
        ValueError: a modality has no mark, or data holds a reserved id (256-319).
    """
    if patch_size < 1:
        raise ValueError(f"patch_size is {patch_size}; it must be at least 1")
    starts, end = [], 1
    for segment in document.segments:
        if segment.modality not in marks:
            raise ValueError(f"modality {segment.modality!r} is unknown; known: {', '.join(sorted(marks))}")
        check_payload(segment)
        start = -(-end // patch_size) * patch_size
        starts.append(start)
        end = start + 1 + len(segment.data)
    ids = np.full(end + 1, PAD, np.uint16)
    ids[0], ids[end] = BOS, EOS
    for start, segment in zip(starts, document.segments, strict=True):
        ids[start] = marks[segment.modality]
        ids[start + 1 : start + 1 + len(segment.data)] = segment.data
    return ids


def from_ids(ids: np.ndarray, marks: Mapping[str, int]) -> Document:
    """Reads the first document of an id stream, whole or cut anywhere; the inverse of `to_ids`.

    Nothing that a model writes is an error: the document ends at the first EOS or with the stream, ids before any MARK
    become a "bytes" segment, PADs and every other reserved id are dropped, also inside a payload. Payload is uint8
    where it fits, else uint16.

    Args:
        ids: (T,), any integer dtype.
        marks: the MARK id of each modality, `codecs.MARKS`.

    Raises:
        ValueError: `ids` is not a one-dimensional array of integers from 0 to 65535.
    """
    ids = np.asarray(ids)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(f"ids have shape {ids.shape} and dtype {ids.dtype}; they must be one row of integers")
    if ids.size and not (ids.min() >= 0 and ids.max() <= 0xFFFF):
        raise ValueError(f"ids run from {ids.min()} to {ids.max()}; they must lie between 0 and 65535")
    ends = np.flatnonzero(ids == EOS)
    ids = ids[: ends[0]] if len(ends) else ids
    modality_of = {mark: modality for modality, mark in marks.items()}
    borders = [int(i) for i in np.flatnonzero(np.isin(ids, list(modality_of)))] + [len(ids)]
    segments = []
    head = _payload(ids[: borders[0]])
    if len(head):
        segments.append(Segment(modality="bytes", data=head))
    for start, stop in itertools.pairwise(borders):
        segments.append(Segment(modality=modality_of[int(ids[start])], data=_payload(ids[start + 1 : stop])))
    return Document(segments=tuple(segments))


def check_payload(segment: Segment) -> None:
    """Refuses payload that would be read back as structure. Free for uint8.

    Raises:
        ValueError: the data holds an id from 256 to 319.
    """
    if segment.data.dtype != np.uint8 and ((segment.data >= PAD) & (segment.data < VOCAB_SIZE)).any():
        raise ValueError(
            f"data of a {segment.modality} segment holds ids from {PAD} to {VOCAB_SIZE - 1}, which are reserved; "
            f"use bytes, or ids from {VOCAB_SIZE} on"
        )


def _payload(ids: np.ndarray) -> np.ndarray:
    kept = ids[(ids < PAD) | (ids >= VOCAB_SIZE)]
    return kept.astype(np.uint8 if not len(kept) or kept.max() < PAD else np.uint16)
