"""Checkpoints of a run: everything that training needs to go on as if it had never stopped.

    RUN/config.json, model.safetensors      the latest model, whole: RUN is a model folder
    RUN/best/                               the model with the lowest validation bits per byte
    RUN/checkpoints/step-00001200/          shard-*.safetensors: weights, optimizer, average, random generators, a
                                            piece from each process; config.json; state.json: step, bytes, seconds,
                                            loader, and length and checksum of every other file

PyTorch's DCP writes and reads the pieces, so a run goes on among any number of processes. Saving costs a copy of the
state in the host's memory; the rest is done by a thread while training goes on. A checkpoint is written beside its
place and renamed when it is on the disk, so one that has its name is whole. Nothing is pickled.
"""

import concurrent.futures
import contextlib
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import checkpoint as dcp

from byteloom.files import held, sync, write_json
from byteloom.models.config import ModelConfig
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import (
    STATE,
    CheckpointError,
    check_pieces,
    config_from_dict,
    config_of,
    digest_of_file,
    read_json,
    read_pieces,
    sealed,
    write_model,
)
from byteloom.train.average import Average
from byteloom.train.distributed import World
from byteloom.train.optim import Optimizers

# Without torchrun DCP warns that it saves for a single process, as is meant.
warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    """Updates made."""
    bytes: int = 0
    """Bytes that counted in the loss so far."""
    seconds: float = 0.0
    """Time spent training, over all sittings."""
    first_seconds: float = 0.0
    """Of these the first step's, which compiles: a learning rate that follows the time begins after it, or compiling
    would take the place of warm-up."""
    best: float | None = None
    """Lowest validation bits per byte so far."""
    validations: int = 0
    """Validations made so far."""
    identity: str = ""
    """Of the run, by chance: tells its files from those of others."""
    data_bytes: int = 0
    """Bytes in the data that are learned from; a run goes on with the same."""
    precision: str = ""
    """"bf16" or "fp32", as decided when the run began or asked for since; so are these three, for they change the last
    digits."""
    compiled: bool = False
    """Whether torch.compile is used."""
    chunk: int | None = None
    """Bytes of a batch that the finer stages take at a time."""
    recompute: tuple[int, ...] = ()
    """Stages whose layers are computed again in the backward pass."""


class Saver:
    """Writes the checkpoints and the best model of a run, one at a time, by a thread of each of its processes.

    There is a thread for each, which ends with it. One that has worked on tensors keeps helpers of its own for as long
    as it lives, and OpenMP, which then counts more threads than cores, lets those of training sleep at every barrier:
    half as fast a step.
    """

    def __init__(self, run: Path, world: World, keep: int):
        self.run, self.world, self.keep = run, world, keep
        self.job: Future[None] | None = None
        if world.main:
            clean_up(run)

    def save(
        self,
        model: Multiscale,
        optimizers: Optimizers,
        average: Average | None,
        progress: Progress,
        loader_state: dict[str, Any],
        about: Mapping[str, Any],
    ) -> None:
        """Begins a checkpoint, once the one before is done; all processes call it at the same step.

        When it is written, its model becomes the run's latest, and all checkpoints but the last `keep` are removed.
        Raises as `wait`.
        """
        folder = self.run / "checkpoints" / f"step-{progress.step:08d}"
        config = config_of(model, about)
        state = {"progress": asdict(progress), "loader": loader_state}
        latest = "average." if average else "model."

        def finish(partial: Path, files: dict[str, dict[str, Any]]) -> None:
            write_json(partial / "config.json", config)
            files["config.json"] = described(partial / "config.json")
            write_json(partial / STATE, sealed({**state, "processes": self.world.size, "files": files}))
            # First, or a run that is killed here after its last step would go on from the checkpoint, find that nothing
            # is left to do, and have an old model.
            write_model(self.run, read_pieces(partial, latest), config)
            partial.rename(folder)
            sync(folder.parent)
            for old in list_checkpoints(self.run)[: -self.keep]:
                gone = old.rename(old.with_name(f".{old.name}.old.partial"))  # what has the name of one is whole
                shutil.rmtree(gone)

        self.start(folder, tensors_of(model, optimizers, average, self.world.rank), finish)

    def save_best(self, model: Multiscale, about: Mapping[str, Any]) -> None:
        """Begins to make this model the run's `best/`, once what is being written is done. Raises as `wait`."""
        best, old = self.run / "best", self.run / ".best.old"
        config = config_of(model, about)

        def finish(partial: Path, files: Collection[str]) -> None:
            write_model(partial, read_pieces(partial, "model."), config)
            for name in files:
                (partial / name).unlink()
            if best.exists():
                best.rename(old)
            partial.rename(best)
            shutil.rmtree(old, ignore_errors=True)

        self.start(best, {f"model.{name}": tensor for name, tensor in model.state_dict().items()}, finish)

    def start(
        self, folder: Path, tensors: dict[str, Tensor], finish: Callable[[Path, dict[str, dict[str, Any]]], None]
    ) -> None:
        """Copies tensors, and begins to write them beside a folder; then the main process alone calls `finish`."""
        self.wait()
        partial = folder.with_name(f".{folder.name}.partial")
        if self.world.main:
            with naming(folder, self.run):
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True, exist_ok=True)  # another process's writer may just have made it
        writer = dcp.HuggingFaceStorageWriter(str(partial), save_distributed=True)
        written: Any = dcp.async_save(tensors, storage_writer=writer, process_group=self.world.writers)
        thread = ThreadPoolExecutor(1, "checkpoint")
        self.job = thread.submit(self.complete, written, partial, folder, finish)
        thread.shutdown(wait=False)

    def complete(
        self,
        written: Future[Any],
        partial: Path,
        folder: Path,
        finish: Callable[[Path, dict[str, dict[str, Any]]], None],
    ) -> None:
        """What the thread does: waits for the pieces, describes its own, and in the main process finishes."""
        with naming(folder, self.run), removing(partial if self.world.main else None):
            written.result()
            own = partial.glob(f"shard-{self.world.rank + 1:05d}-*.safetensors")
            files = {path.name: described(path) for path in own}
            if self.world.writers is not None:
                everyone: list[Any] | None = [None] * self.world.size if self.world.main else None
                dist.gather_object(files, everyone, group=self.world.writers)
                files = {name: entry for part in everyone or () for name, entry in part.items()}
            if self.world.main:
                finish(partial, files)

    @property
    def problem(self) -> str:
        """Why what was being written could not be; empty where it could, or is not done."""
        failure = self.job.exception() if self.job is not None and self.job.done() else None
        return "" if failure is None else str(failure) or type(failure).__name__

    def wait(self) -> None:
        """Returns when nothing is being written.

        Raises CheckpointError where it could not be written; the checkpoints before it are as they were.
        """
        job, self.job = self.job, None
        if job is not None:
            job.result()

    def close(self) -> None:
        """Returns when nothing is being written, whatever became of it."""
        if self.job is not None:
            concurrent.futures.wait([self.job])


@contextlib.contextmanager
def naming(folder: Path, run: Path) -> Iterator[None]:
    """What goes wrong inside becomes one error that names the folder, the reason and what is left."""
    try:
        yield
    except (OSError, dcp.CheckpointException) as error:
        causes = [cause for cause, _ in error.failures.values()] if isinstance(error, dcp.CheckpointException) else []
        cause = next((cause for cause in [*causes, error] if isinstance(cause, OSError)), error)
        reason = (cause.strerror if isinstance(cause, OSError) else None) or str(cause).splitlines()[0]
        whole = list_checkpoints(run)
        raise CheckpointError(
            f"{folder}: cannot be written ({reason}); "
            + (f"{whole[-1]} is the last whole checkpoint, --resume goes on from there" if whole else "none was before")
        ) from error


@contextlib.contextmanager
def removing(partial: Path | None) -> Iterator[None]:
    """Where something goes wrong inside, what is half written gives its room back."""
    try:
        yield
    except BaseException:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        raise


@contextlib.contextmanager
def alone_in(run: Path, world: World) -> Iterator[None]:
    """Inside, no other run is in this folder, which is made. Raises CheckpointError where another process trains in it.

    Only the main process asks, for all of its run.
    """
    if not world.main:
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    with held(run, CheckpointError(f"{run}: another process trains in it; wait until it has ended, or stop it")):
        yield


def clean_up(run: Path) -> None:
    """Removes what a killed run left half written."""
    best, old = run / "best", run / ".best.old"
    if old.exists() and not best.exists():  # killed between two renames
        old.rename(best)
    if cut_off(run):  # or another kill would leave a model and nothing that says whose it is
        (run / "model.safetensors").unlink()
    for path in [*run.glob(".best.*"), *(run / "checkpoints").glob(".*.partial")]:
        shutil.rmtree(path, ignore_errors=True)
    for path in run.glob(".*.partial"):
        path.unlink(missing_ok=True)


def described(path: Path) -> dict[str, Any]:
    """Length and checksum of a file."""
    return {"bytes": path.stat().st_size, "sha256": digest_of_file(path)}


def tensors_of(model: Multiscale, optimizers: Optimizers, average: Average | None, rank: int) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name; of sharded ones this process holds its shard."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in optimizers.tensors().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in (average.tensors if average else {}).items()}
    tensors[f"random.{rank}.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors[f"random.{rank}.cuda"] = torch.cuda.get_rng_state()
    return tensors


def list_checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def checkpoints_of(run: Path, resume: bool) -> list[Path]:
    """The whole checkpoints of the run that a folder is for: none where it begins.

    A run that was killed before its first one begins anew; but not over a model that no checkpoint goes on from.

    Raises:
        CheckpointError: the folder holds a run and `resume` is False, or it holds such a model.
    """
    found, model = list_checkpoints(run), run / "model.safetensors"
    if not found and model.exists() and not cut_off(run):
        raise CheckpointError(
            f"{run}: has a model and no checkpoints; begin with its weights by --init {run} and another --out, "
            "or move it"
        )
    if any((run / name).exists() for name in ("config.json", "metrics.jsonl", "checkpoints")) and not resume:
        raise CheckpointError(f"{run}: holds a run already; add --resume to go on with it, or name another folder")
    return found


def cut_off(run: Path) -> bool:
    """Whether a run was killed when its model was written and the first checkpoint, which it is of, had no name yet."""
    try:
        written = (run / "model.safetensors").stat().st_mtime_ns
        partial = max((run / "checkpoints").glob(f".step-*[0-9].partial/{STATE}"), default=None)
        return not list_checkpoints(run) and partial is not None and partial.stat().st_mtime_ns <= written
    except FileNotFoundError:
        return False


def read_progress(folder: Path, config: ModelConfig, world: World) -> tuple[Progress, dict[str, Any]]:
    """How far a checkpoint's run had come and where its loader stood, once all of its files are found to be whole.

    Raises:
        CheckpointError: a file is missing or damaged, or the checkpoint is of another model; on all processes.
    """
    progress, state, error = Progress(), {}, ""
    try:
        state = check_pieces(folder, world.rank, world.size)
        saved = config_from_dict(ModelConfig, read_json(folder / "config.json").get("model"), "model")
        progress = config_from_dict(Progress, state.get("progress"), "progress")
        check_same(saved, config, folder)
    except CheckpointError as found:
        error = str(found)
    except ValueError as found:
        error = f"{folder}: {found}"
    errors = list(filter(None, world.gather(error)))
    if errors:
        raise CheckpointError(errors[0])
    return progress, state.get("loader", {})


def load_checkpoint(
    folder: Path, model: Multiscale, optimizers: Optimizers, average: Average | None, world: World
) -> None:
    """Puts a checkpoint's tensors into a model, its optimizers, its average and torch's generators.

    A process that is new, because there were fewer, keeps its random generator as it is; an average that is new begins
    as the model.

    Raises:
        CheckpointError: the checkpoint is of another model or optimizer.
    """
    reader = dcp.HuggingFaceStorageReader(str(folder))
    saved = reader.read_metadata().state_dict_metadata
    names = [name.removeprefix("optimizer.") for name in saved if name.startswith("optimizer.")]
    try:
        state = optimizers.room_for(names)
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}; start a new run in another folder") from error
    wanted = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    wanted |= {f"optimizer.{name}": tensor for name, tensor in state.items()}
    if average and any(name.startswith("average.") for name in saved):
        wanted |= {f"average.{name}": tensor for name, tensor in average.tensors.items()}
    generators = {f"random.{world.rank}.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators[f"random.{world.rank}.cuda"] = torch.cuda.get_rng_state()
    wanted |= {name: tensor for name, tensor in generators.items() if name in saved}
    for name, tensor in wanted.items():
        found = list(getattr(saved[name], "size", ())) if name in saved else "nothing"
        if found != list(tensor.shape):
            raise CheckpointError(f"{folder}: has {found} for {name}, which is {list(tensor.shape)}; name another run")
    dcp.load(wanted, storage_reader=reader, process_group=world.writers)
    optimizers.load_tensors(state)
    torch.set_rng_state(generators[f"random.{world.rank}.cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(generators[f"random.{world.rank}.cuda"])
    if average and not any(name.startswith("average.") for name in saved):
        average.restart()


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
