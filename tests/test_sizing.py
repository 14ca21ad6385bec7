"""Analytic costs against torch's own counters."""

import dataclasses
import math

import configs
import pytest
import torch
from hypothesis import given, settings
from test_multiscale import ONE, THREE, TWO
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from byteloom import sizing
from byteloom.models.config import ModelConfig, StageConfig
from byteloom.models.multiscale import Multiscale
from byteloom.sizing import describe, memory, propose, propose_patches, stage_costs
from byteloom.train.optim import OptimConfig, Optimizers

DEFAULT = ModelConfig(
    stages=(
        StageConfig(dim=128, num_layers=2, num_heads=2, patch_size=4),
        StageConfig(dim=64, num_layers=2, num_heads=1, window=32),
    ),
    context=512,
)
TWO_LONG = ModelConfig(
    stages=(
        StageConfig(dim=64, num_layers=2, num_heads=2, patch_size=4),
        StageConfig(dim=64, num_layers=4, num_heads=2, window=8),
    ),
    context=2048,
)
PAPER = ModelConfig(
    stages=(
        StageConfig(
            dim=128, num_layers=2, num_heads=2, patch_size=8, expand="slice", norm="layer", position="learned",
            max_positions=64, mlp="relu", mlp_bias=True, attention_bias=True,
        ),
        StageConfig(dim=64, num_layers=2, num_heads=2, position="learned", mlp="relu"),
    ),
    context=512,
)  # fmt: skip
EXTENDED = ModelConfig(
    stages=(
        StageConfig(dim=128, num_layers=2, num_heads=4, num_kv_heads=2, patch_size=4, conv_kernels=(3, 5, 7)),
        StageConfig(dim=64, num_layers=2, num_heads=2, patch_size=4, cross_patch=2),
        StageConfig(dim=64, num_layers=1, num_heads=2, mlp="swiglu"),
    ),
    context=512,
    tied_head=False,
)


@pytest.mark.parametrize("config", [DEFAULT, PAPER, EXTENDED, ONE, TWO, THREE])
@pytest.mark.parametrize("context", [512, 30])
def test_flops_agree_with_torchs_counter(config: ModelConfig, context: int) -> None:
    context = min(context, config.context)
    model = Multiscale(config)
    ids = torch.zeros(2, context, dtype=torch.long)
    costs = stage_costs(config, context)
    # The counter knows products of matrices, not the fused attention of CPUs.
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            model.loss(ids)
        forward = counter.get_total_flops() / ids.numel()
        with FlopCounterMode(display=False) as counter:
            model.loss(ids).nats.backward()
        training = counter.get_total_flops() / ids.numel()
        model.requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            state = model.start(1, context)
            for _ in range(context - 1):
                model.step(ids[0, :1], state)
        generation = counter.get_total_flops() / context
    assert sum(cost.flops for cost in costs) == pytest.approx(forward, rel=0.01)
    assert 3 * sum(cost.flops for cost in costs) == pytest.approx(training, rel=0.01)
    assert sum(cost.generation_flops for cost in costs) == pytest.approx(generation, rel=0.01 if context > 100 else 0.1)


@settings(max_examples=40)
@given(config=configs.models())
def test_parameters_and_caches_are_exact(config: ModelConfig) -> None:
    model = Multiscale(config)
    assert sum(cost.parameters for cost in stage_costs(config)) == sum(p.numel() for p in model.parameters())
    state = model.start(2, config.context)
    tags = (state.kinds, state.since, state.distances, state.predicted, state.filters, state.hashes)
    held = [state.ids, state.logits, *state.parents, *(x for x in tags if x is not None)]
    for stack in state.stacks:
        held += stack.tensors()
    assert memory(config, batch_size=2)["caches"] == sum(tensor.nbytes for tensor in held)


@pytest.mark.parametrize("ngrams", [(), (2, 3)])
@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_the_optimizers_memory_is_what_it_holds(name: str, ngrams: tuple[int, ...]) -> None:
    finest = dataclasses.replace(TWO.stages[-1], ngrams=ngrams, ngram_rows=9)
    config = dataclasses.replace(TWO, stages=(*TWO.stages[:-1], finest))
    model = Multiscale(config)
    optimizers = Optimizers(model, OptimConfig(optimizer=name))
    model.loss(torch.zeros(1, 8, dtype=torch.long)).nats.backward()
    optimizers.step(0.5)
    held = sum(tensor.nbytes for key, tensor in optimizers.tensors().items() if not key.endswith(":step"))
    assert memory(config, optimizer=name)["optimizer"] == held


def test_activations_are_what_autograd_keeps() -> None:
    model = Multiscale(DEFAULT)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.loss(torch.zeros(2, 512, dtype=torch.long))
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert memory(DEFAULT, batch_size=2, precision="fp32")["activations"] == pytest.approx(found, rel=0.02)


@settings(max_examples=20)
@given(config=configs.models())
def test_parts_sum_to_all_parameters(config: ModelConfig) -> None:
    parts = sizing.parameters_by_part(config)
    assert sum(parts.values()) == sum(cost.parameters for cost in stage_costs(config))
    layers = [p for name, p in sizing.build(config).named_parameters() if ".blocks." in name and p.ndim == 2]
    assert parts["attention"] + parts["MLP"] >= sum(p.numel() for p in layers)


def test_a_description_is_whole() -> None:
    numbers = describe(TWO, batch_size=3)
    assert numbers["parameters"] == sum(stage["cost"]["parameters"] for stage in numbers["stages"])
    assert numbers["flops_per_byte"]["training"] == 3 * numbers["flops_per_byte"]["forward"]
    assert [stage["span"] for stage in numbers["stages"]] == [4, 1]


def test_patches_are_the_papers_where_it_has_some_and_grow_with_the_context() -> None:
    assert propose_patches(8192) == (8,)
    assert propose_patches(1024) == (4,)
    spans = [math.prod(propose_patches(2**power)) for power in range(4, 24)]
    assert spans == sorted(spans)
    assert len(propose_patches(1 << 16)) == 1 and len(propose_patches(1 << 20)) == 2


@pytest.mark.parametrize("context", [1024, 8192, 1 << 20])
@pytest.mark.parametrize(
    "budget",
    [{"parameters": 10**6}, {"parameters": 10**8}, {"flops_per_byte": 5e6}, {"flops_per_byte": 1e9}],
)
def test_proposals_use_their_budget_and_stay_within(context: int, budget: dict[str, int]) -> None:
    config = propose(context, **budget)
    costs = stage_costs(config)
    used = sum(cost.parameters if "parameters" in budget else cost.flops for cost in costs)
    (limit,) = budget.values()
    assert 0.7 * limit <= used <= limit
    assert config.context == context
    if limit >= 10**8:
        assert costs[0].parameters > 2 * costs[-1].parameters, "the paper spends on the global model"


def test_proposals_fit_memory() -> None:
    config = propose(2048, memory_bytes=1 << 28)
    held = memory(config)
    assert sum(held[name] for name in ("weights", "gradients", "optimizer", "activations")) <= 1 << 28


def test_budgets_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs .* parameters; raise the budget"):
        propose(1024, parameters=100)
    with pytest.raises(ValueError, match="give a budget"):
        propose(1024)


def test_a_plan_computes_again_only_what_does_not_fit() -> None:
    whole = sizing.activations(TWO_LONG, TWO_LONG.context, 2, "fp32")
    assert sizing.plan(TWO_LONG, 2, "fp32", whole) == sizing.Plan()
    half = sizing.plan(TWO_LONG, 2, "fp32", whole * 0.6)
    assert half.chunk is not None and sizing.SMALLEST_CHUNK < half.chunk < 2 * TWO_LONG.context and not half.recompute
    least = sizing.plan(TWO_LONG, 2, "fp32", 1)
    assert least == sizing.Plan(chunk=sizing.SMALLEST_CHUNK, recompute=(0,))
    one_stage = dataclasses.replace(TWO_LONG, stages=TWO_LONG.stages[1:])
    assert sizing.plan(one_stage, 2, "fp32", 1) == sizing.Plan(recompute=(0,))


def test_what_a_plan_keeps_is_about_its_budget() -> None:
    """Counted on a real pass: what autograd holds when the forward pass has ended."""
    model = Multiscale(TWO_LONG)
    ids = torch.zeros(2, TWO_LONG.context, dtype=torch.long)
    whole = sizing.activations(TWO_LONG, TWO_LONG.context, 2, "fp32")
    found = sizing.plan(TWO_LONG, 2, "fp32", whole * 0.6)
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.loss(ids, chunk=found.chunk)
    held = sum(size for place, (size, _) in kept.items() if place not in own)
    assert 0.3 * whole < held < 0.7 * whole
