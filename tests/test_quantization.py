"""Narrow weights: near the wide ones, smaller, refused where there are none."""

from pathlib import Path

import configs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_multiscale import THREE, TWO, random_ids
from torch import nn

from byteloom.generation import generate
from byteloom.layers.linear import Linear
from byteloom.losses import Loss
from byteloom.models.config import ModelConfig
from byteloom.models.store import CheckpointError, save
from byteloom.quantization import FEW_ROWS, NarrowLinear, quantize
from byteloom.sampling import SamplingConfig


@pytest.mark.parametrize("columns", [64, 63, 16, 5])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize(("weights", "bits"), [("bf16", 8), ("int8", 7)])
def test_a_narrow_matrix_is_near_the_wide_one(weights: str, bits: int, rows: int, bias: bool, columns: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(columns, 47, bias=bias).requires_grad_(False)
    x = torch.randn(rows, 1, columns)
    narrow = NarrowLinear(linear, weights)  # type: ignore[arg-type]
    wide = linear(x)
    assert narrow(x).shape == wide.shape and narrow(x).dtype == x.dtype
    # Rounding is to 2^-bits of the largest weight of a row; errors of 64 products add like a random walk.
    assert float((narrow(x) - wide).abs().max()) < 4 * 2.0**-bits * float(wide.abs().max())


def test_int8_is_the_nearest_of_255_steps_of_its_row() -> None:
    linear = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[127.0, -63.4, 1.2], [0.0, 0.0, 0.0]]))
    narrow = NarrowLinear(linear, "int8")
    assert narrow.weight.tolist() == [[127, -63, 1], [0, 0, 0]] and narrow.scale[0] == 1
    assert narrow(torch.eye(3)).tolist() == [[127.0, 0.0], [-63.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize("config", [TWO, THREE], ids=["two stages", "three stages"])
@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_a_narrow_model_says_nearly_the_same(config: ModelConfig, weights: str, tmp_path: Path) -> None:
    model = configs.build(config)
    ids = random_ids(3, 24)
    model.requires_grad_(False)
    before: Loss = model.loss(ids)
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    narrow = quantize(model, weights)  # type: ignore[arg-type]
    after: Loss = narrow.loss(ids)
    assert narrow is model and not model.training
    assert sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) < 0.8 * size
    assert float(after.nats) == pytest.approx(float(before.nats), rel=0.02)
    assert float(after.nats) != float(before.nats)
    with pytest.raises(CheckpointError, match="save it before"):
        save(narrow, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@settings(max_examples=30)
@given(config=configs.models(), seed=st.integers(0, 2**31), weights=st.sampled_from(["bf16", "int8"]))
def test_any_model_can_be_narrow(config: ModelConfig, seed: int, weights: str) -> None:
    model = configs.build(config, seed).requires_grad_(False)
    ids = random_ids(2, configs.CONTEXT - 3, seed)
    before = model.loss(ids)
    quantize(model, weights)  # type: ignore[arg-type]
    assert not any(type(module) is Linear for module in model.modules())
    # Weights are random and large here, so that small changes add up; a wrong scale or bias would be far off.
    assert float(model.loss(ids).nats) == pytest.approx(float(before.nats), rel=0.2)


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_a_narrow_model_steps_as_it_goes_forward(weights: str) -> None:
    model = quantize(configs.build(TWO), weights)  # type: ignore[arg-type]
    ids = random_ids(1, 20)
    state = model.start(1, 32)
    model.prefill(ids[:, :9], [9], state)
    for t in range(9, 20):
        model.step(ids[:, t], state)
    wanted = model(torch.cat((ids, ids[:, :1]), dim=1))[:, 20]
    # bf16 has 8 bits, and the sums are in another order.
    torch.testing.assert_close(state.logits, wanted, atol=0.03 * float(wanted.abs().max()), rtol=0)
    assert len(generate(model, "abc", max_bytes=9, sampling=SamplingConfig(temperature=0))) <= 9


def test_wide_weights_stay_and_unknown_ones_are_refused() -> None:
    model = configs.build(TWO)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in quantize(model, "fp32").state_dict().items())
    with pytest.raises(ValueError, match="fp32, bf16, int8"):
        quantize(model, "int4")  # type: ignore[arg-type]
