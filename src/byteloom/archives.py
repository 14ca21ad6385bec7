"""Archives of compressed files: their header and layout, and what is checked before anything is made of them.

In: what was coded and how. Out: bytes, and back. `segments_of` says as which segments a file is coded, so that it comes
back byte for byte, and `lay_out` how they stand in lanes. What an archive only claims takes no memory: what it asks for
is bounded first, and lanes are made a stretch at a time.

An archive is, little-endian:

    "BLOOM", format, crc32 of all that follows
    model (16), content (16): the first bytes of the SHA-256 of config and weights, and of the file
    probe (8): of the SHA-256 of logits that the model gave to fixed bytes before coding began
    lanes, context, threads, flags
    environment: versions and kind of processor, for people to read
    layout: runs of equal segments, each (count, mark, header, bytes of data)
    the range coder's words, or, where they would be more, the file as it is
"""

import functools
import hashlib
import itertools
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Literal

import numpy as np

from byteloom import codecs
from byteloom.codecs import DEFAULT_MEDIA, MediaConfig
from byteloom.documents import BOS, MAX_HEADER_BYTES, PAD, DataError, Segment, opening

Precision = Literal["fp32", "bf16"]

MAGIC = b"BLOOM"
FORMAT = 1
FIXED = struct.Struct("<16s16s8sHIBB")
HEAD = struct.Struct("<5sBI")
BF16, COMPILED, CUDA, STORED = 1, 2, 4, 8

MAX_PLACES = 1 << 20
"""Most ids that all lanes together see at once: the bound on memory."""
MAX_BYTES = 1 << 28
MAX_SEGMENTS = 1 << 18
SHORTEST_CODE = 2.0**-16
"""No byte takes fewer bits: probabilities have 24 bits, and each of 256 bytes keeps a part of them."""
GRAIN = 48
"""Long lanes begin at multiples of it within a segment, so that pixels, squares of pixels and samples stay whole."""
BARE = ".raw"
"""The suffix by which every codec gives samples as they are, without a header."""
DAMAGED = "this archive is damaged: it is cut off, or is not what its checksum says; take another copy"


class ArchiveError(Exception):
    """An archive that cannot be opened. The message is one line that says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What an archive says about itself."""

    model: bytes
    """The first 16 bytes of `model_digest`."""
    content: bytes
    """The first 16 bytes of the file's SHA-256."""
    probe: bytes
    """The first 8 bytes of the digest of the probe's logits; zeros where nothing was coded."""
    lanes: int
    """Streams side by side."""
    context: int
    """Most ids that a lane sees at once."""
    threads: int
    """Threads that each operation ran with."""
    precision: Precision
    """Of matrix products."""
    compiled: bool
    """Whether the model's steps were compiled."""
    device: Literal["cpu", "cuda"]
    """Where the model ran."""
    stored: bool
    """Whether the file follows as it is."""
    environment: str
    """Versions of byteloom and torch and the kind of processor."""
    layout: tuple[tuple[int, int, bytes, int], ...]
    """Runs of equal segments: how many, their mark, their header, and the bytes of data in each."""

    @property
    def size(self) -> int:
        """Bytes of data."""
        return sum(count * length for count, _, _, length in self.layout)


def pack(header: Header, content: bytes) -> bytes:
    """An archive of a header and what follows it."""
    flags = BF16 * (header.precision == "bf16") + COMPILED * header.compiled
    flags += CUDA * (header.device == "cuda") + STORED * header.stored
    fixed = FIXED.pack(header.model, header.content, header.probe, header.lanes, header.context, header.threads, flags)
    about = header.environment.encode("ascii", "replace")
    body = b"".join([fixed, number(len(about)), about, pack_layout(header.layout), content])
    return HEAD.pack(MAGIC, FORMAT, zlib.crc32(body)) + body


def unpack(archive: bytes) -> tuple[Header, bytes]:
    """The header of an archive and what follows it. Raises ArchiveError where it is damaged or foreign."""
    if archive[: len(MAGIC)] != MAGIC:
        raise ArchiveError("this is not an archive of byteloom; give a file that `byteloom compress` wrote")
    if len(archive) < HEAD.size:
        raise ArchiveError(DAMAGED)
    _, version, checksum = HEAD.unpack_from(archive)
    body = memoryview(archive)[HEAD.size :]
    if version != FORMAT:
        raise ArchiveError(f"this archive has format {version}, and this byteloom reads format {FORMAT}; update it")
    if zlib.crc32(body) != checksum:
        raise ArchiveError(DAMAGED)
    reader = Reader(body)
    model, sum_of_content, sign, lanes, context, threads, flags = FIXED.unpack(reader.take(FIXED.size))
    about = bytes(reader.take(reader.number())).decode("ascii", "replace")
    header = Header(
        model=model,
        content=sum_of_content,
        probe=sign,
        lanes=lanes,
        context=context,
        threads=threads,
        precision="bf16" if flags & BF16 else "fp32",
        compiled=bool(flags & COMPILED),
        device="cuda" if flags & CUDA else "cpu",
        stored=bool(flags & STORED),
        environment="".join(c if c.isprintable() else "?" for c in about),
        layout=unpack_layout(reader),
    )
    content = bytes(reader.rest)
    check_archive(header, len(content))
    return header, content


def check_archive(header: Header, size: int) -> None:
    """Refuses a header that asks for more than `size` bytes of content can hold, before anything is made for it.

    Raises:
        ArchiveError: no archive that `compress` wrote says this.
    """
    most = 0 if header.stored else min(MAX_BYTES, int((8 * size + 64) / SHORTEST_CODE))
    sound = header.size <= most and sum(run[0] for run in header.layout) <= MAX_SEGMENTS
    sound = sound and min(header.lanes, header.context, header.threads) >= 1
    if not header.stored:
        sound = sound and size % 4 == 0 and header.lanes <= header.size
    if not sound:
        raise ArchiveError(
            "this archive asks for more than it can hold; it is forged, or of a program that is not ours"
        )


def checked(data: bytes, header: Header) -> bytes:
    """Data, if they are what the header says. Raises ArchiveError."""
    if hashlib.sha256(data).digest()[: len(header.content)] != header.content:
        raise other_content(header)
    return data


def other_content(header: Header) -> ArchiveError:
    """What there is to say where decoding gave other bytes than were coded, or could not go on."""
    return ArchiveError(
        "what came out is not the file that went in, and is thrown away: the archive is damaged, or this machine "
        f"computes other numbers than that where it was made ({header.environment}); open it there"
    )


def pack_layout(layout: Sequence[tuple[int, int, bytes, int]]) -> bytes:
    """Runs of segments as bytes."""
    packed = [number(len(layout))]
    for count, mark, header, length in layout:
        packed += [number(count), number(mark), number(len(header)), header, number(length)]
    return b"".join(packed)


def unpack_layout(reader: "Reader") -> tuple[tuple[int, int, bytes, int], ...]:
    """Runs of segments from bytes. Raises ArchiveError."""
    layout = []
    for _ in range(reader.number()):
        count, mark, size = reader.number(), reader.number(), reader.number()
        header, length = reader.take(size), reader.number()
        if not count or not length or size > MAX_HEADER_BYTES:
            raise ArchiveError(DAMAGED)
        layout.append((count, mark, bytes(header), length))
    return tuple(layout)


def layout_of(segments: Sequence[Segment], marks: Mapping[str, int]) -> tuple[tuple[int, int, bytes, int], ...]:
    """Runs of equal segments: how many, their mark, their header and the bytes of data in each."""
    kinds = [(marks[segment.modality], segment.header, len(segment.data)) for segment in segments]
    return tuple((len(list(same)), *kind) for kind, same in itertools.groupby(kinds))


def segments_in(header: Header, marks: Mapping[str, int]) -> list[Segment]:
    """The segments of an archive, of zeros. Raises ArchiveError where a mark is unknown."""
    names = {mark: name for name, mark in marks.items()}
    segments = []
    for count, mark, head, length in header.layout:
        if mark not in names:
            raise ArchiveError(f"this archive holds a modality with mark {mark}, which this byteloom does not know")
        segments += [Segment(modality=names[mark], data=np.zeros(length, np.uint8), header=head)] * count
    return segments


def segments_of(path: str | PathLike[str], data: bytes, media: MediaConfig = DEFAULT_MEDIA) -> tuple[Segment, ...]:
    """A media file's samples as segments, between what stands before and after them, as bytes.

    Joined as they are, without headers, they are the file again: so is 16-bit PCM in WAV, and pixels in PPM or without
    a header if `media` says their size. Of all other files, and of damaged ones, there come none.

    Args:
        path: the file.
        data: its content.
        media: how media are read, as the model learned them.
    """
    try:
        codec = codecs.for_path(path, media)
        if hasattr(codec, "FILE_IS_PAYLOAD"):
            return ()
        segments = codecs.read(path, None, media).segments
        samples = b"".join(bare(segment) for segment in segments)
    except (DataError, ValueError, ImportError):  # then it is bytes
        return ()
    begin = data.find(samples)
    if begin < 0 or not samples or len(segments) > MAX_SEGMENTS - 2:
        return ()
    before, after = (
        Segment(modality="bytes", data=np.frombuffer(edge, np.uint8))
        for edge in (data[:begin], data[begin + len(samples) :])
    )
    return tuple(segment for segment in (before, *segments, after) if len(segment.data))


def check_segments(segments: Sequence[Segment], data: bytes, marks: Mapping[str, int]) -> None:
    """Raises ValueError where segments are not the data, or are none that an archive takes."""
    if len(segments) > MAX_SEGMENTS:
        raise ValueError(f"{len(segments):,} segments are more than an archive takes, {MAX_SEGMENTS:,}; take fewer")
    for segment in segments:
        if segment.modality not in marks:
            raise ValueError(f"modality {segment.modality!r} is unknown; known: {', '.join(sorted(marks))}")
        if segment.data.dtype != np.uint8 or not len(segment.data):
            raise ValueError(f"a segment of {segment.modality} has no bytes; leave it out")
    if b"".join(map(bare, segments)) != data:
        raise ValueError("the segments are not the data; take those that segments_of gives")


def bare(segment: Segment) -> bytes:
    """A segment's samples as they stand in a file; one without a header is bytes, however it is marked.

    Raises ValueError where its header makes no sense.
    """
    if not segment.header or segment.modality not in codecs.MARKS:
        return segment.data.tobytes()
    codec, size = codecs.by_modality(segment.modality), len(segment.data)
    unit = codec.unit_size(segment.header) if hasattr(codec, "unit_size") else 1
    if codec.payload_size(segment.header) not in (None, size) or size % unit:  # else a decoder would make up the rest
        raise ValueError(
            f"a segment of {segment.modality} has {size:,} bytes, which are not as many as its header says"
        )
    return codec.decode(segment, BARE)


# -- the lanes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Lanes:
    """Data in N lanes that are read side by side, in P parts, each of one lane and of one segment.

    Each lane is a document of its own: BOS, marks and headers stand before its parts of the data and cost nothing,
    since the decoder lays out the same.
    """

    borders: np.ndarray
    """(N + 1,) int64: where in the data each lane begins, and the last ends."""
    rows: np.ndarray
    """(P,) int64: the lane of each part."""
    heads: Sequence[np.ndarray]
    """The ids that stand before each part, up to the PADs that follow them."""
    places: np.ndarray
    """(P, 3) int64: where in its lane the head of each part begins, its data begin, and these end."""

    @property
    def length(self) -> int:
        """Ids in the longest lane."""
        return int(self.places[:, 2].max())

    def stretch(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids (N, stop - start) at these places, zeros where there are data, and which are data, bool."""
        ids = np.zeros((len(self.borders) - 1, stop - start), np.uint16)
        coded = np.zeros(ids.shape, bool)
        for part in np.flatnonzero((self.places[:, 0] < stop) & (self.places[:, 2] > start)).tolist():
            first, data, end = (self.places[part] - start).tolist()
            head = np.full(data - first, PAD)
            head[: len(self.heads[part])] = self.heads[part]
            there = ids[self.rows[part], max(first, 0) : max(data, 0)]
            there[:] = head[max(-first, 0) :][: len(there)]
            coded[self.rows[part], max(data, 0) : end] = True
        return ids, coded


def lay_out(
    segments: Sequence[Segment], marks: Mapping[str, int], lanes: int, context: int, span: int, vocab_size: int
) -> Lanes:
    """Segments, none of them empty, as lanes, at most as many as bytes.

    Args:
        segments: what is laid out; their data are not looked at.
        marks: the MARK id of each modality.
        lanes: how many there are to be.
        context: most ids that a lane sees at once.
        span: ids in a patch; data begin on a multiple of it, as in `to_ids`.
        vocab_size: ids from it on are left out, for a model from elsewhere may know bytes only.

    Raises:
        ValueError: several lanes see more ids at once than memory is meant for.
    """
    starts = np.cumsum([0, *(len(segment.data) for segment in segments)])
    borders = lane_borders(starts, lanes)
    cuts = np.union1d(starts, borders)
    begins, sizes = cuts[:-1], np.diff(cuts)
    rows, is_first = borders.searchsorted(begins, "right") - 1, np.isin(begins, borders)
    owners = [segments[i] for i in starts.searchsorted(begins, "right") - 1]

    @functools.cache
    def head_of(modality: str, header: bytes, first: bool) -> np.ndarray:
        head = opening(marks[modality], header)
        head = np.append(BOS, head) if first else head
        return head[head < vocab_size]

    heads = [head_of(part.modality, part.header, first) for part, first in zip(owners, is_first, strict=True)]
    before = np.where(is_first, 1, np.append(0, sizes[:-1]))  # since the last border of patches: BOS, or data
    pads = -(before + np.array([1 + 2 * len(part.header) for part in owners])) % span
    each = np.array([len(head) for head in heads]) + pads * (vocab_size > PAD)
    ends = np.cumsum(each + sizes)
    ends -= (ends - each - sizes)[is_first][rows]
    places = np.stack([ends - sizes - each, ends - sizes, ends], axis=1)
    found = Lanes(borders=borders, rows=rows, heads=heads, places=places)
    seen = lanes * min(context, found.length)
    if lanes > 1 and seen > MAX_PLACES:
        raise ValueError(
            f"{lanes:,} lanes with a context of {context:,} see {seen:,} ids at once; "
            f"take fewer lanes, at most {MAX_PLACES:,} ids"
        )
    return found


def lane_borders(starts: np.ndarray, lanes: int) -> np.ndarray:
    """Where lanes begin and end (N + 1,) in data whose segments begin at `starts` and end at its last.

    Lanes are about equally long; where a segment begins not far from a border, the border goes there, else to a
    multiple of `GRAIN` in its segment.
    """
    total = int(starts[-1])
    near = total // lanes // 8
    even = np.arange(lanes + 1) * total // lanes
    right = starts.searchsorted(even).clip(1)
    low, high = starts[right - 1], starts[right]
    nearest = np.where(even - low < high - even, low, high)
    inside = even - (even - low) % GRAIN if near >= GRAIN else even
    return np.where(abs(nearest - even) <= near, nearest, inside)


def number(value: int) -> bytes:
    """A whole number as bytes: seven bits in each, the low ones first, and a high bit where more follow."""
    packed = bytearray()
    while value > 0x7F:
        packed.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*packed, value])


@dataclass
class Reader:
    """Takes bytes from the front, and no more than there are."""

    rest: memoryview
    """What has not been taken."""

    def take(self, size: int) -> memoryview:
        """The next `size` bytes. Raises ArchiveError where there are fewer."""
        if size > len(self.rest):
            raise ArchiveError(DAMAGED)
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken

    def number(self) -> int:
        """What `number` wrote, below 2^35. Raises ArchiveError."""
        value = 0
        for place in range(5):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                return value
        raise ArchiveError(DAMAGED)
