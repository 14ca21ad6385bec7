"""Say what a recipe, run or model costs: parameters, FLOPs per byte, memory."""

from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from byteloom import recipes
from byteloom.commands import UsageError, call, write_report
from byteloom.models.store import read_model_config
from byteloom.sizing import describe, propose


def main(argv: list[str]) -> None:
    """Runs the command."""
    call(run, argv, "info")


def run(
    model: tyro.conf.Positional[str | None] = None,
    /,
    context: int | None = None,
    batch_size: int | None = None,
    list: bool = False,
    flops_per_byte: float | None = None,
    parameters: int | None = None,
    memory: float | None = None,
    json: str | None = None,
) -> None:
    """Say what a recipe, run or model costs: parameters, FLOPs per byte, memory. Nothing is allocated for it.

    Args:
        model: Name of a recipe, or run or model folder.
        context: Bytes in a sequence; default: the model's.
        batch_size: Sequences in a training batch and in generation; default: the recipe's, or 1.
        list: List the recipes.
        flops_per_byte: Propose a model of up to so many FLOPs per byte of a forward pass, instead of naming one.
        parameters: Propose a model of up to so many parameters.
        memory: Propose a model that trains within so many GiB at batch size 1.
        json: Write all numbers as JSON to this file, or to stdout with "-".
    """
    console = Console(highlight=False)
    if list:
        table = Table("recipe", "what it is")
        for name, recipe in recipes.NAMES.items():
            table.add_row(name, (recipe.__doc__ or "").splitlines()[0])
        console.print(table)
        return
    optimizer, budget = "muon", (flops_per_byte, parameters, memory)
    if any(limit is not None for limit in budget):
        if model is not None:
            raise UsageError("a budget proposes a model; leave out the name, or the budget")
        limit = None if memory is None else round(memory * 2**30)
        try:
            config = propose(context or 8192, flops_per_byte=flops_per_byte, parameters=parameters, memory_bytes=limit)
        except ValueError as error:
            raise UsageError(str(error)) from error
        model = "proposal"
    elif model is None:
        raise UsageError("name a recipe, a run or a model folder, or give a budget; --list shows the recipes")
    elif model in recipes.NAMES or not Path(model).exists():
        try:
            run = recipes.by_name(model)
        except ValueError as error:
            raise UsageError(f"{error}; and there is no such folder") from None
        config, optimizer, batch_size = run.model, run.optim.optimizer, batch_size or run.train.batch_size
    else:
        config = read_model_config(model)
    numbers = describe(config, context, batch_size or 1, optimizer)
    write_report(numbers, json)
    if json == "-":
        return
    table = Table(title=f"{model}: {numbers['parameters']:,} parameters, context {numbers['context']:,}")
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
