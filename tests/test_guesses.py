"""Guesses after each byte are those of all positions at once, over blocks, segments, ragged rows and prompts."""

import dataclasses

import configs
import pytest
import torch
from test_linear_prediction import as_ids, sound

from byteloom.layers.linear_prediction import ORDER
from byteloom.layers.modalities import EmbedderConfig
from byteloom.layers.prediction import PredictorConfig
from byteloom.losses import VOCABULARY
from byteloom.models.config import ModelConfig, StageConfig
from byteloom.models.guesses import no_filters, predictions
from byteloom.models.multiscale import Multiscale

LENGTH = 400


def model_of(coding: str, channels: int = 1, window: int | None = 5) -> Multiscale:
    """Two stages over sound and pictures, both guessed."""
    sounds = dataclasses.replace(
        configs.MODALITIES[0], predictor=PredictorConfig(guess=coding, channels=channels, told=True)
    )
    pictures = dataclasses.replace(configs.MODALITIES[1], predictor=PredictorConfig(guess="picture", width=5))
    stages = (
        StageConfig(dim=16, num_layers=1, num_heads=1, patch_size=4),
        StageConfig(dim=16, num_layers=1, num_heads=1, window=window),
    )
    return configs.build(
        ModelConfig(
            stages=stages, context=LENGTH, modalities=(sounds, pictures), embedder=EmbedderConfig(kind="universal")
        )
    ).double()


def documents(coding: str, channels: int) -> torch.Tensor:
    """Rows (3, LENGTH): sound to the end; short and long sounds with a picture between; a picture, then sound."""
    sounds, pictures = (torch.tensor([[modality.mark]]) for modality in configs.MODALITIES[:2])
    first = torch.tensor([[VOCABULARY.bos_id]])
    data = [as_ids(coding, sound(LENGTH, channels, seed)) for seed in range(4)]
    pixels = torch.randint(0, 256, (1, 47))
    rows = [
        (first, sounds, data[0]),
        (first, sounds, data[1][:, :77], pictures, pixels, sounds, data[2][:, :150], first, sounds, data[3]),
        (first, pictures, pixels, first, sounds, data[3]),
    ]
    return torch.cat([torch.cat(row, dim=1)[:, :LENGTH] for row in rows])


@pytest.mark.parametrize(("coding", "channels"), [("mulaw", 1), ("pcm16", 2), ("pcm8", 1)])
@pytest.mark.parametrize("window", [5, None])
def test_steps_and_prompts_guess_what_the_whole_guesses(coding: str, channels: int, window: int | None) -> None:
    model, ids = model_of(coding, channels, window), documents(coding, channels)
    with torch.no_grad():
        whole = model(ids).log_softmax(-1)
        for lengths in ([0, 0, 0], [200, 131, 9], [1, 330, 64]):
            state = model.start(3, LENGTH)
            if max(lengths):
                model.prefill(ids, lengths, state)
            at = list(lengths)
            while min(at) < LENGTH - 1:
                rows = [row for row in range(3) if at[row] < LENGTH - 1]
                for row in rows:
                    found = state.logits[row].log_softmax(-1)
                    torch.testing.assert_close(found, whole[row, at[row]], atol=1e-6, rtol=1e-5, check_dtype=False)
                model.step(ids[rows, [at[row] for row in rows]], state, rows)
                at = [place + (row in rows) for row, place in enumerate(at)]


def test_rows_that_begin_inside_a_sound_go_on_with_it() -> None:
    model, ids = model_of("pcm16", 2), as_ids("pcm16", sound(90, 2))
    before = {"mark": torch.tensor([configs.MODALITIES[0].mark]), "since": torch.tensor([13])}
    with torch.no_grad():
        whole, state = model(ids, **before).log_softmax(-1), model.start(1, LENGTH, **before)
        for place in range(ids.shape[1] - 1):
            found = state.logits.log_softmax(-1)
            torch.testing.assert_close(found, whole[:, place], atol=1e-6, rtol=1e-5, check_dtype=False)
            model.step(ids[:, place], state)


def test_rows_are_selected_with_their_filters() -> None:
    model, ids = model_of("mulaw"), documents("mulaw", 1)
    state = model.start(3, LENGTH)
    model.prefill(ids, [200, 131, 90], state)
    chosen = state.select([2, 0])
    assert chosen.filters is not None and torch.equal(chosen.filters, state.filters[[2, 0]])
    assert bool((chosen.filters != 0).any())


def test_only_sound_has_filters_and_only_its_own_modality_is_guessed() -> None:
    model = model_of("pcm16", 2)
    filters = no_filters(model.config, 3, torch.device("cpu"))
    assert filters is not None and filters.shape == (3, 2, ORDER)
    plain = dataclasses.replace(model.config, modalities=configs.MODALITIES[1:2])
    assert no_filters(plain, 3, torch.device("cpu")) is None
    ids, since = torch.randint(0, 256, (1, 300)), torch.arange(300).unsqueeze(0)
    assert not predictions(model.config, ids, torch.zeros_like(ids), since).any()
    assert predictions(model.config, ids, torch.ones_like(ids), since).any()
