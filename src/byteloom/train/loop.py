"""Training in one function, readable from top to bottom: files in, a RUN folder with model, checkpoints, metrics out.

One process on CPU or CUDA. Cost: about 6 FLOPs per parameter and position of each stage, and with Muon the weights,
gradients and about one and a half more copies of the weights.
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from byteloom.codecs import MediaConfig
from byteloom.corpus import Corpus
from byteloom.evaluation import by_name, check_known, evaluate, packed, row_names
from byteloom.loader import Loader, LoaderConfig
from byteloom.losses import Loss, bits_per_byte
from byteloom.models.config import ModelConfig
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import CheckpointError, pick_device
from byteloom.sizing import plan
from byteloom.train import acceleration
from byteloom.train.checkpoint import (
    Progress,
    list_checkpoints,
    load_checkpoint,
    save_best,
    save_checkpoint,
)
from byteloom.train.data import Paths, count, open_run_data, sample
from byteloom.train.initial import begin_with
from byteloom.train.metrics import MetricsLog, ProgressBar, read_metrics
from byteloom.train.optim import OptimConfig, Optimizers, learning_rate_at


class TrainingError(Exception):
    """A run that cannot go on. The message is one line that says why and what is left of it."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, on what, and in which steps."""

    batch_size: int = 4
    """Sequences, each of the model's context, in one forward and backward pass."""
    accumulation: int = 1
    """Passes whose gradients make one update."""
    steps: int | None = None
    """End after so many updates."""
    max_bytes: int | None = None
    """End after so many bytes were seen."""
    max_seconds: float | None = None
    """End after so many seconds."""
    seed: int = 0
    """Of the first weights, the order of the data and dropout."""
    device: str = "auto"
    """Where to train: "cpu", "cuda", or "auto" for CUDA where there is one."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 autocast, or fp32 throughout; "auto" takes bf16 where it multiplies matrices faster."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile: some 20 seconds to begin with, then faster; "auto" where the run is long enough for that."""
    activation_memory: float | None = None
    """GiB of activations to keep for the backward pass; what is more is computed again. None: an eighth of what is
    free, for with gradients and passing values the peak is about three times as high."""
    deterministic: bool = False
    """Only algorithms whose result is the same bit for bit every time (same machine, same number of threads)."""
    validations: int = 10
    """How often to measure bits per byte on held-out data, spread evenly over the run."""
    valid_bytes: int = 65536
    """How many held-out bytes to measure on, as many of each kind of document."""
    mixture: tuple[float, ...] = ()
    """A weight for each path of --data: the share of the windows that come from it; none: all data are one source."""
    loss_weights: dict[str, float] = field(default_factory=dict)
    """Weight of a modality, or of a fused model's stream, in what is learned from, by name; 1 where not given."""
    checkpoint_seconds: float = 120.0
    """Save a checkpoint so often, and at the end."""
    checkpoint_steps: int | None = None
    """Save a checkpoint also every so many updates."""
    keep: int = 2
    """Keep so many checkpoints, the latest ones."""
    log_every: int = 10
    """Updates between two lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation", "keep", "log_every", "valid_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"TrainConfig.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("steps", "max_bytes", "max_seconds", "checkpoint_steps"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"TrainConfig.{name} is {getattr(self, name)}; it must be above 0")
        if self.validations < 0:
            raise ValueError(f"TrainConfig.validations is {self.validations}; it must be at least 0")
        if not all(0 < weight < math.inf for weight in self.mixture):
            raise ValueError(f"TrainConfig.mixture is {self.mixture}; each weight must be above 0")
        if not all(0 <= weight < math.inf for weight in self.loss_weights.values()):
            raise ValueError(f"TrainConfig.loss_weights is {self.loss_weights}; each weight must be at least 0")
        if self.activation_memory is not None and not self.activation_memory > 0:
            raise ValueError(f"TrainConfig.activation_memory is {self.activation_memory}; it must be above 0")
        if self.steps is None and self.max_bytes is None and self.max_seconds is None:
            raise ValueError("TrainConfig has no end: set steps, max_bytes or max_seconds")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run: everything that training needs but data and folders."""

    model: ModelConfig
    """The model."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer and its schedule."""
    train: TrainConfig
    """Batches, budget, precision, checkpoints."""
    media: MediaConfig = field(default_factory=MediaConfig)
    """How media files become samples; prepared data say it themselves."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run ended with."""

    model: Multiscale
    """The last model, in evaluation mode."""
    progress: Progress
    """Steps, bytes, seconds, and the best held-out bits per byte."""
    metrics: list[dict[str, Any]]
    """The lines of metrics.jsonl."""

    def summary(self) -> dict[str, Any]:
        """`step`, `bytes`, `seconds`, `bits_per_byte` and `valid_bits_per_byte` (last lines), `best`; JSON-able."""

        def last(key: str) -> float | None:
            return next((row[key] for row in reversed(self.metrics) if key in row), None)

        return {
            "step": self.progress.step,
            "bytes": self.progress.bytes,
            "seconds": self.progress.seconds,
            "bits_per_byte": last("bits_per_byte"),
            "valid_bits_per_byte": last("valid_bits_per_byte"),
            "best": self.progress.best,
        }


def train(
    config: RunConfig,
    data: Paths | Corpus,
    out: str | PathLike[str],
    *,
    valid: Paths | Corpus | None = None,
    resume: bool = False,
    init: str | PathLike[str] | None = None,
    show: bool = False,
) -> Trained:
    """Trains a model and leaves a RUN folder.

    Args:
        config: the run.
        data: files, folders and prepared corpora to learn from.
        out: the RUN folder.
        valid: held-out data; by default 5 % of `data`, by file, which is then not trained on.
        resume: go on from the last checkpoint in `out`; from the beginning where there is none.
        init: a model folder to take the first weights from; it may know other modalities.
        show: progress on stderr.

    Raises:
        ValueError: `mixture` has another number of weights than there are paths, or `loss_weights` an unknown name.
        DataError: data cannot be used.
        CheckpointError: `out` holds a run and `resume` is False, or a checkpoint is damaged or of another model.
        TrainingError: the loss became NaN or infinite.
        OSError: there is no room on the disk, or no right to write; earlier checkpoints stay.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the step was finished and saved.
    """
    settings, run = config.train, Path(out)
    checkpoints = list_checkpoints(run)
    if any((run / name).exists() for name in ("config.json", "metrics.jsonl", "checkpoints")) and not resume:
        raise CheckpointError(f"{run}: holds a run already; add --resume to go on with it, or name another folder")
    fused = bool(config.model.embedder.streams)
    opened = open_run_data(data, valid, mixture=settings.mixture, media=config.media, fused=fused)
    check_known(config.model, opened.modalities)
    names = row_names(config.model, opened.modalities)
    weights = row_weights(settings.loss_weights, names)
    held_out = sample(opened.held_out, settings.valid_bytes, config.model)
    loader = Loader(
        LoaderConfig(context=config.model.context, batch_size=settings.batch_size, seed=settings.seed),
        [(packed(corpus, config.model), weight) for corpus, weight in opened.sources],
    )

    device = pick_device(settings.device)
    with deterministic(settings.deterministic):
        torch.manual_seed(settings.seed)
        model = Multiscale(config.model).to(device)
        said = begin_with(Path(init), model) if init is not None and not checkpoints else ""
        optimizers = Optimizers(model, config.optim)
        progress = Progress(data_bytes=opened.num_bytes)
        if checkpoints:
            progress, loader_state = load_checkpoint(checkpoints[-1], model, optimizers)
            if progress.data_bytes != opened.num_bytes:
                raise CheckpointError(
                    f"{run}: learned from {progress.data_bytes:,} bytes, and these data have "
                    f"{opened.num_bytes:,}; give the same, or begin in another folder with --init"
                )
            loader.set_state(loader_state)
        decide(progress, settings, model, device, anew=not checkpoints)
        acceleration.keep_memory()
        autocast = progress.precision == "bf16"
        about = {
            "optim": asdict(config.optim),
            "train": asdict(settings),
            "media": asdict(opened.media),
            "modalities": sorted(opened.modalities.values()),
            "headers": opened.headers,
        }
        run.mkdir(parents=True, exist_ok=True)
        log = MetricsLog(run / "metrics.jsonl", progress.step)
        began = time.monotonic() - progress.seconds
        first, saved_at, saved_step, window = progress.step, time.monotonic(), progress.step, Window()
        places = model.counted_places(config.model.context, torch.device("cpu"))
        predicted = None if places is None else places.numpy()

        def share_done() -> float:
            return max(
                progress.step / settings.steps if settings.steps else 0.0,
                progress.bytes / settings.max_bytes if settings.max_bytes else 0.0,
                progress.seconds / settings.max_seconds if settings.max_seconds else 0.0,
            )

        def checkpoint() -> None:
            nonlocal saved_at, saved_step
            if progress.step != saved_step:
                save_checkpoint(run, model, optimizers, progress, loader.get_state(), about, settings.keep)
                saved_at, saved_step = time.monotonic(), progress.step

        fast = acceleration.accelerated(model, progress.compiled, progress.recompute)
        with ProgressBar(share_done(), show) as bar, stop_signals() as stopped, contextlib.closing(log), fast:
            parameters = sum(p.numel() for p in model.parameters())
            bar.say(
                f"{parameters / 1e6:.2f}M parameters · {opened.num_bytes / 1e6:.2f} MB to learn from, "
                f"{opened.held_out.num_bytes / 1e6:.2f} MB held out · {device} {progress.precision}"
                + (" · compiled" if progress.compiled else "")
                + (f" · activations in chunks of {progress.chunk:,} bytes" if progress.chunk else "")
                + (f" · resumed at step {progress.step}" if checkpoints else "")
            )
            if said:
                bar.say(said)
            model.train()
            while (done := share_done()) < 1 and not stopped():
                batches = [next(loader) for _ in range(settings.accumulation)]
                sizes = [count(batch["ids"], predicted) for batch in batches]
                total = max(sum(size for size, _ in sizes), 1)
                for batch in batches:
                    ids, mark, since = (torch.from_numpy(batch[key]).to(device) for key in ("ids", "mark", "since"))
                    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                        loss = model.loss(ids, mark=mark, since=since, chunk=progress.chunk)
                    (weighted(loss, weights) / total).backward()
                    window.add(loss)
                if progress.compiled and progress.step == first:
                    acceleration.give_back()
                window.norm = window.norm + optimizers.step(done)
                progress.step += 1
                progress.bytes += sum(size for _, size in sizes)
                progress.seconds = time.monotonic() - began

                done = share_done()
                due = done >= 1 or stopped()
                validate = settings.validations and int(done * settings.validations) > progress.validations
                old = time.monotonic() - saved_at >= settings.checkpoint_seconds or (
                    settings.checkpoint_steps and progress.step % settings.checkpoint_steps == 0
                )
                if not (due or validate or old or progress.step % settings.log_every == 0):
                    continue
                row: dict[str, Any] = {
                    "step": progress.step,
                    "bytes": progress.bytes,
                    "seconds": round(progress.seconds, 3),
                }
                nats, size, finite = window.read()
                if not finite:
                    last = list_checkpoints(run)
                    raise TrainingError(
                        f"the loss or its gradient is not finite at step {progress.step}; "
                        + (f"{last[-1]} is the last good checkpoint" if last else "nothing was saved")
                        + "; lower the learning rate or train in fp32"
                    )
                row |= {"loss": nats / size if size else math.nan, "bits_per_byte": bits_per_byte(nats, size)}
                if len(names) > 1:
                    row["by_modality"] = window.by_modality(names)
                row["learning_rate"] = config.optim.learning_rate * learning_rate_at(done, config.optim)
                if validate:
                    progress.validations = int(done * settings.validations)
                    with torch.compiler.set_stance("force_eager"):  # other shapes, not worth compiling for
                        measured = evaluate(model, held_out, autocast=autocast)
                    found = row["valid_bits_per_byte"] = measured.bits_per_byte
                    parts = {name: sums["bits_per_byte"] for name, sums in measured.by_modality.items()}
                    if len(names) > 1:
                        row["valid_by_modality"] = parts
                    if progress.best is None or found < progress.best:
                        progress.best = found
                        save_best(run, model, about)
                    bar.say(
                        f"{min(done, 1):4.0%} · step {progress.step} · {progress.bytes / 1e6:.2f} MB · "
                        f"train {row['bits_per_byte']:.3f} · held out {found:.3f} bits per byte"
                        + (f" ({', '.join(f'{name} {b:.3f}' for name, b in parts.items())})" if len(names) > 1 else "")
                    )
                log.write(**row)
                bar.update(done, row["bits_per_byte"], window.rate(size))
                window = Window()
                if old:
                    checkpoint()
            progress.seconds = time.monotonic() - began
            checkpoint()
        if stopped():
            raise KeyboardInterrupt(f"stopped at step {progress.step}, saved in {run}; --resume goes on from there")
    return Trained(model=model.eval(), progress=progress, metrics=read_metrics(run / "metrics.jsonl"))


class Window:
    """Sums since the last line of metrics, left on the device until they are read."""

    def __init__(self) -> None:
        self.nats: Tensor | float = 0.0
        self.bytes: Tensor | float = 0.0
        self.table: Tensor | float = 0.0
        self.norm: Tensor | float = 0.0
        self.began = time.monotonic()

    def add(self, loss: Loss) -> None:
        """Adds a batch's sums."""
        self.nats = self.nats + loss.nats.detach().double()
        self.bytes = self.bytes + loss.bytes
        self.table = self.table + loss.table.detach().double()

    def read(self) -> tuple[float, int, bool]:
        """Nats, bytes, and whether all of it, gradients too, was finite. Waits for the device."""
        return float(self.nats), int(self.bytes), math.isfinite(float(self.nats)) and math.isfinite(float(self.norm))

    def by_modality(self, names: Mapping[int, str]) -> dict[str, float]:
        """Bits per byte of each modality that there was, by the names of the table's rows."""
        sums = by_name(torch.as_tensor(self.table)[:, [0, 2]].cpu().numpy(), names)
        return {name: entry["bits_per_byte"] for name, entry in sums.items()}

    def rate(self, size: int) -> float:
        """Bytes per second."""
        return size / max(time.monotonic() - self.began, 1e-9)


def row_weights(weights: Mapping[str, float], names: Mapping[int, str]) -> dict[int, float]:
    """The weight of each row of `Loss.table` that has one other than 1. Raises ValueError for an unknown name."""
    for name in weights:
        if name not in names.values():
            there = ", ".join(sorted(names.values()))
            raise ValueError(f"loss_weights names {name!r}, which is not learned from; there are {there}")
    return {row: weights[name] for row, name in names.items() if weights.get(name, 1.0) != 1.0}


def weighted(loss: Loss, weights: Mapping[int, float]) -> Tensor:
    """The nats to learn from (): each row of the loss's table times its weight, which is 1 where none is given."""
    nats = loss.nats
    for row, weight in weights.items():
        nats = nats + (weight - 1) * loss.table[row, 0]
    return nats


def decide(progress: Progress, settings: TrainConfig, model: Multiscale, device: torch.device, anew: bool) -> None:
    """Settles what the config leaves to the machine; a run goes on as it began, save where it is asked otherwise.

    Raises TrainingError where the model is to be compiled and there is no compiler.
    """
    if anew:
        progress.precision = choose_precision(settings.precision, device)
    if settings.compile != "auto":
        progress.compiled = settings.compile == "on"
    elif anew:
        size = settings.batch_size * settings.accumulation * model.config.context
        planned = min((settings.steps or math.inf) * size, settings.max_bytes or math.inf)
        progress.compiled = acceleration.worth_compiling(planned, settings.max_seconds or math.inf, model, device)
    if progress.compiled and not acceleration.can_compile(device):
        raise TrainingError("torch.compile does not work here: it needs g++ and Python's headers; use --compile off")
    if anew or settings.activation_memory:
        budget = settings.activation_memory and settings.activation_memory * 2**30
        budget = budget or (acceleration.available_memory(device) or math.inf) / 8
        found = plan(model.config, settings.batch_size, progress.precision, budget)
        progress.chunk, progress.recompute = found.chunk, found.recompute


def choose_precision(wanted: str, device: torch.device) -> str:
    """ "bf16" or "fp32": for "auto" bf16 on CUDA, and on a CPU that multiplies it at least 1.3 times as fast."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(512, 512, dtype=dtype)
        seconds[dtype] = min(timed(lambda a=a: a @ a) for _ in range(8))
    return "bf16" if seconds[torch.bfloat16] * 1.3 < seconds[torch.float32] else "fp32"


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside, torch uses deterministic algorithms only, where wanted; what held before holds again after."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C and SIGTERM only raise a flag, so that a step is finished and saved; a second one ends at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals go elsewhere
        before = {}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
