"""Between bytes and stages: ids (B, K*P) -> patch vectors (B, K, D), and parent vectors (B, K, D) -> (B, K*P, D').

`PatchEmbedder` reads the bytes that one position of a stage stands for (its span, P of them in all finer stages
together); `Expander` hands each child its share of what the parent found. Both cost about one matrix a patch.
"""

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from byteloom.layers.linear import Linear
from byteloom.layers.transformer import make_norm
from byteloom.losses import VOCABULARY

Expand = Literal["linear", "slice"]
Pooling = Literal["concat", "attention"]
PatchNorm = Literal["none", "rms", "layer"]
HASHES, MULTIPLIER = 2**31 - 1, 1_540_483_477
"""Of strings: a polynomial modulo a prime, in which no product exceeds 63 bits."""


def as_ids(ids: Tensor, ndim: int = 2) -> Tensor:
    """Ids (B, T), or (N,) with `ndim` 1, as int64: in a narrower type hashes would overflow without a word.

    Raises ValueError where they have another shape or are no integers.
    """
    if ids.ndim != ndim or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        wanted = "integers (B, T), a sequence a row" if ndim == 2 else "integers (N,), one for each row"
        raise ValueError(f"ids have shape {tuple(ids.shape)} and type {ids.dtype}; give {wanted}")
    return ids.long()


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
    offsets: tuple[int, ...] = ()
    """How many positions back there are others whose bytes are read too, beside those of the last one: in pictures such
    as the pixel above (2 and more)."""
    ngrams: tuple[int, ...] = ()
    """Lengths of strings of bytes that end with a position's last byte. The hash of each is looked up in a table of its
    own (as in BLT, arXiv 2412.09871, section 3.2.1): what often follows a string is learned the first few times."""
    ngram_rows: int = 65536
    """Rows of each of these tables; strings whose hashes fall together share one."""
    ngram_dim: int = 32
    """Width of these vectors, which side by side are projected to dim."""
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
        if any(offset < 2 for offset in self.offsets):
            raise ValueError(f"{name}.offsets is {self.offsets}; each must be at least 2: the last is always read")
        if any(length < 2 for length in self.ngrams) or list(self.ngrams) != sorted(set(self.ngrams)):
            raise ValueError(f"{name}.ngrams is {self.ngrams}; they must be lengths of at least 2, rising")
        if not 1 <= self.ngram_rows <= HASHES:
            raise ValueError(f"{name}.ngram_rows is {self.ngram_rows}; it must be from 1 to {HASHES}")
        if self.ngram_dim < 1:
            raise ValueError(f"{name}.ngram_dim is {self.ngram_dim}; it must be at least 1")
        if self.expand == "slice" and self.patch_size and dim % self.patch_size:
            raise ValueError(f'{name}.expand "slice" needs patch_size {self.patch_size} to divide dim {dim}')
        if self.projection is False and self.patch_norm != "none":
            raise ValueError(f"{name}.patch_norm stands around the projection; it needs projection to be True")
        if self.projection is False and self.embed_bias:
            raise ValueError(f"{name}.embed_bias is the projection's; it needs projection to be True")


@torch.no_grad()
def draw_waves(weight: Tensor, std: float, waves: float) -> None:
    """Vectors of bytes (256, D) anew: channel i of byte v is sqrt(2) std cos(2 pi (f_i v / 256 + phase_i)).

    Frequencies f_i lie between a quarter and `waves`, even on a log scale: near values begin as near vectors, and are
    still told apart.
    """
    shape, device = weight.shape[1:], weight.device
    frequencies = torch.exp(torch.rand(shape, device=device) * math.log(waves / 0.25)) * 0.25
    values = torch.arange(VOCABULARY.num_bytes, device=device).unsqueeze(-1) / VOCABULARY.num_bytes
    phases = torch.rand(shape, device=device)
    weight.copy_(2**0.5 * std * torch.cos(2 * math.pi * (frequencies * values + phases)))


class AttentionPool(nn.Module):
    """A patch's byte vectors to a few, each what one trained query finds among them: (N, P, E) -> (N, Q * E)."""

    NUM_QUERIES = 4

    def __init__(self, span: int, dim: int):
        super().__init__()
        self.places = nn.Parameter(torch.empty(span, dim))  # or the order of the bytes would be lost
        self.queries = nn.Parameter(torch.empty(self.NUM_QUERIES, dim))
        self.project_key, self.project_value = Linear(dim, dim, bias=False), Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., P, E) -> (..., Q * E)."""
        x = x + self.places.to(x.dtype)
        scores = self.queries.to(x.dtype) @ self.project_key(x).transpose(-2, -1) * x.shape[-1] ** -0.5  # (..., Q, P)
        return (scores.softmax(-1).to(x.dtype) @ self.project_value(x)).flatten(-2)


class PatchEmbedder(nn.Module):
    """Bytes to vectors, one a patch: a table, causal convolutions (optional), concatenation, projection (optional).

    Without a projection the concatenation is the patch vector, as in the paper (section 2.1, equation 2). Where a patch
    has several bytes, `pooling` "attention" takes the place of the concatenation, and `bottleneck` is a narrower layer
    before the projection.
    """

    def __init__(
        self,
        config: PatchConfig,
        *,
        vocab_size: int,
        span: int,
        embed_dim: int,
        dim: int,
        projection: bool,
        bottleneck: int | None = None,
        pooling: Pooling = "concat",
        dropout: float = 0.0,
        of_bytes: bool = True,
    ):
        super().__init__()
        self.of_bytes = of_bytes  # whether the first rows of its table are those of bytes
        self.span = span
        self.table = nn.Embedding(vocab_size, embed_dim)
        convolutions = (nn.Conv1d(embed_dim, embed_dim, kernel) for kernel in config.conv_kernels)
        self.convolutions = cast(list[nn.Conv1d], nn.ModuleList(convolutions))
        self.reach = sum(kernel - 1 for kernel in config.conv_kernels)
        self.offsets = config.offsets
        self.ngrams, self.ngram_rows = config.ngrams, config.ngram_rows
        self.halo = max(self.reach, (max(self.offsets, default=1) - 1) * span, max(self.ngrams, default=0) - span)
        width, self.pool, self.project_down = span * embed_dim, None, None
        if pooling == "attention" and span > 1:
            self.pool = AttentionPool(span, embed_dim)
            width = AttentionPool.NUM_QUERIES * embed_dim
        self.norm_in, self.norm_out = nn.Identity(), nn.Identity()
        if config.patch_norm != "none":
            self.norm_in = make_norm(config.patch_norm, width, config.patch_norm_eps)
            self.norm_out = make_norm(config.patch_norm, dim, config.patch_norm_eps)
        if bottleneck is not None and span > 1:
            self.project_down, width = Linear(width, bottleneck, bias=False), bottleneck
        self.project = Linear(width, dim, bias=config.embed_bias) if projection else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        if self.offsets and span == 1:
            self.others = nn.Embedding(vocab_size * len(self.offsets), dim)
        elif self.offsets:
            self.project_others = Linear(len(self.offsets) * span * embed_dim, dim, bias=False)
        self.strings = None
        if self.ngrams:
            self.strings = nn.Embedding(self.ngram_rows * len(self.ngrams), config.ngram_dim)
            self.project_strings = Linear(len(self.ngrams) * config.ngram_dim, dim, bias=False)

    @torch.no_grad()
    def init_bytes(self, std: float, waves: float | None) -> None:
        """Scale vectors that are summed to the length of one, and with `waves` draw those of bytes anew. Strings are
        zero, so that those never met say nothing.
        """
        if self.strings is not None:
            nn.init.zeros_(self.strings.weight)
        scale = len(self.offsets) ** -0.5 if self.offsets else 1.0
        tables = [(self.table.weight, 1, 1.0)]
        if self.offsets and self.span == 1:
            self.others.weight.mul_(scale)
            tables.append((self.others.weight, len(self.offsets), scale))
        if waves is None or not self.of_bytes:
            return
        for weight, count, length in tables:
            for rows in weight.unflatten(0, (count, -1)):
                draw_waves(rows[: VOCABULARY.num_bytes], std * length, waves)

    @property
    def matrices(self) -> list[nn.Module]:
        """What a patch is multiplied with after its bytes were looked up."""
        others = self.project_others if self.offsets and self.span > 1 else None
        strings = self.project_strings if self.strings is not None else None
        modules = (self.pool, self.project_down, self.project, others, strings)
        return [module for module in modules if module is not None]

    @property
    def products(self) -> int:
        """Multiplications a patch, convolutions left out."""
        layers = [layer for layer in (self.project_down, self.project) if isinstance(layer, nn.Linear)]
        layers += [self.project_others] if self.offsets and self.span > 1 else []
        layers += [self.project_strings] if self.strings is not None else []
        size = self.table.embedding_dim
        pooled = 0 if self.pool is None else 2 * self.span * size * (size + AttentionPool.NUM_QUERIES)
        return pooled + sum(layer.in_features * layer.out_features for layer in layers)

    def forward(
        self,
        ids: Tensor,
        halo: int = 0,
        real: Tensor | None = None,
        kinds: Tensor | None = None,
        since: Tensor | None = None,
        others: Tensor | None = None,
        hashes: Tensor | None = None,
    ) -> Tensor:
        """ids (B, halo + K * span) -> (B, K, D). The first `halo` bytes are only read by the convolutions.

        `real` (B, halo + K * span) is False where the sequence has not begun yet. `others` are those of
        `gather_others` and `hashes` those of `hash_strings`, where ids do not reach back so far. The rest is for
        embedders that tell modalities apart.
        """
        if self.offsets and others is None:
            others = self.gather_others(ids, halo, real)
        if self.strings is not None and hashes is None:
            hashes = self.hash_strings(ids, halo, real)
        skipped = max(halo - self.reach, 0)
        ids, halo, real = ids[:, skipped:], halo - skipped, None if real is None else real[:, skipped:]
        x = self.table(ids)
        for convolution in self.convolutions:
            if real is not None:
                x = x.masked_fill(~real.unsqueeze(-1), 0.0)
            # Causal: padded on the left only, so that byte t reads bytes up to t (the paper's section 2.3.1).
            before = convolution.kernel_size[0] - 1
            x = x + F.gelu(convolution(F.pad(x.transpose(1, 2), (before, 0)))).transpose(1, 2)
        x = rearrange(x[:, halo:], "b (k p) e -> b k p e", p=self.span)
        x = self.norm_in(x.flatten(-2) if self.pool is None else self.pool(x))
        x = self.norm_out(self.project(x if self.project_down is None else self.project_down(x)))
        if others is not None:
            x = x + self.embed_others(others)
        if self.strings is not None and hashes is not None:
            x = x + self.project_strings(self.strings(hashes).flatten(2))
        return self.dropout(x)

    def behind(self, ids: Tensor, halo: int, real: Tensor | None) -> Tensor:
        """The ids with all of the embedder's halo before them: PAD where there is nothing yet."""
        if real is not None:
            ids = ids.masked_fill(~real, VOCABULARY.pad_id)
        return F.pad(ids, (max(self.halo - halo, 0), 0), value=VOCABULARY.pad_id)

    def hash_strings(self, ids: Tensor, halo: int, real: Tensor | None) -> Tensor:
        """The rows (B, K, ngrams) of the strings that end with each patch's last byte."""
        length, ids = ids.shape[1] - halo, self.behind(ids, halo, real)
        end, code, rows = ids.shape[1], 0, []
        for back in range(self.ngrams[-1]):
            code = (
                code * MULTIPLIER + ids[:, end - length - back + self.span - 1 : end - back : self.span] + 1
            ) % HASHES
            if back + 1 in self.ngrams:
                rows.append(code % self.ngram_rows + len(rows) * self.ngram_rows)
        return torch.stack(rows, dim=-1)

    def gather_others(self, ids: Tensor, halo: int, real: Tensor | None) -> Tensor:
        """The ids that stand `offsets` back of each patch, (B, K, offsets, P); PAD where there are none yet."""
        length, ids = ids.shape[1] - halo, self.behind(ids, halo, real)
        end = ids.shape[1]
        backs = [(offset - 1) * self.span for offset in self.offsets]
        return rearrange(
            torch.stack([ids[:, end - length - back : end - back] for back in backs]),
            "o b (k p) -> b k o p",
            p=self.span,
        )

    def embed_others(self, others: Tensor) -> Tensor:
        """(B, K, offsets, P) -> (B, K, D)."""
        if self.span > 1:
            return self.project_others(self.table(others).flatten(2))
        rows = self.others.num_embeddings // len(self.offsets)
        places = others.squeeze(-1) + rows * torch.arange(len(self.offsets), device=others.device)  # (B, K, offsets)
        return F.embedding_bag(places.flatten(0, 1), self.others.weight, mode="sum").view(*places.shape[:2], -1)


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
