"""Optimizers: who updates what, the schedule, and state that goes out and comes back."""

import dataclasses
import math

import configs
import pytest
import torch
from test_multiscale import TWO, random_ids
from torch import nn

from byteloom.models.multiscale import Multiscale
from byteloom.train.acceleration import accelerated
from byteloom.train.optim import Muon, OptimConfig, Optimizers, is_matrix, learning_rate_at, orthogonal


def test_muon_takes_the_matrices_inside_and_adamw_the_rest() -> None:
    model = Multiscale(TWO)
    muon = {name for name, p in model.named_parameters() if is_matrix(name, p)}
    assert "stacks.0.blocks.1.mlp.up.weight" in muon and "expanders.0.project.weight" in muon
    assert not {name for name in muon if "table" in name or "norm" in name or "start" in name}
    optimizers = Optimizers(model, OptimConfig())
    held = [p for optimizer, _ in optimizers.peaks for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()} and len(held) == len(set(map(id, held)))


def test_tables_of_strings_learn_the_same_from_sparse_and_from_dense_gradients() -> None:
    finest = dataclasses.replace(TWO.stages[-1], ngrams=(2, 3), ngram_rows=50, ngram_dim=4)
    config = dataclasses.replace(TWO, stages=(*TWO.stages[:-1], finest))
    models = [configs.build(config), configs.build(config)]
    optimizers = [Optimizers(model, OptimConfig(weight_decay=0.1), "fp32") for model in models]
    (table,) = models[1].string_tables
    before = table.weight.detach().clone()
    for i in range(3):
        for model, optimizer in zip(models, optimizers):
            with accelerated(model, False, sparse=model is models[1]):
                for part in random_ids(4, 16, seed=i).split(2):  # gradients of two batches make one update
                    model.loss(part, chunk=16).nats.backward()
                assert table.weight.grad is None or table.weight.grad.is_sparse
                optimizer.step(0.5)
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters()):
        torch.testing.assert_close(a, b, msg=name)
    met = torch.cat([table.weight[row : row + 1] != before[row : row + 1] for row in range(100)]).any(-1)
    assert 10 < int(met.sum()) < 100  # the others are as they were


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_schedules_rise_and_fall(schedule: str) -> None:
    config = OptimConfig(schedule=schedule, warmup=0.1, final=0.05)
    assert learning_rate_at(0.0, config) == 0.0
    assert learning_rate_at(0.05, config) == pytest.approx(0.5)
    assert learning_rate_at(0.1, config) == pytest.approx(1.0)
    end = 1.0 if schedule == "constant" else 0.05
    assert learning_rate_at(1.0, config) == learning_rate_at(1.5, config) == pytest.approx(end)
    values = [learning_rate_at(0.1 + 0.9 * i / 50, config) for i in range(51)]
    assert values == sorted(values, reverse=True)
    if schedule == "cosine":
        assert learning_rate_at(0.55, config) == pytest.approx(0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi / 2)))
    if schedule == "wsd":
        assert learning_rate_at(0.8, config) == 1.0


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_state_goes_out_and_comes_back_exactly(name: str) -> None:
    torch.manual_seed(0)
    config, ids = OptimConfig(optimizer=name, weight_decay=0.1), random_ids(2, 16)
    model = Multiscale(TWO)
    optimizers = Optimizers(model, config)

    def update(model: Multiscale, optimizers: Optimizers) -> None:
        model.loss(ids).nats.backward()
        optimizers.step(0.5)

    update(model, optimizers)
    twin = Multiscale(TWO)
    twin.load_state_dict(model.state_dict())
    other = Optimizers(twin, config)
    other.load_tensors(optimizers.tensors())
    for _ in range(2):
        update(model, optimizers)
        update(twin, other)
    for a, b in zip(model.parameters(), twin.parameters()):
        assert torch.equal(a, b)
    wrong = Optimizers(Multiscale(TWO), OptimConfig(optimizer="adamw" if name == "muon" else "muon"))
    with pytest.raises(ValueError, match="another model or optimizer"):
        wrong.load_tensors(optimizers.tensors())


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_parameter_without_gradient_has_no_state_and_half_a_state_is_refused(name: str) -> None:
    model = Multiscale(TWO)
    optimizers = Optimizers(model, OptimConfig(optimizer=name))
    model.loss(random_ids(2, 16)).nats.backward()
    missing = ["starts.0", "stacks.0.blocks.0.mlp.up.weight"]
    for parameter in missing:
        model.get_parameter(parameter).grad = None
    before = {parameter: model.get_parameter(parameter).clone() for parameter in missing}
    optimizers.step(0.5)
    assert all(torch.equal(model.get_parameter(parameter), value) for parameter, value in before.items())
    found = optimizers.tensors()
    assert not [key for key in found if key.rpartition(":")[0] in missing]
    other = Optimizers(Multiscale(TWO), OptimConfig(optimizer=name))
    other.load_tensors(found)
    assert other.tensors().keys() == found.keys()
    for broken in (dict(list(found.items())[1:]), {**found, "starts.9:step": torch.zeros(())}):
        with pytest.raises(ValueError, match="another model or optimizer"):
            other.load_tensors(broken)


def test_muon_is_that_of_torch_and_in_fp32_more_exact() -> None:
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((24, 8), (8, 24), (16, 16))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    options = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    exact, torchs = Muon(ours, torch.float32, **options), torch.optim.Muon(theirs, **options)
    for _ in range(3):
        for a, b in zip(ours, theirs):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        exact.step()
        torchs.step()
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=3e-3, rtol=0.0)
        found, wanted = exact.state[a]["momentum_buffer"], torchs.state[b]["momentum_buffer"]
        assert torch.equal(found, wanted)
        bf16 = torch.optim._muon._zeropower_via_newtonschulz(found, (3.4445, -4.7750, 2.0315), 5, 1e-7)
        assert torch.equal(orthogonal(found, torch.bfloat16), bf16)
        scales = torch.linalg.svdvals(orthogonal(found, torch.float32))
        assert float(scales.median()) > 0.6 and float(scales.max()) < 1.3
        # Near matrices stay near, where rounding to bf16 would tear them apart.
        near = orthogonal(found * (1 + 1e-7 * torch.randn_like(found)), torch.float32)
        torch.testing.assert_close(near, orthogonal(found, torch.float32), atol=1e-5, rtol=0.0)


def test_units_that_are_dead_end_as_nothing_and_never_as_numbers_that_processors_are_slow_with() -> None:
    torch.manual_seed(0)
    matrix = nn.Parameter(torch.randn(24, 16))
    muon = Muon([matrix], torch.float32, lr=0.0, momentum=0.95, weight_decay=0.0)
    for step in range(2500):
        matrix.grad = torch.randn(24, 16)
        matrix.grad[8:] *= step < 10
        muon.step()
        buffer = muon.state[matrix]["momentum_buffer"]
        assert not ((buffer != 0) & (buffer.abs() < torch.finfo(torch.float32).tiny)).any()
    assert (buffer[8:] == 0).all() and (buffer[:8] != 0).all(), "0.95 ** 2490 is below all that fp32 has"
    fading = torch.randn(24, 16)
    fading[8:] *= 1e-12
    found = orthogonal(fading, torch.float32)
    assert (found[8:] == 0).all()
    torch.testing.assert_close(found[:8], orthogonal(fading[:8], torch.float32), atol=1e-5, rtol=0.0)


def test_gradients_are_clipped_and_cleared() -> None:
    model = Multiscale(TWO)
    (1000 * model.loss(random_ids(2, 16)).nats).backward()
    norm = Optimizers(model, OptimConfig(clip=1.0)).step(0.5)
    assert float(norm) > 1 and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "fields",
    [
        {"learning_rate": 0.0},
        {"table_learning_rate": 0.0},
        {"clip": -1.0},
        {"warmup": 2.0},
        {"final": -0.1},
        {"betas": (1.0, 0.9)},
    ],
)
def test_senseless_settings_are_refused_by_name(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        OptimConfig(**fields)
