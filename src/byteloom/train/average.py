"""An average of a model's weights over its last updates: smoother than any of them, and often better.

In: a model in training. Out: the same model with the average in its place, for as long as one looks at it. Cost: one
copy of the weights, of shards where the model is sharded.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from byteloom.train.optim import held


class Average:
    """The exponential moving average of a model's parameters, by `decay` an update."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.parameters = dict(model.named_parameters())
        self.tensors = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def restart(self) -> None:
        """Begins again, as the model is now."""
        for name, parameter in self.parameters.items():
            held(self.tensors[name]).copy_(held(parameter))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after update number `step`; early on it forgets faster, and with that its beginning."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.parameters.items():
            held(self.tensors[name]).lerp_(held(parameter), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Puts the average in the place of the weights and the weights in its place."""
        for name, parameter in self.parameters.items():
            weights = held(parameter).clone()
            held(parameter).copy_(held(self.tensors[name]))
            held(self.tensors[name]).copy_(weights)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Inside, the model has the average for its weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
