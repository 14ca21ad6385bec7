"""What followed the last time that the same was read: ids (B, T) -> for each position a byte and how long the match is.

A text repeats names, a file of code whole lines. A hash finds the longest of some strings that stood before, and what
came after it last time is read by the finest stage and pointed to in its logits (a pointer as in arXiv 1506.03134,
but to where a match model of the PAQ compressors points; nothing has to be learned to find it). Cost: for each length a
sort of the sequence's hashes, and some additions a byte.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from byteloom.layers.patching import HASHES, MULTIPLIER
from byteloom.layers.prediction import TAKEN, distances
from byteloom.losses import VOCABULARY

LONGEST = 256
"""Bytes of a string, at most: below 2^57 a sum of so many products of hashes and ids stays."""


class Matches(nn.Module):
    """The finest stage's part: the vector of the byte that followed, by how far it is trusted, and a pointer to it."""

    def __init__(self, lengths: Sequence[int], dim: int):
        super().__init__()
        self.bytes = nn.Embedding(VOCABULARY.num_bytes, dim)
        self.trust = nn.Embedding(len(lengths) + 1, dim)  # for each length, the first of no match
        self.levels = nn.Embedding(len(lengths) + 1, dim)
        self.weigh = nn.Embedding(len(lengths) + 1, dim)
        self.bias = nn.Parameter(torch.empty(len(lengths) + 1))

    @torch.no_grad()
    def init_trust(self) -> None:
        """What followed begins as it is, and pointed to by nothing."""
        nn.init.ones_(self.trust.weight)
        nn.init.zeros_(self.trust.weight[0])
        nn.init.zeros_(self.weigh.weight)

    def forward(self, x: Tensor, predicted: Tensor) -> Tensor:
        """The finest stage's input (..., D) with the matches in `predicted` (...)."""
        level, byte = parts(predicted)
        return x + self.bytes(byte) * self.trust(level) + self.levels(level)

    def point(self, logits: Tensor, h: Tensor, predicted: Tensor) -> Tensor:
        """Logits (..., V) of the stage's output h (..., D), with more for the byte that followed."""
        level, byte = parts(predicted)
        more = ((h * self.weigh(level)).sum(-1) + self.bias[level]).masked_fill(level == 0, 0.0)
        # Where bytes are read as distances, it is one that the logits are of.
        place = distances(byte, predicted).unsqueeze(-1)
        return logits.scatter_add(-1, place, more.unsqueeze(-1).to(logits.dtype))


def parts(predicted: Tensor) -> tuple[Tensor, Tensor]:
    """Which length, from 1 on, the match in `predicted` (...) has, 0: none, and the byte that followed; both (...)."""
    match = predicted // TAKEN
    return (match + 255) // 256, (match - 1) % 256


def told(ids: Tensor, earlier: Tensor) -> Tensor:
    """Matches (B, L), multiples of TAKEN, where each length's stood in ids (B, T) before `earlier` (B, K, L), or -1."""
    numbers = torch.arange(1, earlier.shape[1] + 1, device=ids.device).view(-1, 1)
    level = torch.where(earlier >= 0, numbers, 0).amax(1)
    place = earlier.gather(1, (level - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
    byte = ids.gather(1, place.clamp(min=0))
    return torch.where((level > 0) & (byte < 256), 1 + byte + 256 * (level - 1), 0) * TAKEN


def matches(lengths: Sequence[int], ids: Tensor) -> Tensor:
    """For each of ids (B, T), from those before it, what followed the longest string that stood before: (B, T).

    0 where there is none; else TAKEN times 1 + the byte + 256 times the number of the string's length.
    """
    keys, at = hashes(lengths, ids), torch.arange(ids.shape[1], device=ids.device)
    order = (keys * ids.shape[1] + at).sort(-1).values
    key, place = order.div(ids.shape[1], rounding_mode="floor"), order % ids.shape[1]
    same = F.pad(key[..., 1:] == key[..., :-1], (1, 0))
    before = torch.where(same, F.pad(place[..., :-1], (1, 0)), -1)
    return told(ids, torch.empty_like(keys).scatter(-1, place, before))


def hashes(lengths: Sequence[int], ids: Tensor) -> Tensor:
    """Of the string of each length that ends before each of ids (B, T): (B, lengths, T), negative where none is."""
    at = torch.arange(ids.shape[1], device=ids.device)
    code, found = torch.zeros_like(ids), []
    for back, weight in enumerate(weights(lengths)):
        ids = F.pad(ids[:, :-1], (1, 0))
        code = code + (ids + 1) * weight
        if back + 1 in lengths:
            found.append(torch.where(at > back, code % HASHES, -1 - at))
    return torch.stack(found, dim=1)


def last_hashes(lengths: Sequence[int], ids: Tensor, ends: Tensor) -> Tensor:
    """As `hashes`, of the strings that end before `ends` (N,), where ids (N, max(lengths)) stand: (N, lengths)."""
    # What each length weighs of the bytes: (max(lengths), lengths).
    table, size = (torch.from_numpy(array).to(ids.device) for array in tables(tuple(lengths)))
    sums = ((ids + 1).unsqueeze(-1) * table).sum(1)
    return torch.where(ends.unsqueeze(-1) >= size, sums % HASHES, -1 - ends.unsqueeze(-1))


def tables(lengths: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The weights of the last bytes in the hash of each length, 0 of those before it, and the lengths."""
    every = np.array(weights(lengths))[::-1, None]
    back = np.arange(max(lengths))[::-1, None]
    return np.where(back < np.array(lengths), every, 0), np.array(lengths)


def weights(lengths: Sequence[int]) -> list[int]:
    """What each of a string's bytes is multiplied with, from the last back: powers modulo a prime."""
    return [pow(MULTIPLIER, back + 1, HASHES) for back in range(max(lengths))]
