"""Continuous inputs: real-valued features of any modality (B, ...) -> vectors (B, K, D), a prefix or an output.

U(x, m) = E_m(patches of x) + v_m: each modality has its own patch shape, a linear map E_m of its own and a trained
vector v_m. Cost: one matrix a patch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from byteloom.layers.linear import Linear


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """One kind of continuous input."""

    name: str
    """What calls refer to it by."""
    width: int
    """Channels of one element: E of text embeddings, C of a picture, F of an audio frame."""
    patch: tuple[int, ...] = (1,)
    """Elements of a patch along each axis: (S,) for text and audio, (H, W) for pictures, (N, H, W) for video."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch", tuple(self.patch))
        if self.width < 1:
            raise ValueError(f"InputConfig.width of {self.name} is {self.width}; it must be at least 1")
        if not 1 <= len(self.patch) <= 3 or min(self.patch) < 1:
            raise ValueError(f"InputConfig.patch of {self.name} is {self.patch}; give 1 to 3 sizes of at least 1")


class UniversalPatchEmbedder(nn.Module):
    """Features of several modalities to vectors of one width: `embedder(x, modality) -> (B, K, D)`.

    x is (B, S, E) for text embeddings and (B, N, F) for audio frames, (B, H, W, C) or (B, H, W) for pictures,
    (B, N, H, W, C) or (B, N, H, W) for video; sizes may differ from call to call. What does not fill a patch is filled
    with zeros. `modality` is a name, an index, or a tensor (B,) with the index of each row.
    """

    def __init__(self, inputs: Sequence[InputConfig], dim: int, init_std: float = 0.02):
        super().__init__()
        self.inputs = tuple(inputs)
        names = [config.name for config in self.inputs]
        if len(set(names)) < len(names):
            raise ValueError(f"two continuous inputs have the same name among {', '.join(names)}")
        sizes = [math.prod(config.patch) * config.width for config in self.inputs]
        self.project = nn.ModuleList(Linear(size, dim) for size in sizes)
        self.modality = nn.ParameterList(nn.Parameter(torch.empty(dim)) for _ in sizes)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.trunc_normal_(parameter, std=init_std, a=-2 * init_std, b=2 * init_std)

    def forward(self, x: Tensor, modality: str | int | Tensor) -> Tensor:
        """x (B, ...) -> (B, K, D).

        Raises:
            ValueError: there is no such modality, x has not its axes or channels, or rows differ in patch or width.
        """
        if isinstance(modality, Tensor):
            return self._mixed(x, modality)
        index = self.index(modality)
        return self.project[index](patches(x, self.inputs[index])) + self.modality[index]

    def index(self, modality: str | int) -> int:
        """Where a modality stands. Raises ValueError where it does not."""
        names = [config.name for config in self.inputs]
        if isinstance(modality, str):
            if modality not in names:
                raise ValueError(f"continuous input {modality!r} is unknown; known: {', '.join(names)}")
            return names.index(modality)
        if not 0 <= modality < len(names):
            raise ValueError(f"continuous input {modality} is unknown; there are {len(names)}: {', '.join(names)}")
        return modality

    def _mixed(self, x: Tensor, modality: Tensor) -> Tensor:
        if modality.shape != x.shape[:1]:
            raise ValueError(f"modality has shape {list(modality.shape)}; one index for each of {x.shape[0]} rows")
        present = modality.unique().tolist()
        if len(present) == 1:
            return self(x, present[0])
        rows = [(modality == index).nonzero().squeeze(1) for index in present]
        found = [self(x[where], index) for index, where in zip(present, rows, strict=True)]
        if len({part.shape[1] for part in found}) > 1:
            raise ValueError("rows of these modalities give different numbers of vectors; embed them apart")
        return torch.cat(found)[torch.cat(rows).argsort()]


def patches(x: Tensor, config: InputConfig) -> Tensor:
    """x (B, *axes, C), or (B, *axes) where C is 1, cut into patches (B, K, prod(patch) * C), rows first.

    Raises:
        ValueError: x has other axes or channels than the config says.
    """
    axes = len(config.patch)
    if x.ndim == axes + 1 and config.width == 1:
        x = x.unsqueeze(-1)
    if x.ndim != axes + 2 or x.shape[-1] != config.width:
        wanted = f"(B, {', '.join('axis' for _ in config.patch)}, {config.width})"
        raise ValueError(f"continuous input {config.name} has shape {list(x.shape)}; it must be {wanted}")
    missing = [-size % patch for size, patch in zip(x.shape[1:-1], config.patch, strict=True)]
    x = F.pad(x, (0, 0, *(edge for size in reversed(missing) for edge in (0, size))))
    for axis, size in enumerate(config.patch):
        x = x.unflatten(1 + 2 * axis, (-1, size))  # (B, K1, P1, K2, P2, ..., C)
    order = (0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1)
    return x.permute(order).flatten(1, axes).flatten(2)
