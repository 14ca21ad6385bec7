"""Optimizers and the learning rate's schedule: a model's parameters in, `Optimizers` out.

Muon (orthogonalised momentum) takes the matrices that map vectors to vectors, AdamW the rest: byte tables, heads,
norms, biases and start vectors. Cost of state: one copy of the weights for Muon, two for AdamW.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Schedule = Literal["cosine", "linear", "wsd", "constant"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How weights are updated."""

    optimizer: Literal["muon", "adamw"] = "muon"
    """Muon for matrices and AdamW for the rest, or AdamW for all."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = 0.02
    """Peak learning rate of Muon."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's decay rates of the mean and of the mean square of gradients."""
    momentum: float = 0.95
    """Muon's decay rate of the mean of gradients."""
    weight_decay: float = 0.0
    """Decoupled weight decay of everything with two dimensions or more, times the learning rate."""
    clip: float = 1.0
    """Largest norm of the gradient of all parameters together; 0: no limit."""
    warmup: float = 0.02
    """Share of the run in which the learning rate rises from 0 to its peak."""
    schedule: Schedule = "cosine"
    """How it falls after that: a half cosine, a line, flat and then a line over the last fifth (wsd), or not at all."""
    final: float = 0.0
    """Share of the peak learning rate that is left at the end."""

    def __post_init__(self) -> None:
        for field in ("learning_rate", "muon_learning_rate"):
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

    def __init__(self, model: nn.Module, config: OptimConfig):
        self.config = config
        named = dict(model.named_parameters())
        matrices = {name for name, p in named.items() if config.optimizer == "muon" and is_matrix(name, p)}
        rest = [p for name, p in named.items() if name not in matrices]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=config.learning_rate, betas=config.betas, fused=True
        )
        self.peaks: list[tuple[torch.optim.Optimizer, float]] = [(adamw, config.learning_rate)]
        if matrices:
            muon = torch.optim.Muon(
                [named[name] for name in named if name in matrices],
                lr=config.muon_learning_rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
            )
            self.peaks.append((muon, config.muon_learning_rate))
        self.named = named

    def step(self, progress: float) -> Tensor:
        """One update at this progress of the run, after which gradients are None; returns the gradient's norm ()."""
        limit = self.config.clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.named.values(), limit)
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

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Takes back what `tensors` gave. Raises ValueError where it is another model's or optimizer's.

        A parameter that never had a gradient, as that of a modality not met so far, has no state.
        """
        owners = {
            p: optimizer for optimizer, _ in self.peaks for group in optimizer.param_groups for p in group["params"]
        }
        kinds = {"AdamW": ("step", "exp_avg", "exp_avg_sq"), "Muon": ("momentum_buffer",)}
        names = {key.rpartition(":")[0] for key in tensors} & self.named.keys()
        whole = {f"{name}:{kind}" for name in names for kind in kinds[type(owners[self.named[name]]).__name__]}
        if whole != tensors.keys():
            raise ValueError("the optimizer's state is that of another model or optimizer")
        for key, value in tensors.items():
            name, kind = key.rsplit(":", 1)
            parameter = self.named[name]
            on_host = kind == "step" and parameter.device.type == "cpu"
            owners[parameter].state[parameter][kind] = value.clone() if on_host else value.to(parameter.device).clone()


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter maps vectors to vectors, so that its singular values mean something: Muon's domain."""
    return parameter.ndim == 2 and (".blocks." in name or ".project" in name)
