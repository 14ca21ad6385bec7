"""Causal attention in one layout: queries (B, T, H, d), keys and values (B, T, G, d), out (B, T, H, d).

H is a multiple of G (grouped-query attention). Which keys a query sees is a `Reach`: all before it, a window of
them, or its own patch with the last few of the patch before. Full attention costs O(T^2); the other two are cut into
blocks and cost O(T * block). Every fast way in `BACKENDS` has `attend_reference` as its slow twin.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

Backend = Literal["sdpa", "matmul"]


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Which positions a query at position i sees: all j with first(i) <= j <= i."""

    patch_size: int | None = None
    """Positions are cut into patches of this size, and a query sees its own patch; None: no patch borders."""
    lookback: int = 0
    """How many positions of the patch before are seen too (the paper's cross-patch attention, section 2.3.2)."""
    window: int | None = None
    """A query sees itself and the window - 1 positions before it; None: no limit."""

    @property
    def isolated(self) -> bool:
        """True where patches do not see each other at all."""
        return self.patch_size is not None and self.lookback == 0

    @property
    def limit(self) -> int | None:
        """The most positions that any query sees, and so the length of a cache; None: all of them."""
        return self.window if self.patch_size is None else self.patch_size + self.lookback

    def first(self, positions: Tensor) -> Tensor:
        """The first position that each of `positions` sees; below zero where the sequence starts later."""
        if self.patch_size is not None:
            return positions - positions % self.patch_size - self.lookback
        return positions - self.window + 1 if self.window else torch.zeros_like(positions)


def alibi_slopes(num_heads: int, device: torch.device | None = None) -> Tensor:
    """The slope of each head (H,), a geometric series from 2^(-8/H) on (arXiv 2108.12409, section 3)."""
    return 2.0 ** (-8.0 / num_heads * torch.arange(1, num_heads + 1, dtype=torch.float32, device=device))


def bias_between(queries: Tensor, keys: Tensor, visible: Tensor, slopes: Tensor | None) -> Tensor:
    """What is added to the scores: -inf where not visible, ALiBi's -slope * distance elsewhere.

    queries (..., Q) and keys (..., L) are positions, visible is (..., Q, L); returns (..., 1 or H, Q, L) in fp32.
    """
    bias = torch.zeros(visible.shape, device=visible.device).masked_fill(~visible, float("-inf")).unsqueeze(-3)
    if slopes is None:
        return bias
    distance = (queries.unsqueeze(-1) - keys.unsqueeze(-2)).unsqueeze(-3)
    return bias - slopes.view(-1, 1, 1) * distance.abs()


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, backend: Backend) -> Tensor:
    """q (..., H, Q, d), k and v (..., G, L, d), bias broadcastable to (..., H, Q, L) -> (..., H, Q, d)."""
    if backend == "sdpa":
        bias = bias.to(q.dtype).expand(*q.shape[:-3], -1, -1, -1)
        flat = [x.flatten(0, -4) if x.ndim > 4 else x for x in (q, k, v, bias)]
        out = F.scaled_dot_product_attention(*flat[:3], attn_mask=flat[3], enable_gqa=q.shape[-3] != k.shape[-3])
        return out.view(q.shape)
    # The heads of a group are stacked as further queries, so that keys and values are not copied for each head.
    heads, queries, groups = q.shape[-3], q.shape[-2], k.shape[-3]
    scores = q.unflatten(-3, (groups, -1)).flatten(-3, -2) @ k.transpose(-2, -1)
    scores = scores.unflatten(-2, (-1, queries)).flatten(-4, -3) * q.shape[-1] ** -0.5 + bias.to(q.dtype)
    weights = scores.softmax(-1).unflatten(-3, (groups, -1)).flatten(-3, -2)
    return (
        (weights.to(v.dtype) @ v).unflatten(-2, (-1, queries)).flatten(-4, -3).view(*q.shape[:-3], heads, queries, -1)
    )


def full_attention(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None) -> Tensor:
    """Every query sees all positions up to its own."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if slopes is None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    else:
        positions = torch.arange(q.shape[2], device=q.device)
        bias = bias_between(positions, positions, positions[:, None] >= positions, slopes)
        out = softmax_attention(q, k, v, bias, "sdpa")
    return out.transpose(1, 2)


def blocked_attention(q: Tensor, k: Tensor, v: Tensor, reach: Reach, slopes: Tensor | None, backend: Backend) -> Tensor:
    """Cut into blocks, each of which sees itself and the tail of the block before: patches, or a window's stretches."""
    length = q.shape[1]
    size = reach.patch_size or min(reach.window or length, length)
    back = reach.lookback if reach.patch_size else min(size, (reach.window or length) - 1)
    back = back if length > size else 0
    blocks = -(-length // size)
    if blocks * size > length:
        q, k, v = (F.pad(x, (0, 0, 0, 0, 0, blocks * size - length)) for x in (q, k, v))
    q, k, v = (rearrange(x, "b (n c) h d -> b n h c d", c=size) for x in (q, k, v))
    if back:
        k, v = (torch.cat((F.pad(x[:, :-1, :, -back:], (0, 0, 0, 0, 0, 0, 1, 0)), x), dim=3) for x in (k, v))
    queries = torch.arange(size, device=q.device) + back
    keys = torch.arange(back + size, device=q.device)
    visible = keys <= queries[:, None]
    if reach.patch_size is None and reach.window:
        visible &= keys > queries[:, None] - reach.window
    if back:  # the first block has none before it
        visible = visible & (keys >= back * (torch.arange(blocks, device=q.device) == 0).view(-1, 1, 1))
    bias = bias_between(queries, keys, visible, slopes)
    out = softmax_attention(q, k, v, bias, backend)
    return rearrange(out, "b n h c d -> b (n c) h d")[:, :length]


def attend_reference(q: Tensor, k: Tensor, v: Tensor, reach: Reach, slopes: Tensor | None = None) -> Tensor:
    """The slow twin of `attend`: one mask over all pairs of positions, in fp32."""
    positions = torch.arange(q.shape[1], device=q.device)
    visible = (positions <= positions[:, None]) & (positions >= reach.first(positions)[:, None])
    bias = bias_between(positions, positions, visible, slopes)
    group = q.shape[2] // k.shape[2]
    k, v = (repeat(x, "b t g d -> b t (g r) d", r=group).float() for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q.float(), k) * q.shape[-1] ** -0.5 + bias
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).to(q.dtype)


def attend(
    q: Tensor, k: Tensor, v: Tensor, reach: Reach, slopes: Tensor | None = None, backend: Backend | None = None
) -> Tensor:
    """Causal attention of q (B, T, H, d) over k, v (B, T, G, d) within `reach`; returns (B, T, H, d).

    Raises ValueError for a backend that `BACKENDS` does not list.
    """
    if reach.limit is None:
        return full_attention(q, k, v, slopes)
    return blocked_attention(q, k, v, reach, slopes, backend or choose_backend(q))


def attend_cached(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """One query a row, q (N, H, d), over its cache k, v (N, L, G, d) with bias (N, 1 or H, L); returns (N, H, d)."""
    out = softmax_attention(q.unsqueeze(2), k.transpose(1, 2), v.transpose(1, 2), bias.unsqueeze(2), "matmul")
    return out.squeeze(2)


def choose_backend(q: Tensor) -> Backend:
    """The fastest way for short blocks. On CPUs SDPA beats matmul in fp32 and is 2 to 4 times slower in bf16."""
    return "matmul" if q.device.type == "cpu" and q.dtype != torch.float32 else "sdpa"


BACKENDS: tuple[str, ...] = get_args(Backend)
