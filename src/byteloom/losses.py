"""Logits and ids in, summed nats out, with what they are to be divided by: sums first, ratios last.

PAD is never counted. BOS, EOS and the marks are counted as loss but not as bytes, so that bits per byte
= nats / ln 2 / bytes is what a compressor would need (arXiv 2305.07185, section 5).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Which ids mean what; the layout that byteloom.documents writes."""

    num_bytes: int = 256
    """Ids below this are bytes."""
    pad_id: int = 256
    """Never counted."""
    bos_id: int = 257
    """Begins a document."""
    first_mark: int = 259
    """Ids from here to end_of_marks open a segment, each of one modality."""
    end_of_marks: int = 304
    """The first id after the marks."""
    first_digit: int = 304
    """Ids from here to end_of_reserved write a segment's header, four bits each."""
    end_of_reserved: int = 320
    """The first id of the discrete vocabularies."""


VOCABULARY = Vocabulary()


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Sums over the counted positions of a batch."""

    nats: Tensor
    """(), summed cross-entropy, differentiable."""
    count: Tensor
    """(), positions that it is a sum over."""
    bytes: Tensor
    """(), how many of them are data: bytes, or tokens of a discrete vocabulary."""
    table: Tensor
    """(M, 3): nats (differentiable), count and bytes for each modality; row 0 is what comes before any mark."""

    @property
    def bits_per_byte(self) -> float:
        """Nats / ln 2 / bytes; nan where there is no byte."""
        return bits_per_byte(float(self.nats), int(self.bytes))

    @property
    def by_modality(self) -> "dict[int, Loss]":
        """The same sums for each mark id that was counted (pad_id stands for: before any mark)."""
        parts = {}
        for row in self.table[:, 1].nonzero().flatten().tolist():
            nats, count, size = self.table[row]
            mark = VOCABULARY.first_mark + row - 1 if row else VOCABULARY.pad_id
            parts[mark] = Loss(nats=nats, count=count, bytes=size, table=self.table[row : row + 1])
        return parts


def bits_per_byte(nats: float, size: int) -> float:
    """Nats over `size` bytes in bits per byte; nan where size is 0."""
    return nats / math.log(2) / size if size else math.nan


def marks_in_force(ids: Tensor, mark: Tensor | None = None) -> Tensor:
    """The mark *before* each position: ids (B, T) -> (B, T); PAD before the first mark of a document.

    `mark` (B,) is the one before the first position.
    """
    is_mark = (ids >= VOCABULARY.first_mark) & (ids < VOCABULARY.end_of_marks)
    last = last_before(is_mark | (ids == VOCABULARY.bos_id))
    found = ids.gather(1, (last - 1).clamp(min=0))
    initial = ids.new_full((ids.shape[0],), VOCABULARY.pad_id) if mark is None else mark
    marks = torch.where(last > 0, found, initial.unsqueeze(1))
    return marks.masked_fill(marks == VOCABULARY.bos_id, VOCABULARY.pad_id)


def places_in_segment(ids: Tensor, since: Tensor | None = None, patch_size: int | None = None) -> Tensor:
    """How much of its segment's data stands before each position: ids (B, T) -> (B, T).

    `since` (B,) is that of the first position. Data begin after the last id of structure; in a stream of fused patches
    of `patch_size`, where PAD may stand for data, they begin at the border after the last one that is no PAD (before
    that border the count is below zero).
    """
    structure = (ids >= VOCABULARY.num_bytes) & (ids < VOCABULARY.end_of_reserved)
    if patch_size is not None:
        structure &= ids != VOCABULARY.pad_id
    last = last_before(structure)
    places = torch.arange(ids.shape[1], device=ids.device)
    begin = last
    if patch_size is not None:
        begin = torch.div(last + patch_size - 1, patch_size, rounding_mode="floor") * patch_size
    initial = ids.new_zeros(ids.shape[0]) if since is None else since
    return torch.where(last > 0, places - begin, places + initial.unsqueeze(1))


def last_before(chosen: Tensor) -> Tensor:
    """For each position how many positions stand up to the last chosen one before it, (B, T) -> (B, T); 0: none is."""
    places = torch.arange(1, chosen.shape[1] + 1, device=chosen.device) * chosen
    return F.pad(places.cummax(1).values, (1, 0))[:, : chosen.shape[1]]


def cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    """Nats of each position: logits (..., V) for ids (...) -> (...) in fp32."""
    return F.cross_entropy(logits.flatten(0, -2).float(), ids.flatten(), reduction="none").view(ids.shape)


def summed_loss(
    nats: Tensor,
    ids: Tensor,
    mark: Tensor | None = None,
    counted: Tensor | None = None,
    rows: Tensor | None = None,
) -> Loss:
    """Sum nats (B, T) over the positions of ids (B, T) that are `counted` (B, T, default all) and no PAD.

    `rows` (B, T) says to which row of the table each position belongs; default: to that of the mark before it.
    """
    keep = ids != VOCABULARY.pad_id
    if counted is not None:
        keep = keep & counted.to(torch.bool)
    kept = torch.where(keep, nats, 0.0)
    is_data = keep & ((ids < VOCABULARY.num_bytes) | (ids >= VOCABULARY.end_of_reserved))
    if rows is None:
        rows = (marks_in_force(ids, mark) - VOCABULARY.first_mark + 1).clamp(min=0)
    values = torch.stack((kept, keep.to(nats.dtype), is_data.to(nats.dtype)), dim=-1).flatten(0, 1)
    table = values.new_zeros(VOCABULARY.end_of_marks - VOCABULARY.first_mark + 1, 3).index_add(
        0, rows.flatten(), values
    )
    return Loss(nats=kept.sum(), count=keep.sum(), bytes=is_data.sum(), table=table)
