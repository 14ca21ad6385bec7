"""Train a model on files, folders or prepared data."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from byteloom import recipes
from byteloom.codecs import MediaConfig, by_modality
from byteloom.commands import UsageError, check_output, parse, write_report
from byteloom.hub import parse as parse_dataset
from byteloom.models.config import ModelConfig
from byteloom.train.data import check_mixture, settle_media
from byteloom.train.distributed import ParallelConfig, is_main
from byteloom.train.loop import RunConfig, TrainConfig, train
from byteloom.train.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train a model on files, folders or prepared data.

    Without --valid, 5 % of the data are held out, by file. Ctrl-C finishes the step and saves; --resume goes on.
    On several GPUs or machines: torchrun --nproc-per-node N -m byteloom train RECIPE ..., with the same options.
    """

    data: tuple[str, ...]
    """Files, folders and prepared data to learn from, here or elsewhere (s3://bucket/folder)."""
    out: Path
    """Folder for the run: model, checkpoints, metrics."""
    valid: tuple[str, ...] = ()
    """Held-out data to measure bits per byte on while training."""
    modality: str | None = None
    """Read every file of --data and --valid as this one; by default each by its name and content."""
    hf_dataset: tuple[str, ...] = ()
    """Datasets of Hugging Face to learn from, each as NAME_OR_PATH[:split[:column]]; several columns joined with "+"
    make one document. For --mixture they come after --data."""
    hf_valid: tuple[str, ...] = ()
    """Held-out data, written in the same way."""
    hf_streaming: bool = False
    """Read --hf-dataset while training and keep nothing: for what is larger than memory, or disk. Without held-out
    data, the first documents are held out."""
    resume: bool = False
    """Go on from the last checkpoint in --out, or begin where there is none."""
    init: Path | None = None
    """Begin with the weights of this run or model folder, which may know other modalities."""
    json: str | None = None
    """Write the final numbers as JSON to this file, or to stdout with "-"."""
    train: Annotated[TrainConfig, tyro.conf.arg(name="")]
    optim: OptimConfig
    model: ModelConfig
    parallel: Annotated[ParallelConfig, tyro.conf.arg(name="")]
    media: Annotated[MediaConfig, tyro.conf.arg(name="")]


def main(argv: list[str]) -> None:
    """Runs the command: the recipe's name first, then options over its fields."""
    names = ", ".join(recipes.NAMES)
    asks_help = bool({"-h", "--help"} & set(argv))
    if not asks_help and (not argv or argv[0].startswith("-")):
        raise UsageError(f"name a recipe first, as in: byteloom train text-small --data FILE (there are {names})")
    name = "text-small" if asks_help and argv[0].startswith("-") else argv[0]
    try:
        config = recipes.by_name(name)
    except ValueError as error:
        raise UsageError(str(error)) from None
    defaults = Options(
        data=(),
        out=Path("runs") / name,
        model=config.model,
        optim=config.optim,
        train=without_budget(config, argv),
        parallel=config.parallel,
        media=config.media,
    )
    if asks_help:
        print(f"RECIPE is one of {names}; shown are the defaults of {name}.\n")
    options = parse(Options, argv[1:] if argv[0] == name else argv, f"train {name}", defaults)
    check_output(options.json, *map(Path, [*options.data, *options.valid]), made=options.out)
    data = [*options.data, *(parse_dataset(text, options.hf_streaming) for text in options.hf_dataset)]
    valid = [*options.valid, *map(parse_dataset, options.hf_valid)]
    if not data:
        raise UsageError("name the data to learn from: --data FILE_OR_FOLDER ..., or --hf-dataset NAME ...")
    if options.hf_streaming and (options.data or not options.hf_dataset):
        raise UsageError("--hf-streaming reads --hf-dataset and nothing else; leave it out, or leave --data out")
    settle_media([*options.data, *options.valid], options.media, config.media)  # or what was asked would go unheard
    try:
        check_mixture(options.train.mixture, len(data))
        if options.modality is not None:
            by_modality(options.modality)
    except ValueError as error:
        raise UsageError(str(error)) from None
    result = train(
        RunConfig(
            model=options.model,
            optim=options.optim,
            train=options.train,
            parallel=options.parallel,
            media=options.media,
        ),
        data,
        options.out,
        valid=valid or None,
        resume=options.resume,
        init=options.init,
        modality=options.modality,
        show=True,
    ).summary()
    if not is_main():
        return
    write_report(result, options.json)
    if options.json != "-":
        print(
            f"{options.out}: {result['step']} steps, {result['bytes'] / 1e6:.2f} MB in {result['seconds']:.0f} s"
            + (f", held out {result['valid_bits_per_byte']:.3f} bits per byte" if result["valid_bits_per_byte"] else "")
        )


def without_budget(config: RunConfig, argv: list[str]) -> TrainConfig:
    """The recipe's batches and budget; a budget that the command line gives stands alone, not beside the recipe's."""
    flags = {arg.split("=")[0].lstrip("-").replace("-", "_") for arg in argv if arg.startswith("--")}
    budget = ("steps", "max_bytes", "max_seconds")
    if not flags & set(budget):
        return config.train
    # One limit of any size keeps the config valid until the command line's own is put in.
    return replace(
        config.train,
        steps=1 if "steps" in flags else None,
        max_bytes=1 if "max_bytes" in flags and "steps" not in flags else None,
        max_seconds=1.0 if flags & set(budget) == {"max_seconds"} else None,
    )
