"""What a model costs before it is built: a config in; parameters, FLOPs per byte and memory out; nothing is allocated.

FLOPs are those of matrix products, two for a multiplication and an addition, as `torch.utils.flop_counter` has them:
attention over the keys that our code multiplies, masked ones included. A backward pass costs two forward passes.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from byteloom.models.config import ModelConfig, StageConfig
from byteloom.models.multiscale import Multiscale
from byteloom.train.optim import is_matrix, is_table

SMALLEST_CHUNK = 1024
"""Bytes of a batch: smaller chunks save next to nothing and keep the cores waiting."""


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """One stage, its embedder and its expander; the head belongs to the finest stage."""

    parameters: int
    """Trained numbers, tables included."""
    weights: int
    """Those of matrices that each of its positions is multiplied with."""
    flops: float
    """Of a forward pass over the context, per byte."""
    flops_of_attention: float
    """Part of it for queries with keys, and weights with values."""
    generation_flops: float
    """Per byte written one by one, with caches, on average over the context."""


def build(config: ModelConfig) -> Multiscale:
    """The model on the meta device: shapes without memory."""
    with torch.device("meta"):
        return Multiscale(config)


def stage_costs(config: ModelConfig, context: int | None = None) -> list[StageCost]:
    """The cost of each stage, coarsest first, in sequences of `context` bytes (default: the config's)."""
    context = context or config.context
    model = build(config)
    padded = -(-context // config.span(0)) * config.span(0)
    costs = []
    for i, stage in enumerate(config.stages):
        parts: list[nn.Module] = [model.embedders[i], model.stacks[i]]
        weights, per_byte = 0, 0
        for name, parameter in model.stacks[i].named_parameters():
            weights += parameter.numel() if parameter.ndim == 2 and name != "positions" else 0
        for convolution in model.embedders[i].convolutions:
            per_byte += convolution.weight.numel()  # runs over bytes, before they are cut into patches
        weights += model.embedders[i].products
        if i < len(model.expanders):
            parts.append(model.expanders[i])
            times = stage.patch_size if stage.expand == "slice" else 1
            weights += model.expanders[i].project.weight.numel() * (times or 1)
        head = 0
        if i == 0 and model.conditions is not None:
            parts.append(model.conditions)
        if i == len(config.stages) - 1:
            rows = max(kind.rows for kind in config.kinds) if config.heads == "by_modality" else config.vocab_size
            head = rows * stage.dim  # of heads for modalities, the largest
            parts += [part for part in (model.head, model.heads, model.guesses, model.matches) if part is not None]
        parameters = sum(p.numel() for part in parts for p in part.parameters()) + model.starts[i].numel()
        if i == len(config.stages) - 1 and model.head_bias is not None:
            parameters += model.head_bias.numel()
        span = config.span(i)
        positions = padded // span
        late = config.late_parent and i == len(config.stages) - 1
        if late:  # one position more in each patch
            positions += positions // (config.stages[i - 1].patch_size or 1)
        reach, heads = model.stacks[i].reach, 4 * stage.num_heads * stage.width_of_head * stage.num_layers
        keys: float = positions
        if reach.limit is not None:
            size = reach.patch_size or min(reach.window or positions, positions)
            back = reach.lookback if reach.patch_size else min(size, (reach.window or 1) - 1)
            keys = size + (back if positions > size else 0)
            computed = -(-positions // size) * size
        else:
            computed = positions
        attention = heads * keys * computed / context
        total = (
            2 * (weights * positions + head * (context if not late else positions)) + 2 * per_byte * padded
        ) / context
        seen = min(reach.limit or positions, positions) if reach.limit else (positions + 1) / 2
        each = 2 * (weights + (head if span == 1 else 0)) + heads * seen
        costs.append(
            StageCost(
                parameters=parameters,
                weights=weights + head + per_byte,
                flops=total + attention,
                flops_of_attention=attention,
                generation_flops=each / span + 2 * per_byte * (1 + model.embedders[i].halo / span),
            )
        )
    return costs


PARTS = {
    "tables": (".table.", ".others.", "guesses.", "matches."),
    "tables of strings": (".strings.",),
    "attention": (".attention.",),
    "MLP": (".mlp.",),
    "heads": ("head",),
    "between stages": ("expanders.", ".project", ".pool."),
}
"""What a parameter belongs to, by what its name has in it; the first that fits."""


def parameters_by_part(config: ModelConfig) -> dict[str, int]:
    """How many of a model's parameters are in each of PARTS, and in "the rest": norms, vectors, convolutions."""
    found = dict.fromkeys([*PARTS, "the rest"], 0)
    for name, parameter in build(config).named_parameters():
        part = next((part for part, marks in PARTS.items() if any(mark in name for mark in marks)), "the rest")
        found[part] += parameter.numel()
    return {part: count for part, count in found.items() if count}


def flops_per_byte(config: ModelConfig) -> float:
    """Of a forward pass over the config's context."""
    return sum(cost.flops for cost in stage_costs(config))


def memory(
    config: ModelConfig,
    context: int | None = None,
    batch_size: int = 1,
    optimizer: str = "muon",
    precision: str = "bf16",
) -> dict[str, int]:
    """Bytes of memory: `weights`, `gradients`, `optimizer`, `activations` of training, `caches` of generation.

    Activations are what autograd keeps for the backward pass of one batch, counted on a run with fake tensors; what is
    needed for a moment only comes on top. Weights are kept in fp32 for training; caches are in fp32. Of tables of
    strings a single process has gradients for the rows that a batch reaches, which are not counted.
    """
    context = context or config.context
    model = build(config)
    parameters = sum(p.numel() for p in model.parameters())
    tables = sum(p.numel() for name, p in model.named_parameters() if is_table(name))
    matrices = 0
    if optimizer == "muon":
        matrices = sum(p.numel() for name, p in model.named_parameters() if is_matrix(name, p))
    return {
        "weights": 4 * parameters,
        "gradients": 4 * (parameters - tables),
        "optimizer": 4 * (2 * parameters - matrices - tables),
        "activations": activations(config, context, batch_size, precision),
        "caches": caches(model, context, batch_size),
    }


def caches(model: Multiscale, context: int, batch_size: int) -> int:
    """Bytes of what a model on the meta device remembers while it writes `batch_size` rows of `context` bytes."""
    return sum(tensor.nbytes for tensor in model.start(batch_size, context).tensors())


def activations(config: ModelConfig, context: int, batch_size: int, precision: str) -> int:
    """Bytes that autograd keeps between the forward and the backward pass of a batch, parameters left out."""
    return kept_by(lambda model, ids: model.loss(ids), config, context, batch_size, precision)


def kept_by(
    run: Callable[[Multiscale, Tensor], object], config: ModelConfig, context: int, batch_size: int, precision: str
) -> int:
    """Bytes that are alive after `run` of a model and ids (B, T), parameters left out, found with fake tensors."""
    model = build(heaviest(config))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        ids = torch.zeros(batch_size, context, dtype=torch.long)
        with LiveBytes(model.parameters()) as live, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            result = run(model, ids)
            kept = live.now
    del result
    return kept


def heaviest(config: ModelConfig) -> ModelConfig:
    """The same model for fake tensors, whose rows are all of the last kind (`through_kinds`): that of the most ids."""
    return replace(config, modalities=tuple(sorted(config.modalities, key=lambda modality: modality.num_ids)))


class LiveBytes(TorchDispatchMode):
    """Inside, counts the bytes of tensors that are made and not yet freed, those over storages of `others` left out."""

    def __init__(self, others: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self.sizes = {tensor.untyped_storage()._cdata: 0 for tensor in others}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation and notes the storages that it made."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, DTensor):  # only this rank's part is there
                tensor = tensor.to_local()
            if isinstance(tensor, Tensor):
                self.note(tensor.untyped_storage())
        return out

    def note(self, storage: torch.UntypedStorage) -> None:
        """Takes in a storage that has not been seen before."""
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = 0
            weakref.finalize(storage, self.forget, storage._cdata)
            self.resize(storage._cdata, storage.nbytes())

    def resize(self, place: int, size: int) -> None:
        """Takes in a storage's new size."""
        self.now += size - self.sizes[place]
        self.sizes[place] = size
        self.peak = max(self.peak, self.now)

    def forget(self, place: int) -> None:
        """Takes a freed storage out of the sum."""
        self.now -= self.sizes.pop(place)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a training pass keeps, and what it computes again in the backward pass."""

    chunk: int | None = None
    """Bytes of the batch that all but the coarsest stage, with head and loss, take at a time; None: all."""
    recompute: tuple[int, ...] = ()
    """Stages whose layers keep their inputs only."""


def plan(config: ModelConfig, batch_size: int, precision: str, budget: float) -> Plan:
    """How a batch can be trained on with about `budget` bytes of activations, with no more computed again than needed.

    First the finer stages run in chunks; then the coarsest stage's layers forget too, which is the least there is.
    """
    whole = activations(config, config.context, batch_size, precision)
    if whole <= budget:
        return Plan()
    if config.late_parent or len(config.stages) == 1:  # these have no chunks
        return Plan(recompute=tuple(range(len(config.stages))))
    stage, positions = config.stages[0], batch_size * -(-config.context // config.span(0))

    def coarsest(model: Multiscale, ids: Tensor) -> object:
        return model.coarsest(model.tag(model.pad(ids)))

    coarse = kept_by(coarsest, config, config.context, batch_size, precision)
    per_byte = (whole - coarse) / (positions * config.span(0))
    stages: tuple[int, ...] = ()
    if coarse > budget / 2:
        stages, coarse = (0,), 4 * positions * stage.dim * stage.num_layers + coarse // stage.num_layers
    return Plan(chunk=max(SMALLEST_CHUNK, int((budget - coarse) / per_byte)), recompute=stages)


def describe(
    config: ModelConfig,
    context: int | None = None,
    batch_size: int = 1,
    optimizer: str = "muon",
    precision: str = "bf16",
) -> dict[str, Any]:
    """All of it, as `byteloom info` shows it: `parameters`, `flops_per_byte`, `memory`, `stages`; JSON-able."""
    costs = stage_costs(config, context)
    forward = sum(cost.flops for cost in costs)
    return {
        "context": context or config.context,
        "batch_size": batch_size,
        "parameters": sum(cost.parameters for cost in costs),
        "parameters_by_part": parameters_by_part(config),
        "flops_per_byte": {
            "forward": forward,
            "training": 3 * forward,
            "generation": sum(cost.generation_flops for cost in costs),
        },
        "memory": memory(config, context, batch_size, optimizer, precision),
        "stages": [
            {"span": config.span(i), **asdict(stage), "cost": asdict(cost)}
            for i, (stage, cost) in enumerate(zip(config.stages, costs, strict=True))
        ],
    }


GLOBAL_TO_LOCAL = 6
"""How many times the finest stage's weights the coarsest gets: 1.3B to 218M was the paper's best split on PG-19."""
LAYERS_PER_WIDTH = 1 / 64
"""Layers for each channel, as in the paper's S1 (12 at 768)."""
WINDOW = 32
"""What the finest stage sees, across patch borders: 0.35 bits per byte over isolated patches (docs/trials.md)."""
LARGEST_PATCHED_CONTEXT = 1 << 16
"""From here on three stages: with two, either patches or their number would be too many."""


def propose_patches(context: int) -> tuple[int, ...]:
    """Patch sizes for a context, coarsest first: what attention over T/P patches of P bytes costs is least at a power
    of T^(1/3) (paper, section 3.2); the factor makes it the paper's 8 at 8,192 bytes.
    """
    span = 2 ** max(1, round(math.log2(8 * (context / 8192) ** (1 / 3))))
    return (span,) if context <= LARGEST_PATCHED_CONTEXT else (2 * span // 8 or 2, 8)


def proposal(context: int, size: int) -> ModelConfig:
    """A model whose finest stage is `size` channels wide, the others in the proportion that the paper found best."""
    patches = propose_patches(context)
    layers = max(1, round(size * LAYERS_PER_WIDTH * 2))
    fine = StageConfig(dim=size, num_layers=layers, num_heads=_heads(size), window=WINDOW)
    # Weights grow with layers times width squared; layers are kept in proportion to width.
    weights = layers * size**2
    coarse = []
    for i, patch_size in enumerate(patches):
        share = GLOBAL_TO_LOCAL ** ((len(patches) - i) / len(patches))
        width = max(size, round((share * weights / LAYERS_PER_WIDTH) ** (1 / 3) / 64) * 64)
        depth = max(1, round(share * weights / width**2))
        coarse.append(StageConfig(dim=width, num_layers=depth, num_heads=_heads(width), patch_size=patch_size))
    return ModelConfig(stages=(*coarse, fine), context=context)


def propose(
    context: int,
    *,
    flops_per_byte: float | None = None,
    parameters: int | None = None,
    memory_bytes: int | None = None,
) -> ModelConfig:
    """The largest model of the family of `proposal` within a budget.

    Args:
        context: bytes in a sequence.
        flops_per_byte: of a forward pass.
        parameters: trained numbers.
        memory_bytes: of training with one sequence: weights, gradients, optimizer and activations.

    Raises:
        ValueError: no budget is given, or the smallest model of the family is over it.
    """
    if flops_per_byte is None and parameters is None and memory_bytes is None:
        raise ValueError("give a budget: flops_per_byte, parameters or memory")

    def over(config: ModelConfig) -> str | None:
        costs = stage_costs(config)
        needs = {"parameters": sum(cost.parameters for cost in costs), "flops": sum(cost.flops for cost in costs)}
        if parameters is not None and needs["parameters"] > parameters:
            return f"{needs['parameters']:,} parameters"
        if flops_per_byte is not None and needs["flops"] > flops_per_byte:
            return f"{needs['flops']:,.0f} FLOPs per byte"
        if memory_bytes is not None:
            least = 12 * needs["parameters"]  # weights, gradients and one copy of the optimizer's
            if least > memory_bytes:
                return f"more than {least:,} bytes of memory"
            held = memory(config)
            total = sum(held[name] for name in ("weights", "gradients", "optimizer", "activations"))
            if total > memory_bytes:
                return f"{total:,} bytes of memory"
        return None

    best: ModelConfig | None = None
    low, high = 1, 512  # width of the finest stage in steps of 32
    while low <= high:
        middle = (low + high) // 2
        config = proposal(context, 32 * middle)
        reason = over(config)
        if reason is None:
            best, low = config, middle + 1
        elif middle == 1:
            raise ValueError(f"the smallest model for a context of {context:,} needs {reason}; raise the budget")
        else:
            high = middle - 1
    if best is None:
        raise ValueError("no model fits; raise the budget")
    # What is left is spent on layers, of the coarsest stage first.
    for i in range(len(best.stages)):
        while over(deeper := _deeper(best, i)) is None:
            best = deeper
    return best


def _heads(width: int) -> int:
    """Heads of 64 channels, or of 32 where 64 does not divide the width."""
    return width // 64 if width % 64 == 0 else width // 32


def _deeper(config: ModelConfig, stage: int) -> ModelConfig:
    stages = list(config.stages)
    stages[stage] = replace(stages[stage], num_layers=stages[stage].num_layers + 1)
    return replace(config, stages=tuple(stages))
