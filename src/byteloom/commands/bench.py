"""Measure how fast a recipe or run trains and writes here, and where the time goes."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from byteloom import recipes
from byteloom.benchmark import Measured, generation_speed, profile_training, training_speed
from byteloom.commands import UsageError, call, check_output, note, write_report
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import load, pick_device, read_model_config
from byteloom.quantization import Weights, quantize
from byteloom.train.acceleration import can_compile, choose_precision, keep_memory
from byteloom.train.loop import RunConfig, TrainConfig


def main(argv: list[str]) -> None:
    """Runs the command."""
    call(run, argv, "bench")


def run(
    model: tyro.conf.Positional[str] = "text-small",
    /,
    profile: bool = False,
    part: Literal["both", "training", "generation"] = "both",
    context: int | None = None,
    batch_size: int | None = None,
    rows: int = 1,
    weights: tuple[Weights, ...] = ("fp32", "bf16", "int8"),
    compile: Literal["auto", "on", "off"] = "auto",
    rounds: int = 5,
    threads: int | None = None,
    device: str = "auto",
    json: str | None = None,
) -> None:
    """Measure how fast a recipe or run trains and writes here, and where the time goes.

    Args:
        model: Name of a recipe, or run or model folder.
        profile: Show where the time goes, by stage and part (training on a CPU; generation always by stage).
        part: What to measure.
        context: Bytes in a sequence of training; default: the model's.
        batch_size: Sequences in a training batch; default: the recipe's, or 4.
        rows: Sequences that are written at once.
        weights: Types of weights to write with.
        compile: Use torch.compile; "auto" where it works.
        rounds: How often to measure; the median is shown, with the smallest and the largest.
        threads: Threads to use; default: as many as torch takes.
        device: Where to run: "cpu", "cuda", or "auto" for CUDA where there is one.
        json: Write all numbers as JSON to this file, or to stdout with "-".
    """
    counts = {"rounds": rounds, "rows": rows, "context": context, "batch-size": batch_size, "threads": threads}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}; it must be at least 1")
    check_output(json)
    if threads is not None:
        torch.set_num_threads(threads)
    recipe = recipe_of(model, batch_size, context)
    place = pick_device(device)
    compiled = compile != "off" and can_compile(place)
    if compile == "on" and not compiled:
        raise UsageError("torch.compile does not work here: it needs g++ and Python's headers; use --compile off")
    keep_memory()
    quiet = json == "-"
    console = Console(highlight=False, stderr=quiet)
    numbers: dict[str, Any] = {"model": model, "threads": torch.get_num_threads(), "compiled": compiled}
    console.print(
        f"{model}: {place}, {torch.get_num_threads()} threads, " + ("compiled" if compiled else "not compiled")
    )
    size = recipe.train.batch_size
    if part != "generation":
        bf16 = choose_precision(recipe.train.precision, place) == "bf16"
        note(f"training: batch {size}, context {recipe.model.context:,}, {'bf16' if bf16 else 'fp32'}")
        found = training_speed(
            recipe.model, size, bf16=bf16, compiled=compiled, optim=recipe.optim, device=str(place), rounds=rounds
        )
        numbers["training"] = plain(found) | {"batch_size": size, "precision": "bf16" if bf16 else "fp32"}
        console.print(
            f"training    {spread(found['bytes_per_second'])} bytes/s, {found['flops_per_second'].median / 1e9:,.0f} "
            f"GFLOP/s: {found['share']:.0%} of the {found['matrix_rate'].median / 1e9:,.0f} that its matrix products "
            "reach alone"
        )
        if profile and place.type == "cpu":
            parts = profile_training(recipe.model, size, bf16=bf16, optim=recipe.optim)
            numbers["training"]["profile"] = parts
            show_profile(parts, console)
    if part != "training":
        table = Table(title=f"generation, {rows} row{'s' if rows > 1 else ''}")
        stages = [f"stage {i} us" for i in range(len(recipe.model.stages))]
        for column in ("weights", "bytes/s", "", "MB read a step", "of bandwidth", *stages):
            table.add_column(column, justify="right")
        numbers["generation"] = {}
        for kind in weights:
            note(f"generation: {kind}")
            network = load(model, str(place)) if Path(model).exists() else Multiscale(recipe.model).to(place)
            count = min(256, max(recipe.model.context // (rounds + 2), 1))
            limit = network.config.max_length
            if limit is not None and limit <= count * (rounds + 2):
                count = max(1, (limit - 2) // (rounds + 2))
            found = generation_speed(
                quantize(network, kind), batch_size=rows, context=count, count=count, compiled=compiled, rounds=rounds
            )
            numbers["generation"][kind] = plain(found)
            speed = found["bytes_per_second"]
            table.add_row(
                kind,
                f"{speed.median:,.0f}",
                f"{speed.smallest:,.0f} to {speed.largest:,.0f}",
                f"{found['bytes_read'] / 1e6:,.1f}",
                f"{found['share']:.0%}",
                *(f"{stage * 1e6:,.0f}" for stage in found["stages"]),
            )
        console.print(table)
    write_report(numbers, json)


def recipe_of(name: str, batch_size: int | None, context: int | None) -> RunConfig:
    """A recipe, or the model of a folder with a batch of 4, with what was asked for in its place."""
    if name in recipes.NAMES or not Path(name).exists():
        try:
            found = recipes.by_name(name)
        except ValueError as error:
            raise UsageError(f"{error}; and there is no such folder") from None
    else:
        found = RunConfig(model=read_model_config(name), train=TrainConfig(batch_size=4, steps=1))
    try:
        model = replace(found.model, context=context or found.model.context)
        return replace(found, model=model, train=replace(found.train, batch_size=batch_size or found.train.batch_size))
    except ValueError as error:
        raise UsageError(str(error)) from None


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON knows it."""
    return {key: asdict(value) if isinstance(value, Measured) else value for key, value in values.items()}


def spread(measured: Measured) -> str:
    """A median with its spread."""
    return f"{measured.median:,.0f} ({measured.smallest:,.0f} to {measured.largest:,.0f})"


def show_profile(parts: dict[str, float], console: Console) -> None:
    """A table of where an update's time goes."""
    whole = sum(parts.values())
    table = Table(title=f"an update, not compiled: {whole * 1e3:,.0f} ms")
    for column in ("part", "ms", "share"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for name, taken in sorted(parts.items()):
        table.add_row(name, f"{taken * 1e3:,.1f}", f"{taken / whole:.1%}")
    console.print(table)
