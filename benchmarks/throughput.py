"""Training bytes per second beside other libraries: same shape, batch and optimizer, taking turns in one process.

    python benchmarks/throughput.py [--rounds 5] [--shjwudp FOLDER] [--json FILE]

One update is forward, backward and fused AdamW on 4 x 2048 random bytes. Each contestant runs as its library ships
it, in fp32 and in bf16 autocast; ours also compiled and with glibc told to keep freed memory, which is what
`byteloom train` does by itself (--keep-for-all tells it so for the others too: it helps them as well). A round is one
update to warm up and `--updates` that count, of every contestant in turn. Needs: pip install mblm==0.4.2
"""

import ctypes
import dataclasses
from collections.abc import Callable
from json import dumps
from pathlib import Path

import peers
import torch
import tyro
from rich.console import Console
from rich.table import Table

from byteloom.benchmark import Measured, matrix_products, matrix_rate, seconds, training_step
from byteloom.sizing import flops_per_byte
from byteloom.train.acceleration import keep_memory
from byteloom.train.optim import OptimConfig

CPU = torch.device("cpu")
SIZE = peers.BATCH * peers.CONTEXT


def update(peer: peers.Peer, bf16: bool) -> Callable[[], None]:
    """A call that makes one update."""
    optimizer = torch.optim.AdamW(peer.model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(1, 256, (peers.BATCH, peers.CONTEXT))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = peer.loss(ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def let_go() -> None:
    """glibc's defaults again, after `keep_memory`."""
    trim_threshold, mmap_max = -1, -4
    ctypes.CDLL(None).mallopt(mmap_max, 65536)
    ctypes.CDLL(None).mallopt(trim_threshold, 128 * 1024)


def main(
    rounds: int = 5,
    updates: int = 2,
    shjwudp: Path | None = None,
    keep_for_all: bool = False,
    json: str | None = None,
) -> None:
    """Training bytes per second beside other libraries.

    Args:
        rounds: Turns of everyone.
        updates: Updates that count in a turn.
        shjwudp: A checkout of shjwudp/megabyte.
        keep_for_all: Let the C library keep freed memory for the others too.
        json: Write the numbers to this file.
    """
    if keep_for_all:
        keep_memory()
    contestants: list[tuple[str, str, Callable[[], None], int]] = []
    for peer in peers.build(shjwudp):
        contestants += [(peer.name, kind, update(peer, kind == "bf16"), peer.parameters) for kind in ("fp32", "bf16")]
    shapes = {"byteloom": peers.OURS}
    if shjwudp is not None:
        shapes["byteloom, shjwudp's shape"] = peers.OURS_LIKE_SHJWUDP
    open_steps = []
    for name, config in shapes.items():
        for kind, bf16, compiled in (("fp32", False, False), ("bf16", True, False), ("bf16 compiled", True, True)):
            manager = training_step(
                config, peers.BATCH, bf16=bf16, compiled=compiled, chunk=None,
                optim=OptimConfig(optimizer="adamw"), device="cpu",
            )  # fmt: skip
            model, step = manager.__enter__()
            open_steps.append(manager)  # or it ends
            contestants.append((name, kind, step, sum(p.numel() for p in model.parameters())))
            if name == "byteloom" and kind == "bf16":
                products = matrix_products(step)
    for name, kind, step, _ in contestants:
        print(f"warming up: {name} {kind}", flush=True)
        seconds(step, CPU, 2)
    taken: dict[tuple[str, str], list[float]] = {(name, kind): [] for name, kind, _, _ in contestants}
    rates = []
    for turn in range(rounds):
        for name, kind, step, _ in contestants:
            keep = keep_for_all or name.startswith("byteloom")
            keep_memory() if keep else let_go()
            seconds(step, CPU)
            taken[name, kind] += seconds(step, CPU, updates)
        rates.append(matrix_rate(products, CPU))
        print(f"round {turn + 1} of {rounds}", flush=True)
    rows = []
    for name, kind, _, parameters in contestants:
        speed = Measured.of([SIZE / t for t in taken[name, kind]])
        rows.append({"name": name, "kind": kind, "parameters": parameters, **dataclasses.asdict(speed)})
    best = {name: max(row["median"] for row in rows if row["name"] == name) for name in {row["name"] for row in rows}}
    table = Table(title=f"training bytes per second, {torch.get_num_threads()} threads, {rounds} rounds")
    for column in ("", "", "parameters", "median", "smallest", "largest", "ours is"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = [f"{row[key]:,.0f}" for key in ("median", "smallest", "largest")]
        factor = f"{best['byteloom'] / row['median']:.2f}x"
        table.add_row(row["name"], row["kind"], f"{row['parameters'] / 1e6:.1f}M", *numbers, factor)
    Console(width=120).print(table)
    flops = 3 * flops_per_byte(peers.OURS) * SIZE
    rate = Measured.of(rates)
    share = flops * best["byteloom"] / SIZE / rate.median
    print(f"a step of ours: {flops / 1e9:.0f} GFLOP, at {share:.0%} of the {rate.median / 1e9:.0f} GFLOP/s ")
    print("that its matrix products reach one by one in the same run")
    ratios = {name: best["byteloom"] / value for name, value in best.items()}
    if shjwudp is not None:
        same = best["byteloom, shjwudp's shape"] / best["shjwudp/megabyte"]
        ratios["shjwudp/megabyte in its own shape"] = same
        print(f"in shjwudp's shape: {same:.2f}x")
    if json:
        report = {"rows": rows, "ratios": ratios, "matrix_rate": dataclasses.asdict(rate), "share": share}
        Path(json).write_text(dumps(report, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
