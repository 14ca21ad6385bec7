"""Bytes as distances from a guess: none is lost, guesses see only the past, and those of pixels follow the formulas."""

import dataclasses

import configs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from byteloom.layers.prediction import PredictorConfig, distances, of_bytes, predictions, sums
from byteloom.models.multiscale import Multiscale
from byteloom.scan import scan

CHOICES = [config for config in configs.PREDICTORS if config.guess != "none"]


def given_back(config: PredictorConfig, found: torch.Tensor, since: torch.Tensor) -> torch.Tensor:
    """Bytes (B, T) from their distances, one after another."""
    ids = torch.zeros_like(found)
    for place in range(found.shape[1]):
        predicted = predictions(config, ids[:, : place + 1], since[:, : place + 1])[:, -1]
        every = torch.arange(256).expand(len(ids), -1)
        ids[:, place] = (distances(every, predicted.unsqueeze(1)) == found[:, place : place + 1]).long().argmax(1)
    return ids


@settings(max_examples=60)
@given(
    config=st.sampled_from(CHOICES), length=st.integers(1, 40), before=st.integers(0, 30), seed=st.integers(0, 10_000)
)
def test_bytes_come_back_from_their_distances(config: PredictorConfig, length: int, before: int, seed: int) -> None:
    ids = torch.randint(0, 256, (2, length), generator=torch.Generator().manual_seed(seed))
    since = torch.arange(before, before + length).expand(2, -1)
    found = distances(ids, predictions(config, ids, since))
    assert torch.equal(given_back(config, found, since), ids)


@pytest.mark.parametrize("config", CHOICES)
def test_a_guess_sees_the_past_of_its_segment_only(config: PredictorConfig) -> None:
    ids = torch.randint(0, 256, (1, 60))
    since = torch.cat((torch.arange(20), torch.tensor([-1, -1]), torch.arange(38))).clamp(min=0).unsqueeze(0)
    found = predictions(config, ids, since)
    for place in range(60):
        other = ids.clone()
        other[0, place] ^= 129
        moved = (predictions(config, other, since) != found)[0]
        assert not moved[: place + 1].any()
        assert place >= 20 or not moved[20:].any()


def test_a_window_gives_what_the_whole_sequence_gives() -> None:
    for config in CHOICES:
        ids, since = torch.randint(0, 256, (1, 50)), torch.arange(50).unsqueeze(0)
        whole = predictions(config, ids, since)
        for place in range(50):
            first = max(0, place - config.reach)
            part = slice(first, place + 1)
            assert predictions(config, ids[:, part], since[:, part])[0, -1] == whole[0, place]


def test_guesses_are_medians_of_sums() -> None:
    ids, since = torch.tensor([[10, 20, 250, 40, 7, 9]]), torch.arange(6).unsqueeze(0)
    rows = PredictorConfig(guess="picture", channels=1, width=3)
    assert sums(rows) == (((3,),), ((1,), (3,), (1, 3, -4)), ((1,), (3,), (1, 3, -4)))
    (found,) = predictions(rows, ids, since).tolist()
    # The first has nothing before it, the first row what is left, the first column what is above; then medians.
    assert found == [0, *((guess - 128) % 256 for guess in (10, 20, 10, 40, 237))]


@pytest.mark.parametrize("side", [None, 2, 4])
def test_pictures_are_guessed_from_their_neighbours(side: int | None) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    ids = torch.from_numpy(np.stack(list(scan(pixels, side or 0))).astype(np.int64))
    config = PredictorConfig(guess="picture", width=8, side=side or 1)
    found = predictions(config, ids, torch.arange(ids.shape[1]).unsqueeze(0))
    picture = pixels[0].astype(int)
    wanted = np.zeros_like(picture)
    for y, x, c in np.ndindex(picture.shape):
        base = picture[..., c] - (picture[..., c - 1] if c else 0)
        if x and y:
            left, above = base[y, x - 1], base[y - 1, x]
            guess = int(np.median([left, above, left + above - base[y - 1, x - 1]]))
        else:
            guess = base[y, x - 1] if x else base[y - 1, x] if y else 0
        guess = np.clip(guess + (picture[y, x, c - 1] if c else 0), 0, 255)
        # The first pixel has no neighbour, and so no guess.
        wanted[y, x, c] = (guess - 128) % 256 if x or y else 0
    # At the edges inside a patch an earlier pixel that is no neighbour may stand in.
    (scanned,) = scan(wanted[None].astype(np.uint8), side or 0)
    same = found[0].numpy() == scanned
    assert same.reshape(-1, 3)[0].all() and same.mean() > (0.99 if side is None else 0.9)


def test_logits_of_distances_become_those_of_bytes() -> None:
    logits, predicted = torch.randn(5, 320), torch.tensor([0, 3, 77, 128, 300])
    found = of_bytes(logits, predicted)
    assert torch.equal(found[:, 256:], logits[:, 256:])
    for row in range(5):
        for value in (0, 1, 127, 128, 255):
            distance = int(distances(torch.tensor(value), predicted[row]))
            assert found[row, value] == logits[row, distance]


@pytest.mark.parametrize("fields", [{"channels": 0}, {"width": 0}, {"side": 1 << 17}, {"width": 5, "side": 2}])
def test_senseless_predictors_are_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match=r"PredictorConfig\." + list(fields)[-1]):
        PredictorConfig(guess="picture", **fields)


def test_a_model_with_a_predictor_scores_what_its_logits_say() -> None:
    modality = dataclasses.replace(configs.MODALITIES[1], predictor=CHOICES[1])
    stages = configs.StageConfig(dim=16, num_layers=1, num_heads=2)
    config = configs.ModelConfig(
        stages=(stages,), context=24, modalities=(modality,), embedder=configs.EmbedderConfig(kind="universal")
    )
    model = configs.build(config)
    assert isinstance(model, Multiscale)
    ids, mark = torch.randint(0, 256, (2, 24)), torch.full((2,), modality.mark)
    logits = model(ids, mark=mark).log_softmax(-1)
    wanted = -logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(model.nats(ids, mark=mark), wanted)
