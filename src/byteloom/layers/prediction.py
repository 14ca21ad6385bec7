"""Pixels and samples as distances from a guess: ids (B, T) and where they stand -> predictions (B, T), and distances.

A pixel is near to what its neighbours say, a sample of sound to what continues those before. As PNG's and FLAC's
predictors do, a guess is made from them, and what a model reads and predicts is the distance from it: a byte for a
byte, so bits are those of the bytes themselves, and no byte is lost. Cost of pixels: some additions a byte; of samples:
layers/linear_prediction.py.
"""

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from byteloom.layers import linear_prediction
from byteloom.layers.linear_prediction import Layout, ranked

TAKEN = 512
"""What is taken from a byte is below this; multiples of it, in the same number, tell a match (layers/matches.py)."""
Sum = tuple[int, ...]
"""How many bytes back those are that are added; a negative one is subtracted."""


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """How the bytes of a modality are guessed."""

    guess: Literal["none", "picture", "pcm8", "pcm16", "mulaw"] = "none"
    """"picture": from the pixels to the left and above; "pcm8", "pcm16", "mulaw": sound of that coding, from the
    samples before; "none": bytes are read and predicted as they are."""
    channels: int = 3
    """Bytes of a pixel, or channels of sound."""
    width: int = 32
    """Pixels in a row."""
    side: int = 1
    """Side in pixels of the square patches in whose order a picture is read; 1: row by row."""
    told: bool = False
    """Whether the finest stage reads the guess too, and not only what was left of those before."""

    def __post_init__(self) -> None:
        for name in ("channels", "width", "side"):
            if not 1 <= getattr(self, name) <= 1 << 16:
                raise ValueError(f"PredictorConfig.{name} is {getattr(self, name)}; it must be from 1 to {1 << 16}")
        if self.width % self.side:
            raise ValueError(f"PredictorConfig.side is {self.side}, which does not divide width {self.width}")

    @property
    def sound(self) -> Layout | None:
        """How samples lie in bytes; None where it is no sound that is guessed."""
        return None if self.guess in ("none", "picture") else Layout(self.guess, self.channels)

    @property
    def reach(self) -> int:
        """How many bytes back a guess reads."""
        return int(tables(self)[2].max()) if self.sound is None else self.sound.reach + self.sound.block


def sums(config: PredictorConfig) -> tuple[tuple[Sum, ...], ...]:
    """What is added up for a guess, for each byte of a row of patches: one sum of earlier bytes, or three.

    The guess is their median, or the first that can be made where others reach before the picture. The three are left,
    above, and left + above - above left, of the first channel itself, of each other one of its difference from the
    channel before (LOCO-I, IEEE Transactions on Image Processing 9(8), section III.A). In the first column there is
    only what is above.
    """
    count, side, wide = config.channels, config.side, config.width // config.side

    def place(y: int, x: int) -> int:
        """Bytes that stand before this pixel in a picture without end."""
        return ((y // side * wide + x // side) * side * side + y % side * side + x % side) * count

    def of_byte(y: int, x: int, channel: int) -> tuple[Sum, ...]:
        left, above, corner = (place(y, x) - place(y - dy, x - dx) for dy, dx in ((0, 1), (1, 0), (1, 1)))
        found: list[Sum] = [(left,), (above,), (left, above, -corner)]
        if channel:
            found = [(1, *terms, *(-back - 1 if back > 0 else 1 - back for back in terms)) for terms in found]
        return tuple(found) if x else (found[1],)

    # The second row of patches, so that there is something above, in the order in which it is read.
    rows = ((y, x) for y in range(side, 2 * side) for x in range(config.width))
    pixels = sorted(rows, key=lambda pixel: place(*pixel))
    return tuple(of_byte(y, x, channel) for y, x in pixels for channel in range(count))


@functools.cache
def tables(config: PredictorConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A config's sums as arrays: bytes back and signs of their terms (pattern, 3, terms), and bytes that each needs."""
    pattern = sums(config)
    size = max(len(terms) for choices in pattern for terms in choices)
    backs = np.zeros((len(pattern), 3, size), np.int64)
    for turn, choices in enumerate(pattern):
        for i in range(3):
            terms = choices[i % len(choices)]
            backs[turn, i, : len(terms)] = terms
    return np.abs(backs), np.sign(backs), np.abs(backs).max(-1)


def predictions(config: PredictorConfig, ids: Tensor, since: Tensor, first: Tensor | int = 0) -> Tensor:
    """What to subtract from the byte at each position, modulo 256, to have its distance from the guess: (B, T) int64.

    Distances are 128 where the guess is right. Where no guess can be made it is 0. Of mu-law it is 256 more: there not
    the codes but their ranks by what they stand for are compared.

    Args:
        config: how.
        ids: (B, T), of which bytes are read.
        since: (B, T), how much of the segment's data stands before each position.
        first: (B,) or (), the number of the sequence's first known byte within the row: what is before is not read.
    """
    if config.sound is not None:
        return linear_prediction.predictions(config.sound, ids, since)
    backs, signs, needs = (torch.from_numpy(table).to(ids.device) for table in tables(config))
    column = torch.arange(ids.shape[1], device=ids.device)
    known = torch.minimum(since, column - (first.unsqueeze(1) if isinstance(first, Tensor) else first))
    turn = since % len(backs)
    places = column.view(1, -1, 1, 1) - backs[turn]  # (B, T, 3, terms)
    read = ids.gather(1, places.clamp(min=0).flatten(1)).view(places.shape)
    a, b, c = (read * signs[turn]).sum(-1).unbind(-1)
    can = known.unsqueeze(-1) >= needs[turn]  # (B, T, 3)
    median = torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))
    alone = torch.where(can[..., 0], a, torch.where(can[..., 1], b, c))
    guess = torch.where(can.all(-1), median, alone).clamp(0, 255)
    return torch.where(can.any(-1), (guess - 128) % 256, 0)


def distances(ids: Tensor, predicted: Tensor) -> Tensor:
    """Bytes (...) as distances from their predictions (...); other ids stay as they are."""
    data = ids < 256
    return torch.where(data, (torch.where(data & (predicted % TAKEN > 255), ranked(ids), ids) - predicted) % 256, ids)


def of_bytes(logits: Tensor, predicted: Tensor) -> Tensor:
    """Logits (..., V) of distances from predictions (...) as logits of the bytes themselves."""
    values = distances(torch.arange(256, device=logits.device), predicted.unsqueeze(-1))
    return torch.cat((logits[..., :256].gather(-1, values), logits[..., 256:]), dim=-1)
