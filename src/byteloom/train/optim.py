"""Optimizers and the learning rate's schedule: a model's parameters in, `Optimizers` out.

Muon (orthogonalised momentum) takes the matrices that map vectors to vectors, Adagrad the tables of hashed strings,
AdamW the rest: byte tables, heads, norms, biases and start vectors. Cost of state: one copy of the weights for Muon and
Adagrad, two for AdamW; of a table, only the rows that a batch reached cost time where gradients are sparse. Where
parameters are sharded, so is their state, and Muon sends each matrix to one rank and back.
"""

import contextlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

Schedule = Literal["cosine", "linear", "wsd", "constant"]


SMALLEST = 1e-30
"""Means of gradients below it are nothing. Those of units that ReLU^2 has left dead would fall by 5 percent a step down
to numbers without a leading digit in fp32, and stay there; processors take about a hundred times as long for such."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How weights are updated."""

    optimizer: Literal["muon", "adamw"] = "muon"
    """Muon for matrices and AdamW for the rest, or AdamW for both; tables of hashed strings are Adagrad's."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = 0.02
    """Peak learning rate of Muon."""
    table_learning_rate: float = 0.3
    """Peak learning rate of Adagrad."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's decay rates of the mean and of the mean square of gradients."""
    momentum: float = 0.95
    """Muon's decay rate of the mean of gradients."""
    weight_decay: float = 0.0
    """Decoupled weight decay of everything with two dimensions or more, times the learning rate."""
    clip: float = 1.0
    """Largest norm of the gradient of all parameters but tables of hashed strings; 0: no limit."""
    warmup: float = 0.02
    """Share of the run in which the learning rate rises from 0 to its peak."""
    schedule: Schedule = "cosine"
    """How it falls after that: a half cosine, a line, flat and then a line over the last fifth (wsd), or not at all."""
    final: float = 0.0
    """Share of the peak learning rate that is left at the end."""

    def __post_init__(self) -> None:
        for field in ("learning_rate", "muon_learning_rate", "table_learning_rate"):
            if not getattr(self, field) > 0:
                raise ValueError(f"OptimConfig.{field} is {getattr(self, field)}; it must be above 0")
        for field in ("weight_decay", "clip"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"OptimConfig.{field} is {getattr(self, field)}; it must be at least 0")
        for field in ("warmup", "final"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"OptimConfig.{field} is {getattr(self, field)}; it must lie between 0 and 1")
        if not all(0 <= beta < 1 for beta in (*self.betas, self.momentum)):
            raise ValueError("OptimConfig.betas and momentum must be at least 0 and below 1")


def learning_rate_at(progress: float, config: OptimConfig) -> float:
    """Share of the peak learning rate at `progress`, from 0 at the start of a run to 1 at its end."""
    progress = min(max(progress, 0.0), 1.0)
    if progress < config.warmup:
        return progress / config.warmup
    done = (progress - config.warmup) / (1 - config.warmup) if config.warmup < 1 else 1.0
    left = {
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "linear": 1 - done,
        "wsd": min(1.0, (1 - done) / 0.2),
        "constant": 1.0,
    }[config.schedule]
    return config.final + (1 - config.final) * left


class Optimizers:
    """The optimizers of one model, used as one."""

    def __init__(
        self,
        model: nn.Module,
        config: OptimConfig,
        precision: str = "bf16",
        matrices: Collection[str] | None = None,
    ):
        """`precision` "fp32" keeps bf16 out of Muon too. `matrices` names what Muon takes of another kind of model."""
        self.config = config
        named = dict(model.named_parameters())
        if matrices is None:
            matrices = {name for name, p in named.items() if is_matrix(name, p)}
        if config.optimizer == "adamw":
            matrices = ()
        tables = {name for name in named if is_table(name)}
        rest = [p for name, p in named.items() if name not in matrices and name not in tables]
        groups = [
            {"params": like, "weight_decay": decay}
            for params, decay in (
                ([p for p in rest if p.ndim >= 2], config.weight_decay),
                ([p for p in rest if p.ndim < 2], 0.0),
            )
            for like in spread_alike(params)
        ]
        adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
        self.peaks: list[tuple[torch.optim.Optimizer, float]] = [(adamw, config.learning_rate)]
        if matrices:
            muon = Muon(
                [named[name] for name in named if name in matrices],
                torch.float32 if precision == "fp32" else torch.bfloat16,
                lr=config.muon_learning_rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
            )
            self.peaks.append((muon, config.muon_learning_rate))
        if tables:
            adagrad = torch.optim.Adagrad([named[name] for name in named if name in tables], config.table_learning_rate)
            self.peaks.append((adagrad, config.table_learning_rate))
        self.named = named
        self.clipped = [p for name, p in named.items() if name not in tables]
        self.owners = {
            p: optimizer for optimizer, _ in self.peaks for group in optimizer.param_groups for p in group["params"]
        }

    def step(self, progress: float) -> Tensor:
        """One update at this progress of the run, after which gradients are None; returns the gradient's norm ()."""
        norm = clip_gradients(self.clipped, self.config.clip or math.inf)
        share = learning_rate_at(progress, self.config)
        for optimizer, peak in self.peaks:
            for group in optimizer.param_groups:
                group["lr"] = peak * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """All state, by "parameter:kind" such as "stacks.0.blocks.0.mlp.up.weight:momentum_buffer"."""
        return {
            f"{name}:{kind}": value
            for optimizer, _ in self.peaks
            for name, parameter in self.named.items()
            for kind, value in optimizer.state.get(parameter, {}).items()
        }

    def room_for(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Empty tensors for state of these names, to be filled and given to `load_tensors`. Raises as that."""
        self.check_state(keys)
        room = {}
        for key in keys:
            name, kind = key.rsplit(":", 1)
            parameter = self.named[name]
            room[key] = torch.zeros((), device=parameter.device) if kind == "step" else torch.zeros_like(parameter)
        return room

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Takes back what `tensors` gave. Raises ValueError where it is another model's or optimizer's.

        A parameter that never had a gradient, as that of a modality not met so far, has no state.
        """
        self.check_state(tensors)
        for key, value in tensors.items():
            name, kind = key.rsplit(":", 1)
            parameter = self.named[name]
            self.owners[parameter].state[parameter][kind] = value.detach().to(parameter.device, copy=True)

    def check_state(self, keys: Iterable[str]) -> None:
        """Raises ValueError where state of these names is not all that this model's optimizers keep of parameters."""
        kinds = {"AdamW": ("step", "exp_avg", "exp_avg_sq"), "Muon": ("momentum_buffer",), "Adagrad": ("step", "sum")}
        names = {key.rpartition(":")[0] for key in keys} & self.named.keys()
        whole = {f"{name}:{kind}" for name in names for kind in kinds[type(self.owners[self.named[name]]).__name__]}
        if whole != set(keys):
            raise ValueError("the optimizer's state is that of another model or optimizer")


class Muon(torch.optim.Muon):
    """torch's Muon, also in fp32 throughout, and for matrices of which each rank holds some rows.

    Orthogonalising needs the whole matrix. All matrices are dealt out to the ranks, each gets the rows of its own from
    the others and sends theirs back: two exchanges a step, and no matrix is orthogonalised twice.
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        dtype: torch.dtype,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
    ):
        super().__init__(matrices, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update. What torch's own can do, it does."""
        (group,) = self.param_groups
        matrices = [p for p in group["params"] if p.grad is not None]
        if self.dtype == torch.bfloat16 and not any(isinstance(p, DTensor) for p in matrices):
            super().step()
            return
        updates = []
        for p in matrices:
            if p not in self.state:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
            gradient, buffer = held(p.grad), held(self.state[p]["momentum_buffer"])
            buffer.lerp_(gradient, 1 - group["momentum"])
            torch.hardshrink(buffer, SMALLEST, out=buffer)
            updates.append(gradient.lerp(buffer, group["momentum"]))
        for p, change in zip(matrices, orthogonalised(matrices, updates, self.dtype), strict=True):
            rate = group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5
            held(p).mul_(1 - group["lr"] * group["weight_decay"]).add_(change, alpha=-rate)


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix (N, K) with its singular values brought to about 1 by five Newton-Schulz steps, those of torch's Muon.

    In bf16 these are fast where there are units for it; in fp32 rounding does not grow, so runs that are cut into other
    shares stay together. Elements below a billionth of the norm are nothing: they weigh less than rounding does, and
    their products would soon be too small for fp32's usual form. Source: kellerjordan.github.io/posts/muon.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.to(dtype)
    x = x.T if (tall := x.shape[0] > x.shape[1]) else x
    x = torch.hardshrink(x / x.norm().clamp(min=1e-7), 1e-9)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def orthogonalised(matrices: Sequence[nn.Parameter], updates: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """What this rank holds of each matrix's update, made orthogonal, from what it holds of each update.

    Matrices of which each rank holds some rows are dealt out; those split over both dimensions of a mesh, as under
    tensor parallelism, are gathered everywhere.
    """
    changes: dict[int, Tensor] = {}
    by_rows: list[int] = []
    for i, p in enumerate(matrices):
        if not isinstance(p, DTensor):
            changes[i] = orthogonal(updates[i], dtype)
        elif p.placements[-1] == Shard(0) and all(isinstance(other, Replicate) for other in p.placements[:-1]):
            by_rows.append(i)
        else:
            mesh, whole = p.device_mesh, [Replicate()] * p.device_mesh.ndim
            update = DTensor.from_local(updates[i], mesh, p.placements, shape=p.shape, stride=p.stride())
            change = DTensor.from_local(orthogonal(update.full_tensor(), dtype), mesh, whole, run_check=False)
            changes[i] = change.redistribute(mesh, p.placements).to_local()
    if by_rows:
        mesh = cast(DTensor, matrices[by_rows[0]]).device_mesh
        changes |= dealt_out(
            {i: (updates[i], matrices[i].shape) for i in by_rows}, dtype, mesh.get_group(mesh.ndim - 1)
        )
    return [changes[i] for i in range(len(matrices))]


def dealt_out(
    updates: Mapping[int, tuple[Tensor, torch.Size]], dtype: torch.dtype, group: dist.ProcessGroup
) -> dict[int, Tensor]:
    """The rows that this rank holds of orthogonal matrices, from its rows of updates with the shapes of all rows.

    Each rank makes whole its share of the matrices, about as many elements as it holds, and orthogonalises them.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    largest_first = sorted(updates, key=lambda i: -updates[i][1].numel())
    owned = [largest_first[owner::size] for owner in range(size)]

    def elements(numbers: Sequence[int], holder: int) -> list[int]:
        """How many elements of each matrix a rank holds, as FSDP2 cuts it: the last may hold fewer, or none."""
        shapes = [(updates[i][1], -(-updates[i][1][0] // size)) for i in numbers]
        return [min(max(rows - holder * each, 0), each) * columns for (rows, columns), each in shapes]

    mine = owned[rank]
    here = [sum(elements(numbers, rank)) for numbers in owned]
    there = [sum(elements(mine, holder)) for holder in range(size)]
    received = exchange([updates[i][0] for numbers in owned for i in numbers], here, there, group)
    pieces = zip(*(part.split(elements(mine, holder)) for holder, part in enumerate(received)), strict=True)
    changes = [
        orthogonal(torch.cat(parts).view(updates[i][1]), dtype).flatten() for i, parts in zip(mine, pieces, strict=True)
    ]
    rows = [
        change.split([elements([i], holder)[0] for holder in range(size)])
        for i, change in zip(mine, changes, strict=True)
    ]
    given = [parts[holder] for holder in range(size) for parts in rows]
    if not given:
        given = [next(iter(updates.values()))[0].new_empty(0, dtype=dtype)]
    returned = exchange(given, there, here, group)
    return {
        i: change.view(updates[i][0].shape)
        for numbers, part in zip(owned, returned, strict=True)
        for i, change in zip(numbers, part.split(elements(numbers, rank)), strict=True)
    }


def exchange(
    tensors: Sequence[Tensor], sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup
) -> list[Tensor]:
    """Sends the first `sent[0]` elements of all tensors laid end to end to rank 0, and so on; what came from each."""
    given = torch.cat([tensor.flatten() for tensor in tensors])
    taken = given.new_empty(sum(received))
    dist.all_to_all_single(taken, given, list(received), list(sent), group=group)
    return list(taken.split(list(received)))


def held(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def spread_alike(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters in groups, each spread over one mesh in one way: what torch's fused operations need."""
    found: dict[object, list[nn.Parameter]] = {}
    for p in parameters:
        found.setdefault((p.device_mesh, p.placements) if isinstance(p, DTensor) else None, []).append(p)
    return list(found.values())


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scales all gradients so that their norm together is at most `limit`; returns what it was (), on every rank."""
    alike = spread_alike(p for p in parameters if p.grad is not None)
    norms = [nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]) for group in alike]
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    for group in alike:
        nn.utils.clip_grads_with_norm_(group, limit, norm)
    return norm


@contextlib.contextmanager
def sparse_gradients(tables: Sequence[nn.Embedding]) -> Iterator[None]:
    """Inside, these tables get gradients of the rows that a batch reached, and of no others: not for sharded ones."""
    torch.sparse.check_sparse_tensor_invariants.disable()  # as by default; said, or torch warns that it is not
    for table in tables:
        table.sparse = True
    try:
        yield
    finally:
        for table in tables:
            table.sparse = False


def is_table(name: str) -> bool:
    """Whether a parameter is a table of hashed strings, of which a batch reaches few rows: Adagrad's domain.

    It gives each row a rate of its own, that falls with what the row has learned (Duchi et al., JMLR 2011).
    """
    return name.endswith(".strings.weight")


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter maps vectors to vectors, so that its singular values mean something: Muon's domain."""
    return parameter.ndim == 2 and (".blocks." in name or ".project" in name)
