"""Ways to do attention, forward and backward, at the shapes that stages have: what `choose_backend` rests on.

    python benchmarks/attention.py [--rounds 20] [--json FILE]

For 8192 positions of 4 heads (short patches, windows) or 4 x 256 of 8 heads (a coarsest stage), each 64 wide:
`sdpa` and `matmul` are the library's own; `einsum` writes the same with torch.einsum; `causal sdpa` gives SDPA each
patch as a row of its batch and its own causal mask, which lets it take the flash kernel; `padded` does so with patches
filled up to 16 positions.
"""

from collections.abc import Callable
from dataclasses import asdict
from json import dumps
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from einops import rearrange
from rich.console import Console
from rich.table import Table
from torch import Tensor

from byteloom.benchmark import Measured, seconds
from byteloom.layers.attention import BACKENDS, Reach, attend, attention_bias, choose_backend

SHAPES = {
    "patches of 4": (Reach(patch_size=4), 4, 2048, 4),
    "patches of 8": (Reach(patch_size=8), 4, 2048, 4),
    "patches of 16": (Reach(patch_size=16), 4, 2048, 4),
    "patches of 8, 2 back": (Reach(patch_size=8, lookback=2), 4, 2048, 4),
    "window of 32": (Reach(window=32), 4, 2048, 4),
    "window of 128": (Reach(window=128), 4, 2048, 4),
    "all of 256": (Reach(), 4, 256, 8),
    "all of 1024": (Reach(), 1, 1024, 8),
    "all of 4096": (Reach(), 1, 4096, 8),
}
"""Reach, batch, positions, heads."""


def with_einsum(q: Tensor, k: Tensor, v: Tensor, size: int) -> Tensor:
    """Isolated patches by torch.einsum."""
    q, k, v = (rearrange(x, "b (n c) h d -> b n c h d", c=size) for x in (q, k, v))
    scores = torch.einsum("bnihd,bnjhd->bnhij", q, k) * q.shape[-1] ** -0.5
    hidden = torch.ones(size, size, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1).to(v.dtype)
    return torch.einsum("bnhij,bnjhd->bnihd", weights, v).flatten(1, 2)


def with_causal_sdpa(q: Tensor, k: Tensor, v: Tensor, size: int, padded: int | None = None) -> Tensor:
    """Isolated patches as rows of SDPA's batch."""
    q, k, v = (rearrange(x, "b (n c) h d -> (b n) h c d", c=size) for x in (q, k, v))
    if padded is not None:
        q, k, v = (F.pad(x, (0, 0, 0, max(0, padded - size))) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, :, :size]
    return rearrange(out, "(b n) h c d -> b (n c) h d", b=4)


def main(rounds: int = 20, json: str | None = None) -> None:
    """Ways to do attention, forward and backward, at the shapes that stages have.

    Args:
        rounds: How often each is measured.
        json: Write the numbers to this file.
    """
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        table = Table(title=f"ms, forward and backward, {str(dtype).split('.')[1]}, {torch.get_num_threads()} threads")
        columns = (*BACKENDS, "einsum", "causal sdpa", "padded")
        for column in ("", *columns, "chosen"):
            table.add_column(column, justify="right")
        for name, (reach, batch, length, heads) in SHAPES.items():
            q, k, v = (torch.randn(batch, length, heads, 64, dtype=dtype, requires_grad=True) for _ in range(3))
            ways: dict[str, Callable[[], Tensor]] = {}
            for backend in BACKENDS:
                bias = attention_bias(reach, length, backend=backend)  # type: ignore[arg-type]
                ways[backend] = lambda b=backend, m=bias, r=reach, q=q, k=k, v=v: attend(q, k, v, r, m, b)  # type: ignore[arg-type]
            if reach.isolated and (size := reach.patch_size):
                ways["einsum"] = lambda q=q, k=k, v=v, s=size: with_einsum(q, k, v, s)
                ways["causal sdpa"] = lambda q=q, k=k, v=v, s=size: with_causal_sdpa(q, k, v, s)
                ways["padded"] = lambda q=q, k=k, v=v, s=size: with_causal_sdpa(q, k, v, s, 16)
            wanted = ways[BACKENDS[0]]()
            found = {}
            for way, call in ways.items():
                assert torch.allclose(call().float(), wanted.float(), atol=1e-4 if dtype == torch.float32 else 0.1), way
                step = lambda c=call: c().sum().backward()  # noqa: E731
                seconds(step, q.device, 3)
                found[way] = Measured.of(seconds(step, q.device, rounds))
            chosen = choose_backend(reach, length, q.device, dtype)
            numbers = [f"{found[way].median * 1e3:,.1f}" if way in found else "" for way in columns]
            table.add_row(name, *numbers, chosen)
            rows.append(
                {"shape": name, "dtype": str(dtype), "chosen": chosen, **{w: asdict(m) for w, m in found.items()}}
            )
        Console(width=120).print(table)
    if json:
        Path(json).write_text(dumps(rows, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
