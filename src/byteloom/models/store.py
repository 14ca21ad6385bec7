"""A model as a folder: config.json and model.safetensors in, a model out, and back.

Nothing in such a folder is unpickled or executed. Writing is atomic: a reader finds the old file or the new one, whole.
What was written here carries checksums, so a changed bit is found and the file named before anything is made of it.
Cost: one copy of the weights.
"""

import dataclasses
import hashlib
import json
import math
import types
import typing
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from byteloom import __version__
from byteloom.files import write_atomically, write_json
from byteloom.models.config import ModelConfig
from byteloom.models.multiscale import Multiscale

MAX_CONFIG_BYTES = 16 << 20
STATE = "state.json"
"""The file of a checkpoint that says what it is made of."""

T = TypeVar("T")


class CheckpointError(Exception):
    """A model or checkpoint that cannot be used. The message is one line that names it and says what to do."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


def save(model: Multiscale, folder: str | PathLike[str], run: Mapping[str, Any] | None = None) -> None:
    """Writes `config.json` and `model.safetensors` into a folder, which is made if it is not there.

    `run` is kept in config.json as it is, for people to read: how the model came to be. Raises OSError, and
    CheckpointError for a model of narrow weights, which its config would not tell from a wide one.
    """
    weights = model.state_dict()
    if weights.keys() - dict(model.named_parameters()).keys():
        raise CheckpointError(f"{folder}: a quantized model is not saved; save it before, and quantize what is loaded")
    write_model(Path(folder), weights, config_of(model, run))


def write_model(folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Writes a model's weights and what `config_of` says about it into a folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    sums = {"sha256": digest_of_tensors(weights), "config": digest_of_config(config)}
    write_tensors(folder / "model.safetensors", weights, {"format": "pt", **sums})
    write_json(folder / "config.json", config)


def config_of(model: Multiscale, run: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What config.json holds; by its first two fields transformers knows `byteloom.hf`."""
    return {
        "model_type": "byteloom",
        "architectures": ["ByteloomForCausalLM"],
        "byteloom": __version__,
        "model": dataclasses.asdict(model.config),
        "run": sealed(run) if run else {},
    }


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
    weights = read_weights(folder, device)
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
    """What config.json says about how the model came to be; empty where it says nothing.

    Raises CheckpointError where the file is missing or damaged.
    """
    path = Path(folder) / "config.json"
    run = read_json(path).get("run")
    return unsealed(run, path) if isinstance(run, dict) else {}


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
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
        tensors = load_file(path, device=str(device))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not found; name a folder that byteloom wrote") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is damaged or no safetensors file ({error}); take another copy") from error
    if ("config" in about or "sha256" in about) and (
        about.keys() != {"format", "sha256", "config"}
        or about["sha256"] != digest_of_tensors(tensors)
        or about["config"] != digest_of_config(read_json(path.with_name("config.json")))
    ):
        raise CheckpointError(
            f"{path}: does not match its config.json and checksum: one of the two files is damaged or of another "
            "model; take another copy of both"
        )
    return tensors


def read_weights(folder: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """All weights in a folder by their native names: of one file, of several and their index, as transformers writes,
    or of a checkpoint's pieces.

    Raises CheckpointError where one is missing or damaged, or a name leads out of the folder.
    """
    index = folder / "model.safetensors.index.json"
    pieces = (folder / STATE).exists() or any(folder.glob("shard-*.safetensors"))
    if pieces and not (folder / "model.safetensors").exists():
        check_pieces(folder)
        return read_pieces(folder, "model.", device)
    if (folder / "model.safetensors").exists() or not index.exists():
        weights = read_tensors(folder / "model.safetensors", device)
    else:
        parts = [read_tensors(folder / file, device) for file in listed_files(index)]
        weights = {name: tensor for part in parts for name, tensor in part.items()}
    inside = "model."  # where the native model stands in that of byteloom.hf
    return {name.removeprefix(inside): tensor for name, tensor in weights.items()}


def listed_files(index: Path) -> list[str]:
    """The files that transformers' index of weights lists. Raises CheckpointError where they are not of its folder."""
    files = read_json(index).get("weight_map")
    names = list(files.values()) if isinstance(files, dict) else []
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise CheckpointError(f"{index}: is damaged, it lists no files of this folder; take another copy")
    return sorted(set(names))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: dict[str, str] | None = None) -> None:
    """Writes a safetensors file, whole or not at all, with `about` in its header."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, tensors_to_bytes(held, about))


# -- checksums, and checkpoints in pieces ----------------------------------------------------------------------------


def digest(value: object) -> str:
    """SHA-256 of a value as JSON, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_of_config(config: Mapping[str, Any]) -> str:
    """SHA-256 of what must not change between weights and their config.json: the model's fields, and which run it was.

    The rest of what is said about a run may be written anew before its weights are.
    """
    run = config.get("run")
    return digest([config.get("model"), run.get("identity") if isinstance(run, Mapping) else None])


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and contents."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values with their checksum, for a JSON file that nobody is to edit."""
    plain = json.loads(json.dumps({name: value for name, value in values.items() if name != "sha256"}))
    return {**plain, "sha256": digest(plain)}


def unsealed(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What `sealed` was given. Raises CheckpointError, naming the file, where a value has changed since."""
    plain = {name: value for name, value in values.items() if name != "sha256"}
    if "sha256" in values and values["sha256"] != digest(plain):
        raise CheckpointError(f"{path}: is damaged, its values are not those of its checksum; take another copy")
    return plain


def check_pieces(folder: Path, share: int = 0, shares: int = 1) -> dict[str, Any]:
    """What a checkpoint's state.json says, once its files are found to be what was written.

    Of several processes each looks into its share of the files, and at the length of all.

    Raises CheckpointError that names the first file that is missing, too many, or has changed.
    """
    path = folder / STATE
    state = read_json(path)
    files = unsealed(state, path).get("files")
    if "sha256" not in state or not isinstance(files, dict):
        raise CheckpointError(f"{path}: is damaged, it lists no files and checksums; take another checkpoint")
    for name in sorted(file.name for file in folder.glob("*.safetensors")):
        if name not in files:
            raise CheckpointError(f"{folder / name}: does not belong to this checkpoint; remove it")
    for number, (name, wanted) in enumerate(sorted(files.items())):
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise CheckpointError(f"{file}: not found, and it is a piece of this checkpoint; take another checkpoint")
        if file.stat().st_size != wanted["bytes"]:
            raise CheckpointError(
                f"{file}: is damaged, it has {file.stat().st_size:,} bytes and not {wanted['bytes']:,}; "
                "take another checkpoint"
            )
        if number % shares == share and digest_of_file(file) != wanted["sha256"]:
            raise CheckpointError(f"{file}: is damaged, it is not what its checksum says; take another checkpoint")
    return unsealed(state, path)


def read_pieces(folder: Path, prefix: str, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The tensors of a checkpoint whose names begin with a prefix, whole, by the rest of their names."""
    from torch.distributed import checkpoint as dcp  # takes a while to import, and few need it
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")  # as is meant here
    reader = dcp.HuggingFaceStorageReader(str(folder))
    wanted = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device=device)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(wanted, storage_reader=reader, no_dist=True)
    return {name.removeprefix(prefix): tensor for name, tensor in wanted.items()}
