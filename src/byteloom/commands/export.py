"""Write a run's model as a folder of its own: for byteloom, for Hugging Face, or as a Llama."""

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
    to: Literal["byteloom", "hf", "llama"] = "byteloom",
    max_shard_size: str = "5GB",
) -> None:
    """Write a run's model as a folder of its own: for byteloom, for Hugging Face, or as a Llama.

    Args:
        model: Run, its best/, one of its checkpoints, or model folder.
        out: Folder to make.
        to: "hf" is opened by AutoModelForCausalLM.from_pretrained, with its tokenizer, processor and, where there is no
            README.md, a model card; "llama" by LlamaForCausalLM.from_pretrained, for one stage with what Llama has.
        max_shard_size: With "hf", begin another file of weights after so much.
    """
    if (out / "config.json").exists():
        raise CheckpointError(f"{out}: holds a model already; name another folder")
    has_card = to == "hf" and (out / "README.md").exists()
    if to == "hf":
        from byteloom.hf.folder import export_hf

        count = export_hf(model, out, max_shard_size)
    else:
        network = load(model)
        count = sum(p.numel() for p in network.parameters())
        if to == "llama":
            export_llama(network, out)
        else:
            save(network, out, read_run(model))
    kept = "; its README.md was kept, no model card was written" if has_card else ""
    print(f"{out}: {count:,} parameters, for {to}{kept}")
