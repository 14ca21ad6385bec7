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
    def back(self) -> int | None:
        """How many positions before a stretch of new ones these can still see; None: all of them."""
        if self.patch_size is not None:
            return self.lookback
        return None if self.window is None else self.window - 1

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


def cut(reach: Reach, length: int, before: int) -> tuple[int, int]:
    """Into which blocks `length` positions after `before` others are cut: their size, and how far each sees back."""
    if reach.patch_size is not None:
        return reach.patch_size, reach.lookback if before or length > reach.patch_size else 0
    window = reach.window or length
    size = window if before else min(window, length)
    return size, window - 1 if before or length > size else 0


def attention_bias(
    reach: Reach,
    length: int,
    before: int = 0,
    slopes: Tensor | None = None,
    backend: Backend = "sdpa",
    device: torch.device | None = None,
) -> Tensor | None:
    """What `attend` adds to scores, the same for all layers of a stack; None where SDPA's own causal mask is enough.

    Full attention: (1 or H, T, T). Else (blocks or 1, 1 or H, C, back + C) for the blocks that `cut` makes of `length`
    positions, of which `before` are known before the first.
    """
    if reach.limit is None:
        if slopes is None and backend == "sdpa":
            return None
        positions = torch.arange(length, device=device)
        return bias_between(positions, positions, positions <= positions[:, None], slopes)
    size, back = cut(reach, length, before)
    queries, keys = torch.arange(size, device=device) + back, torch.arange(back + size, device=device)
    visible = keys <= queries[:, None]
    if reach.patch_size is None and reach.window:
        visible &= keys > queries[:, None] - reach.window
    if before < back:  # the first block has none, or fewer, before it
        first = visible & (keys >= back - before)
        visible = torch.cat((first[None], visible.expand(-(-length // size) - 1, -1, -1)))
    return bias_between(queries, keys, visible, slopes)


def full_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, backend: Backend) -> Tensor:
    """Every query sees all positions up to its own."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if bias is None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    else:
        out = softmax_attention(q, k, v, bias, backend)
    return out.transpose(1, 2)


def blocked_attention(
    q: Tensor, k: Tensor, v: Tensor, reach: Reach, bias: Tensor, past: tuple[Tensor, Tensor] | None, backend: Backend
) -> Tensor:
    """Cut into blocks, each of which sees itself and the tail of the block before: patches, or a window's stretches."""
    length = q.shape[1]
    before = 0 if past is None else past[0].shape[1]
    size, back = cut(reach, length, before)
    blocks = -(-length // size)
    if blocks * size > length:
        q, k, v = (F.pad(x, (0, 0, 0, 0, 0, blocks * size - length)) for x in (q, k, v))
    q, k, v = (rearrange(x, "b (n c) h d -> b n h c d", c=size) for x in (q, k, v))
    if back:
        tails = []
        for i, x in enumerate((k, v)):
            tail = F.pad(x[:, :-1, :, -back:], (0, 0, 0, 0, 0, 0, 1, 0))
            if past is not None:
                first = F.pad(past[i].transpose(1, 2), (0, 0, back - before, 0)).unsqueeze(1).to(x.dtype)
                tail = torch.cat((first, x[:, :-1, :, -back:]), dim=1)
            tails.append(torch.cat((tail, x), dim=3))
        k, v = tails
    out = softmax_attention(q, k, v, bias, backend)
    return rearrange(out, "b n h c d -> b (n c) h d")[:, :length]


def attend_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    reach: Reach,
    slopes: Tensor | None = None,
    past: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The slow twin of `attend`: one mask over all pairs of positions, in fp32. What is before begins a block."""
    before = 0 if past is None else past[0].shape[1]
    if past is not None:
        k, v = (torch.cat(pair, dim=1) for pair in zip(past, (k, v)))
    keys = torch.arange(k.shape[1], device=q.device) - before
    queries = torch.arange(q.shape[1], device=q.device)
    visible = (keys <= queries[:, None]) & (keys >= reach.first(queries)[:, None] - (before if not reach.limit else 0))
    bias = bias_between(queries, keys, visible, slopes)
    group = q.shape[2] // k.shape[2]
    k, v = (repeat(x, "b t g d -> b t (g r) d", r=group).float() for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q.float(), k) * q.shape[-1] ** -0.5 + bias
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).to(q.dtype)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    reach: Reach,
    bias: Tensor | None,
    backend: Backend,
    past: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Causal attention of q (B, T, H, d) over k, v (B, T, G, d) within `reach`; returns (B, T, H, d).

    `bias` is that of `attention_bias` for the same reach, length and backend. `past` holds the keys and values
    (B, R, G, d) of the R positions before the first, R at most what a block sees back; T then starts a block.
    """
    if reach.limit is None:
        return full_attention(q, k, v, bias, backend)
    if bias is None:
        raise ValueError("attention within a limit needs its bias")
    return blocked_attention(q, k, v, reach, bias, past, backend)


def attend_cached(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """One query a row, q (N, H, d), over its cache k, v (N, G, L, d); bias (N, 1 or H, L) or None; out (N, H, d)."""
    # The heads of a group are queries beside each other, so that keys and values are not copied for each head.
    grouped = q.unflatten(1, (k.shape[1], -1))  # (N, G, H/G, d)
    if bias is not None:
        bias = bias.unflatten(1, (k.shape[1], -1)) if bias.shape[1] > 1 else bias.unsqueeze(1)
        bias = bias.to(q.dtype).expand(-1, k.shape[1], grouped.shape[2], -1)
    if torch.compiler.is_compiling():  # one fused loop there, and SDPA stays a call of its own
        scores = grouped @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return ((scores if bias is None else scores + bias).softmax(-1) @ v).flatten(1, 2)
    return F.scaled_dot_product_attention(grouped, k, v, attn_mask=bias).flatten(1, 2)


def choose_backend(reach: Reach, length: int, device: torch.device, dtype: torch.dtype) -> Backend:
    """The fastest way, as benchmarks/attention.py measures it.

    CPUs in bf16: SDPA is 2 to 4 times slower than matmul for short blocks, and for sequences of up to SHORT positions.
    """
    if device.type != "cpu" or dtype == torch.float32:
        return "sdpa"
    return "matmul" if reach.limit is not None or length <= SHORT else "sdpa"


SHORT = 512
BACKENDS: tuple[str, ...] = get_args(Backend)
