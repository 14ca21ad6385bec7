"""Many processes as one: torchrun's environment in, a `World` and a model that is spread over it out.

All of it is PyTorch's own engine: FSDP2 shards weights, gradients and optimizer state of every block, stage and of what
is left; with replicas (HSDP) each group of ranks holds the whole model once; the coarsest stage may be split further,
head by head (tensor parallelism). The model knows nothing of it. Cost: an all-gather of each group's weights before
its forward and its backward pass, a reduce-scatter of its gradients after the last backward pass of a step.
"""

import contextlib
import logging
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from byteloom.layers.transformer import Stack
from byteloom.models.config import ModelConfig
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import pick_device


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How a run is spread over the processes that torchrun started; one process needs none of it."""

    replicas: int = 1
    """Whole copies of the model, each sharded over ranks / replicas ranks (HSDP): less traffic between machines."""
    tensor_parallel: int = 1
    """Ranks that share each layer of the coarsest stage, split by heads and hidden units."""
    timeout_seconds: float = 600.0
    """A rank that the others waited for so long is taken for dead, and the run ends."""

    def __post_init__(self) -> None:
        for name in ("replicas", "tensor_parallel"):
            if getattr(self, name) < 1:
                raise ValueError(f"ParallelConfig.{name} is {getattr(self, name)}; it must be at least 1")
        if not self.timeout_seconds > 0:
            raise ValueError(f"ParallelConfig.timeout_seconds is {self.timeout_seconds}; it must be above 0")


class LostError(Exception):
    """Another process of the run is gone, or does not answer. The message is one line."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of a run, as one of them sees them."""

    device: torch.device
    """Where this process computes."""
    rank: int = 0
    """Its number."""
    size: int = 1
    """How many there are."""
    mesh: DeviceMesh | None = None
    """All of them, with the dimensions "replicate", "shard" and "tensor"; None for a single process."""
    writers: dist.ProcessGroup | None = None
    """The same processes once more, for the thread that writes checkpoints; None for a single process."""

    @property
    def main(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    @property
    def tensor_size(self) -> int:
        """How many ranks read the same rows, because they share layers."""
        return 1 if self.mesh is None else self.mesh["tensor"].size()

    @property
    def reader(self) -> int:
        """Which share of each batch this process reads, from 0 to `readers` - 1."""
        return self.rank // self.tensor_size

    @property
    def readers(self) -> int:
        """Into how many shares a batch is cut."""
        return self.size // self.tensor_size

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the shares of the batch, on the host: no device is waited for."""
        return [value / self.tensor_size for value in self.reduce(values, dist.ReduceOp.SUM)]

    def largest(self, *values: float) -> list[float]:
        """The largest of each value among all processes, so that they decide alike; of flags, whether one is set."""
        return self.reduce(values, dist.ReduceOp.MAX)

    def reduce(self, values: Sequence[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        """Each value brought together over all processes, on the host."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, operation)
        return tensor.tolist()

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        """A tensor of the device summed over the shares of the batch."""
        if self.size == 1:
            return tensor
        dist.all_reduce(tensor)
        return tensor / self.tensor_size

    def sum_array(self, array: np.ndarray) -> np.ndarray:
        """An array of the host summed over the shares of the batch."""
        return np.array(self.sum(*array.ravel().tolist())).reshape(array.shape)

    def meet(self) -> None:
        """Returns when all processes have come here."""
        self.largest(0.0)

    def gather(self, text: str) -> list[str]:
        """A text of each process, by rank, on all of them."""
        if self.size == 1:
            return [text]
        texts = [""] * self.size
        dist.all_gather_object(texts, text)
        return texts


def is_main() -> bool:
    """Whether this process, of those that torchrun started, speaks for all."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def open_world(config: ParallelConfig, device: str) -> Iterator[World]:
    """Inside, the processes that torchrun started are one `World`; without torchrun, this one alone is.

    Raises:
        ValueError: the device is unknown or not there, or replicas times tensor_parallel do not divide the processes.
        LostError: another process ended, or did not answer in time.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size % (config.replicas * config.tensor_parallel):
        raise ValueError(
            f"{size} processes cannot hold {config.replicas} replicas of {config.tensor_parallel} tensor-parallel "
            "ranks each; take a number of processes that both divide, or start them with torchrun"
        )
    if size == 1:
        yield World(device=pick_device(device))
        return
    place = pick_device(device)
    if place.type == "cuda":
        place = pick_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(place)
    limit = timedelta(seconds=config.timeout_seconds)
    rank, ours = int(os.environ["RANK"]), not dist.is_initialized()
    try:
        if ours:
            # What torchrun started anew must not find the addresses of processes that are gone.
            store, _, _ = next(iter(dist.rendezvous("env://", timeout=limit)))
            store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
            backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=limit, store=store, rank=rank, world_size=size)
        yield World(
            device=place,
            rank=rank,
            size=size,
            mesh=make_mesh(place.type, size, config),
            writers=cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=limit)),
        )
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        ours = False  # nobody is there to take leave of
        late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        reason = (
            f"has not answered for {config.timeout_seconds:.0f} seconds" if late else "ended, and may have said why"
        )
        raise LostError(
            f"process {rank} of {size} cannot go on: another one {reason}; --resume goes on from the last checkpoint"
        ) from error
    finally:
        if ours and dist.is_initialized():
            dist.destroy_process_group()


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C and SIGTERM only raise a flag, so that a step is finished and saved; a later one ends at once.

    Not one that comes within a second: torchrun sends on what the terminal has sent to all already.
    """
    received: list[float] = []

    def note(number: int, frame: object) -> None:
        received.append(time.monotonic())
        if received[-1] - received[0] > 1:
            raise KeyboardInterrupt

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals go elsewhere
        before = {}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def make_mesh(device_type: str, size: int, config: ParallelConfig) -> DeviceMesh:
    """The ranks as a grid of "replicate" times "shard" times "tensor"; neighbours share layers first, then shards."""
    shards = size // (config.replicas * config.tensor_parallel)
    return init_device_mesh(
        device_type,
        (config.replicas, shards, config.tensor_parallel),
        mesh_dim_names=("replicate", "shard", "tensor"),
    )


def shard(model: Multiscale, mesh: DeviceMesh, precision: str) -> None:
    """Spreads a model over a mesh, from outside: one FSDP2 group a block, one a stage, one for what is left.

    A group's gradients are summed over the ranks, not averaged, when its last backward pass of a step is done.

    Args:
        model: on the meta device, or with the same weights on every rank.
        mesh: as `make_mesh` gives it.
        precision: "bf16" gathers the weights of blocks in bf16 and sums their gradients in fp32; else all is fp32.

    Raises:
        ValueError: the coarsest stage cannot be split over the mesh's "tensor" dimension.
    """
    if mesh["tensor"].size() > 1:
        split_layers(model.stacks[0], mesh["tensor"])
    ranks = mesh["replicate", "shard"] if mesh["replicate"].size() > 1 else mesh["shard"]
    narrow = MixedPrecisionPolicy()
    if precision == "bf16":
        # Inputs stay as they are: autocast narrows them where a matrix reads them, and the stream remains in fp32.
        narrow = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for stack in model.stacks:
        for block in stack.blocks:
            fully_shard(block, mesh=ranks, mp_policy=narrow)
        fully_shard(stack, mesh=ranks)
        register_fsdp_forward_method(stack, "extend")
    fully_shard(model, mesh=ranks)
    # It would warn that nats are a view, which must not be changed in place; nobody does. And in bf16 that norms, whose
    # weights come in bf16 with the rest of their block, read the fp32 stream; torch.compile fuses these too.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
    register_fsdp_forward_method(model, "nats")  # what training and evaluation call
    for module in groups(model):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    # A modality that one rank's rows lack may be in another's.
    cast(FSDPModule, model).set_reduce_scatter_unused_params(True, recurse=False)


def spread(config: ModelConfig, whole: Multiscale | None, world: World, precision: str) -> Multiscale:
    """A model with the weights of `whole`, which only the main process has to have, spread over all processes.

    Cost: one whole copy in the main process's memory, of other processes one tensor at a time.
    """
    if world.mesh is None:
        assert whole is not None
        return whole.to(world.device)
    with torch.device("meta"):
        model = Multiscale(config)
    shard(model, world.mesh, precision)
    model.to_empty(device=world.device)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, {} if whole is None else whole.state_dict(), options=options)
    return model


def split_layers(stack: Stack, mesh: DeviceMesh) -> None:
    """Tensor parallelism: each rank computes some heads and hidden units of every layer, and the sums are shared.

    Raises ValueError where these cannot be shared evenly, or positions are ALiBi's, whose slopes differ by head.
    """
    config, size = stack.config, mesh.size()
    hidden = round(config.dim * config.mlp_ratio)
    parts = {"num_heads": config.num_heads, "num_kv_heads": config.groups, "hidden units": hidden}
    for name, count in parts.items():
        if count % size:
            raise ValueError(f"tensor_parallel is {size}, which does not divide the coarsest stage's {name} {count}")
    if config.position == "alibi":
        raise ValueError('tensor_parallel cannot split a stage whose position is "alibi"; take "rope" or 1 rank')
    # It would warn that a matrix split in both dimensions takes two collectives; so it does.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    apart = ["attention.query", "attention.key", "attention.value", "mlp.up", "mlp.gate"]
    for block in stack.blocks:
        layers: dict[str, ParallelStyle] = {
            name: ColwiseParallel() for name in apart if name != "mlp.gate" or config.mlp == "swiglu"
        }
        together: dict[str, ParallelStyle] = {name: RowwiseParallel() for name in ("attention.out", "mlp.down")}
        parallelize_module(block, mesh, layers | together)


def groups(model: nn.Module) -> Iterator[FSDPModule]:
    """The modules that `shard` made FSDP groups of; none in a single process."""
    return (module for module in model.modules() if isinstance(module, FSDPModule))


def reduce_gradients(model: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass sums gradients over ranks; else they stay, whole, where they are."""
    for module in groups(model):
        module.set_requires_gradient_sync(wanted, recurse=False)


def gather_weights_anew(model: nn.Module) -> None:
    """Frees weights that a forward pass without a backward pass left gathered, so that changed ones are gathered."""
    for module in groups(model):
        module.reshard()


def outside_stages(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a batch may leave out: embedders and heads of modalities that it lacks."""
    return {name: p for name, p in model.named_parameters() if not name.startswith("stacks.")}


def reached(loss: Tensor, model: nn.Module, world: World) -> set[str]:
    """Of a sharded model's parameters outside of its stages, the names of those that a loss depends on."""
    if world.size == 1:
        return set()
    names = {parameter: name for name, parameter in outside_stages(model).items()}
    found: set[str] = set()
    waiting = [node for node in (loss.grad_fn,) if node is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        variable = getattr(node, "variable", None)  # of a leaf
        if variable is not None and variable in names:
            found.add(names[variable])
        after = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= after
        waiting += after
    return found


def drop_unused(model: nn.Module, used: set[str], world: World) -> None:
    """Takes the gradient from parameters that no process used, as they have none in a single process.

    FSDP2 gives all a gradient, of zeros where there was none: with it weights would decay and averages fade.
    """
    if world.size == 1:
        return
    parameters = outside_stages(model)
    for parameter, anywhere in zip(parameters.values(), world.largest(*(name in used for name in parameters))):
        if not anywhere:
            parameter.grad = None
