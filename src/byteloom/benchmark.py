"""How fast a model trains and writes here, how near that is to what the machine can do, and where the time goes.

A config in, numbers and tables out. `byteloom bench` shows them; `benchmarks/` sets them beside other libraries.
Machines are noisy: every number is the median of several rounds, with the smallest and the largest beside it.
"""

import contextlib
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from byteloom.models import decoding
from byteloom.models.config import ModelConfig
from byteloom.models.multiscale import Multiscale, State
from byteloom.sizing import flops_per_byte
from byteloom.train.acceleration import accelerated
from byteloom.train.optim import OptimConfig, Optimizers

WARM_UP = 3
"""Calls before the clock starts: compilers, caches and allocators settle."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A number that was measured several times."""

    median: float
    smallest: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Measured":
        """From all rounds."""
        return cls(median=statistics.median(values), smallest=min(values), largest=max(values))


def seconds(call: Callable[[], object], device: torch.device, rounds: int = 1) -> list[float]:
    """What each of `rounds` calls takes, the device's work included."""
    found = []
    for _ in range(rounds):
        synchronize(device)
        began = time.perf_counter()
        call()
        synchronize(device)
        found.append(time.perf_counter() - began)
    return found


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# -- training --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def training_step(
    config: ModelConfig,
    batch_size: int,
    *,
    bf16: bool,
    compiled: bool,
    chunk: int | None,
    optim: OptimConfig,
    device: str,
) -> Iterator[tuple[Multiscale, Callable[[], None]]]:
    """Inside, a model and a call that makes one update from a batch of random bytes."""
    torch.manual_seed(0)
    place = torch.device(device)
    model = Multiscale(config).to(place).train()
    optimizers = Optimizers(model, optim)
    ids = torch.randint(0, 256, (batch_size, config.context), device=place)

    def step() -> None:
        with torch.autocast(place.type, torch.bfloat16, enabled=bf16):
            loss = model.loss(ids, chunk=chunk)
        (loss.nats / ids.numel()).backward()
        optimizers.step(0.5)

    with accelerated(model, compiled):
        yield model, step


def training_speed(
    config: ModelConfig,
    batch_size: int,
    *,
    bf16: bool = True,
    compiled: bool = True,
    chunk: int | None = None,
    optim: OptimConfig | None = None,
    device: str = "cpu",
    rounds: int = 5,
) -> dict[str, Any]:
    """Updates from random bytes: `bytes_per_second`, `flops_per_second` and `matrix_rate`, `share` of one in the other.

    `matrix_rate` is the rate of the step's own matrix products one by one, in the same type, before and after each
    round; FLOPs are those of `byteloom info`.
    """
    place, size = torch.device(device), batch_size * config.context
    options = {"bf16": bf16, "chunk": chunk, "optim": optim or OptimConfig(), "device": device}
    with training_step(config, batch_size, compiled=False, **options) as (_, step):
        products = matrix_products(step)
    with training_step(config, batch_size, compiled=compiled, **options) as (_, step):
        seconds(step, place, WARM_UP)
        taken, rates = [], []
        for _ in range(rounds):
            taken += seconds(step, place, 3)
            rates.append(matrix_rate(products, place))
    flops = 3 * flops_per_byte(config) * size
    return {
        "bytes_per_second": Measured.of([size / t for t in taken]),
        "step_flops": flops,
        "flops_per_second": Measured.of([flops / t for t in taken]),
        "matrix_rate": Measured.of(rates),
        "share": flops / statistics.median(taken) / statistics.median(rates),
    }


Product = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], torch.dtype]
"""Shapes and strides of both sides, and their type."""


def matrix_products(call: Callable[[], object]) -> Counter[Product]:
    """The products of two matrices that a call makes, and how often each."""
    found: Counter[Product] = Counter()
    positions = {torch.ops.aten.mm.default: 0, torch.ops.aten.addmm.default: 1}

    class _Note(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            if func in positions:
                a, b = args[positions[func] :][:2]
                found[a.shape, a.stride(), b.shape, b.stride(), a.dtype] += 1
            return func(*args, **(kwargs or {}))

    with _Note():
        call()
    return found


def matrix_rate(products: Counter[Product], device: torch.device) -> float:
    """FLOPs per second of these products, each at its best of three."""
    flops = total = 0.0
    for (left, left_strides, right, right_strides, dtype), count in products.items():
        a = torch.empty_strided(left, left_strides, dtype=dtype, device=device).fill_(0.5)
        b = torch.empty_strided(right, right_strides, dtype=dtype, device=device).fill_(0.5)
        total += count * min(seconds(lambda a=a, b=b: a @ b, device, 3))
        flops += count * 2 * left[0] * left[1] * right[1]
    return flops / total


def profile_training(
    config: ModelConfig, batch_size: int, *, bf16: bool = True, optim: OptimConfig | None = None, steps: int = 4
) -> dict[str, float]:
    """Seconds of an update on a CPU by part, forward and backward: of each stage `embed`, `attention`, `MLP` and `rest`
    (norms, residuals, expander), then `head and loss`, `data`, `optimizer`, `other`. Not compiled, for a compiled block
    has no parts.
    """
    options = {"bf16": bf16, "chunk": None, "optim": optim or OptimConfig(), "device": "cpu"}
    with (
        training_step(config, batch_size, compiled=False, **options) as (model, step),
        contextlib.ExitStack() as labels,
    ):
        for i in range(len(model.stacks)):
            labels.enter_context(label(model.embedders[i], "forward", f"stage {i} embed"))
            labels.enter_context(label(model.stacks[i], "forward", f"stage {i} rest"))
            for block in model.stacks[i].blocks:
                labels.enter_context(label(block.attention, "project", f"stage {i} attention"))
                labels.enter_context(label(block.attention, "mix", f"stage {i} attention"))
                labels.enter_context(label(block.mlp, "forward", f"stage {i} MLP"))
        for i, expander in enumerate(model.expanders):
            labels.enter_context(label(expander, "forward", f"stage {i} rest"))
        labels.enter_context(label(model, "score", "head and loss"))
        labels.enter_context(label(Optimizers, "step", "optimizer"))
        seconds(step, torch.device("cpu"), WARM_UP)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            whole = sum(seconds(step, torch.device("cpu"), steps)) / steps
    found = {name: total / steps for name, total in by_label(profiler.events()).items()}
    return found | {"other": whole - sum(found.values())}


LABEL = "byteloom: "


@contextlib.contextmanager
def label(owner: object, attribute: str, name: str) -> Iterator[None]:
    """Inside, calls of `owner.attribute` are marked by `name` in a profile."""
    call, own = getattr(owner, attribute), vars(owner).get(attribute)

    def labelled(*args: Any, **kwargs: Any) -> Any:
        with torch.profiler.record_function(LABEL + name):
            return call(*args, **kwargs)

    setattr(owner, attribute, labelled)
    try:
        yield
    finally:
        delattr(owner, attribute) if own is None else setattr(owner, attribute, own)


def by_label(events: Any) -> dict[str, float]:
    """Seconds of a profile's events by the innermost label around them; a backward operation's are its forward's."""
    totals: dict[str, float] = defaultdict(float)
    owners: dict[int, str] = {}

    def around(event: Any) -> Any:
        while event is not None and not event.name.startswith(LABEL):
            event = event.cpu_parent
        return event

    for event in events:
        inside = around(event)
        if inside is not None and event.sequence_nr >= 0:
            owners.setdefault(event.sequence_nr, inside.name)
    for event in events:
        if event.name.startswith(LABEL):
            totals[event.name] += event.cpu_time_total
            if (outer := around(event.cpu_parent)) is not None:
                totals[outer.name] -= event.cpu_time_total
        elif event.name.startswith("autograd::engine::evaluate_function") and event.sequence_nr in owners:
            totals[owners[event.sequence_nr]] += event.cpu_time_total
    return {name.removeprefix(LABEL): total / 1e6 for name, total in totals.items()}


# -- generation ------------------------------------------------------------------------------------------------------


def generation_speed(
    model: Multiscale,
    *,
    batch_size: int = 1,
    context: int = 256,
    count: int = 256,
    compiled: bool = True,
    rounds: int = 5,
) -> dict[str, Any]:
    """Steps of `batch_size` rows after `context` random bytes each, `count` a round: `bytes_per_second` of all rows,
    `bytes_read` from memory per byte written, `bandwidth` of memory in bytes per second, `share` of the bound reached,
    and `stages`, the seconds per byte of each.

    The bound is bandwidth over bytes read: weights of a stage and its caches once for each of its positions.
    """
    device = model.starts[0].device
    longest = context + count * (rounds + 1) + 1
    with torch.inference_mode():
        ids = torch.randint(0, 256, (batch_size, longest), device=device)
        state = model.start(batch_size, longest, compiled)
        model.prefill(ids[:, :context], [context] * batch_size, state)
        place = context

        def walk() -> None:
            nonlocal place
            for _ in range(count):
                model.step(ids[:, place], state)
                place += 1

        seconds(walk, device)
        taken, bandwidths = [], []
        for _ in range(rounds):
            taken += seconds(walk, device)
            bandwidths.append(memory_bandwidth(device))
        stages = stage_seconds(model, state)
    read = bytes_read(model, state)
    rate, bandwidth = batch_size * count / statistics.median(taken), statistics.median(bandwidths)
    return {
        "bytes_per_second": Measured.of([batch_size * count / t for t in taken]),
        "bytes_read": read,
        "bandwidth": Measured.of(bandwidths),
        "share": rate * read / batch_size / bandwidth,
        "stages": stages,
    }


def bytes_read(model: Multiscale, state: State) -> float:
    """Bytes of weights and caches that a step of all rows reads, on average over a patch; tables are not."""
    total = 0.0
    for i, stack in enumerate(model.stacks):
        parts: list[nn.Module] = [stack, *model.embedders[i].matrices]
        parts += [model.expanders[i]] if i < len(model.expanders) else []
        weights = sum(tensor.nbytes for part in parts for tensor in (*part.parameters(), *part.buffers()))
        caches = sum(tensor.nbytes for tensor in (*state.stacks[i].keys, *state.stacks[i].values))
        if not state.compiled:  # then only what is filled is looked at
            caches = caches * min(1.0, int(state.lengths.max()) / state.ids.shape[1])
        total += (weights + caches) / model.spans[i]
    heads = [part for part in (model.head, model.heads) if part is not None] or [model.table]
    return total + sum(tensor.nbytes for head in heads for tensor in (*head.parameters(), *head.buffers()))


def memory_bandwidth(device: torch.device) -> float:
    """Bytes per second that reading a large array reaches, at its best of three."""
    array = torch.ones(1 << 26, device=device)  # 256 MiB
    return array.nbytes / min(seconds(array.sum, device, 3))


def stage_seconds(model: Multiscale, state: State) -> list[float]:
    """Seconds of each stage per byte written by all rows, at the place where they stand."""
    found = []
    length, rows = int(state.lengths[0]), state.ids.shape[0]
    for i, span in enumerate(model.spans):
        position = [length // span] * rows
        if state.runs:
            places = torch.tensor(position, device=state.ids.device)

            def run(i: int = i, places: Tensor = places) -> None:
                state.runs[i](model, i, places, state)
        else:

            def run(i: int = i, places: list[int] = position) -> None:
                decoding.run(model, i, range(rows), places, state)

        found.append(statistics.median(seconds(run, state.ids.device, 16)) / span)
    return found
