"""Training in one function, readable from top to bottom: files in, a RUN folder with model, checkpoints, metrics out.

One process or, under torchrun, many that do as one would: the same batches, the same curve. On CPU or CUDA. Cost:
about 6 FLOPs per parameter and position of each stage, and with Muon the weights, gradients and about one and a half
more copies of the weights, spread over the processes.
"""

import contextlib
import json
import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from byteloom.codecs import MediaConfig
from byteloom.corpus import Corpus
from byteloom.evaluation import check_known, evaluate, row_names
from byteloom.loader import LoaderConfig
from byteloom.losses import Loss, bits_per_byte
from byteloom.models.config import ModelConfig
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import CheckpointError, config_from_dict
from byteloom.sizing import plan
from byteloom.train import acceleration
from byteloom.train.average import Average
from byteloom.train.checkpoint import (
    Progress,
    Saver,
    alone_in,
    checkpoints_of,
    list_checkpoints,
    load_checkpoint,
    read_progress,
)
from byteloom.train.data import Paths, check_guesses, count, make_loader, open_run_data, row_weights, sample
from byteloom.train.distributed import (
    ParallelConfig,
    World,
    drop_unused,
    gather_weights_anew,
    open_world,
    reached,
    reduce_gradients,
    spread,
    stop_signals,
)
from byteloom.train.initial import begin_with
from byteloom.train.metrics import MetricsLog, ProgressBar, Window, read_metrics
from byteloom.train.optim import OptimConfig, Optimizers, learning_rate_at


class TrainingError(Exception):
    """A run that cannot go on. The message is one line that says why and what is left of it."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, on what, and in which steps."""

    batch_size: int = 4
    """Sequences, each of the model's context, in one forward and backward pass of all processes together."""
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
    ema: float | None = None
    """Average the weights too, by this decay an update, such as 0.999, and take the average for the run's model: it is
    what is measured and written to best/ and model.safetensors."""
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
    tensorboard: bool = False
    """Write these lines for TensorBoard too, to OUT/tensorboard."""

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
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"TrainConfig.ema is {self.ema}; it must lie between 0 and 1")
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
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How the model is spread over the processes that torchrun started."""
    media: MediaConfig = field(default_factory=MediaConfig)
    """How media files become samples; prepared data say it themselves."""

    def __post_init__(self) -> None:
        coding = self.media.audio.coding
        for i, modality in enumerate(self.model.modalities):
            guess = modality.predictor.guess
            if modality.predictor.sound is not None and coding not in ("auto", guess):
                other = coding if coding in ("pcm8", "pcm16", "mulaw") else "none"
                raise ValueError(
                    f"RunConfig.media.audio.coding is {coding}, but samples are guessed as {guess}; "
                    f"set model.modalities.{i}.predictor.guess to {other}"
                )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run ended with."""

    model: Multiscale
    """The last model, in evaluation mode; each of several processes has its shard, and `byteloom.load(out)` all."""
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
    modality: str | None = None,
    show: bool = False,
) -> Trained:
    """Trains a model and leaves a RUN folder.

    Args:
        config: the run.
        data: files, folders, prepared corpora and datasets of Hugging Face to learn from.
        out: the RUN folder.
        valid: held-out data; by default 5 % of `data`, by file, which is then not trained on.
        resume: go on from the last checkpoint in `out`; from the beginning where there is none.
        init: a model folder to take the first weights from; it may know other modalities.
        modality: what every file is read as; by default each by its name and content.
        show: progress on stderr.

    Raises:
        ValueError: `mixture` has another number of weights than there are paths, or `loss_weights` an unknown name.
        DataError: data cannot be used, or are otherwise than the model guesses them.
        CheckpointError: `out` holds a run and `resume` is False, or a model without checkpoints, or another process
            trains in it; or a checkpoint is damaged, of another model, or cannot be written; earlier ones stay.
        TrainingError: the loss became NaN or infinite.
        LostError: another process of the run ended, or did not answer in time.
        OSError: there is no right to write.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the step was finished and saved.
    """
    settings, run, metrics = config.train, Path(out), Path(out) / "metrics.jsonl"
    checkpoints = checkpoints_of(run, resume)
    opened = open_run_data(
        data,
        valid,
        mixture=settings.mixture,
        media=config.media,
        modality=modality,
        fused=bool(config.model.embedder.streams),
        valid_bytes=settings.valid_bytes,
    )
    check_known(config.model, opened.modalities)
    if not checkpoints:
        check_guesses(opened, config.model)
    names = row_names(config.model, opened.modalities)
    weights = row_weights(settings.loss_weights, names)
    held_out = sample(opened.held_out, settings.valid_bytes, config.model)
    with open_world(config.parallel, settings.device) as world, acceleration.deterministic(settings.deterministic):
        device = world.device
        loader = make_loader(
            opened,
            config.model,
            LoaderConfig(
                context=config.model.context,
                batch_size=settings.batch_size,
                share=world.reader,
                shares=world.readers,
                seed=settings.seed,
            ),
        )
        progress = Progress(data_bytes=opened.num_bytes)
        if checkpoints:
            progress, loader_state = read_progress(checkpoints[-1], config.model, world)
            if progress.data_bytes != opened.num_bytes:
                raise CheckpointError(
                    f"{run}: learned from {progress.data_bytes:,} bytes, and these data have "
                    f"{opened.num_bytes:,}; give the same, or begin in another folder with --init"
                )
            loader.set_state(loader_state)
        progress = decide(progress, config, world, anew=not checkpoints)
        torch.manual_seed(settings.seed)
        whole = Multiscale(config.model) if world.main else None
        said = begin_with(Path(init), whole) if init is not None and whole is not None and not checkpoints else ""
        model = spread(config.model, whole, world, progress.precision)
        del whole
        if world.size > 1:
            torch.manual_seed(settings.seed + 1 + world.reader)  # of dropout, which differs from row to row
        optimizers = Optimizers(model, config.optim, progress.precision)
        average = Average(model, settings.ema) if settings.ema else None
        if checkpoints:
            load_checkpoint(checkpoints[-1], model, optimizers, average, world)
        acceleration.keep_memory()
        autocast = progress.precision == "bf16"
        about = {
            "identity": progress.identity,
            "optim": asdict(config.optim),
            "train": asdict(settings),
            "media": asdict(opened.media),
            "data": {"names": list(opened.names), "bytes": opened.num_bytes},
            "modalities": sorted(opened.modalities.values()),
            "headers": opened.headers,
        }
        world.meet()  # all have looked for what is in the folder, before there is more
        began = time.monotonic() - progress.seconds
        first, saved_at, saved_step, window, stop = progress.step, time.monotonic(), progress.step, Window(), False
        places = model.counted_places(config.model.context, torch.device("cpu"))
        predicted = None if places is None else places.numpy()

        def share_done(without: float = 0.0) -> float:  # of the run; `without` so many of its first seconds
            left = max(settings.max_seconds - without, 1e-9) if settings.max_seconds else math.inf
            return max(
                progress.step / settings.steps if settings.steps else 0.0,
                progress.bytes / settings.max_bytes if settings.max_bytes else 0.0,
                (progress.seconds - without) / left,
            )

        def checkpoint() -> None:
            nonlocal saved_at, saved_step
            if progress.step != saved_step:
                saver.save(model, optimizers, average, progress, loader.get_state(), about)
                saved_at, saved_step = time.monotonic(), progress.step

        fast = acceleration.accelerated(model, progress.compiled, progress.recompute, sparse=world.size == 1)
        with (
            ProgressBar(share_done(), show and world.main) as bar,
            stop_signals() as stopped,
            alone_in(run, world),
            contextlib.closing(MetricsLog(metrics, progress.step, world.main, settings.tensorboard)) as log,
            contextlib.closing(Saver(run, world, settings.keep)) as saver,
            fast,
        ):
            parameters = sum(p.numel() for p in model.parameters())
            bar.say(
                f"{parameters / 1e6:.2f}M parameters · {opened.size} to learn from, "
                f"{opened.held_out.num_bytes / 1e6:.2f} MB held out · {device} {progress.precision}"
                + (f" · {world.size} processes" if world.size > 1 else "")
                + (" · compiled" if progress.compiled else "")
                + (f" · activations in chunks of {progress.chunk:,} bytes" if progress.chunk else "")
                + (f" · resumed at step {progress.step}" if checkpoints else "")
            )
            for line in [*opened.skipped, *filter(None, [said])]:
                bar.say(line)
            model.train()
            while (done := share_done()) < 1 and not stop:
                batches = [next(loader) for _ in range(settings.accumulation)]
                sizes = [count(batch["ids"], predicted) for batch in batches]
                total, size = world.sum(*(sum(column) for column in zip(*sizes, strict=True)))
                used: set[str] = set()
                for number, batch in enumerate(batches, 1):
                    ids, mark, since = (torch.from_numpy(batch[key]).to(device) for key in ("ids", "mark", "since"))
                    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                        loss = model.loss(ids, mark=mark, since=since, chunk=progress.chunk)
                    nats = weighted(loss, weights) / max(total, 1)
                    used |= reached(nats, model, world)
                    reduce_gradients(model, number == len(batches))
                    nats.backward()
                    window.add(loss)
                if progress.compiled and progress.step == first:
                    acceleration.give_back()
                drop_unused(model, used, world)
                window.norm = window.norm + optimizers.step(share_done(progress.first_seconds))
                progress.step += 1
                progress.bytes += int(size)
                if average:
                    average.update(progress.step)

                aged = time.monotonic() - saved_at >= settings.checkpoint_seconds
                agreed = world.largest(time.monotonic() - began, stopped(), aged, bool(saver.problem))
                progress.seconds, (stop, aged, failed) = agreed[0], map(bool, agreed[1:])
                if progress.step == 1:
                    progress.first_seconds = progress.seconds
                if failed:
                    raise CheckpointError(next(filter(None, world.gather(saver.problem))))
                done = share_done()
                due = done >= 1 or stop
                validate = settings.validations and int(done * settings.validations) > progress.validations
                old = aged or (settings.checkpoint_steps and progress.step % settings.checkpoint_steps == 0)
                if not (due or validate or old or progress.step % settings.log_every == 0):
                    continue
                row: dict[str, Any] = {
                    "step": progress.step,
                    "bytes": progress.bytes,
                    "seconds": round(progress.seconds, 3),
                }
                nats, size, finite = window.read(world)
                if not finite:
                    saver.wait()
                    last = list_checkpoints(run)
                    raise TrainingError(
                        f"the loss or its gradient is not finite at step {progress.step}; "
                        + (f"{last[-1]} is the last good checkpoint" if last else "nothing was saved")
                        + "; lower the learning rate or train in fp32"
                    )
                row |= {"loss": nats / size if size else math.nan, "bits_per_byte": bits_per_byte(nats, size)}
                if len(names) > 1:
                    row["by_modality"] = window.by_modality(names)
                scheduled = share_done(progress.first_seconds)
                row["learning_rate"] = config.optim.learning_rate * learning_rate_at(scheduled, config.optim)
                if validate:
                    progress.validations = int(done * settings.validations)
                    if average:
                        average.swap()
                    with torch.compiler.set_stance("force_eager"):  # other shapes, not worth compiling for
                        ours = (world.reader, world.readers)
                        measured = evaluate(model, held_out, autocast=autocast, share=ours, total=world.sum_array)
                    gather_weights_anew(model)
                    found = row["valid_bits_per_byte"] = measured.bits_per_byte
                    parts = {name: sums["bits_per_byte"] for name, sums in measured.by_modality.items()}
                    if len(names) > 1:
                        row["valid_by_modality"] = parts
                    if progress.best is None or found < progress.best:
                        progress.best = found
                        saver.save_best(model, about)
                    if average:
                        average.swap()
                    bar.say(
                        f"{min(done, 1):4.0%} · step {progress.step} · {progress.bytes / 1e6:.2f} MB · "
                        f"train {row['bits_per_byte']:.3f} · held out {found:.3f} bits per byte"
                        + (f" ({', '.join(f'{name} {b:.3f}' for name, b in parts.items())})" if len(names) > 1 else "")
                    )
                if world.main and not run.exists():
                    bar.say(f"{run} was deleted while training goes on; it is made anew")
                log.write(**row)
                bar.update(done, row["bits_per_byte"], window.rate(size))
                window = Window()
                if old:
                    checkpoint()
            checkpoint()
            saver.wait()
        if average:
            average.swap()
        if stop:
            raise KeyboardInterrupt(f"stopped at step {progress.step}, saved in {run}; --resume goes on from there")
    return Trained(model=model.eval(), progress=progress, metrics=read_metrics(metrics))


def weighted(loss: Loss, weights: Mapping[int, float]) -> Tensor:
    """The nats to learn from (): each row of the loss's table times its weight, which is 1 where none is given."""
    nats = loss.nats
    for row, weight in weights.items():
        nats = nats + (weight - 1) * loss.table[row, 0]
    return nats


def decide(progress: Progress, config: RunConfig, world: World, anew: bool) -> Progress:
    """Settles what the config leaves to the machine; a run goes on as it began, save where it is asked otherwise.

    What the main process finds holds for all. Raises TrainingError where the model is to be compiled and there is no
    compiler.
    """
    settings, device, before = config.train, world.device, progress.precision
    if anew:
        progress.identity = secrets.token_hex(8)
    if anew or settings.precision != "auto":
        progress.precision = acceleration.choose_precision(settings.precision, device)
    if settings.compile != "auto":
        progress.compiled = settings.compile == "on"
    elif anew:
        size = settings.batch_size * settings.accumulation * config.model.context
        planned = min((settings.steps or math.inf) * size, settings.max_bytes or math.inf) / world.readers
        seconds = settings.max_seconds or math.inf
        progress.compiled = acceleration.worth_compiling(planned, seconds, config.model, device)
    if progress.compiled and not acceleration.can_compile(device):
        raise TrainingError("torch.compile does not work here: it needs g++ and Python's headers; use --compile off")
    if anew or settings.activation_memory or progress.precision != before:
        budget = settings.activation_memory and settings.activation_memory * 2**30
        budget = budget or (acceleration.available_memory(device) or math.inf) / 8
        found = plan(config.model, settings.batch_size // world.readers, progress.precision, budget)
        progress.chunk, progress.recompute = found.chunk, found.recompute
    return config_from_dict(Progress, json.loads(world.gather(json.dumps(asdict(progress)))[0]), "progress")
