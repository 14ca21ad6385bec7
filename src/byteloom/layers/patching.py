"""Between bytes and stages: ids (B, K*P) -> patch vectors (B, K, D), and parent vectors (B, K, D) -> (B, K*P, D').

`PatchEmbedder` reads the bytes that one position of a stage stands for (its span, P of them in all finer stages
together); `Expander` hands each child its share of what the parent found. Both cost about one matrix a patch.
"""

from dataclasses import dataclass
from typing import Literal, cast

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from byteloom.layers.linear import Linear
from byteloom.layers.transformer import make_norm

Expand = Literal["linear", "slice"]
PatchNorm = Literal["none", "rms", "layer"]


@dataclass(frozen=True, kw_only=True)
class PatchConfig:
    """How bytes become the vectors of a stage, and how these reach the next finer stage."""

    patch_size: int | None = None
    """Positions of the next finer stage that one position stands for; None in the finest stage."""
    embed_dim: int | None = None
    """Width of one byte's vector before a patch's are concatenated; None: dim / bytes per position, at least 16."""
    projection: bool | None = None
    """A matrix from the concatenated bytes to dim; None: only where the widths differ or there is a patch_norm."""
    patch_norm: PatchNorm = "none"
    """A norm before and one after the projection (Dual PatchNorm, arXiv 2302.01327)."""
    patch_norm_eps: float = 1e-5
    """Added to the variance in these norms."""
    conv_kernels: tuple[int, ...] = ()
    """Causal convolutions over the byte vectors before they are cut into patches; the paper has 3, 5, 7."""
    embed_bias: bool = False
    """A bias in the projection."""
    expand: Expand = "linear"
    """How a parent's vector reaches its children: "linear" D -> P * D', or "slice", the paper's shared w_GL."""
    expand_bias: bool = False
    """A bias in that matrix."""

    def check_patches(self, dim: int) -> None:
        """Raise ValueError, naming the field, where these options make no sense for a stage of width `dim`."""
        name = type(self).__name__
        if self.patch_size is not None and self.patch_size < 1:
            raise ValueError(f"{name}.patch_size is {self.patch_size}; it must be at least 1")
        if self.embed_dim is not None and self.embed_dim < 1:
            raise ValueError(f"{name}.embed_dim is {self.embed_dim}; it must be at least 1")
        if any(kernel < 1 for kernel in self.conv_kernels):
            raise ValueError(f"{name}.conv_kernels is {self.conv_kernels}; each must be at least 1")
        if self.expand == "slice" and self.patch_size and dim % self.patch_size:
            raise ValueError(f'{name}.expand "slice" needs patch_size {self.patch_size} to divide dim {dim}')
        if self.projection is False and self.patch_norm != "none":
            raise ValueError(f"{name}.patch_norm stands around the projection; it needs projection to be True")
        if self.projection is False and self.embed_bias:
            raise ValueError(f"{name}.embed_bias is the projection's; it needs projection to be True")


class PatchEmbedder(nn.Module):
    """Bytes to vectors, one a patch: a table, causal convolutions (optional), concatenation, projection (optional).

    Without a projection the concatenation is the patch vector, as in the paper (section 2.1, equation 2).
    """

    def __init__(self, config: PatchConfig, *, vocab_size: int, span: int, embed_dim: int, dim: int, projection: bool):
        super().__init__()
        self.span = span
        self.table = nn.Embedding(vocab_size, embed_dim)
        convolutions = (nn.Conv1d(embed_dim, embed_dim, kernel) for kernel in config.conv_kernels)
        self.convolutions = cast(list[nn.Conv1d], nn.ModuleList(convolutions))
        self.halo = sum(kernel - 1 for kernel in config.conv_kernels)
        self.norm_in, self.norm_out = nn.Identity(), nn.Identity()
        if config.patch_norm != "none":
            self.norm_in = make_norm(config.patch_norm, span * embed_dim, config.patch_norm_eps)
            self.norm_out = make_norm(config.patch_norm, dim, config.patch_norm_eps)
        self.project = Linear(span * embed_dim, dim, bias=config.embed_bias) if projection else nn.Identity()

    def forward(self, ids: Tensor, halo: int = 0, real: Tensor | None = None) -> Tensor:
        """ids (B, halo + K * span) -> (B, K, D). The first `halo` bytes are only read by the convolutions.

        `real` (B, halo + K * span) is False where the sequence has not begun yet.
        """
        x = self.table(ids)
        for convolution in self.convolutions:
            if real is not None:
                x = x.masked_fill(~real.unsqueeze(-1), 0.0)
            # Causal: padded on the left only, so that byte t reads bytes up to t (the paper's section 2.3.1).
            before = convolution.kernel_size[0] - 1
            x = x + F.gelu(convolution(F.pad(x.transpose(1, 2), (before, 0)))).transpose(1, 2)
        x = rearrange(x[:, halo:], "b (k p) e -> b k (p e)", p=self.span)
        return self.norm_out(self.project(self.norm_in(x)))


class Expander(nn.Module):
    """A parent's vector to one vector for each of its children.

    "linear" is one matrix D -> P * D'. "slice" cuts the vector into P parts and gives each to the same matrix
    D/P -> D', the paper's w_GL (section 2.1, equation 4).
    """

    def __init__(self, config: PatchConfig, *, dim: int, child_dim: int):
        super().__init__()
        self.kind, self.patch_size = config.expand, config.patch_size
        size = config.patch_size or 1
        width = (dim, size * child_dim) if config.expand == "linear" else (dim // size, child_dim)
        self.project = Linear(*width, bias=config.expand_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, D) -> (B, K * P, D')."""
        if self.kind == "linear":
            return rearrange(self.project(x), "b k (p d) -> b (k p) d", p=self.patch_size)
        return self.project(rearrange(x, "b k (p e) -> b (k p) e", p=self.patch_size))
