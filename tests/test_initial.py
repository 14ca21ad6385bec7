"""A run begins with the weights of another: by modality and not by number, new parts anew, nothing mixed up."""

import dataclasses
from pathlib import Path

import pytest
import torch
from test_loop import knowing
from test_multiscale import TWO

from byteloom.layers.modalities import EmbedderConfig, StreamConfig
from byteloom.models.config import ModelConfig
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import CheckpointError, save
from byteloom.train.initial import begin_with

OWN_HEAD = dataclasses.replace(TWO, tied_head=False)


def begun(folder: Path, first: ModelConfig, second: ModelConfig, **run: object) -> tuple[Multiscale, Multiscale, str]:
    """A model, another that begins with its weights, and what is said about it."""
    torch.manual_seed(1)
    model = Multiscale(first)
    save(model, folder / "first", run)
    torch.manual_seed(2)
    other = Multiscale(second)
    return model, other, begin_with(folder / "first", other)


def taken(before: Multiscale, after: Multiscale, old: str, new: str) -> bool:
    return torch.equal(before.get_parameter(old), after.get_parameter(new))


def test_the_same_model_is_taken_whole(tmp_path: Path) -> None:
    before, after, line = begun(tmp_path, TWO, dataclasses.replace(TWO, context=64))
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters()))
    assert line == f"{len(before.state_dict())} tensors begin as those of {tmp_path / 'first'}"


@pytest.mark.parametrize("kind", ["specific", "universal"])
@pytest.mark.parametrize("own_head", [False, True])
def test_a_new_modality_is_added_and_the_others_are_kept_in_any_order(
    tmp_path: Path, kind: str, own_head: bool
) -> None:
    base = OWN_HEAD if own_head else TWO
    first, second = (
        knowing(*names, kind=kind, model=base) for names in (("text", "image"), ("audio", "image", "text"))
    )
    before, after, line = begun(tmp_path, first, second)
    assert " anew, such as " in line and "left out" not in line
    each = {0: 0, 1: 3, 2: 2}  # none, text, image
    pattern = "embedders.{}.parts.{}.table.weight" if kind == "specific" else "embedders.{}.modality.vectors.{}"
    for stage in range(2):
        for old, new in each.items():
            assert taken(before, after, pattern.format(stage, old), pattern.format(stage, new))
        fresh = after.get_parameter(pattern.format(stage, 1))
        assert not any(torch.equal(fresh, before.get_parameter(pattern.format(stage, old))) for old in each)
    if own_head:
        assert all(taken(before, after, f"heads.{old}.weight", f"heads.{new}.weight") for old, new in each.items())
    same = [name for name, _ in before.named_parameters() if name.startswith(("stacks", "starts", "expanders"))]
    assert same and all(taken(before, after, name, name) for name in same)


@pytest.mark.parametrize("own_head", [False, True])
def test_a_plain_model_of_text_becomes_the_text_part_of_one_that_tells_apart(tmp_path: Path, own_head: bool) -> None:
    base = OWN_HEAD if own_head else TWO
    before, after, line = begun(tmp_path, base, knowing("image", "text", model=base), modalities=["text"])
    for stage, table in enumerate(("embedders.0.table.weight", "embedders.1.table.weight")):
        for kind in (0, 2):  # none, text
            assert taken(before, after, table, f"embedders.{stage}.parts.{kind}.table.weight")
        assert not taken(before, after, table, f"embedders.{stage}.parts.1.table.weight")
    if own_head:
        assert taken(before, after, "head.weight", "heads.2.weight")
        assert not taken(before, after, "head.weight", "heads.1.weight")
    assert "anew, such as embedders.0.parts.1." in line and "left out" not in line


def test_a_plain_model_becomes_a_universal_one_and_what_has_no_place_is_named(tmp_path: Path) -> None:
    before, after, line = begun(tmp_path, TWO, knowing("text", kind="universal"), modalities=["text"])
    assert taken(before, after, "embedders.1.table.weight", "embedders.1.parts.0.table.weight")
    assert "left out" not in line
    *_, line = begun(tmp_path, knowing("text", "image"), knowing("text"))
    assert "of its own are left out, such as embedders.0.parts.image." in line


def test_streams_are_matched_by_name(tmp_path: Path) -> None:
    def fused(*names: str) -> ModelConfig:
        streams = tuple(StreamConfig(name=name, size=4 // len(names)) for name in names)
        return dataclasses.replace(TWO, embedder=EmbedderConfig(kind="fusion", streams=streams), heads="by_modality")

    before, after, _ = begun(tmp_path, fused("a", "b"), fused("b", "a"))
    for old, new in ((0, 1), (1, 0)):
        for part in ("embedders.0.absent.{}", "embedders.0.gates.{}.weight", "embedders.1.parts.{}.table.weight"):
            assert taken(before, after, part.format(old), part.format(new))


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.stages\.0\.dropout 0\.0, now asked for 0\.1"):
        begun(
            tmp_path,
            TWO,
            dataclasses.replace(TWO, stages=(dataclasses.replace(TWO.stages[0], dropout=0.1), *TWO.stages[1:])),
        )
    with pytest.raises(
        CheckpointError, match=r"embedders\.0\.table\.weight has shape \[320, 16\] and here \[400, 16\]"
    ):
        begun(tmp_path, TWO, dataclasses.replace(TWO, vocab_size=400))
    with pytest.raises(CheckpointError, match=r"config\.json: not found"):
        begin_with(tmp_path / "gone", Multiscale(TWO))
