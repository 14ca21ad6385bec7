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
        pairs = ((self.keys, after.keys), (self.values, after.values))
        return Kept(*(torch.cat(pair, dim=1) for pair in pairs), after.shifted)


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

    keys: Tensor
    """(layers, B, G, C, d); position p lies in slot p mod C, already turned by its rotary angle."""
    values: Tensor
    """(layers, B, G, C, d)."""
    shifted: Tensor | None
    """(layers, 2, B, D/2): what token shift takes from the position before, for attention and MLP."""
    rope: tuple[Tensor, Tensor] | None
    """Cosines and sines (positions, 1, d/2) for every position that can come."""

    def select(self, rows: Tensor) -> "StackState":
        """The state of these rows alone, copied: (N,) indices, which may repeat."""
        shifted = None if self.shifted is None else self.shifted[:, :, rows]
        return StackState(keys=self.keys[:, rows], values=self.values[:, rows], shifted=shifted, rope=self.rope)

    def place(
        self, reach: Reach, positions: Sequence[int], index: list[int], rows: Tensor | None, slopes: Tensor | None
    ) -> Place:
        """Where one position a row (N) goes and what it sees; `index` (N) is its row in the rotary tables.

        Rows in step, all of them at one place, need no mask and no gather.
        """
        size, patch, device = self.keys.shape[3], reach.patch_size, self.keys.device
        slots = [p % size for p in positions]
        together = rows is None and min(index) == max(index)
        seen = 1 + (max(slots) if reach.isolated else min(size - 1, max(positions)))
        bias = None
        full_ring = patch is None and reach.limit is not None and min(positions) >= size - 1
        if slopes is not None or reach.lookback or not (together or full_ring):
            at = torch.tensor(positions, device=device)
            held = at[:, None] - (at[:, None] - torch.arange(seen, device=device)) % size  # what each slot holds (N, L)
            visible = held >= reach.first(at).clamp(min=0)[:, None]
            bias = bias_between(at[:, None], held, visible.unsqueeze(1), slopes).squeeze(2)
        rope = self.rope
        if rope is not None:
            where: slice | Tensor = slice(index[0], index[0] + 1) if together else torch.tensor(index, device=device)
            rope = (rope[0][where], rope[1][where])
        first: bool | Tensor = False
        if patch is not None:
            starts = [p % patch == 0 for p in positions]
            first = starts[0] if together else torch.tensor(starts, device=device).unsqueeze(-1)
        return Place(rows, slots[0] if together else torch.tensor(slots, device=device), seen, bias, rope, first)

    def write(self, layer: int, k: Tensor, v: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        """Put keys and values (N, G, d) in their slots; returns what they see, (N, G, seen, d)."""
        keys, values = self.keys[layer], self.values[layer]
        k, v = k.to(keys.dtype), v.to(values.dtype)
        if place.rows is None and isinstance(place.slot, int):
            keys[:, :, place.slot], values[:, :, place.slot] = k, v
        else:
            rows = torch.arange(k.shape[0], device=k.device) if place.rows is None else place.rows
            keys[rows, :, place.slot], values[rows, :, place.slot] = k, v
        if place.rows is None:
            return keys[:, :, : place.seen], values[:, :, : place.seen]
        return keys[place.rows, :, : place.seen], values[place.rows, :, : place.seen]

    def fill(self, layer: int, kept: Kept, begin: int, last: Tensor) -> None:
        """Keep of positions begin, begin + 1, ... what is still seen after position last (B,) of each row."""
        k, v = kept.keys, kept.values
        size, end = self.keys.shape[3], begin + k.shape[1]
        if end <= size:  # positions after a row's last are overwritten before they can be seen
            self.keys[layer, :, :, begin:end], self.values[layer, :, :, begin:end] = (x.transpose(1, 2) for x in (k, v))
        else:
            slots, newest = torch.arange(size, device=k.device), last.clamp(max=end - 1)[:, None]
            source = newest - (newest - slots) % size - begin  # (B, C): below zero where the slot keeps what it has
            index = source.clamp(min=0)[..., None, None].expand(-1, -1, *k.shape[2:])
            new = (source >= 0)[:, None, :, None]
            for cache, x in ((self.keys[layer], k), (self.values[layer], v)):
                cache.copy_(torch.where(new, x.gather(1, index).transpose(1, 2).to(cache.dtype), cache))
        if self.shifted is not None and kept.shifted is not None:
            here = ((last >= begin) & (last < end)).unsqueeze(-1)
            rows, index = torch.arange(k.shape[0], device=k.device), (last - begin).clamp(0, k.shape[1] - 1)
            for part, x in enumerate(kept.shifted):
                before = self.shifted[layer, part]
                self.shifted[layer, part] = torch.where(here, x[rows, index].to(before.dtype), before)
