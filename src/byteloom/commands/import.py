"""Make a model folder of another library's weights: megabyte-pytorch, Llama."""

from pathlib import Path
from typing import Literal

import tyro

from byteloom.commands import UsageError, call
from byteloom.interop import import_llama, import_megabyte_pytorch, megabyte_pytorch_config, read_options
from byteloom.models.store import CheckpointError, save


def main(argv: list[str]) -> None:
    """Runs the command."""
    call(run, argv, "import")


def run(
    kind: tyro.conf.Positional[Literal["megabyte-pytorch", "llama"]],
    source: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    /,
    config: str | None = None,
) -> None:
    """Make a model folder of another library's weights: megabyte-pytorch, Llama.

    Its logits are the original's; nothing but tensors is read from the checkpoint.

    Args:
        kind: Whose weights they are.
        source: For megabyte-pytorch the file with the state_dict, for llama the folder.
        out: Model folder to make.
        config: For megabyte-pytorch what MEGABYTE(...) was called with, as JSON or a JSON file.
    """
    if (out / "config.json").exists():
        raise CheckpointError(f"{out}: holds a model already; name another folder")
    if kind == "llama":
        if config is not None:
            raise UsageError("--config is for megabyte-pytorch; a Llama folder has its own")
        model = import_llama(source)
    else:
        if config is None:
            raise UsageError('give --config, such as \'{"num_tokens": 256, "dim": [512, 256], ...}\'')
        try:
            options = read_options(config)
            megabyte_pytorch_config(options)
        except ValueError as error:
            raise UsageError(str(error)) from error
        model = import_megabyte_pytorch(source, options)
    save(model, out, {"imported_from": kind})
    print(f"{out}: {sum(p.numel() for p in model.parameters()):,} parameters in {len(model.config.stages)} stages")
