"""Dynamic evaluation: a model that keeps learning from what it has been scored on.

In: a model and a rate. Out: a function from ids to nats, each from weights that have seen only what was scored before.
Cost: a training step where evaluation has a forward pass.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from byteloom.models.multiscale import Multiscale

DYNAMIC_RATE = 3e-5
"""Of dynamic evaluation: gains much on data of another kind than a model learned from, and loses little on its own."""


@contextlib.contextmanager
def learning(model: Multiscale, rate: float, chunk: int | None = None) -> Iterator[Callable[..., Tensor]]:
    """Dynamic evaluation (arXiv 1709.07432): a model learns from what has been scored, as a compressor may.

    Gives a function that scores ids (B, T) as `Multiscale.nats` does, `chunk` at a time, of which `scored` (B, T) says
    which count, and only then takes one step of Adam down their mean. At the end weights and gradients are what they
    were. Cost: four copies of the weights.

    Raises:
        ValueError: the rate is not above 0, or the model has no weights that learn.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not rate > 0 or not weights:
        raise ValueError(f"the rate of dynamic evaluation is {rate}; it must be above 0, and some weights must learn")
    before = [(weight.detach().clone(), weight.grad) for weight in weights]
    optimizer = torch.optim.Adam(weights, lr=rate, betas=(0.9, 0.98))

    def learn(
        ids: Tensor, scored: Tensor, autocast: bool, mark: Tensor | None = None, since: Tensor | None = None
    ) -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
                nats = model.nats(ids, chunk, mark=mark, since=since)
            (torch.where(scored, nats, 0.0).sum() / scored.sum().clamp(min=1)).backward()
        optimizer.step()
        return nats.detach()

    try:
        yield learn
    finally:
        with torch.no_grad():
            for weight, (value, gradient) in zip(weights, before, strict=True):
                weight.copy_(value)
                weight.grad = gradient
