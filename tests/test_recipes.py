"""Named runs."""

import dataclasses

import pytest

from byteloom import recipes
from byteloom.sizing import build, stage_costs


@pytest.mark.parametrize("name", recipes.NAMES)
def test_every_recipe_builds_on_the_meta_device_and_says_what_it_is(name: str) -> None:
    config = recipes.by_name(name)
    assert next(build(config.model).parameters()).device.type == "meta"
    assert (recipes.NAMES[name].__doc__ or "").strip()
    assert name == recipes.NAMES[name].__name__.replace("_", "-")


def test_a_misspelt_name_gets_a_suggestion() -> None:
    with pytest.raises(ValueError, match="did you mean text-small"):
        recipes.by_name("text_smal")
    with pytest.raises(ValueError, match="known: "):
        recipes.by_name("qqqq")


PAPER_MILLIONS = {
    "paper-s1": 125,
    "paper-s2": 350,
    "paper-s3": 760,
    "paper-s4": 1300,
    "paper-s5": 2700,
    "paper-s6": 6700,
}
SUBWORDS = 50257


@pytest.mark.parametrize("name", PAPER_MILLIONS)
def test_the_papers_sizes_are_ours_once_its_subword_table_is_counted(name: str) -> None:
    """The names of the sizes are those of models with a table of some 50,000 subwords; over bytes it is not there."""
    config = recipes.by_name(name).model
    ours = sum(cost.parameters for cost in stage_costs(config))
    with_table = ours + (SUBWORDS - config.vocab_size) * config.stages[0].dim
    assert with_table / 1e6 == pytest.approx(PAPER_MILLIONS[name], rel=0.02)


@pytest.mark.parametrize(
    ("name", "patch_size", "layers"),
    [
        ("paper-text", 8, (14, 18)),
        ("paper-image256", 192, (12, 12)),
        ("paper-image640", 192, (12, 8)),
        ("paper-audio", 32, (24, 12)),
    ],
)
def test_the_papers_models_have_its_shapes(name: str, patch_size: int, layers: tuple[int, int]) -> None:
    config = recipes.by_name(name)
    assert config.model.stages[0].patch_size == patch_size
    assert tuple(stage.num_layers for stage in config.model.stages) == layers
    assert config.model.init_std == 0.006 and config.optim.betas == (0.9, 0.98) and config.optim.weight_decay == 0.1
    assert config.optim.warmup * (config.train.steps or 0) == pytest.approx(500)
    assert all(stage.position == "learned" and stage.mlp == "relu" for stage in config.model.stages)
    assert config.model.context % config.model.span(0) == 0


def test_a_million_bytes_take_three_stages() -> None:
    for name in ("million-small", "million-base"):
        assert len(recipes.by_name(name).model.stages) == 3 and recipes.by_name(name).model.context == 1 << 20


def test_samples_are_not_guessed_as_what_they_are_not() -> None:
    run = recipes.by_name("audio-small")
    for coding, cure in (("pcm16", "to pcm16"), ("float32", "to none")):
        media = dataclasses.replace(run.media, audio=dataclasses.replace(run.media.audio, coding=coding))
        with pytest.raises(ValueError, match=rf"modalities\.0\.predictor\.guess {cure}"):
            dataclasses.replace(run, media=media)
