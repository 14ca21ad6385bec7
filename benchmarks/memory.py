"""Peak memory of training beside other libraries, and of ours against the length of a sequence.

    python benchmarks/memory.py [--shjwudp FOLDER] [--json FILE]

Each line is a process of its own that makes `--updates` updates (forward, backward, fused AdamW) and says its peak
resident set. First the shape of docs/performance.md, 4 x 2048 bytes; then a model of three stages on one sequence of
8,192 to 1,048,576 bytes, whose activations may take `--activations` GiB: what is more is computed again.
"""

import gc
import resource
import subprocess
import sys
from json import dumps, loads
from pathlib import Path
from typing import Any

import peers
import torch
import tyro
from rich.console import Console
from rich.table import Table
from throughput import update

from byteloom import ModelConfig, Multiscale, StageConfig
from byteloom.benchmark import seconds
from byteloom.sizing import plan
from byteloom.train.acceleration import accelerated, give_back, keep_memory
from byteloom.train.optim import OptimConfig, Optimizers

CPU = torch.device("cpu")


def million(context: int = 1 << 20) -> ModelConfig:
    """Three stages, 26M parameters."""
    return ModelConfig(
        stages=(
            StageConfig(dim=512, num_layers=6, num_heads=8, patch_size=16),
            StageConfig(dim=384, num_layers=3, num_heads=6, patch_size=8),
            StageConfig(dim=256, num_layers=2, num_heads=4),
        ),
        context=context,
    )


def train_ours(
    config: ModelConfig, batch_size: int, compiled: bool, chunk: int | None, again: tuple[int, ...], updates: int
) -> list[float]:
    """Seconds of each update, the first one left out."""
    keep_memory()
    model = Multiscale(config).train()
    optimizers = Optimizers(model, OptimConfig(optimizer="adamw"))
    ids = torch.randint(0, 256, (batch_size, config.context))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(ids, chunk=chunk)
        (loss.nats / ids.numel()).backward()
        optimizers.step(0.5)

    with accelerated(model, compiled, again):
        seconds(step, CPU)
        if compiled:
            give_back()
        return seconds(step, CPU, updates)


def one(name: str, updates: int, shjwudp: Path | None, activations: float) -> dict[str, Any]:
    """What one process measures: its peak, and seconds per update."""
    kind = name.split(": ")[1]
    if name.startswith("byteloom"):
        chunk = 1024 if "chunks of 1024" in kind else None
        taken = train_ours(peers.OURS, peers.BATCH, "compiled" in kind, chunk, (), updates)
        size = peers.BATCH * peers.CONTEXT
    elif name.startswith("three stages"):
        size = int(kind.replace(",", ""))
        config = million(size)
        found = plan(config, 1, "bf16", activations * 2**30)
        taken = train_ours(config, 1, False, found.chunk, found.recompute, max(1, min(updates, 2**21 // size)))
    else:
        with peers.quiet():
            makers = {"megabyte-pytorch": peers.megabyte_pytorch, "mblm": peers.mblm, "HF Llama": peers.llama}
            maker = makers.get(name.split(": ")[0])
            peer = maker() if maker else peers.shjwudp(shjwudp or Path())
        gc.collect()
        step = update(peer, kind == "bf16")
        seconds(step, CPU)
        taken = seconds(step, CPU, updates)
        size = peers.BATCH * peers.CONTEXT
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"name": name, "MiB": peak, "microseconds_per_byte": min(taken) / size * 1e6}


def main(
    only: str | None = None,
    updates: int = 3,
    activations: float = 2.0,
    shjwudp: Path | None = None,
    json: str | None = None,
) -> None:
    """Peak memory of training beside other libraries, and against the length of a sequence.

    Args:
        only: Measure this line alone, in this process, and print it as JSON.
        updates: Updates in each process.
        activations: GiB of activations that the long sequences keep.
        shjwudp: A checkout of shjwudp/megabyte.
        json: Write the numbers to this file.
    """
    if only is not None:
        print(dumps(one(only, updates, shjwudp, activations)))
        return
    names = [f"{peer}: {kind}" for peer in ("megabyte-pytorch", "mblm", "HF Llama") for kind in ("fp32", "bf16")]
    names += [f"shjwudp/megabyte: {kind}" for kind in ("fp32", "bf16") if shjwudp]
    names += [f"byteloom: {kind}" for kind in ("bf16", "bf16 compiled", "bf16 compiled, chunks of 1024")]
    names += [f"three stages: {length:,}" for length in (8192, 65536, 262144, 1048576)]
    table = Table(title=f"training, {torch.get_num_threads()} threads")
    for column in ("", "peak MiB", "microseconds per byte"):
        table.add_column(column, justify="right")
    rows = []
    for name in names:
        command = [sys.executable, __file__, "--only", name, "--updates", str(updates)]
        command += ["--activations", str(activations), *(["--shjwudp", str(shjwudp)] if shjwudp else [])]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{name}: {done.stderr.splitlines()[-1] if done.stderr else 'failed'}")
            continue
        rows.append(loads(done.stdout.splitlines()[-1]))
        table.add_row(name, f"{rows[-1]['MiB']:,.0f}", f"{rows[-1]['microseconds_per_byte']:,.1f}")
        print(f"{name}: {rows[-1]['MiB']:,.0f} MiB", flush=True)
    Console(width=120).print(table)
    if json:
        Path(json).write_text(dumps(rows, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
