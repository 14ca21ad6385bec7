"""What a stack of layers remembers: caches of one position a step, and the tail of one stretch for the next.

A `StackState` is allocated once and written in place: (layers, B, G, C, d) with C no more than what attention reaches.
A `Past` is what a stretch of positions hands to the stretch after it; gradients flow through it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from byteloom.layers.attention import Reach, bias_between


@dataclass(frozen=True)
class Kept:
    """What one layer made of a stretch of positions, as far as later ones can see it."""

    keys: Tensor
    """(B, R, G, d), already turned by their rotary angle."""
    values: Tensor
    """(B, R, G, d)."""
    shifted: tuple[Tensor, Tensor] | None
    """(B, R, D/2) each: what token shift takes from a position, for attention and MLP."""

    def tail(self, count: int) -> "Kept":
        """The last `count` positions, copied, so that the rest can be freed; token shift needs the last one only."""
        keys, values = (x[:, x.shape[1] - min(count, x.shape[1]) :].clone() for x in (self.keys, self.values))
        shifted = None if self.shifted is None else (self.shifted[0][:, -1:].clone(), self.shifted[1][:, -1:].clone())
        return Kept(keys, values, shifted)

    def join(self, after: "Kept") -> "Kept":
        """This stretch and the one after it; token shift needs the last position only."""
        keys, values = torch.cat((self.keys, after.keys), dim=1), torch.cat((self.values, after.values), dim=1)
        return Kept(keys, values, after.shifted)


@dataclass(frozen=True)
class Past:
    """The tail of all positions before a stretch."""

    length: int
    """How many positions there were."""
    layers: tuple[Kept, ...]
    """What each layer kept of the last of them."""


@dataclass(frozen=True)
class Place:
    """Where one position a row goes in the cache and what it sees there: the same for all layers, so computed once."""

    rows: Tensor | None
    """(N,) rows of the batch; None: all of them."""
    slot: int | Tensor
    """Slot of the cache, one for all rows or (N,)."""
    seen: int
    """Only the first so many slots hold anything to see."""
    bias: Tensor | None
    """(N, 1 or H, seen), added to scores; None where all of `seen` is visible to every row."""
    rope: tuple[Tensor, Tensor] | None
    """Cosines and sines (N, 1, d/2)."""
    first: bool | Tensor
    """Whether the position has none before it in its patch: for all rows, or (N, 1)."""


@dataclass
class StackState:
    """What a stack remembers: for each layer the keys and values that later positions can still see."""

    keys: list[Tensor]
    """For each layer (B, G, C, d); position p lies in slot p mod C, already turned by its rotary angle."""
    values: list[Tensor]
    """For each layer (B, G, C, d)."""
    shifted: list[tuple[Tensor, Tensor]]
    """For each layer (B, D/2) twice: what token shift takes from the position before, for attention and MLP."""
    rope: tuple[Tensor, Tensor] | None
    """Cosines and sines (positions, 1, d/2) for every position that can come."""

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [*self.keys, *self.values, *(x for pair in self.shifted for x in pair), *(self.rope or ())]

    def select(self, rows: Tensor) -> "StackState":
        """The state of these rows alone, copied: (N,) indices, which may repeat."""
        keys, values = [x[rows] for x in self.keys], [x[rows] for x in self.values]
        return StackState(keys, values, [(a[rows], b[rows]) for a, b in self.shifted], self.rope)

    def place(
        self, reach: Reach, positions: Sequence[int], index: list[int], rows: Tensor | None, slopes: Tensor | None
    ) -> Place:
        """Where one position a row (N) goes and what it sees; `index` (N) is its row in the rotary tables.

        Rows in step, all of them at one place, need no mask and no gather. The slow twin is `place_of`.
        """
        size, patch, device = self.keys[0].shape[2], reach.patch_size, self.keys[0].device
        slots = [p % size for p in positions]
        seen = 1 + (max(slots) if reach.isolated else min(size - 1, max(positions)))
        if slopes is not None or reach.lookback or rows is not None or min(index) != max(index):
            return self.place_of(reach, torch.tensor(positions, device=device), slopes, rows, seen)
        rope = self.rope and (self.rope[0][index[0] : index[0] + 1], self.rope[1][index[0] : index[0] + 1])
        return Place(None, slots[0], seen, None, rope, patch is not None and positions[0] % patch == 0)

    def place_of(
        self,
        reach: Reach,
        positions: Tensor,
        slopes: Tensor | None,
        rows: Tensor | None = None,
        seen: int | None = None,
    ) -> Place:
        """As `place` for positions (N,) on the device, without asking it for anything."""
        size, patch, at = self.keys[0].shape[2], reach.patch_size, positions[:, None]
        slots = torch.arange(size if seen is None else seen, device=positions.device)
        held = at - (at - slots) % size  # the position that each slot holds (N, L)
        visible = held >= reach.first(positions).clamp(min=0)[:, None]
        bias = bias_between(at, held, visible.unsqueeze(1), slopes).squeeze(2)
        index = positions % patch if patch is not None and reach.isolated else positions
        rope = self.rope and (self.rope[0][index], self.rope[1][index])
        first = False if patch is None else at % patch == 0
        return Place(rows, positions % size, len(slots), bias, rope, first)

    def write(self, layer: int, k: Tensor, v: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        """Put keys and values (N, G, d) in their slots; returns what they see, (N, G, seen, d)."""
        keys, values = self.keys[layer], self.values[layer]
        k, v = k.to(keys.dtype), v.to(values.dtype)
        if isinstance(place.slot, int):
            keys[:, :, place.slot], values[:, :, place.slot] = k, v
        else:
            rows = torch.arange(k.shape[0], device=k.device) if place.rows is None else place.rows
            keys[rows, :, place.slot], values[rows, :, place.slot] = k, v
        if place.rows is None:
            return keys[:, :, : place.seen], values[:, :, : place.seen]
        return keys[place.rows, :, : place.seen], values[place.rows, :, : place.seen]

    def shift(self, x: Tensor, layer: int, part: int, place: Place) -> Tensor:
        """Token shift for one position a row: (N, D) -> (N, D)."""
        own, moved = x.chunk(2, dim=-1)
        memory = self.shifted[layer][part]
        before = memory.clone() if place.rows is None else memory[place.rows]
        if place.first is True:
            before = torch.zeros_like(before)
        elif place.first is not False:
            before = before.masked_fill(place.first, 0.0)
        if place.rows is None:
            memory.copy_(moved)
        else:
            memory[place.rows] = moved.to(memory.dtype)
        return torch.cat((own, before.to(own.dtype)), dim=-1)

    def fill(self, layer: int, kept: Kept, begin: int, last: Tensor) -> None:
        """Keep of positions begin, begin + 1, ... what is still seen after position last (B,) of each row."""
        k, v = kept.keys, kept.values
        size, end = self.keys[layer].shape[2], begin + k.shape[1]
        caches = ((self.keys[layer], k), (self.values[layer], v))
        if end <= size:  # positions after a row's last are overwritten before they can be seen
            for cache, x in caches:
                cache[:, :, begin:end] = x.transpose(1, 2)
        else:
            slots, newest = torch.arange(size, device=k.device), last.clamp(max=end - 1)[:, None]
            source = newest - (newest - slots) % size - begin  # (B, C): below zero where the slot keeps what it has
            index = source.clamp(min=0)[..., None, None].expand(-1, -1, *k.shape[2:])
            new = (source >= 0)[:, None, :, None]
            for cache, x in caches:
                cache.copy_(torch.where(new, x.gather(1, index).transpose(1, 2).to(cache.dtype), cache))
        if kept.shifted is not None:
            here = ((last >= begin) & (last < end)).unsqueeze(-1)
            rows, index = torch.arange(k.shape[0], device=k.device), (last - begin).clamp(0, k.shape[1] - 1)
            for memory, x in zip(self.shifted[layer], kept.shifted, strict=True):
                memory.copy_(torch.where(here, x[rows, index].to(memory.dtype), memory))
