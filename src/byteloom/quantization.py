"""Narrower weights for generation: a model's matrices in bf16 or int8, which is what a byte costs where memory is slow.

Generation reads every weight once a step, so its speed on a CPU is set by their size. int8 has one scale a row of a
matrix and rounds to nearest; activations are rounded to bf16. `benchmarks/generation.py` says what both cost in bits
per byte and what they gain.
"""

from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from byteloom.layers.linear import multiply
from byteloom.models.multiscale import Multiscale

Weights = Literal["fp32", "bf16", "int8"]
FEW_ROWS = 16
"""Up to so many rows torch's int8 kernel is the faster way on a CPU; above, the matrix is widened to bf16 first."""
KERNEL_STEP = 16
"""The kernel takes so many columns at a time, and reads past the end where they are not a multiple of it."""


class NarrowLinear(nn.Module):
    """y = x W^T + b with W in bf16 or int8; x (..., K) of any type, y (..., N) of the same. For inference."""

    def __init__(self, linear: nn.Linear, weights: Weights):
        super().__init__()
        weight, scale = linear.weight.detach(), None
        if weights == "int8":
            # A row of zeros, as in weights that have not been trained, keeps a scale that can be divided by.
            scale = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.bfloat16).tiny).to(torch.bfloat16)
            weight = (weight / scale.float().unsqueeze(1)).round().clamp(-127, 127).to(torch.int8)
        self.register_buffer("scale", scale)
        self.register_buffer("weight", weight if weights == "int8" else weight.to(torch.bfloat16))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        narrow, weight = x.to(torch.bfloat16), cast(Tensor, self.weight)
        if self.scale is None:
            y = multiply(narrow, weight)
        elif x.device.type == "cpu" and x.numel() <= FEW_ROWS * x.shape[-1] and x.shape[-1] % KERNEL_STEP == 0:
            y = torch._weight_int8pack_mm(narrow.flatten(0, -2), weight, self.scale).unflatten(0, x.shape[:-1])
        else:
            y = multiply(narrow, weight.to(torch.bfloat16)) * self.scale
        y = y.to(x.dtype)
        return y if self.bias is None else y + self.bias


def quantize(model: Multiscale, weights: Weights) -> Multiscale:
    """Replaces every nn.Linear of the model, in place, and returns it in evaluation mode; "fp32" leaves it as it is.

    Tables, norms and a tied head keep their type. Such a model generates and is evaluated; it is not trained or saved.
    Raises ValueError for weights that there are not.
    """
    if weights not in get_args(Weights):
        raise ValueError(f"weights is {weights!r}; it must be one of {', '.join(get_args(Weights))}")
    if weights != "fp32":
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    setattr(module, name, NarrowLinear(child, weights))
    return model.eval()
