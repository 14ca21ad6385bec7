"""Checkpoints of a run: everything that training needs to go on as if it had never stopped.

    RUN/config.json, model.safetensors      the latest model, whole: RUN is a model folder
    RUN/best/                               the model with the lowest validation bits per byte
    RUN/checkpoints/step-00001200/          model.safetensors, optimizer.safetensors (with the state of the random
                                            generators), state.json (step, bytes, seconds, loader, config)

A checkpoint is written beside its place and renamed when it is on the disk, so one that has its name is whole.
"""

import os
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from byteloom.models.config import ModelConfig
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import (
    CheckpointError,
    config_from_dict,
    load_weights,
    read_json,
    read_tensors,
    save,
    write_json,
    write_tensors,
)
from byteloom.train.optim import Optimizers


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    """Updates made."""
    bytes: int = 0
    """Bytes that counted in the loss so far."""
    seconds: float = 0.0
    """Time spent training, over all sittings."""
    best: float | None = None
    """Lowest validation bits per byte so far."""
    validations: int = 0
    """Validations made so far."""
    data_bytes: int = 0
    """Bytes in the data that are learned from; a run goes on with the same."""
    precision: str = ""
    """"bf16" or "fp32", as decided when the run began; so are these three, for they change the last digits."""
    compiled: bool = False
    """Whether torch.compile is used."""
    chunk: int | None = None
    """Bytes of a batch that the finer stages take at a time."""
    recompute: tuple[int, ...] = ()
    """Stages whose layers are computed again in the backward pass."""


def save_checkpoint(
    run: Path,
    model: Multiscale,
    optimizers: Optimizers,
    progress: Progress,
    loader_state: dict[str, Any],
    about: dict[str, Any],
    keep: int,
) -> Path:
    """Writes a checkpoint, makes its model the run's latest, and removes all but the last `keep`. Raises OSError."""
    folder = run / "checkpoints" / f"step-{progress.step:08d}"
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save(model, partial, about)
    tensors = {f"optimizer:{name}": tensor for name, tensor in optimizers.tensors().items()}
    tensors["random:cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random:cuda"] = torch.cuda.get_rng_state()
    write_tensors(partial / "optimizer.safetensors", tensors)
    write_json(partial / "state.json", {"progress": asdict(progress), "loader": loader_state})
    if folder.exists():  # the same step again, after a resume: the old one was as good
        shutil.rmtree(folder)
    partial.rename(folder)
    sync_folder(folder.parent)
    for name in ("model.safetensors", "config.json"):
        replace_by_link(folder / name, run / name)
    for old in list_checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return folder


def save_best(run: Path, model: Multiscale, about: dict[str, Any]) -> None:
    """Makes this model the run's `best/`. Raises OSError."""
    partial, best, old = run / ".best.partial", run / "best", run / ".best.old"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    save(model, partial, about)
    if best.exists():
        best.rename(old)
    partial.rename(best)
    shutil.rmtree(old, ignore_errors=True)


def list_checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def load_checkpoint(folder: Path, model: Multiscale, optimizers: Optimizers) -> tuple[Progress, dict[str, Any]]:
    """Puts a checkpoint's state into a model, its optimizers and torch's generators.

    Returns:
        The progress and the loader's state.

    Raises:
        CheckpointError: a file is missing or damaged, or the checkpoint is of another model or optimizer.
    """
    config = read_json(folder / "config.json")
    try:
        saved = config_from_dict(ModelConfig, config.get("model"), "model")
        state = read_json(folder / "state.json")
        progress = config_from_dict(Progress, state.get("progress"), "progress")
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    check_same(saved, model.config, folder)
    tensors = read_tensors(folder / "optimizer.safetensors")
    if "random:cpu" not in tensors:
        raise CheckpointError(f"{folder}/optimizer.safetensors: lacks the random generator's state; it is damaged")
    weights = read_tensors(folder / "model.safetensors")
    try:
        load_weights(model, weights, folder / "model.safetensors")
        prefix = "optimizer:"
        optimizers.load_tensors({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}; start a new run in another folder") from error
    torch.set_rng_state(tensors["random:cpu"])
    if "random:cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random:cuda"])
    return progress, state.get("loader", {})


def check_same(saved: ModelConfig, wanted: ModelConfig, source: Path, but: Collection[str] = ()) -> None:
    """Raises CheckpointError naming the first field in which two model configs differ, save for the fields `but`."""
    old, new = flatten(asdict(saved)), flatten(asdict(wanted))
    for name in sorted(old.keys() | new.keys()):
        if name.split(".")[0] not in but and old.get(name) != new.get(name):
            raise CheckpointError(
                f"{source}: was made with model.{name} {old.get(name)}, now asked for {new.get(name)}; "
                "give the same, or train in another folder"
            )


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts and tuples as one dict with dotted names."""
    if isinstance(values, dict):
        items = values.items()
    elif isinstance(values, tuple) and values and isinstance(values[0], dict):
        items = enumerate(values)
    else:
        return {prefix.removesuffix("."): values}
    return {name: leaf for key, value in items for name, leaf in flatten(value, f"{prefix}{key}.").items()}


def replace_by_link(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source`, or a copy where the file system has no links."""
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        shutil.copyfile(source, partial)
    partial.replace(target)


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
