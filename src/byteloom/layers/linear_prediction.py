"""Samples of sound, guessed from those before: ids (B, T) -> what a sample will be about, by linear prediction.

The filters that would have predicted the samples just read best are found anew every `BLOCK` samples, so they cost no
bytes (backward adaptation, as in ITU-T G.728): one from a longer past and one from a shorter, and what guesses is their
mean, weighted by how well each does on the newest samples. A voice or a string repeats itself every few milliseconds,
and with it what such a filter misses, so what it missed one period ago is added (long-term prediction, as in ITU-T
G.729). Products of samples are summed as whole numbers below 2^53 and filters rounded to multiples of 2^-`FRACTION`: a
guess does not depend on how many sequences or positions are computed at once. Cost: about 7,000 multiplications a
sample, in float64.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

FITS = ((32, 256), (12, 96))
"""Of each filter that is fitted: its order, and how many samples it is fitted to."""
SHORT, WINDOW = map(max, zip(*FITS, strict=True))
"""The longest order, and samples that are read to find a filter."""
RECENT = 48
"""Samples that a filter is judged by."""
PERIODS = (20, 128)
"""The shortest and the longest period of what repeats itself, in samples: 62 to 400 Hz at 8,000 samples a second."""
REPEATED = 96
"""Samples that a period is judged by; each counts 3 percent less than the next."""
REPEATS = 2
"""Periods of a block: the second is mostly the one beside the first, for a period is no whole number of samples."""
CAUTION = 0.1
"""How much less of a repeat is added the less of what was missed it explains."""
ORDER = PERIODS[1] + SHORT
"""Samples that a guess is a weighted sum of."""
BLOCK = 8
"""Samples for which a filter is kept."""
FRACTION = 14
"""Binary places of a filter's weights."""
AT_ONCE = 1024
"""Blocks whose filters are found at once, in about 100 MB a channel."""
NOISE = 3e-5
"""Share of the power that is added as white noise, so that a filter stays stable (as in G.728)."""


@dataclass(frozen=True)
class Layout:
    """How samples lie in bytes."""

    coding: str
    """"pcm8", "pcm16" (little-endian) or "mulaw", as codecs/audio.py has them."""
    channels: int

    @property
    def size(self) -> int:
        """Bytes of a sample."""
        return 2 if self.coding == "pcm16" else 1

    @property
    def stride(self) -> int:
        """Bytes from a sample to the next of its channel."""
        return self.size * self.channels

    @property
    def block(self) -> int:
        """Bytes for which a filter is kept."""
        return self.stride * BLOCK

    @property
    def reach(self) -> int:
        """How many bytes back a filter reads."""
        return self.stride * WINDOW


def taper(window: int, device: torch.device) -> Tensor:
    """(window,) whole numbers up to 63, the weight of each sample from the newest back: most at a quarter."""
    share = (torch.arange(window, dtype=torch.float64, device=device) + 0.5) / window
    return (63 * torch.sin(math.pi * share.sqrt())).round()


def levels(device: torch.device) -> Tensor:
    """(256,), of G.711 mu-law the 16-bit sample of each code, in the order of `ranked`."""
    step = torch.arange(128, device=device)
    magnitude = (((step & 15) << 3) + 132 << (step >> 4)) - 132
    return torch.cat((-magnitude.flip(0), magnitude)).double()


def ranked(codes: Tensor) -> Tensor:
    """Mu-law codes by what they stand for, rising, from 0 to 255; and back."""
    return torch.where(codes < 128, codes, 383 - codes)


def samples(layout: Layout, ids: Tensor) -> Tensor:
    """The sample that would end at each position of ids (B, T): (B, T) float64."""
    ids = ids.clamp(max=255)
    if layout.coding == "mulaw":
        return levels(ids.device)[ranked(ids)]
    if layout.coding == "pcm8":
        return (ids - 128).double()
    return (F.pad(ids[:, :-1], (1, 0)) + 256 * ids - 65536 * (ids >= 128)).double()


def filters(layout: Layout, values: Tensor, rows: Tensor, places: Tensor, first: Tensor) -> Tensor:
    """Filters for blocks that begin at `places` (M,) of rows (M,) of `samples` (B, T): (M, channels, ORDER) float64.

    Samples that begin before `first` (M,), as their segments may, are not read.
    """
    device = values.device
    back = layout.stride * (torch.arange(WINDOW, device=device) + 1)
    ends = layout.size * (torch.arange(layout.channels, device=device) + 1) - 1
    index = places.view(-1, 1, 1) + ends.view(1, -1, 1) - back  # (M, channels, WINDOW)
    known = index - layout.size + 1 >= first.view(-1, 1, 1)
    past = values[rows.view(-1, 1, 1), index.clamp(min=0)] * known
    fits = torch.stack([F.pad(fit(past[..., :window], order), (0, SHORT - order)) for order, window in FITS])
    errors = torch.stack([missed(past, found, RECENT).abs().mean(-1, keepdim=True) for found in fits])
    shares = 1 / (errors + 0.5).square().square()
    return with_repeats(past, ((fits * shares).sum(0) / shares.sum(0)).round())


def fit(past: Tensor, order: int) -> Tensor:
    """The filter (..., order), times 2^`FRACTION`, of samples (..., window) from the newest back."""
    read = past * taper(past.shape[-1], past.device)
    lags = [(read[..., : past.shape[-1] - lag] * read[..., lag:]).sum(-1) for lag in range(order + 1)]
    correlation = torch.stack(lags, dim=-1)  # exact
    # Levinson and Durbin's recursion. One more than the power, for silence has filters too.
    left = correlation[..., 0] * (1 + NOISE) + 1
    found = correlation[..., 1:2] / left.unsqueeze(-1)
    left = left * (1 - found[..., 0].square())
    for lag in range(1, order):
        missed = correlation[..., lag + 1] - (found * correlation[..., 1 : lag + 1].flip(-1)).sum(-1)
        share = (missed / left).unsqueeze(-1)
        found = torch.cat((found - share * found.flip(-1), share), dim=-1)
        left = left * (1 - share[..., 0].square())
    limit = 16 * 2**FRACTION
    return (found * 2**FRACTION).round().clamp(-limit, limit)


def missed(past: Tensor, found: Tensor, count: int) -> Tensor:
    """How far the newest samples (..., count), from the newest back, of (..., WINDOW) are from a filter's guesses."""
    left = past[..., :count] * 2**FRACTION
    for lag in range(SHORT):
        left = left - found[..., lag : lag + 1] * past[..., lag + 1 : lag + 1 + count]
    return left / 2**FRACTION


def with_repeats(past: Tensor, short: Tensor) -> Tensor:
    """A filter (..., SHORT) and what it missed one period ago, as one filter (..., ORDER).

    Periods are found one after another, each that which leaves least of what the newest of samples (..., WINDOW) are
    from the filter's guesses (matching pursuit).
    """
    first, last = PERIODS
    error = missed(past, short, last + REPEATED).round().clamp(-(1 << 16), 1 << 16)
    newest = torch.arange(REPEATED, device=past.device)
    weight = (63 * torch.exp(-newest.double() / 32)).round()
    periods = torch.arange(first, last + 1, device=past.device)
    power, target = sums(error.square(), weight.expand_as(error[..., :REPEATED])), error[..., :REPEATED]
    whole = F.pad(short, (0, ORDER - SHORT))
    for _ in range(REPEATS):
        common = sums(error, target * weight)
        # Of equal ones the shortest.
        explained = (common.clamp(min=0).square() / (power + 1) * (1 - periods / 2**20)).max(-1, keepdim=True)
        share = explained.values / ((target.square() * weight).sum(-1, keepdim=True) + 1)
        caution = (1 - CAUTION * (1 - share) / share.clamp(min=1e-9)).clamp(min=0)
        gain = (common / (power + 1)).gather(-1, explained.indices) * caution
        gain = (gain * 2**FRACTION).round() / 2**FRACTION
        period = explained.indices + first
        target = (target - gain * error.gather(-1, period + newest)).round()
        # gain * (x[t - period] - sum of short[k] * x[t - period - 1 - k])
        index = torch.arange(ORDER, device=past.device) - period
        echo = short.gather(-1, index.clamp(0, SHORT - 1)) * ((index >= 0) & (index < SHORT))
        whole = whole + gain * ((index == -1) * 2.0**FRACTION - echo)
    limit = 16 * 2**FRACTION
    return whole.round().clamp(-limit, limit)


def sums(error: Tensor, weight: Tensor) -> Tensor:
    """Of each period the sum of what stands a period before (..., REPEATED) times `weight`: (..., periods), exact."""
    first, last = PERIODS
    return (error.unfold(-1, REPEATED, 1)[..., first : last + 1, :] @ weight.unsqueeze(-1)).squeeze(-1)


def guesses(
    layout: Layout, values: Tensor, rows: Tensor, ends: Tensor, first: Tensor, weights: Tensor, count: int
) -> Tensor:
    """Guesses (N, count) of samples of a channel: whole numbers of 16 bits, or of 8 for pcm8.

    The first of them ends at `ends` (N,) of rows (N,) of `samples` (B, T), the filter for all is `weights` (N, ORDER).
    A guess reads what is before its sample, from `first` (N,) on.
    """
    index = ends.unsqueeze(1) + layout.stride * torch.arange(-ORDER, count - 1, device=ends.device)
    known = index - layout.size + 1 >= first.unsqueeze(1)
    read = values[rows.unsqueeze(1), index.clamp(0, values.shape[1] - 1)] * known
    oldest_first = weights.flip(-1)
    found = torch.stack([(read[:, i : i + ORDER] * oldest_first).sum(-1) for i in range(count)], dim=1)
    limit = 128 if layout.coding == "pcm8" else 1 << 15
    return (found / 2**FRACTION).round().clamp(-limit, limit - 1)


def as_predictions(layout: Layout, guess: Tensor, since: Tensor, before: Tensor) -> Tensor:
    """Guesses of samples as what to take from their bytes, `before` each of which stands another: all (B, L).

    As `layers.prediction.predictions` has it: of mu-law 256 more, for it is the rank of a code that it is taken from.
    Of a second byte the guess is that of the sample nearest to the guess that has the first byte.
    """
    if layout.coding == "mulaw":
        known = levels(guess.device)
        return 256 + (torch.bucketize(guess, (known[1:] + known[:-1]) / 2, right=True) - 128) % 256
    whole = guess.long()
    if layout.coding == "pcm8":
        return whole % 256
    nearest = whole + (before - whole + 128) % 256 - 128
    return (torch.where(since % 2 == 0, whole, nearest >> 8) - 128) % 256


def predictions(layout: Layout, ids: Tensor, since: Tensor) -> Tensor:
    """As `layers.prediction.predictions` has it, at all positions of ids (B, T)."""
    values, column = samples(layout, ids), torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    rows, places = begins(layout, since)
    first = (column - since).clamp(min=0)[rows, places]
    ends = places.unsqueeze(1) + layout.size * torch.arange(1, layout.channels + 1, device=ids.device) - 1
    each = [known.repeat_interleave(layout.channels) for known in (rows, first)]
    parts = zip(rows.split(AT_ONCE), places.split(AT_ONCE), first.split(AT_ONCE), strict=True)
    found = torch.cat([filters(layout, values, *part) for part in parts]).flatten(0, 1)
    found = guesses(layout, values, each[0], ends.flatten(), each[1], found, BLOCK).view(-1, layout.channels, BLOCK)
    found = F.pad(found, (0, 0, 0, 0, 0, 1))  # the last is of blocks that began before
    number = torch.full_like(ids, len(rows))
    number[rows, places] = torch.arange(len(rows), device=ids.device)
    begin = column - since % layout.block
    number = number.gather(1, begin.clamp(min=0)).masked_fill(begin < 0, len(rows))
    guess = found[number, since % layout.stride // layout.size, since % layout.block // layout.stride]
    return as_predictions(layout, guess, since, F.pad(ids[:, :-1], (1, 0)))


def begins(layout: Layout, since: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (M,) and places (M,) where a block begins, given `since` (B, T)."""
    if isinstance(since, FakeTensor) or since.device.type == "meta":  # no values: about as many as there would be
        rows = torch.arange(since.shape[0], device=since.device)
        places = torch.arange(0, since.shape[1], layout.block, device=since.device)
        return rows.repeat_interleave(len(places)), places.repeat(len(rows))
    rows, places = (since % layout.block == 0).nonzero().unbind(1)
    return rows, places
