"""What is put on a model from outside changes no number, and comes off again."""

import configs
import pytest
import torch
from test_multiscale import THREE, TWO, random_ids

from byteloom.models.config import ModelConfig
from byteloom.models.multiscale import Multiscale
from byteloom.train import acceleration
from byteloom.train.acceleration import accelerated


def gradients(model: Multiscale, ids: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    model.loss(ids).nats.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("config", [TWO, THREE], ids=["two stages", "three stages"])
@pytest.mark.parametrize("compiled", [False, True])
def test_it_changes_no_gradient(config: ModelConfig, compiled: bool) -> None:
    model, ids = configs.build(config), random_ids(2, 24)
    wanted = gradients(model, ids)
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    with accelerated(model, compiled, recompute=(0,)):
        for found, right in zip(gradients(model, ids), wanted, strict=True):
            torch.testing.assert_close(found, right, atol=1e-3 * (1 + float(right.abs().max())), rtol=1e-3)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    for found, right in zip(gradients(model, ids), wanted, strict=True):
        assert torch.equal(found, right)


def test_recomputed_layers_keep_their_inputs_only() -> None:
    model, ids = configs.build(TWO), random_ids(2, 24)

    def kept() -> int:
        found: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: found.append(x.numel()) or x, lambda x: x):
            model.loss(ids)
        return sum(found)

    everything = kept()
    with accelerated(model, False, recompute=(0, 1)):
        assert kept() < 0.5 * everything


def test_a_run_is_compiled_where_it_is_long_enough() -> None:
    model, cpu = TWO, torch.device("cpu")
    assert acceleration.can_compile(cpu)
    assert not acceleration.worth_compiling(float("inf"), 60.0, model, cpu)
    assert acceleration.worth_compiling(float("inf"), 600.0, model, cpu)
    assert not acceleration.worth_compiling(1e6, float("inf"), model, cpu)
    assert acceleration.worth_compiling(1e12, float("inf"), model, cpu)


def test_without_a_compiler_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> object:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    acceleration.can_compile.cache_clear()
    try:
        assert not acceleration.worth_compiling(1e12, 600.0, TWO, torch.device("cpu"))
    finally:
        acceleration.can_compile.cache_clear()


def test_memory_is_known_and_can_be_kept_and_given_back() -> None:
    assert (acceleration.available_memory(torch.device("cpu")) or 1) > 0
    acceleration.keep_memory()
    acceleration.give_back()
