"""Archives of compressed files: their header and layout, and what is checked before anything is made of them.

In: what was coded and how. Out: bytes, and back; nothing is allocated for what an archive only claims. `segments_of`
says as which segments a file is coded, so that it comes back byte for byte.

An archive is, little-endian:

    "BLOOM", format, crc32 of all that follows
    model (16), content (16): the first bytes of the SHA-256 of config and weights, and of the file
    probe (8): of the SHA-256 of logits that the model gave to fixed bytes before coding began
    lanes, context, threads, flags
    environment: versions and kind of processor, for people to read
    layout: runs of equal segments, each (count, mark, header, bytes of data)
    the range coder's words, or, where they would be more, the file as it is
"""

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
from byteloom.documents import MAX_HEADER_BYTES, DataError, Segment

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
    sound = header.size <= most and sum(run[0] for run in header.layout) <= MAX_SEGMENTS and header.threads >= 1
    if not header.stored:
        sound = sound and size % 4 == 0 and 1 <= header.lanes <= header.size and header.context >= 1
    if not sound:
        raise ArchiveError(
            "this archive asks for more than it can hold; it is forged, or of a program that is not ours"
        )
    try:
        check_places(header, header.size)
    except ValueError as error:
        raise ArchiveError(f"this archive cannot be opened: {error}") from error


def check_places(header: Header, size: int) -> None:
    """Raises ValueError where lanes of `size` bytes see more at once than memory is meant for."""
    places = header.lanes * min(header.context, -(-size // header.lanes))
    if header.lanes > 1 and places > MAX_PLACES:
        raise ValueError(
            f"{header.lanes:,} lanes with a context of {header.context:,} see {places:,} ids at once; "
            f"take fewer lanes, at most {MAX_PLACES:,} ids"
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
