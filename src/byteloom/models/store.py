"""A model as a folder: config.json and model.safetensors in, a model out, and back.

Nothing in such a folder is unpickled or executed. Writing is atomic: a reader finds the old file or the new one, whole.
Cost: one copy of the weights.
"""

import dataclasses
import json
import math
import os
import secrets
import types
import typing
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from byteloom import __version__
from byteloom.models.config import ModelConfig
from byteloom.models.multiscale import Multiscale

MAX_CONFIG_BYTES = 16 << 20

T = TypeVar("T")


class CheckpointError(Exception):
    """A model or checkpoint that cannot be used. The message is one line that names it and says what to do."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


def save(model: Multiscale, folder: str | PathLike[str], run: Mapping[str, Any] | None = None) -> None:
    """Writes `config.json` and `model.safetensors` into a folder, which is made if it is not there.

    `run` is kept in config.json as it is, for people to read: how the model came to be. Raises OSError.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", model.state_dict())
    config = {"byteloom": __version__, "model": dataclasses.asdict(model.config), "run": dict(run or {})}
    write_json(folder / "config.json", config)


def pick_device(name: torch.device | str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one, else the CPU. Raises ValueError where it is not."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is unknown; say cpu, cuda or auto") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} is not there: torch finds {torch.cuda.device_count()} CUDA devices")
    return device


def load(
    folder: str | PathLike[str], device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Multiscale:
    """The model in a folder that `save` or `byteloom train` wrote, in evaluation mode.

    `device` may be "auto", which is CUDA where there is one.

    Raises:
        ValueError: the device is unknown or not there.
        CheckpointError: the folder is no model, is damaged, or its config does not match its weights.
    """
    folder, device = Path(folder), pick_device(device)
    config = read_model_config(folder)
    weights = read_tensors(folder / "model.safetensors", device)
    with torch.device("meta"):
        model = Multiscale(config)
    load_weights(model, weights, folder / "model.safetensors", assign=True)
    return (model if dtype is None else model.to(dtype)).eval()


def load_weights(model: Multiscale, weights: Mapping[str, Tensor], source: Path, *, assign: bool = False) -> None:
    """Copies weights into a model, or with `assign` makes them its parameters; every name and shape must agree.

    Raises:
        CheckpointError: one does not; the message names the first and where it came from.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(shapes.keys() | weights.keys()):
        ours, theirs = shapes.get(name), tuple(weights[name].shape) if name in weights else None
        if ours != theirs:
            said = "no such tensor" if ours is None else f"shape {list(ours)}"
            found = "lacks it" if theirs is None else f"has shape {list(theirs)}"
            raise CheckpointError(
                f"{source}: does not match its config.json: {name} should be {said}, the file {found}"
            )
    model.load_state_dict(dict(weights), assign=assign)


def read_model_config(folder: str | PathLike[str]) -> ModelConfig:
    """The `ModelConfig` of a model folder. Raises CheckpointError as `load`."""
    path = Path(folder) / "config.json"
    config = read_json(path)
    if "byteloom" not in config or "model" not in config:
        raise CheckpointError(f"{path}: is not the config of a byteloom model; name a folder that byteloom wrote")
    try:
        return config_from_dict(ModelConfig, config["model"], "model")
    except ValueError as error:
        raise CheckpointError(f"{path}: {error} (written by byteloom {config['byteloom']})") from error


def read_run(folder: str | PathLike[str]) -> dict[str, Any]:
    """What config.json says about how the model came to be; empty where it says nothing."""
    run = read_json(Path(folder) / "config.json").get("run")
    return run if isinstance(run, dict) else {}


def config_from_dict(kind: type[T], values: object, where: str) -> T:
    """Builds a config dataclass, nested ones too, from what `dataclasses.asdict` and JSON made of it.

    Raises:
        ValueError: a field is unknown, missing, of a wrong type or refused by the config; `where` names its place.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be an object with fields, not {values!r:.40}")
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in hints:
            raise ValueError(f"{where}.{name} is not a field of {kind.__name__}; was it written by a newer version?")
    fields = {name: _convert(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    try:
        return kind(**fields)
    except TypeError as error:
        raise ValueError(f"{where} is not a complete {kind.__name__}: {error}") from error


def _convert(hint: Any, value: object, where: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        (hint,) = (option for option in options if option is not type(None))
        return _convert(hint, value, where)
    if origin is typing.Literal:
        if value not in options:
            raise ValueError(f"{where} is {value!r:.40}; it must be one of {', '.join(map(repr, options))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where} must be a list, not {value!r:.40}")
        kinds = [options[0]] * len(value) if options[-1] is Ellipsis else options
        if len(kinds) != len(value):
            raise ValueError(f"{where} must have {len(kinds)} values, not {len(value)}")
        return tuple(_convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value)))
    if dataclasses.is_dataclass(hint):
        return config_from_dict(typing.cast(type, hint), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{where} is {value!r:.40}; it must be of type {hint.__name__}")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file. Raises CheckpointError where it is missing, too large or damaged."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path}: is too large for a config; name a folder that byteloom wrote")
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not found; name a folder that byteloom wrote, with its config.json") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is damaged, it is not JSON; take it from a backup or train anew") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: is damaged, it holds no fields; take it from a backup or train anew")
    return values


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises CheckpointError where it is missing or damaged."""
    try:
        return load_file(path, device=str(device))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not found; name a folder that byteloom wrote") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is damaged or no safetensors file ({error}); take another copy") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: dict[str, str] | None = None) -> None:
    """Writes a safetensors file, whole or not at all, with `about` in its header."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, tensors_to_bytes(held, about))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON file, whole or not at all."""
    write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file by new content that has reached the disk."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
