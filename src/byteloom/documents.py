"""Documents and the flat id stream that a model sees.

In: segments, each a modality, its payload and its header as a codec gives them. Out: one row of ids, and back.
Cost: one copy of the payload.

    BOS MARK digits.. PAD.. | payload.. MARK digits.. PAD.. | payload.. EOS            (| is a patch border)

Ids 0-255 are bytes, 256-319 are reserved for structure, discrete vocabularies follow from 320 on. A MARK stands
directly after what it follows, so the model itself says at any byte that a segment ends and what comes next; digits of
four bits write the segment's header; PADs put its payload on a patch border, so that no patch holds payload of two
modalities. The stream describes itself: the modality of a position follows from the marks before it.

Streams that belong together in time (a film and its sound) are fused instead: every patch holds a part of each.

    BOS MARK digits.. MARK digits.. PAD.. | first.. second.. | first.. second.. | EOS PAD..
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

PAD = 256
BOS = 257
EOS = 258
FIRST_MARK = 259
FIRST_DIGIT = 304
VOCAB_SIZE = 320

MAX_HEADER_BYTES = 16
MAX_ID = 0xFFFFFFFF


class DataError(Exception):
    """Data that cannot be used. The message is one line that names the file and says what to do about it."""

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """A run of one modality: its samples, and the header that makes a file of them.

    Equal to another when modality, header and values agree; the width of the dtype does not count.

    Raises:
        ValueError: the data is not one-dimensional uint8, uint16 or uint32, or the header is too long.
    """

    modality: str
    """Name of the modality, such as "text"; the codec's MODALITY."""
    data: np.ndarray
    """Payload ids (N,), uint8, uint16 or uint32; no reserved id among them."""
    header: bytes = b""
    """Size, rate and whatever else decoding needs, at most 16 bytes; costs bits, but is not counted as payload."""

    def __post_init__(self) -> None:
        if self.data.ndim != 1 or self.data.dtype not in (np.uint8, np.uint16, np.uint32):
            raise ValueError(
                f"data of a {self.modality} segment has shape {self.data.shape} and dtype {self.data.dtype}; "
                "it must be one-dimensional uint8, uint16 or uint32"
            )
        if len(self.header) > MAX_HEADER_BYTES:
            raise ValueError(
                f"header of a {self.modality} segment has {len(self.header)} bytes; it may have {MAX_HEADER_BYTES}"
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Segment):
            return NotImplemented
        return (self.modality, self.header) == (other.modality, other.header) and np.array_equal(self.data, other.data)


@dataclass(frozen=True, kw_only=True)
class Document:
    """Segments that belong together, in order: one file, or a page of text and pictures."""

    segments: tuple[Segment, ...]
    """The segments in the order in which a model reads them."""
    name: str = ""
    """Where it came from: a path relative to the folder that was read."""


def to_ids(document: Document, marks: Mapping[str, int], patch_size: int = 1) -> np.ndarray:
    """Lays a document out as ids (T,): uint16, or uint32 where an id is above 65535.

    BOS; then for each segment its MARK, the digits of its header, PADs up to the next multiple of `patch_size`, and its
    data; EOS right after the last. No PAD follows EOS.

    Args:
        document: what to lay out.
        marks: the MARK id of each modality, `codecs.MARKS` and those of token modalities.
        patch_size: in ids; the data of every segment begins on a multiple of it.

    Raises:
        ValueError: a modality has no mark, or data holds a reserved id (256-319).
    """
    if patch_size < 1:
        raise ValueError(f"patch_size is {patch_size}; it must be at least 1")
    _check(document, marks)
    openings = [opening(marks[segment.modality], segment.header) for segment in document.segments]
    places, end = [], 1
    for segment, head in zip(document.segments, openings, strict=True):
        start = round_up(end + len(head), patch_size)
        places.append((end, start))
        end = start + len(segment.data)
    ids = np.full(end + 1, PAD, _dtype_of(document))
    ids[0], ids[end] = BOS, EOS
    for (place, start), segment, head in zip(places, document.segments, openings, strict=True):
        ids[place : place + len(head)] = head
        ids[start : start + len(segment.data)] = segment.data
    return ids


def from_ids(ids: np.ndarray, marks: Mapping[str, int]) -> Document:
    """Reads the first document of an id stream, whole or cut anywhere; the inverse of `to_ids`.

    Nothing that a model writes is an error. The document ends at the first EOS, at a BOS that is not the first id, or
    with the stream; ids before any MARK become a "bytes" segment; digits directly after a MARK are its header, as far
    as they make whole bytes, up to 16; PADs and every other reserved id are dropped, also inside a payload. Payload is
    uint8 where it fits, else uint16 or uint32.

    Args:
        ids: (T,), any integer dtype.
        marks: the MARK id of each modality, as for `to_ids`.

    Raises:
        ValueError: `ids` is not a one-dimensional array of integers that an id can be.
    """
    ids = _first_document(ids)
    modality_of = {mark: modality for modality, mark in marks.items()}
    borders = [int(i) for i in np.flatnonzero(np.isin(ids, list(modality_of)))] + [len(ids)]
    segments = []
    head = _payload(ids[: borders[0]])
    if len(head):
        segments.append(Segment(modality="bytes", data=head))
    for start, stop in itertools.pairwise(borders):
        inside = ids[start + 1 : stop]
        segments.append(
            Segment(modality=modality_of[int(ids[start])], data=_payload(inside), header=_leading_header(inside))
        )
    return Document(segments=tuple(segments))


def to_fused_ids(document: Document, marks: Mapping[str, int], sizes: Sequence[int]) -> np.ndarray:
    """Lays a document of streams that run side by side out as ids (T,), a whole number of patches of sum(`sizes`).

    BOS, the MARK and header of every segment, PADs up to a patch border; then patches, each `sizes[0]` ids of the first
    segment, `sizes[1]` of the second and so on, until the longest has ended; a patch of EOS and PADs. Where a stream
    has ended, is empty, or has no segment, PADs stand in its places. The dtype is that of `to_ids`.

    Args:
        document: segment i is stream i.
        marks: the MARK id of each modality, as for `to_ids`.
        sizes: ids of each stream in a patch.

    Raises:
        ValueError: a size is below 1, there are more segments than sizes, or as `to_ids`.
    """
    patch_size = check_sizes(sizes)
    check_streams(len(document.segments), sizes)
    _check(document, marks)
    openings = [opening(marks[segment.modality], segment.header) for segment in document.segments]
    head = np.concatenate([[BOS], *openings])
    streams = [segment.data for segment in document.segments]
    num_patches = max((-(-len(data) // size) for data, size in zip(streams, sizes, strict=False)), default=0)
    start = round_up(len(head), patch_size)
    stop = start + num_patches * patch_size
    ids = np.full(stop + patch_size, PAD, _dtype_of(document))
    ids[: len(head)] = head
    ids[start:stop] = interleave(streams, sizes, num_patches, ids.dtype).ravel()
    ids[stop] = EOS
    return ids


def from_fused_ids(ids: np.ndarray, marks: Mapping[str, int], sizes: Sequence[int]) -> Document:
    """Reads the first document of a fused id stream, whole or cut anywhere; the inverse of `to_fused_ids`.

    Nothing that a model writes is an error: as in `from_ids`, and what stands in the places of a stream without a MARK
    is dropped.

    Raises:
        ValueError: a size is below 1, or as `from_ids`.
    """
    patch_size = check_sizes(sizes)
    ids = _first_document(ids)
    begin = int(len(ids) > 0 and ids[0] == BOS)
    opens = (ids[begin:] >= FIRST_MARK) & (ids[begin:] < VOCAB_SIZE)
    head = begin + (len(opens) if opens.all() else int(opens.argmin()))
    body = ids[round_up(head, patch_size) :]
    owner = np.resize(np.repeat(np.arange(len(sizes)), sizes), len(body))
    segments = from_ids(ids[:head], marks).segments[: len(sizes)]
    return Document(
        segments=tuple(replace(segment, data=_payload(body[owner == i])) for i, segment in enumerate(segments))
    )


def opening(mark: int, header: bytes = b"") -> np.ndarray:
    """The ids that open a segment (1 + 2 * len(header),) uint16: its MARK and the digits of its header."""
    values = np.frombuffer(header, np.uint8).astype(np.uint16)
    ids = np.empty(1 + 2 * len(values), np.uint16)
    ids[0], ids[1::2], ids[2::2] = mark, FIRST_DIGIT + (values >> 4), FIRST_DIGIT + (values & 15)
    return ids


def interleave(
    streams: Sequence[np.ndarray], sizes: Sequence[int], num_patches: int, dtype: np.dtype | type
) -> np.ndarray:
    """Patches (num_patches, sum(sizes)) of streams side by side; PADs where a stream is too short or not there."""
    patches = np.full((num_patches, sum(sizes)), PAD, dtype)
    column = 0
    for data, size in zip(streams, sizes, strict=False):
        part = np.full(num_patches * size, PAD, dtype)
        part[: len(data)] = data
        patches[:, column : column + size] = part.reshape(num_patches, size)
        column += size
    return patches


def check_sizes(sizes: Sequence[int]) -> int:
    """The patch size of a fused layout. Raises ValueError when a stream has no place in it."""
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes of the streams are {tuple(sizes)}; there must be some, each at least 1")
    return sum(sizes)


def check_streams(num_segments: int, sizes: Sequence[int], name: str = "document") -> None:
    """Refuses more segments than a fused layout has streams. Raises ValueError."""
    if num_segments > len(sizes):
        raise ValueError(f"{name}: has {num_segments} segments for {len(sizes)} streams; give each stream one segment")


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


def round_up(position: int, patch_size: int) -> int:
    """The first patch border at or after a position."""
    return -(-position // patch_size) * patch_size


def _check(document: Document, marks: Mapping[str, int]) -> None:
    for segment in document.segments:
        if segment.modality not in marks:
            raise ValueError(f"modality {segment.modality!r} is unknown; known: {', '.join(sorted(marks))}")
        check_payload(segment)


def _dtype_of(document: Document) -> type[np.generic]:
    wide = any(
        segment.data.dtype == np.uint32 and segment.data.max(initial=0) > 0xFFFF for segment in document.segments
    )
    return np.uint32 if wide else np.uint16


def _first_document(ids: np.ndarray) -> np.ndarray:
    """The ids before the first end; refuses what no model can have written."""
    ids = np.asarray(ids)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(f"ids have shape {ids.shape} and dtype {ids.dtype}; they must be one row of integers")
    if ids.size and not (ids.min() >= 0 and ids.max() <= MAX_ID):
        raise ValueError(f"ids run from {ids.min()} to {ids.max()}; they must lie between 0 and {MAX_ID}")
    ends = ids == EOS
    ends[1:] |= ids[1:] == BOS
    return ids[: int(ends.argmax())] if ends.any() else ids


def _leading_header(ids: np.ndarray) -> bytes:
    """The header that the digits at the start of a segment write; an odd last digit is dropped."""
    digits = ids[: 2 * MAX_HEADER_BYTES]
    others = np.flatnonzero((digits < FIRST_DIGIT) | (digits >= VOCAB_SIZE))
    count = (int(others[0]) if len(others) else len(digits)) // 2 * 2
    values = digits[:count].astype(np.uint16) - FIRST_DIGIT
    return (values[0::2] << 4 | values[1::2]).astype(np.uint8).tobytes()


def _payload(ids: np.ndarray) -> np.ndarray:
    kept = ids[(ids < PAD) | (ids >= VOCAB_SIZE)]
    largest = kept.max(initial=0)
    return kept.astype(np.uint8 if largest < PAD else np.uint16 if largest <= 0xFFFF else np.uint32)
