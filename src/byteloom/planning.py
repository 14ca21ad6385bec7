"""What a run on many GPUs needs and costs before it is paid for: a run and a cluster in, a `ClusterPlan` out.

One step is carried out as the first rank would, on fake tensors and in a process group without other processes: so the
memory and the traffic are those of `train.distributed.shard` and of the optimizer, whatever they do. Times are
estimates and rest on `GPUS` and on the constants below, which every plan repeats. Nothing is allocated or sent.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from byteloom.clusters import HOP_SECONDS, LINK_UTILISATION, NODE_SECONDS, Cluster, Collective, Kind
from byteloom.layers.transformer import Block
from byteloom.models.config import ModelConfig
from byteloom.models.multiscale import Multiscale
from byteloom.sizing import LiveBytes, Plan, build, caches, heaviest, plan, stage_costs
from byteloom.train.acceleration import accelerated
from byteloom.train.distributed import ParallelConfig, groups, make_mesh, reduce_gradients, shard
from byteloom.train.loop import RunConfig
from byteloom.train.optim import Optimizers

UPDATE_ACCESSES = 7
"""How often an update reads or writes as much as the weights: AdamW reads four and writes three."""
MOST_CHUNKS = 16
"""A pass in more chunks is carried out in so many: then its memory is an upper bound, and its traffic a lower one."""
ASSUMPTIONS = (
    "communication runs beside computation, so a step takes the longer of the two, and the optimizer after them",
    "collectives are rings over all ranks of a group, whose nodes are joined by all their network adapters",
    "reading data, checkpoints and validation cost nothing",
)
"""What the times rest on besides the numbers."""


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes on the first rank, which has at least as much as any other."""

    weights: int
    """Its share of the parameters, in fp32."""
    gradients: int
    """Their gradients."""
    unreduced: int
    """With accumulation: gradients of all parameters, which the last pass of a step sums over the ranks."""
    optimizer: int
    """The optimizer's state: one copy of the weights for Muon, two for AdamW."""
    average: int
    """The average of the weights, where the run keeps one."""
    activations: int
    """What the backward pass needs of the forward pass."""
    gathered: int
    """Whole weights at a time: those outside of blocks, and of the largest block."""
    passes: int
    """At their worst moment, all but what stays: activations, whole weights, the gradients that there are."""
    update: int
    """What the optimizer needs for a moment on top of weights, gradients and its state."""

    @property
    def total(self) -> int:
        """At the worst moment of a step."""
        return self.weights + self.optimizer + self.average + max(self.passes, self.gradients + self.update)


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that each rank receives in one step."""

    all_gather: float = 0.0
    """Weights."""
    reduce_scatter: float = 0.0
    """Gradients, summed within a copy of the model."""
    all_reduce: float = 0.0
    """Gradients, summed over the copies."""
    exchange: float = 0.0
    """Matrices that Muon sends to the rank that makes them orthogonal, and back."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one step."""

    compute: float
    """Forward and backward passes, and what they compute again."""
    communication: float
    """All collectives."""
    optimizer: float
    """The update."""

    @property
    def total(self) -> float:
        """Communication beside computation, then the update."""
        return max(self.compute, self.communication) + self.optimizer


@dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """A run on a cluster."""

    cluster: Cluster
    context: int
    """Bytes in a sequence."""
    rows: int
    """Sequences of each rank in one pass."""
    accumulation: int
    """Passes in a step."""
    precision: str
    """ "bf16" or "fp32"."""
    recomputation: Plan
    """What a pass computes again."""
    memory: RankMemory
    caches: int
    """Bytes of the caches that generation with as many rows needs; not part of training."""
    traffic: Traffic
    seconds: StepTime

    @property
    def fits(self) -> bool:
        """Whether training fits in the memory of a device."""
        return self.memory.total + self.cluster.device.reserved <= self.cluster.device.memory

    @property
    def bytes_per_step(self) -> int:
        """Bytes that all ranks learn from in one step."""
        return self.rows * self.cluster.gpus * self.accumulation * self.context

    @property
    def bytes_per_second(self) -> float:
        """Of training, all ranks together."""
        return self.bytes_per_step / self.seconds.total

    def describe(self, data_bytes: float | None = None) -> dict[str, Any]:
        """All of it, and with `data_bytes` what learning from so many bytes takes; JSON-able."""
        found: dict[str, Any] = {
            **asdict(self.cluster),
            "context": self.context,
            "rows_per_rank": self.rows,
            "accumulation": self.accumulation,
            "precision": self.precision,
            "recomputation": asdict(self.recomputation),
            "memory_per_rank": {
                **asdict(self.memory),
                "total": self.memory.total,
                "reserved": self.cluster.device.reserved,
                "available": self.cluster.device.memory,
            },
            "fits": self.fits,
            "caches": self.caches,
            "bytes_received_per_step": asdict(self.traffic),
            "seconds_per_step": {**asdict(self.seconds), "total": self.seconds.total},
            "bytes_per_step": self.bytes_per_step,
            "bytes_per_second": self.bytes_per_second,
            "assumptions": {
                "device": asdict(self.cluster.device),
                "utilisation": self.cluster.utilisation,
                "link_utilisation": LINK_UTILISATION,
                "hop_seconds": HOP_SECONDS,
                "node_seconds": NODE_SECONDS,
                "rest": ASSUMPTIONS,
            },
        }
        if data_bytes is not None:
            seconds = data_bytes / self.bytes_per_second
            hours = seconds / 3600 * self.cluster.gpus
            found["run"] = {
                "bytes": data_bytes,
                "steps": math.ceil(data_bytes / self.bytes_per_step),
                "days": seconds / 86400,
                "gpu_hours": hours,
                "cost": None if self.cluster.price is None else hours * self.cluster.price,
            }
        return found


class RankWatch(LiveBytes):
    """Inside, counts live bytes and notes collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.collectives: list[Collective] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation; notes it where it is a collective."""
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if func.namespace == "c10d":
            self.collectives += [collective(kind, args, out) for kind, name in COLLECTIVES.items() if name in str(func)]
        return out


@contextlib.contextmanager
def resizes_noted(watch: LiveBytes) -> Iterator[None]:
    """Inside, storages that change their size are noted: FSDP empties those of whole weights and fills them again."""
    own_resize = torch.UntypedStorage.resize_

    def resize(self: torch.UntypedStorage, size: int) -> None:
        own_resize(self, size)
        watch.note(self)
        watch.resize(self._cdata, size)

    torch.UntypedStorage.resize_ = resize  # pyrefly: ignore[bad-assignment]
    try:
        yield
    finally:
        torch.UntypedStorage.resize_ = own_resize


COLLECTIVES: Mapping[Kind, str] = {
    "all_gather": "allgather",
    "reduce_scatter": "reduce_scatter",
    "all_reduce": "allreduce",
    "exchange": "alltoall",
}
"""What has its traffic counted, and what its operations have in their names."""


def collective(kind: Kind, args: Sequence[Any], out: Any) -> Collective:
    """The collective of an operation's arguments and result."""
    group = dist.ProcessGroup.unbox(next(x for x in args if isinstance(x, torch.ScriptObject)))
    ranks = dist.get_process_group_ranks(group)
    sizes = [tensor.nbytes for tensor in tree_leaves((args, out)) if isinstance(tensor, Tensor)]
    return Collective(
        kind=kind,
        size=sizes[0] if kind == "exchange" else max(sizes),  # the first one is what comes in
        ranks=len(ranks),
        stride=ranks[1] - ranks[0] if len(ranks) > 1 else 1,
    )


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the first rank, carried out on fake tensors."""

    memory: RankMemory
    passes: Sequence[Collective]
    """Collectives of all forward and backward passes."""
    update: Sequence[Collective]
    """Those of the optimizer."""
    update_flops: int
    """Matrix products of the optimizer."""


def plan_run(run: RunConfig, cluster: Cluster) -> ClusterPlan:
    """Memory, traffic and times of a run on a cluster.

    Raises:
        ValueError: the batch cannot be shared by the ranks, the context is more than learned positions allow, or this
            process is one of several already.
    """
    config, settings, device = run.model, run.train, cluster.device
    if settings.batch_size % cluster.gpus:
        raise ValueError(
            f"a batch of {settings.batch_size} sequences cannot be shared by {cluster.gpus} ranks; "
            f"take a multiple of {cluster.gpus}"
        )
    rows = settings.batch_size // cluster.gpus
    precision = settings.precision
    if precision == "auto":
        precision = "fp32" if cluster.gpu == "cpu" else "bf16"
    model = build(config)
    weights = 4 * sum(p.numel() for p in model.parameters()) / cluster.gpus * cluster.replicas
    budget = settings.activation_memory and settings.activation_memory * 2**30
    again = plan(config, rows, precision, budget or (device.memory - device.reserved - weights) / 8)
    step = take_step(run, cluster, rows, precision, again)
    waiting = sum(each.seconds(device) for each in step.passes)
    both = [*step.passes, *step.update]
    return ClusterPlan(
        cluster=cluster,
        context=config.context,
        rows=rows,
        accumulation=settings.accumulation,
        precision=precision,
        recomputation=again,
        memory=step.memory,
        caches=caches(model, config.context, rows),
        traffic=Traffic(**{kind: sum(each.received for each in both if each.kind == kind) for kind in COLLECTIVES}),
        seconds=StepTime(
            compute=settings.accumulation * compute_seconds(config, rows, precision, again, cluster),
            communication=waiting,
            optimizer=UPDATE_ACCESSES * step.memory.weights / device.bandwidth
            + step.update_flops / (device.flops * cluster.utilisation)
            + sum(each.seconds(device) for each in step.update),
        ),
    )


def take_step(run: RunConfig, cluster: Cluster, rows: int, precision: str, again: Plan) -> Step:
    """One step of the first rank on fake tensors: the passes over `rows` sequences, then the update."""
    model, accumulation = build(heaviest(run.model)), run.train.accumulation
    with (
        alone_among(cluster) as mesh,
        warnings.catch_warnings(action="ignore"),
        FakeTensorMode(allow_non_fake_inputs=True),
        RankWatch() as watch,
        resizes_noted(watch),
    ):
        if mesh is not None:
            shard(model, mesh, precision)
        model.to_empty(device="cpu")
        weights = sum(size_here(parameter) for parameter in model.parameters())
        average = weights if run.train.ema else 0
        *blocks, outside = whole_sizes(model, precision)
        ids = torch.zeros(rows, run.model.context, dtype=torch.long)
        chunk = again.chunk and max(again.chunk, -(-ids.numel() // MOST_CHUNKS))
        kept, unreduced, passes = 0, 0, []
        for last in [False, True] if accumulation > 1 else [True]:  # all passes before the last one are alike
            reduce_gradients(model, last)
            watch.collectives = []
            with (
                accelerated(model, False, again.recompute, sparse=False),
                torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
            ):
                loss = model.loss(ids, chunk=chunk)
                kept = kept or watch.now - weights - outside
                loss.nats.backward()
            del loss
            passes.append(watch.collectives)
            if not last and mesh is not None:
                unreduced = watch.now - weights
        during, watch.collectives = watch.peak - weights, []
        for parameter in model.parameters():
            if parameter.grad is None:  # of a modality that these rows lack
                parameter.grad = torch.zeros_like(parameter)
        optimizers, watch.peak = Optimizers(model, run.optim), watch.now
        gradients = sum(size_here(p.grad) for p in model.parameters() if p.grad is not None)
        with FlopCounterMode(display=False) as counter:
            optimizers.step(0.5)
        state = sum(size_here(tensor) for tensor in optimizers.tensors().values())
        return Step(
            memory=RankMemory(
                weights=weights,
                gradients=gradients,
                unreduced=unreduced,
                optimizer=state,
                average=average,
                activations=kept,
                gathered=outside + max(blocks, default=0),
                passes=during,
                update=watch.peak - weights - gradients - state,
            ),
            passes=[*passes[0] * (accumulation - 1), *passes[-1]],
            update=watch.collectives,
            update_flops=counter.get_total_flops(),
        )


@contextlib.contextmanager
def alone_among(cluster: Cluster) -> Iterator[DeviceMesh | None]:
    """Inside, this process is the first rank of a cluster whose others are not there; None for a single rank.

    Raises ValueError where it is one of several already.
    """
    if cluster.gpus == 1:
        yield None
        return
    if dist.is_initialized():
        raise ValueError("a cluster is planned in a process of its own, and this one is one of several")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=cluster.gpus)
    try:
        yield make_mesh("cpu", cluster.gpus, ParallelConfig(replicas=cluster.replicas))
    finally:
        dist.destroy_process_group()


def size_here(tensor: Tensor) -> int:
    """Bytes of a tensor, or of this rank's part of it."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).nbytes


def whole_sizes(model: Multiscale, precision: str) -> list[int]:
    """Bytes of the whole weights of each group that is gathered at once, the one outside of the stages last."""
    seen: set[Tensor] = set()
    sizes = []
    for module in reversed(list(groups(model))):  # inner ones first
        own = set(cast(nn.Module, module).parameters()) - seen
        seen |= own
        width = 2 if precision == "bf16" and isinstance(module, Block) else 4
        sizes.append(width * sum(p.numel() for p in own))
    return sizes or [0]


def compute_seconds(config: ModelConfig, rows: int, precision: str, again: Plan, cluster: Cluster) -> float:
    """Of a pass over `rows` sequences: a backward pass is two forward passes, what is forgotten comes once more."""
    costs = [cost.flops for cost in stage_costs(config)]
    repeated = sum(cost for i, cost in enumerate(costs) if i in again.recompute)
    repeated += sum(costs[1:]) * (1 - 1 / count_chunks(config, rows, again))  # all chunks but the last
    flops = cluster.device.flops if precision == "bf16" else cluster.device.flops_fp32
    return rows * config.context * (3 * sum(costs) + repeated) / (flops * cluster.utilisation)


def count_chunks(config: ModelConfig, rows: int, again: Plan) -> int:
    """In how many chunks a pass over `rows` sequences runs the finer stages; as in `Multiscale.nats`."""
    positions = -(-config.context // config.span(0))
    size = rows * positions * config.span(0)
    if again.chunk is None or config.late_parent or again.chunk >= size:
        return 1
    return math.ceil(positions / math.ceil(positions / math.ceil(size / again.chunk)))
