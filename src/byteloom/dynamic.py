"""Dynamic evaluation: a model that keeps learning from what it has been scored on.

In: a model and a rate. Out: a function from ids to nats, each from weights that have seen only what was scored before.
Cost: a training step where evaluation has a forward pass.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from byteloom.models.multiscale import Multiscale
from byteloom.train.optim import OptimConfig, Optimizers, sparse_gradients

DYNAMIC_RATE = 3e-5
"""Of dynamic evaluation: gains much on data of another kind than a model learned from, and little on its own."""
TABLES = 300.0
"""How much faster tables of hashed strings learn, in which few rows meet a window: Adagrad's rate over Adam's."""


@contextlib.contextmanager
def learning(model: Multiscale, rate: float, chunk: int | None = None) -> Iterator[Callable[..., Tensor]]:
    """Dynamic evaluation (arXiv 1709.07432): a model learns from what has been scored, as a compressor may.

    Gives a function that scores ids (B, T) as `Multiscale.nats` does, `chunk` at a time, of which `scored` (B, T) says
    which count, and only then takes one step down their mean: of Adam, and of Adagrad in tables of hashed strings. At
    the end weights and gradients are what they were. Cost: four copies of the weights.

    Raises:
        ValueError: the rate is not above 0, or the model has no weights that learn.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not rate > 0 or not weights:
        raise ValueError(f"the rate of dynamic evaluation is {rate}; it must be above 0, and some weights must learn")
    before = [(weight.detach().clone(), weight.grad) for weight in weights]
    config = OptimConfig(
        optimizer="adamw", learning_rate=rate, table_learning_rate=TABLES * rate, clip=0.0, warmup=0.0,
        schedule="constant",
    )  # fmt: skip
    optimizers = Optimizers(model, config)

    def learn(
        ids: Tensor, scored: Tensor, autocast: bool, mark: Tensor | None = None, since: Tensor | None = None
    ) -> Tensor:
        with torch.enable_grad():
            with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
                nats = model.nats(ids, chunk, mark=mark, since=since)
            (torch.where(scored, nats, 0.0).sum() / scored.sum().clamp(min=1)).backward()
        optimizers.step(1.0)
        return nats.detach()

    try:
        for weight in weights:
            weight.grad = None
        with sparse_gradients(model.string_tables):  # or a step would cost all rows
            yield learn
    finally:
        with torch.no_grad():
            for weight, (value, gradient) in zip(weights, before, strict=True):
                weight.copy_(value)
                weight.grad = gradient
