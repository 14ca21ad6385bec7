"""The average of weights: what it is, that a run takes it for its model, and that it goes on after a stop."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_corpus import folder_of
from test_loop import TEXT, config, same, weights
from test_multiscale import TWO

from byteloom.models.multiscale import Multiscale
from byteloom.models.store import load, read_pieces
from byteloom.train.average import Average
from byteloom.train.checkpoint import list_checkpoints
from byteloom.train.loop import TrainConfig, train


def test_it_is_the_moving_average() -> None:
    model = Multiscale(TWO)
    average = Average(model, 0.9)
    wanted = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in (1, 2, 500):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, p in model.named_parameters():
            wanted[name] = decay * wanted[name] + (1 - decay) * p.detach()
    for name, tensor in average.tensors.items():
        torch.testing.assert_close(tensor, wanted[name])


def test_it_takes_the_place_of_the_weights_and_gives_it_back() -> None:
    model = Multiscale(TWO)
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    average = Average(model, 0.9)
    with torch.no_grad():
        model.starts[0].add_(1.0)
    average.swap()
    assert same(dict(model.named_parameters()), first)
    average.swap()
    assert torch.equal(model.starts[0], first["starts.0"] + 1)
    average.restart()
    assert torch.equal(average.tensors["starts.0"], model.starts[0])


def test_it_is_the_model_of_a_run_and_goes_on_exactly(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", {"a.txt": TEXT, "b.txt": TEXT[:3000]})
    whole = train(config(ema=0.8, checkpoint_steps=6), [data], tmp_path / "whole")
    plain = train(config(checkpoint_steps=6), [data], tmp_path / "plain")
    assert [row["loss"] for row in whole.metrics] == [row["loss"] for row in plain.metrics]
    assert whole.metrics[-1]["valid_bits_per_byte"] != plain.metrics[-1]["valid_bits_per_byte"]
    last = list_checkpoints(tmp_path / "whole")[-1]
    assert same(read_pieces(last, "model."), weights(tmp_path / "plain"))
    assert same(read_pieces(last, "average."), weights(tmp_path / "whole"))
    assert same(load(tmp_path / "whole").state_dict(), whole.model.state_dict())

    for source in ("whole", "plain"):  # one that has an average, and one that has none yet
        middle, again = Path("checkpoints", "step-00000006"), tmp_path / f"{source} again"
        shutil.copytree(tmp_path / source / middle, again / middle)
        resumed = train(config(ema=0.8), [data], again, resume=True)
        assert same(read_pieces(list_checkpoints(again)[-1], "model."), weights(tmp_path / "plain"))
        assert same(resumed.model.state_dict(), whole.model.state_dict()) == (source == "whole")
    described = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert described["run"]["train"]["ema"] == 0.8
    with pytest.raises(ValueError, match="ema"):
        TrainConfig(steps=1, ema=1.0)
