"""Guesses of samples: those of the normal equations, near what comes, and the same however they are computed."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from byteloom.codecs.audio import from_mulaw, to_mulaw
from byteloom.layers import linear_prediction as lp
from byteloom.layers.prediction import PredictorConfig, distances, predictions

CODINGS = [("mulaw", 1), ("pcm16", 1), ("pcm16", 2), ("pcm8", 3)]


def sound(length: int, channels: int, seed: int = 0) -> np.ndarray:
    """Two tones and some noise in each channel, (length, channels) 16-bit samples."""
    random, time = np.random.default_rng(seed), np.arange(length)[:, None]
    phases = random.uniform(0, 6, (2, channels))
    tones = 6000 * np.sin(0.11 * time + phases[0]) + 3000 * np.sin(0.47 * time + phases[1])
    return (tones + random.normal(0, 40, (length, channels))).astype(np.int16)


def as_ids(coding: str, samples: np.ndarray) -> Tensor:
    """Samples as bytes (1, T)."""
    if coding == "mulaw":
        data = to_mulaw(samples)
    elif coding == "pcm8":
        data = (samples >> 8) + 128
    else:
        data = samples.astype("<i2").view(np.uint8)
    return torch.from_numpy(data.astype(np.int64)).reshape(1, -1)


def fitted_by_hand(past: np.ndarray, order: int, window: int) -> np.ndarray:
    """The filter (lp.SHORT,) that solves the normal equations of `past`, from the newest sample back."""
    read = past[:window] * lp.taper(window, torch.device("cpu")).numpy()
    power = np.array([read[: window - lag] @ read[lag:] for lag in range(order + 1)])
    matrix = power[abs(np.subtract.outer(np.arange(order), np.arange(order)))]
    matrix += np.eye(order) * (power[0] * lp.NOISE + 1)
    return np.pad(np.round(np.linalg.solve(matrix, power[1:]) * 2**lp.FRACTION), (0, lp.SHORT - order))


def repeats_by_hand(missed: np.ndarray) -> list[tuple[int, float]]:
    """Periods and gains of what a filter missed, from the newest sample back."""
    found, target = [], missed[: lp.REPEATED].copy()
    weight = np.round(63 * np.exp(-np.arange(lp.REPEATED) / 32))
    for _ in range(lp.REPEATS):
        best = (0.0, 0, 0.0)
        for period in range(lp.PERIODS[0], lp.PERIODS[1] + 1):
            before = missed[period : period + lp.REPEATED]
            common, power = (weight * target * before).sum(), (weight * before**2).sum() + 1
            if common > 0:
                best = max(best, (common**2 / power, -period, common / power))
        explained, period, gain = best[0], -best[1], best[2]
        if explained == 0:
            break
        share = explained / ((weight * target**2).sum() + 1)
        gain *= max(0.0, 1 - lp.CAUTION * (1 - share) / share)
        found.append((period, gain))
        target = np.round(target - gain * missed[period : period + lp.REPEATED])
    return found


def by_hand(values: np.ndarray) -> np.ndarray:
    """The guess of each of samples (N,) of one channel, from the normal equations of each block."""
    found = np.zeros(len(values))
    for begin in range(0, len(values), lp.BLOCK):
        past = np.concatenate((np.zeros(lp.WINDOW), values[:begin]))[: -lp.WINDOW - 1 : -1]
        fits = np.stack([fitted_by_hand(past, *fit) for fit in lp.FITS])
        before = np.stack([past[i + 1 : i + 1 + lp.SHORT] for i in range(lp.RECENT)])
        missed = abs(past[: lp.RECENT] - fits @ before.T / 2**lp.FRACTION).mean(1)
        taps = np.round(np.average(fits, axis=0, weights=(missed + 0.5) ** -4.0))
        for place in range(begin, min(begin + lp.BLOCK, len(values))):
            before = np.concatenate((np.zeros(lp.SHORT), values[:place]))[: -lp.SHORT - 1 : -1]
            found[place] = np.round(taps @ before / 2**lp.FRACTION)
    return found


@pytest.mark.parametrize(("coding", "channels"), CODINGS)
def test_guesses_are_those_of_the_normal_equations(coding: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lp, "REPEATS", 0)
    samples = sound(700, channels)
    ids = as_ids(coding, samples)
    layout, since = lp.Layout(coding, channels), torch.arange(ids.shape[1]).unsqueeze(0)
    guess = lp.predictions(layout, ids, since)
    known = {"mulaw": from_mulaw(to_mulaw(samples)), "pcm16": samples, "pcm8": samples >> 8}[coding]
    wanted = np.stack([by_hand(channel.astype(np.float64)) for channel in known.T], axis=1)
    limit = 128 if coding == "pcm8" else 1 << 15
    whole = torch.from_numpy(np.clip(wanted, -limit, limit - 1)).reshape(1, -1).repeat_interleave(layout.size, 1)
    same = guess == lp.as_predictions(layout, whole, since, torch.nn.functional.pad(ids[:, :-1], (1, 0)))
    assert same.float().mean() > 0.99, "but for rounding"


@pytest.mark.parametrize(("coding", "channels"), CODINGS)
def test_what_continues_is_guessed(coding: str, channels: int) -> None:
    ids = as_ids(coding, sound(600, channels))
    config = PredictorConfig(guess=coding, channels=channels)
    since = torch.arange(ids.shape[1]).unsqueeze(0)
    found = distances(ids, predictions(config, ids, since))[0, ids.shape[1] // 2 :]
    spread = (found - 128).abs().float()
    if coding == "pcm16":
        assert (spread[1::2] == 0).float().mean() > 0.85, "the second byte follows from guess and first byte"
        spread = spread[::2]
    assert spread.median() < {"mulaw": 5, "pcm16": 60, "pcm8": 2}[coding]


def test_repeats_are_those_found_by_hand() -> None:
    random = np.random.default_rng(0)
    for scale in (0, 3, 300, 10000):
        past = np.convolve(random.normal(0, 1, lp.WINDOW + 90), np.eye(91)[0] + 0.7 * np.eye(91)[90], "valid")
        past = np.round(past[: lp.WINDOW] * scale).clip(-32768, 32767)
        short = np.round(random.normal(0, 0.1, lp.SHORT) * 2**lp.FRACTION)
        padded = np.concatenate((past, np.zeros(lp.ORDER)))

        def missed(place: int, short: np.ndarray = short, padded: np.ndarray = padded) -> float:
            """Of the sample so many before the newest."""
            return padded[place] - short @ padded[place + 1 : place + 1 + lp.SHORT] / 2**lp.FRACTION

        repeats = repeats_by_hand(np.array([np.round(missed(i)) for i in range(lp.PERIODS[1] + lp.REPEATED)]))
        assert len(repeats) == (lp.REPEATS if scale else 0)
        again = sum(gain * missed(period - 1) for period, gain in repeats)
        found = lp.with_repeats(*(torch.from_numpy(known.astype(np.float64)) for known in (past, short)))
        guess = found.numpy() @ past[: lp.ORDER] / 2**lp.FRACTION
        assert abs(guess - short @ past[: lp.SHORT] / 2**lp.FRACTION - again) < 1 + scale / 1000


def test_what_a_voice_repeats_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pulses at a pitch of 101 Hz, which no filter of order 32 can foresee, through a throat of one resonance."""
    pulses = np.random.default_rng(0).normal(0, 20, 1600)
    pulses[::79] += 4000
    voice = np.zeros(1600)
    for place in range(2, 1600):
        voice[place] = pulses[place] + 1.6 * voice[place - 1] - 0.8 * voice[place - 2]
    ids, since = as_ids("pcm16", voice[:, None].astype(np.int16)), torch.arange(3200).unsqueeze(0)

    def error() -> float:
        found = distances(ids, predictions(PredictorConfig(guess="pcm16", channels=1), ids, since))
        return float((found[0, 1601::2] - 128).abs().float().mean())  # of the high bytes

    with_repeats = error()
    monkeypatch.setattr(lp, "REPEATS", 0)
    assert with_repeats < error() / 2


@pytest.mark.parametrize(("coding", "channels"), CODINGS)
def test_it_does_not_matter_how_many_are_guessed_at_once(
    coding: str, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.cat([as_ids(coding, sound(400, channels, seed)) for seed in range(3)])
    ids = torch.cat((ids, torch.randint(0, 256, ids.shape)))
    config, (batch, length) = PredictorConfig(guess=coding, channels=channels), ids.shape
    since = torch.arange(5, length + 5).expand(batch, -1)
    whole = predictions(config, ids, since)
    for row in range(batch):
        assert torch.equal(predictions(config, ids[row : row + 1], since[:1])[0], whole[row])
    for end in (1, 100, length // 2, length - 1):
        assert torch.equal(predictions(config, ids[:, :end], since[:, :end]), whole[:, :end])
        first = max(0, end - config.reach)
        part = predictions(config, ids[:, first : end + 1], since[:, first : end + 1])
        assert torch.equal(part[:, -1], whole[:, end])
    monkeypatch.setattr(lp, "AT_ONCE", 7)
    assert torch.equal(predictions(config, ids, since), whole)


def test_silence_and_the_loudest_square_are_guessed_without_trouble() -> None:
    since = torch.arange(2000).unsqueeze(0)
    for samples in (np.zeros(1000), np.full(1000, 32767), np.tile([32767] * 50 + [-32768] * 50, 10)):
        ids = as_ids("pcm16", samples.astype(np.int16))
        found = predictions(PredictorConfig(guess="pcm16", channels=1), ids, since)
        assert int(found.min()) >= 0 and int(found.max()) < 256
    assert (distances(ids, found)[0, 1::2] - 128).abs().float().mean() < 8


def test_mu_law_is_compared_by_what_codes_stand_for() -> None:
    codes = torch.arange(256)
    assert torch.equal(lp.ranked(lp.ranked(codes)), codes)
    known = lp.levels(torch.device("cpu"))
    assert np.array_equal(known[lp.ranked(codes)].numpy(), from_mulaw(codes.numpy()))
    assert (known.diff() >= 0).all()
    layout = lp.Layout("mulaw", 1)
    for value in (-32000, -1000, -3, 0, 5, 77, 31000):
        found = lp.as_predictions(layout, torch.tensor([[float(value)]]), torch.zeros(1, 1), torch.zeros(1, 1))
        code = torch.from_numpy(to_mulaw(np.array([[value]])).astype(np.int64))
        near = 1 if abs(value) > 4 else 2  # there are two codes of zero
        assert abs(int(distances(code, found)) - 128) <= near


def test_the_weights_of_the_window_keep_sums_exact() -> None:
    weight = lp.taper(lp.WINDOW, torch.device("cpu"))
    assert torch.equal(weight, weight.round()) and weight.min() >= 0
    assert math.log2(float((weight * 32768).square().sum())) < 53
