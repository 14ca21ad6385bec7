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
    first_mark: int = 259
    """Ids from here to end_of_marks open a segment, each of one modality."""
    end_of_marks: int = 320
    """The first id after the reserved block."""


VOCABULARY = Vocabulary()


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Sums over the counted positions of a batch."""

    nats: Tensor
    """(), summed cross-entropy, differentiable."""
    count: Tensor
    """(), positions that it is a sum over."""
    bytes: Tensor
    """(), how many of them are bytes."""
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
    """The mark *before* each position: ids (B, T) -> (B, T). `mark` (B,) is the one before the first position."""
    is_mark = (ids >= VOCABULARY.first_mark) & (ids < VOCABULARY.end_of_marks)
    places = torch.arange(1, ids.shape[1] + 1, device=ids.device) * is_mark
    last = F.pad(places.cummax(1).values, (1, 0))[:, : ids.shape[1]]  # 0: none yet
    initial = ids.new_full((ids.shape[0],), VOCABULARY.pad_id) if mark is None else mark
    return torch.where(last > 0, ids.gather(1, (last - 1).clamp(min=0)), initial.unsqueeze(1))


def cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    """Nats of each position: logits (B, T, V) for ids (B, T) -> (B, T) in fp32."""
    return F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten(), reduction="none").view(ids.shape)


def summed_loss(nats: Tensor, ids: Tensor, mark: Tensor | None = None, counted: Tensor | None = None) -> Loss:
    """Sum nats (B, T) over the positions of ids (B, T) that are `counted` (B, T, default all) and no PAD."""
    keep = ids != VOCABULARY.pad_id
    if counted is not None:
        keep = keep & counted.to(torch.bool)
    kept = torch.where(keep, nats, 0.0)
    is_byte = keep & (ids < VOCABULARY.num_bytes)
    rows = (marks_in_force(ids, mark) - VOCABULARY.first_mark + 1).clamp(min=0).flatten()
    values = torch.stack((kept, keep.to(nats.dtype), is_byte.to(nats.dtype)), dim=-1).flatten(0, 1)
    table = values.new_zeros(VOCABULARY.end_of_marks - VOCABULARY.first_mark + 1, 3).index_add(0, rows, values)
    return Loss(nats=kept.sum(), count=keep.sum(), bytes=is_byte.sum(), table=table)
