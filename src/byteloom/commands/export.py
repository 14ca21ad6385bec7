"""Write a run's model as a folder of its own, for byteloom or as a Llama."""

from pathlib import Path
from typing import Literal

import tyro

from byteloom.commands import call
from byteloom.interop import export_llama
from byteloom.models.store import CheckpointError, load, read_run, save


def main(argv: list[str]) -> None:
    """Runs the command."""
    call(run, argv, "export")


def run(
    model: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    /,
    format: Literal["byteloom", "llama"] = "byteloom",
) -> None:
    """Write a run's model as a folder of its own, for byteloom or as a Llama.

    Args:
        model: Run, its best/, one of its checkpoints, or model folder.
        out: Folder to make.
        format: "llama" is opened by LlamaForCausalLM.from_pretrained; one stage with what Llama has.
    """
    if (out / "config.json").exists():
        raise CheckpointError(f"{out}: holds a model already; name another folder")
    network = load(model)
    if format == "llama":
        export_llama(network, out)
    else:
        save(network, out, read_run(model))
    print(f"{out}: {sum(p.numel() for p in network.parameters()):,} parameters, {format} format")
