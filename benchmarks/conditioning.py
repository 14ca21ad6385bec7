"""Continuous inputs as a condition for bytes: the same model with a prefix of real numbers and without, on real data.

    python benchmarks/conditioning.py SUITE [--sets image speech] [--seeds 0 1] [--steps 700] [--json FILE]

SUITE is the folder of benchmarks/suite.py, with image_rgb32 and audio_speech.

    image    pictures of 8 x 8 pixels in RGB, cut from the tiles; the condition is their mean colours in a grid of
             4 x 4, 16 vectors
    speech   512 samples, 64 ms, in mu-law; the condition is a spectrogram of 16 frames in 16 bands, 16 vectors

There is a vector for each patch, in the same order, so that each lies at one and the same distance before the patch
that it tells of: rotary attention has one distance to learn. Every tile or clip is a document and a row of its own.
Both models of a seed see the same rows in the same order. The loop is this program's own: byteloom.train.loop reads
files, and a condition belongs to a row and stands in no file. Rows are short: over 256 vectors the distance was not
learned in as many bytes.

Reported: bits per byte of the test split without and with the condition, how much lower with it, and the conditioned
model when it is given the condition of another row, which says that it reads it. Errors are standard errors over
photographs or spoken prompts, which the splits do not share; they know nothing of the seed. A grid of 48 values of 8
bits tells a perfect model at most 2 bits of each of the 192 bytes.
"""

import functools
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from byteloom import ModelConfig, Multiscale, recipes
from byteloom.codecs import MARKS, audio, image
from byteloom.documents import PAD, Document, Segment, to_ids
from byteloom.evaluation import standard_error
from byteloom.layers.continuous import InputConfig
from byteloom.losses import bits_per_byte
from byteloom.train.acceleration import choose_precision, keep_memory
from byteloom.train.loop import RunConfig
from byteloom.train.optim import OptimConfig, Optimizers

CPU = torch.device("cpu")
TILE = 32
"""Side of a tile of the data set, in pixels."""
SIDE = 8
"""Of a picture, in pixels."""
GRID = 4
"""Of its mean colours."""
RATE = 8000
"""Samples of speech a second."""
CLIP = 512
"""Samples of a clip."""
FRAMES = 16
"""Of its spectrogram."""
BANDS = 16
"""Of a frame."""


@dataclass(frozen=True)
class Rows:
    """Documents of one length, each with its condition."""

    ids: Tensor
    """(N, T)."""
    conditions: Tensor
    """(N, ...)."""
    groups: np.ndarray
    """(N,), the photograph or prompt that each is from, as a number."""
    num_bytes: int
    """Payload of a row."""


def items(folder: Path, split: str, suffix: str) -> Iterator[tuple[str, np.ndarray]]:
    """Name and bytes of each item of a split."""
    data, begin = np.fromfile(folder / f"{split}.{suffix}", np.uint8), 0
    for name, size in json.loads((folder / f"{split}.index.json").read_text()):
        yield name, data[begin : begin + size]
        begin += size


def mean_colours(pixels: np.ndarray) -> np.ndarray:
    """The mean colours of a picture (H, W, 3) uint8 in a grid: (4, 4, 3), from -1 to 1."""
    height, width = pixels.shape[0] // GRID, pixels.shape[1] // GRID
    return pixels.reshape(GRID, height, GRID, width, 3).mean((1, 3), dtype=np.float32) / 127.5 - 1


def spectrogram(samples: np.ndarray) -> np.ndarray:
    """Loudness of a clip (N,) int16 in time and pitch: (16, 16), decades of power about a usual one."""
    frames = samples.reshape(FRAMES, -1) / 32768
    power = np.abs(np.fft.rfft(frames * np.hanning(frames.shape[1]))[:, 1:]) ** 2
    return np.log10(power.reshape(FRAMES, BANDS, -1).mean(-1) + 1e-6).astype(np.float32) + 2


def tiles(suite: Path, split: str) -> Iterator[tuple[str, Segment, np.ndarray]]:
    """Of each part of a tile the photograph, the pixels in patches of 2 x 2 and the condition."""
    for name, data in items(suite / "image_rgb32", split, "bin"):
        parts = data.reshape(TILE // SIDE, SIDE, TILE // SIDE, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
        for pixels in parts:
            yield name.partition("@")[0], image.from_array(pixels), mean_colours(pixels)


def clips(suite: Path, split: str) -> Iterator[tuple[str, Segment, np.ndarray]]:
    """Of each clip the prompt, the samples in mu-law and the condition; what is left of a prompt is left out."""
    for name, data in items(suite / "audio_speech", split, "s16le"):
        samples = data.view("<i2")
        for clip in samples[: len(samples) // CLIP * CLIP].reshape(-1, CLIP):
            yield name, audio.from_array(clip, RATE, audio.AudioConfig(coding="mulaw")), spectrogram(clip)


def small_pictures() -> RunConfig:
    """The recipe of pictures, for narrower ones: what is above is not so far back."""
    config, nearer = recipes.image_small(), 6 * (TILE - SIDE)
    *coarse, finest = config.model.stages
    finest = replace(finest, offsets=tuple(o - nearer if o > nearer else o for o in finest.offsets))
    narrow = tuple(replace(m, predictor=replace(m.predictor, width=SIDE)) for m in config.model.modalities)
    return replace(config, model=replace(config.model, stages=(*coarse, finest), modalities=narrow))


@dataclass(frozen=True)
class Task:
    """A kind of data, its condition, and the recipe whose model is to learn it."""

    read: Callable[[Path, str], Iterator[tuple[str, Segment, np.ndarray]]]
    condition: InputConfig
    recipe: Callable[[], RunConfig]


TASKS = {
    "image": Task(tiles, InputConfig(name="colours", width=3, patch=(1, 1)), small_pictures),
    "speech": Task(clips, InputConfig(name="spectrogram", width=BANDS), recipes.audio_small),
}


def rows_of(task: Task, suite: Path, split: str, most: int | None = None) -> Rows:
    """A split, laid out; with `most` no more rows than that, from all over it."""
    read = list(task.read(suite, split))
    chosen = np.linspace(0, len(read) - 1, min(most or len(read), len(read))).round().astype(int)
    names, segments, conditions = zip(*(read[i] for i in chosen), strict=True)
    patch_size = task.recipe().model.span(0)
    ids = [to_ids(Document(segments=(segment,)), MARKS, patch_size) for segment in segments]
    return Rows(
        ids=torch.from_numpy(np.stack(ids).astype(np.int64)),
        conditions=torch.from_numpy(np.stack(conditions)),
        groups=np.unique(names, return_inverse=True)[1],
        num_bytes=len(segments[0].data),
    )


def model_config(task: Task, rows: Rows, conditioned: bool) -> ModelConfig:
    """The recipe's model, with the condition before its data, or without."""
    model = task.recipe().model
    return replace(
        model,
        inputs=(task.condition,) if conditioned else (),
        context=rows.ids.shape[1],
    )


def condition_of(model: Multiscale, conditions: Tensor) -> list[tuple[str | int | Tensor, Tensor]]:
    """What the model is given beside ids."""
    return [(model.config.inputs[0].name, conditions)] if model.config.inputs else []


@functools.cache
def bf16() -> bool:
    """Whether this machine multiplies bf16 faster."""
    return choose_precision("auto", CPU) == "bf16"


def precision() -> torch.autocast:
    """bf16 autocast where it is faster."""
    return torch.autocast("cpu", torch.bfloat16, enabled=bf16())


def train(config: ModelConfig, optim: OptimConfig, rows: Rows, steps: int, batch_size: int, seed: int) -> Multiscale:
    """A model that has seen `steps` batches of rows, drawn by the seed."""
    torch.manual_seed(seed)
    model = Multiscale(config)
    optimizers = Optimizers(model, optim)
    order = np.random.default_rng(seed)
    epochs = (order.permutation(len(rows.ids)) for _ in itertools.count())
    numbers = itertools.chain.from_iterable(epochs)
    for step in range(steps):
        batch = torch.tensor(list(itertools.islice(numbers, batch_size)))
        with precision():
            loss = model.loss(rows.ids[batch], inputs=condition_of(model, rows.conditions[batch]))
        (loss.nats / loss.count).backward()
        optimizers.step(step / steps)
    return model.eval()


@torch.inference_mode()
def nats_by_group(model: Multiscale, rows: Rows, conditions: Tensor, batch_size: int = 64) -> np.ndarray:
    """Nats and bytes (groups, 2) of all rows, given these conditions (N, ...)."""
    sums = np.zeros((rows.groups.max() + 1, 2))
    for start in range(0, len(rows.ids), batch_size):
        part = slice(start, start + batch_size)
        ids = rows.ids[part]
        with precision():
            nats = model.nats(ids, inputs=condition_of(model, conditions[part]))
        np.add.at(sums[:, 0], rows.groups[part], nats.masked_fill(ids == PAD, 0).sum(1).double().numpy())
        np.add.at(sums[:, 1], rows.groups[part], rows.num_bytes)
    return sums


def others(rows: Rows) -> Tensor:
    """The conditions of rows half the split away, which are of another photograph or prompt."""
    return rows.conditions.roll(len(rows.conditions) // 2, 0)


def compare(task: Task, suite: Path, seed: int, options: "Options") -> dict[str, Any]:
    """One seed: bits per byte without and with, and what they rest on."""
    learned, tested = rows_of(task, suite, "train"), rows_of(task, suite, "test", options.test_rows)
    sums, parameters, seconds = {}, {}, {}
    for kind in ("without", "with"):
        config = model_config(task, learned, kind == "with")
        began = time.monotonic()
        model = train(config, task.recipe().optim, learned, options.steps, options.batch_size, seed)
        seconds[kind] = time.monotonic() - began
        parameters[kind] = sum(p.numel() for p in model.parameters())
        sums[kind] = nats_by_group(model, tested, tested.conditions)
    sums["with another's"] = nats_by_group(model, tested, others(tested))
    gain = np.stack((sums["without"][:, 0] - sums["with"][:, 0], sums["with"][:, 1]), axis=1)
    return {
        "seed": seed,
        "bytes_seen": options.steps * options.batch_size * learned.num_bytes,
        "test_bytes": int(sums["with"][:, 1].sum()),
        "groups": len(gain),
        "parameters": parameters,
        "bits_per_byte": {kind: bits_per_byte(*found.sum(0)) for kind, found in sums.items()},
        "gain": bits_per_byte(*gain.sum(0)),
        "gain_error": standard_error(gain),
        "seconds": seconds,
    }


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    suite: tyro.conf.Positional[Path]
    """Folder of benchmarks/suite.py, with image_rgb32 and audio_speech."""
    sets: tuple[Literal["image", "speech"], ...] = ("image", "speech")
    """Which data."""
    seeds: tuple[int, ...] = (0, 1)
    """Of the first weights and the order of the rows."""
    steps: int = 700
    """Updates of each model."""
    batch_size: int = 8
    """Rows in an update."""
    test_rows: int = 1600
    """Rows of the test split to measure on, from all over it."""
    threads: int = 2
    """Cores to use."""
    json: Path | None = None
    """Write the figures here."""


def main(options: Options) -> None:
    """Runs the program."""
    torch.set_num_threads(options.threads)
    keep_memory()
    columns = ("", "seed", "bytes seen", "without", "with", "gain", "with another's")
    table = Table(*columns, title="bits per byte of the test split")
    figures: dict[str, list[dict[str, Any]]] = {}
    for name in options.sets:
        for seed in options.seeds:
            found = compare(TASKS[name], options.suite, seed, options)
            figures.setdefault(name, []).append(found)
            without, given, other = found["bits_per_byte"].values()
            gain = f"{found['gain']:.3f} +- {found['gain_error']:.3f}"
            cells = (f"{found['bytes_seen']:,}", f"{without:.3f}", f"{given:.3f}", gain, f"{other:.3f}")
            table.add_row(name, str(seed), *cells)
            print(f"{name}, seed {seed}: {without:.3f} without, {given:.3f} with", flush=True)
    Console(width=120).print(table)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
