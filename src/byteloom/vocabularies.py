"""Vocabularies of discrete codes and their places among the ids: blocks from 320 on, marks from 280 on.

In: tokenizers, anything that has the members of `Tokenizer`. Out: `Block`, which writes a tokenizer's codes as a
`Segment` of a token modality and reads back whatever a model writes. Cost: none but the tokenizer's own.

A frame of C residual codebooks is C ids side by side, and each codebook has its own ids: a patch of C ids is a frame.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Protocol

import numpy as np

from byteloom import codecs
from byteloom.documents import FIRST_DIGIT, VOCAB_SIZE, Segment

if TYPE_CHECKING:
    from byteloom.models.config import ModalityConfig

AnyPath = str | PathLike[str]

FIRST_FREE_MARK = 280
"""The MARKs from here to the first digit are for vocabularies that a run declares."""


class Tokenizer(Protocol):
    """What a tokenizer has; byteloom's own are made by `text_tokenizer`, `audio_tokenizer` and `image_tokenizer`."""

    sizes: tuple[int, ...]
    """How many codes each of its C codebooks has, in the order in which they stand in a frame."""
    header_bytes: int
    """Length of its headers."""

    def read(self, path: AnyPath) -> Segment:
        """A file as a segment that `encode` takes. Raises DataError where it cannot be read."""
        ...

    def encode(self, segment: Segment) -> tuple[np.ndarray, bytes]:
        """Codes (frames, C), column c from 0 to below sizes[c], and the header that `decode` needs."""
        ...

    def decode(self, codes: np.ndarray, header: bytes) -> Segment:
        """Codes (frames, C) as a segment of bytes. Raises ValueError where the header makes no sense."""
        ...

    def num_frames(self, header: bytes) -> int | None:
        """How many frames a header asks for; None: as many as there are. Raises ValueError as `decode` does.

        A model that writes no headers leaves it empty, which makes sense of a kind to every tokenizer.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Block:
    """A vocabulary and its place among the ids. Make them with `blocks`."""

    name: str
    """Name of its modality."""
    mark: int
    """The MARK that opens its segments."""
    first_id: int
    """Id of code 0 of its first codebook; the other codebooks follow, one after another."""
    tokenizer: Tokenizer
    """What turns bytes into its codes and back."""

    @property
    def num_ids(self) -> int:
        """How many ids it has: all of its codebooks."""
        return sum(self.tokenizer.sizes)

    @property
    def frame(self) -> int:
        """Ids of a frame, one of each codebook: a patch size that puts every frame into a patch of its own."""
        return len(self.tokenizer.sizes)

    def payload_size(self, header: bytes) -> int | None:
        """How many ids follow a header; None: until the segment ends. Raises ValueError for a senseless header."""
        frames = self.tokenizer.num_frames(header)
        return None if frames is None else frames * self.frame

    def encode(self, source: Segment | AnyPath) -> Segment:
        """A segment of bytes, or a file, as a segment of this vocabulary.

        Raises:
            DataError: the file cannot be read.
            ValueError: the segment is not what the tokenizer takes.
        """
        segment = source if isinstance(source, Segment) else self.tokenizer.read(source)
        codes, header = self.tokenizer.encode(segment)
        ids = (codes + self._starts[:-1]).reshape(-1)
        return Segment(modality=self.name, data=ids.astype(self._dtype), header=header)

    def decode(self, segment: Segment) -> Segment:
        """A segment of this vocabulary as a segment of bytes, which the codec of its modality makes a file of.

        Whatever a model writes is decoded: ids that are not of this block, and those that do not stand in a whole
        frame, one of each codebook in order, are dropped; what a header asks for beyond that is code 0.

        Raises:
            ValueError: the header makes no sense.
        """
        ids = segment.data.astype(np.int64)
        book = np.searchsorted(self._starts, ids, side="right") - 1  # -1: before the block, C: after it
        inside = (book >= 0) & (book < self.frame)
        ids, book = ids[inside], book[inside]
        order = np.arange(self.frame)
        padded = np.pad(book, (0, self.frame), constant_values=-1)  # so that a window begins at every id
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.frame)
        whole = np.flatnonzero((windows == order).all(1))
        codes = ids[whole[:, None] + order] - self._starts[:-1]
        frames = self.tokenizer.num_frames(segment.header)
        if frames is not None:
            codes = np.pad(codes[:frames], ((0, max(0, frames - len(codes))), (0, 0)))
        return self.tokenizer.decode(codes, segment.header)

    @property
    def _starts(self) -> np.ndarray:
        """(C + 1,) the first id of each codebook, and the end of the block."""
        return self.first_id + np.cumsum([0, *self.tokenizer.sizes])

    @property
    def _dtype(self) -> type[np.unsignedinteger]:
        return np.uint16 if self.first_id + self.num_ids <= 1 << 16 else np.uint32


def blocks(tokenizers: Mapping[str, Tokenizer]) -> tuple[Block, ...]:
    """Lays vocabularies one after another, from id 320 and mark 280 on, in the order given.

    Raises:
        ValueError: a name is a codec's, or there are more of them than free marks.
    """
    if taken := sorted(set(tokenizers) & set(codecs.MARKS)):
        raise ValueError(f"{taken[0]} is a modality of bytes; give the vocabulary another name")
    if len(tokenizers) > FIRST_DIGIT - FIRST_FREE_MARK:
        raise ValueError(f"{len(tokenizers)} vocabularies are too many; {FIRST_DIGIT - FIRST_FREE_MARK} have a mark")
    laid, first_id = [], VOCAB_SIZE
    for place, (name, tokenizer) in enumerate(tokenizers.items()):
        laid.append(Block(name=name, mark=FIRST_FREE_MARK + place, first_id=first_id, tokenizer=tokenizer))
        first_id += laid[-1].num_ids
    return tuple(laid)


def marks(laid: Sequence[Block]) -> dict[str, int]:
    """The MARK of every modality: those of the codecs and those of these vocabularies."""
    return {**codecs.MARKS, **{block.name: block.mark for block in laid}}


def vocab_size(laid: Sequence[Block]) -> int:
    """How many ids a model of these vocabularies has."""
    return max((block.first_id + block.num_ids for block in laid), default=VOCAB_SIZE)


def modalities(laid: Sequence[Block]) -> "tuple[ModalityConfig, ...]":
    """These vocabularies as `ModelConfig.modalities`."""
    from byteloom.models.config import ModalityConfig

    return tuple(
        ModalityConfig(
            name=block.name,
            mark=block.mark,
            first_id=block.first_id,
            num_ids=block.num_ids,
            header_bytes=block.tokenizer.header_bytes,
        )
        for block in laid
    )
