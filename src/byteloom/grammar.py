"""What a model may write next: the layouts of `documents`, one id at a time.

In: the ids so far. Out: the ids that may follow, as ranges; one id alone where the layout leaves no choice, as for the
PADs after a mark. Cost: a few operations of the host an id. What a model or a user wrote is never an error: the rules
bind only what comes next.

`FlatGrammar` is for segments one after the other, `FusedGrammar` for streams side by side in each patch. Both have
`choices()`, `read(id)`, `room(count)` and `in_text`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np

from byteloom import codecs
from byteloom.documents import (
    BOS,
    EOS,
    FIRST_DIGIT,
    FIRST_MARK,
    MAX_HEADER_BYTES,
    PAD,
    VOCAB_SIZE,
    Document,
    Segment,
)

Choices = tuple[range, ...]
"""The ids that may come next; hashable, so that a mask on a device is made once."""

BEGIN: Choices = (range(BOS, BOS + 1),)
PADDING: Choices = (range(PAD, PAD + 1),)
END: Choices = (range(EOS, EOS + 1),)
DIGITS: Choices = (range(FIRST_DIGIT, VOCAB_SIZE),)


@dataclass(frozen=True, kw_only=True)
class Modality:
    """What is known of a modality: how it opens, what its data are, and how long they run."""

    name: str
    """Its name, such as "text"."""
    mark: int
    """The id that opens its segments."""
    ids: range = range(256)
    """What its data may hold."""
    codec: ModuleType | None = None
    """Its codec; None for tokens, whose segments run until they end."""
    header_bytes: int = 0
    """Length of the headers of tokens; a codec says that of its own."""

    @property
    def num_digits(self) -> int:
        """Ids that write its header."""
        return 2 * (self.header_bytes if self.codec is None else self.codec.HEADER_BYTES)

    def size_after(self, digits: Sequence[int]) -> int | None:
        """How many ids of data a segment with this header has.

        None: the header does not say, is not whole, or makes no sense; the segment runs until it ends.
        """
        if self.codec is None or len(digits) != self.num_digits:
            return None
        try:
            return self.codec.payload_size(header_of(digits))
        except ValueError:
            return None


BYTES = Modality(name="bytes", mark=codecs.MARKS["bytes"])
"""What data are that no mark, or one that nobody knows, stands before."""


def modalities_of(declared: Iterable[tuple[str, int, range, int]] = ()) -> dict[str, Modality]:
    """Modalities by name: those declared, each its name, mark, data ids and length of header; where there are none, all
    codecs. The codec of that name, where there is one, says the length of the header.
    """
    declared = list(declared) or [(name, mark, range(256), 0) for name, mark in codecs.MARKS.items()]
    return {
        name: Modality(
            name=name,
            mark=mark,
            ids=ids,
            codec=codecs.by_modality(name) if name in codecs.MARKS else None,
            header_bytes=header_bytes,
        )
        for name, mark, ids, header_bytes in declared
    }


def only(choices: Choices) -> int | None:
    """The one id that may come next; None where there are several."""
    return choices[0].start if len(choices) == 1 and len(choices[0]) == 1 else None


def is_data(value: int) -> bool:
    """Whether an id is data and not structure."""
    return value < PAD or value >= VOCAB_SIZE


@dataclass
class FlatGrammar:
    """A document of segments one after the other: BOS, then MARK, header, PADs and data for each, then EOS.

    A segment whose header says how long it is ends exactly there. One that is empty is followed by no other, so that
    a document does not go on for ever without data.
    """

    modalities: Mapping[int, Modality]
    """All that are known, by mark."""
    opens: Choices
    """Marks of those that may be opened."""
    patch_size: int
    """Data begin on a multiple of it."""
    position: int = 0
    """Ids read."""
    modality: Modality | None = None
    """Of the segment that is open; None: a mark is to come."""
    digits: list[int] = field(default_factory=list)
    """Header digits since the mark."""
    in_header: bool = False
    """Nothing but digits stands since the mark."""
    count: int = 0
    """Ids of data that it has."""

    def read(self, value: int) -> None:
        """Takes the next id, whatever it is."""
        self.position += 1
        if FIRST_MARK <= value < FIRST_DIGIT:
            self.modality, self.digits, self.in_header, self.count = self.modalities.get(value, BYTES), [], True, 0
        elif FIRST_DIGIT <= value < VOCAB_SIZE and self.in_header:
            self.digits.append(value - FIRST_DIGIT)
        else:
            self.in_header = False
            if value == BOS:
                self.modality = None
            elif is_data(value):
                if self.modality is None:
                    self.modality, self.digits, self.count = BYTES, [], 0
                self.count += 1

    def choices(self) -> Choices:
        """What may come next."""
        if self.modality is None:
            return BEGIN if self.position == 0 else self.opens or END
        if self.in_header and len(self.digits) < self.modality.num_digits:
            return DIGITS
        if self.count == 0 and self.position % self.patch_size:
            return PADDING
        size, ends = self.modality.size_after(self.digits), END + self.opens if self.count else END
        if size is None:
            return (self.modality.ids, *ends)
        return (self.modality.ids,) if self.count < size else ends

    def room(self, count: int) -> int:
        """Most ids that stand before the end, or before the `count`-th id of data from here on was read."""
        segments = 1 + (count if self.opens else 0)
        return self.position + count + segments * (2 + 2 * MAX_HEADER_BYTES + self.patch_size)

    @property
    def in_text(self) -> bool:
        """Whether the next id of data is text."""
        return self.modality is not None and self.modality.name == "text"


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One of the streams side by side in each patch."""

    modality: Modality
    """What it is."""
    size: int
    """Its ids in a patch."""
    predicted: bool
    """Whether the model writes it; else it is what the prompt gives, and PAD after that."""


@dataclass
class FusedGrammar:
    """A document of streams side by side: BOS, mark and header of each, PADs, then patches with a share of each.

    What the prompt gives stands in its places; the model writes the other places of predicted streams, and headers
    that the prompt lacks. Where the prompt gives data of streams that are not predicted, the document is as long as
    they are. Else it ends before a patch where the model says so, or where the headers of all predicted streams do.
    """

    streams: Sequence[Stream]
    """All of them, in the order of their places in a patch."""
    prompt: Document
    """What is given, see `by_stream`."""
    position: int = 0
    """Ids read."""

    def __post_init__(self) -> None:
        segments = by_stream(self.prompt, self.streams).segments
        self.places = [(i, offset) for i, stream in enumerate(self.streams) for offset in range(stream.size)]
        self.data = [segment.data for segment in segments]
        self.digits: list[list[int]] = [[] for _ in self.streams]
        self.head: list[tuple[Choices, int | None]] = [(BEGIN, None)]
        """What comes before the patches; where it is a digit, with its stream."""
        for i, (stream, segment) in enumerate(zip(self.streams, segments)):
            missing = stream.modality.num_digits if stream.predicted and not segment.header else 0
            self.head.append((exactly(stream.modality.mark), None))
            self.head += [(exactly(FIRST_DIGIT + digit), i) for digit in digits_of(segment.header)]
            self.head += [(DIGITS, i)] * missing
        self.head += [(PADDING, None)] * (-len(self.head) % len(self.places))
        lengths = [-(-len(data) // stream.size) for stream, data in zip(self.streams, self.data)]
        self.given = max(lengths)
        """Patches in which something is given."""
        self.bound = any(length for length, stream in zip(lengths, self.streams) if not stream.predicted)
        """Whether the document is as long as what is given."""

    def read(self, value: int) -> None:
        """Takes the next id, which is one of `choices`."""
        if self.position < len(self.head):
            _, stream = self.head[self.position]
            if stream is not None:
                self.digits[stream].append(value - FIRST_DIGIT)
        self.position += 1

    def choices(self) -> Choices:
        """What may come next."""
        if self.position < len(self.head):
            return self.head[self.position][0]
        patch, place = divmod(self.position - len(self.head), len(self.places))
        if place == 0 and self.is_over(patch):
            return END
        i, offset = self.places[place]
        stream, index = self.streams[i], patch * self.streams[i].size + offset
        if index < len(self.data[i]):
            return exactly(int(self.data[i][index]))
        if not stream.predicted:
            return PADDING
        data = PADDING if self.has_all(i, index) else (stream.modality.ids,)
        return (*data, *END) if place == 0 and patch >= self.given and not self.bound else data

    def is_over(self, patch: int) -> bool:
        """Whether no stream has anything in this patch or after it."""
        if patch < self.given or self.bound:
            return patch >= self.given
        return all(self.has_all(i, patch * stream.size) for i, stream in enumerate(self.streams) if stream.predicted)

    def has_all(self, stream: int, count: int) -> bool:
        """Whether the header of a stream asks for no more than `count` ids."""
        size = self.streams[stream].modality.size_after(self.digits[stream])
        return size is not None and count >= size

    def room(self, count: int) -> int:
        """Most ids that stand before the end, or before the `count`-th id of data from here on was read."""
        return len(self.head) + (self.given + count + 1) * len(self.places)

    @property
    def in_text(self) -> bool:
        """Never: characters that other streams stand between are no UTF-8."""
        return False


def by_stream(document: Document, streams: Sequence[Stream]) -> Document:
    """The document with each segment at the place of its stream, and an empty one for each stream that it lacks.

    Raises:
        ValueError: a segment is of no stream that is left.
    """
    segments = list(document.segments)
    placed = []
    for stream in streams:
        found = bool(segments) and segments[0].modality == stream.modality.name
        placed.append(segments.pop(0) if found else Segment(modality=stream.modality.name, data=np.empty(0, np.uint8)))
    if segments:
        raise ValueError(
            f"the prompt's segments are {', '.join(segment.modality for segment in document.segments)} and the model's "
            f"streams {', '.join(stream.modality.name for stream in streams)}; give at most one for each, in that order"
        )
    return Document(segments=tuple(placed), name=document.name)


def exactly(value: int) -> Choices:
    """No choice but this id."""
    return (range(value, value + 1),)


def digits_of(header: bytes) -> list[int]:
    """Four bits each, high ones first."""
    return [digit for byte in header for digit in (byte >> 4, byte & 15)]


def header_of(digits: Sequence[int]) -> bytes:
    """The inverse of `digits_of`; an odd last digit is dropped."""
    return bytes(high << 4 | low for high, low in zip(digits[::2], digits[1::2]))
