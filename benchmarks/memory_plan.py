"""The memory that `byteloom.planning` foresees against that of real processes, which train side by side over gloo.

    python benchmarks/memory_plan.py [--recipe text-base] [--context 1024] [--batch-size 4] [--json FILE]

For each number of processes on this machine's CPU every rank makes three steps with `train.distributed.shard` and the
run's optimizer. Weights, gradients and optimizer are the bytes of tensors on the first rank. The peak is what torch's
allocator had given out at most in the third step; what the process's resident set grew by at most stands beside it.
"""

import gc
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from json import dumps, loads
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import tyro
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from byteloom import Multiscale, recipes
from byteloom.clusters import Cluster
from byteloom.planning import plan_run, size_here
from byteloom.train.distributed import ParallelConfig, make_mesh, reduce_gradients, shard
from byteloom.train.loop import RunConfig
from byteloom.train.optim import Optimizers

EXACT = ("weights", "gradients", "optimizer")


def measure(run: RunConfig, size: int, replicas: int) -> dict[str, int]:
    """Bytes on this rank of `size`, over three steps."""
    began = resident("VmRSS")
    model, settings = Multiscale(run.model).train(), run.train
    if size > 1:
        shard(model, make_mesh("cpu", size, ParallelConfig(replicas=replicas)), settings.precision)
    optimizers = Optimizers(model, run.optim)
    ids = torch.randint(0, 256, (settings.batch_size // size, run.model.context))
    gradients = 0

    def step() -> None:
        nonlocal gradients
        for i in range(settings.accumulation):
            reduce_gradients(model, i + 1 == settings.accumulation)
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
                loss = model.loss(ids)
            loss.nats.backward()
            del loss
        gradients = sum(size_here(p.grad) for p in model.parameters() if p.grad is not None)
        optimizers.step(0.5)

    step()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident set so far is forgotten
    step()
    grown = resident("VmHWM") - began
    weights = sum(size_here(p) for p in model.parameters())
    optimizer = sum(size_here(tensor) for tensor in optimizers.tensors().values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    live = highest = weights + optimizer
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            highest = max(highest, live)
    return {"weights": weights, "gradients": gradients, "optimizer": optimizer, "peak": highest, "resident": grown}


def resident(name: str) -> int:
    """A line of the process's status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def run_ranks(size: int, options: list[str]) -> dict[str, int]:
    """What the first of `size` processes measured. Raises SystemExit with the last line of one that failed."""
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, *options, "--rank", str(rank), "--processes", str(size)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "BYTELOOM_MEETING": f"file://{folder}/meeting"},
            )
            for rank in range(size)
        ]
        said = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, said, strict=True):
        if process.returncode:
            raise SystemExit(errors.strip().splitlines()[-1] if errors.strip() else "a process failed")
    return loads(said[0][0].splitlines()[-1])


def main(
    recipe: str = "text-base",
    processes: tuple[int, ...] = (1, 2, 4),
    context: int = 1024,
    batch_size: int = 4,
    accumulation: int = 1,
    replicas: int = 1,
    optimizer: Literal["muon", "adamw"] = "muon",
    precision: Literal["fp32", "bf16"] = "fp32",
    json: str | None = None,
    rank: int | None = None,
) -> None:
    """The memory that a plan foresees against that of real processes.

    Args:
        recipe: The run.
        processes: How many processes, one measurement each.
        context: Bytes in a sequence.
        batch_size: Sequences of all processes together.
        accumulation: Passes in a step.
        replicas: Whole copies of the model.
        optimizer: The optimizer.
        precision: bf16 autocast, or fp32.
        json: Write the numbers to this file.
        rank: Be this rank of so many processes, and print what it measures as JSON.
    """
    run = recipes.by_name(recipe)
    settings = replace(
        run.train, batch_size=batch_size, accumulation=accumulation, precision=precision, activation_memory=1024.0
    )
    run = replace(
        run, model=replace(run.model, context=context), optim=replace(run.optim, optimizer=optimizer), train=settings
    )
    if rank is not None:
        (size,) = processes
        torch.set_num_threads(1)
        if size > 1:
            dist.init_process_group("gloo", os.environ["BYTELOOM_MEETING"], rank=rank, world_size=size)
        print(dumps(measure(run, size, replicas)), flush=True)
        if size > 1:
            dist.destroy_process_group()
        return
    options = [
        *("--recipe", recipe, "--context", str(context), "--batch-size", str(batch_size)),
        *("--accumulation", str(accumulation), "--replicas", str(replicas)),
        *("--optimizer", optimizer, "--precision", precision),
    ]
    table = Table(title=f"{recipe}, {batch_size} x {context} bytes, {optimizer}, {precision}: MiB on the first rank")
    for column in ("processes", *EXACT, "peak", "foreseen", "off by", "resident set"):
        table.add_column(column, justify="right")
    rows: list[dict[str, Any]] = []
    for size in processes:
        copies = replicas if size > 1 else 1
        foreseen = plan_run(run, Cluster(gpus=size, gpu="cpu", replicas=copies)).memory
        found = run_ranks(size, options)
        off = foreseen.total / found["peak"] - 1
        plan = {**{name: getattr(foreseen, name) for name in EXACT}, "peak": foreseen.total}
        rows.append({"processes": size, "measured": found, "foreseen": plan, "off": off})
        sizes = [f"{found[name] / 2**20:,.1f}" for name in (*EXACT, "peak")]
        foretold, grown = (f"{bytes_ / 2**20:,.1f}" for bytes_ in (foreseen.total, found["resident"]))
        table.add_row(str(size), *sizes, foretold, f"{off:+.1%}", grown)
    Console(width=120).print(table)
    if json:
        Path(json).write_text(dumps(rows, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
