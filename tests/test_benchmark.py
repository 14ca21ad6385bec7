"""What is measured: the right things, not how fast they are."""

import dataclasses

import pytest
import torch
from test_multiscale import THREE, TWO

from byteloom import benchmark
from byteloom.benchmark import Measured, bytes_read, generation_speed, matrix_products, profile_training, training_speed
from byteloom.models.config import ModelConfig
from byteloom.models.multiscale import Multiscale
from byteloom.sizing import flops_per_byte
from byteloom.train.optim import OptimConfig

ADAMW = OptimConfig(optimizer="adamw")


def test_a_median_stands_between_the_smallest_and_the_largest() -> None:
    assert Measured.of([3.0, 1.0, 2.0]) == Measured(median=2.0, smallest=1.0, largest=3.0)


def test_training_is_measured_against_the_products_of_its_own_step() -> None:
    found = training_speed(TWO, 2, bf16=False, compiled=False, optim=ADAMW, rounds=1)
    assert found["step_flops"] == 3 * flops_per_byte(TWO) * 2 * TWO.context
    assert found["share"] == pytest.approx(found["flops_per_second"].median / found["matrix_rate"].median)
    rate = found["bytes_per_second"]
    assert 0 < rate.smallest <= rate.median <= rate.largest


def test_matrix_products_are_counted_with_their_shapes() -> None:
    a, b = torch.randn(2, 3), torch.randn(5, 3)
    found = matrix_products(lambda: (a @ b.T, a @ b.T, torch.addmm(torch.zeros(5), a, b.T)))
    assert list(found.values()) == [3]
    assert next(iter(found))[:4] == ((2, 3), (3, 1), (3, 5), (1, 3))
    assert benchmark.matrix_rate(found, torch.device("cpu")) > 0


@pytest.mark.parametrize("config", [TWO, THREE], ids=["two stages", "three stages"])
def test_a_profile_knows_every_part_and_nothing_is_left_over(config: ModelConfig) -> None:
    wide = dataclasses.replace(config, context=1536)
    parts = profile_training(wide, 2, bf16=False, optim=ADAMW, steps=2)
    stages = range(len(config.stages))
    named = {f"stage {i} {part}" for i in stages for part in ("attention", "MLP", "rest")}
    assert named | {"head and loss", "optimizer"} <= parts.keys()
    assert all(taken > 0 for name, taken in parts.items() if name != "other")
    assert parts["other"] < 0.5 * sum(parts.values())
    assert "forward" not in vars(Multiscale(config).stacks[0]), "labels are taken off again"


def test_generation_reads_what_its_weights_and_caches_take() -> None:
    model = Multiscale(TWO)
    found = generation_speed(model, context=4, count=4, compiled=False, rounds=1)
    assert found["bytes_per_second"].median > 0 and len(found["stages"]) == 2
    state = model.start(1, 16)
    weights = [sum(p.nbytes for p in stack.parameters()) for stack in model.stacks]
    outside = sum(p.nbytes for p in model.expanders[0].parameters()) + sum(
        p.nbytes for p in model.embedders[0].project.parameters()
    )
    fixed = (weights[0] + outside) / 4 + weights[1] + model.embedders[1].table.weight.nbytes
    assert bytes_read(model, state) == pytest.approx(fixed), "nothing is cached yet"
