"""Say what a recipe, run or model costs: parameters, FLOPs per byte, memory, and what it takes on many GPUs."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from byteloom import recipes
from byteloom.clusters import UTILISATION, Cluster
from byteloom.commands import UsageError, call, check_output, write_report
from byteloom.models.store import read_model_config
from byteloom.planning import plan_run
from byteloom.sizing import describe, propose
from byteloom.train.loop import RunConfig, TrainConfig


def main(argv: list[str]) -> None:
    """Runs the command."""
    call(run, argv, "info")


def run(
    model: tyro.conf.Positional[str | None] = None,
    /,
    context: int | None = None,
    batch_size: Annotated[int | None, tyro.conf.arg(aliases=["--batch"])] = None,
    list: bool = False,
    flops_per_byte: float | None = None,
    parameters: int | None = None,
    memory: float | None = None,
    gpus: tuple[int, ...] = (),
    gpu: str = "h100",
    replicas: int = 1,
    accumulation: int | None = None,
    activation_memory: float | None = None,
    utilisation: float = UTILISATION,
    bytes: float | None = None,
    price: float | None = None,
    json: str | None = None,
) -> None:
    """Say what a recipe, run or model costs: parameters, FLOPs per byte, memory; with --gpus a run on so many, too.

    Nothing is allocated for it.

    Args:
        model: Name of a recipe, or run or model folder.
        context: Bytes in a sequence; default: the model's.
        batch_size: Sequences in a training batch and in generation; default: the recipe's, or 1. With --gpus: of all
            ranks together; default: the recipe's, or one a rank where that is more.
        list: List the recipes.
        flops_per_byte: Propose a model of up to so many FLOPs per byte of a forward pass, instead of naming one.
        parameters: Propose a model of up to so many parameters.
        memory: Propose a model that trains within so many GiB at batch size 1.
        gpus: Plan training on so many GPUs: memory of a rank, traffic, seconds of a step. Several numbers: a plan each.
        gpu: Which: a100, h100, h200, b200, or cpu.
        replicas: Whole copies of the model, each sharded over gpus / replicas ranks.
        accumulation: Passes in a step; default: the recipe's, or 1.
        activation_memory: GiB of activations that a rank keeps; default: an eighth of what is free, as in training.
        utilisation: Share of the peak FLOPs that training reaches.
        bytes: Say also how long learning from so many bytes takes.
        price: And what it costs, at this price of a GPU for an hour.
        json: Write all numbers as JSON to this file, or to stdout with "-".
    """
    console = Console(highlight=False)
    if list:
        table = Table("recipe", "what it is")
        for name, recipe in recipes.NAMES.items():
            table.add_row(name, (recipe.__doc__ or "").splitlines()[0])
        console.print(table)
        return
    for name, value in (("context", context), ("batch-size", batch_size), ("accumulation", accumulation)):
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}; it must be at least 1")
    check_output(json)
    if not gpus and any(option is not None for option in (bytes, price, accumulation, activation_memory)):
        raise UsageError("--bytes, --price, --accumulation and --activation-memory plan training; add --gpus N")
    budget = (flops_per_byte, parameters, memory)
    if any(limit is not None for limit in budget):
        if model is not None:
            raise UsageError("a budget proposes a model; leave out the name, or the budget")
        limit = None if memory is None else round(memory * 2**30)
        try:
            config = propose(context or 8192, flops_per_byte=flops_per_byte, parameters=parameters, memory_bytes=limit)
        except ValueError as error:
            raise UsageError(str(error)) from error
        model, recipe = "proposal", None
    elif model is None:
        raise UsageError("name a recipe, a run or a model folder, or give a budget; --list shows the recipes")
    elif model in recipes.NAMES or not Path(model).exists():
        try:
            recipe = recipes.by_name(model)
        except ValueError as error:
            raise UsageError(f"{error}; and there is no such folder") from None
        config = recipe.model
    else:
        config, recipe = read_model_config(model), None
    recipe = recipe or RunConfig(model=config, train=TrainConfig(batch_size=1, steps=1))
    plans = []
    try:
        numbers = describe(config, context, batch_size or recipe.train.batch_size, recipe.optim.optimizer)
        for count in gpus:
            settings = replace(
                recipe.train,
                batch_size=batch_size or max(count, recipe.train.batch_size),
                accumulation=accumulation or recipe.train.accumulation,
                activation_memory=activation_memory or recipe.train.activation_memory,
            )
            changed = replace(recipe, model=replace(config, context=context or config.context), train=settings)
            cluster = Cluster(gpus=count, gpu=gpu, replicas=replicas, utilisation=utilisation, price=price)
            plans.append(plan_run(changed, cluster).describe(bytes))
    except ValueError as error:
        raise UsageError(str(error)) from error
    write_report(numbers | ({"plans": plans} if plans else {}), json)
    if json != "-":
        show_model(console, model, numbers)
        if plans:
            show_plans(console, plans)


def show_model(console: Console, name: str, numbers: dict[str, Any]) -> None:
    """What `sizing.describe` found."""
    table = Table(title=f"{name}: {numbers['parameters']:,} parameters, context {numbers['context']:,}")
    for column in ("stage", "bytes a position", "width", "layers", "parameters", "FLOPs/byte forward", "generation"):
        table.add_column(column, justify="right")
    for i, stage in enumerate(numbers["stages"]):
        cost = stage["cost"]
        table.add_row(
            str(i),
            str(stage["span"]),
            str(stage["dim"]),
            str(stage["num_layers"]),
            f"{cost['parameters']:,}",
            f"{cost['flops']:,.0f}",
            f"{cost['generation_flops']:,.0f}",
        )
    console.print(table)
    parts = numbers["parameters_by_part"]
    console.print("parameters: " + ", ".join(f"{name} {count:,}" for name, count in parts.items()))
    flops = numbers["flops_per_byte"]
    console.print(
        f"FLOPs per byte: forward {flops['forward']:,.0f}, training {flops['training']:,.0f}, "
        f"generation {flops['generation']:,.0f}"
    )
    sizes = ", ".join(f"{name} {size / 2**20:,.1f}" for name, size in numbers["memory"].items())
    patches = " x ".join(str(stage["patch_size"]) for stage in numbers["stages"][:-1])
    if patches:
        console.print(
            f"patch sizes {patches}, heads {', '.join(str(stage['num_heads']) for stage in numbers['stages'])}"
        )
    console.print(f"MiB at batch {numbers['batch_size']}: {sizes}")


def show_plans(console: Console, plans: list[dict[str, Any]]) -> None:
    """What `planning.plan_run` found, a column a cluster."""
    first = plans[0]
    table = Table(title=f"training on {first['gpu']}s, {first['precision']}; GB = 10^9 bytes, of one rank")
    table.add_column("GPUs")
    for plan in plans:
        copies = f" ({plan['replicas']} copies)" if plan["replicas"] > 1 else ""
        table.add_column(f"{plan['gpus']:,}{copies}", justify="right")

    def row(name: str, *values: str) -> None:
        table.add_row(name, *values)

    row("sequences a rank x passes", *(f"{plan['rows_per_rank']} x {plan['accumulation']}" for plan in plans))
    row("computed again", *(again(plan["recomputation"]) for plan in plans))
    memory = [plan["memory_per_rank"] for plan in plans]
    for name in memory[0]:
        if name == "total":
            row("most at a time, GB", *(f"{entry[name] / 1e9:,.2f}" for entry in memory))
        elif any(entry[name] for entry in memory):
            row(f"{name}, GB", *(f"{entry[name] / 1e9:,.2f}" for entry in memory))
    row("fits", *("yes" if plan["fits"] else "no" for plan in plans))
    for name in first["bytes_received_per_step"]:
        sizes = [plan["bytes_received_per_step"][name] for plan in plans]
        if any(sizes):
            row(f"{name.replace('_', '-')} a step, GB", *(f"{size / 1e9:,.2f}" for size in sizes))
    for name in first["seconds_per_step"]:
        row(f"{name}, s a step", *(f"{plan['seconds_per_step'][name]:,.3f}" for plan in plans))
    row("bytes/s, all ranks", *(f"{plan['bytes_per_second']:,.0f}" for plan in plans))
    if "run" in first:
        runs = [plan["run"] for plan in plans]
        row("days", *(f"{run['days']:,.2f}" for run in runs))
        row("GPU-hours", *(f"{run['gpu_hours']:,.0f}" for run in runs))
        if runs[0]["cost"] is not None:
            row("cost", *(f"{run['cost']:,.0f}" for run in runs))
    console.print(table)
    console.print(
        f"times are estimates: {first['utilisation']:.0%} of the peak FLOPs, "
        f"{first['assumptions']['link_utilisation']:.0%} of the links' speed; {'; '.join(first['assumptions']['rest'])}"
    )


def again(recomputation: dict[str, Any]) -> str:
    """What the backward pass computes again, in words."""
    stages = ", ".join(str(stage) for stage in recomputation["recompute"])
    parts = [f"stages {stages}"] if stages else []
    parts += [f"chunks of {recomputation['chunk']:,}"] if recomputation["chunk"] else []
    return ", ".join(parts) or "nothing"
