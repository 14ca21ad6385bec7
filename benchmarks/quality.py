"""Bits per byte for the time: ours, ours in paper mode, megabyte-pytorch, mblm and a byte-level Llama.

    python benchmarks/quality.py SUITE [--sets text_wiki_en code] [--seconds 300] [--seeds 0 1 2] [--json FILE]

SUITE holds SET/{train,valid,test}.*, SET/SPLIT.index.json and SET/meta.json, as benchmarks/suite.py makes them; the
name of a set begins with its kind: text, code, image (32 x 32 RGB) or audio. audio_speech is learned as 8-bit mu-law,
audio_speech:pcm16 as 16-bit samples. Needs: pip install mblm==0.4.2, or that peer is left out, with a line.

What is the same for all: the train bytes, in the order that our codec gives them (patches of 2 x 2 pixels for
pictures), each window once before any comes again; the seconds, from the first step on, on the same cores, compiling
counted; about the same number of parameters, which is that of our recipe without its tables of hashed strings (a byte
reads a few rows of them; as many weights in matrices would only make a peer slower); the schedule of the learning rate,
by time, and the clipping, which are our recipe's (a peer's schedule begins after its first step, or compiling would
take the place of its warm-up). And the scorer: windows of raw bytes that overlap by one byte (a sample of sound, a
patch of pixels), of which the overlap is given and all else is scored, in fp32, each byte of the split once. The first
byte (sample, picture) of a split is given to all. Each model is scored in windows as long as it was trained on.

What is chosen for whom, so that nobody is held back:
  ours      the recipe of the kind through `train`, as `byteloom train` does, without validation on the way. It learned
            documents; in the windows there are none, and what `byteloom evaluate` finds stands beside as "documents".
            Pixels and samples it guesses from their neighbours (docs/modalities.md), which is part of the model: the
            bits are those of the bytes.
  paper     ours as arXiv 2305.07185 has it: isolated patches, learned positions, LayerNorm, ReLU, biases, initial
            weights of 0.006; no dropout, for in this time nothing is learned by heart. Compiled where that is faster.
  peers     megabyte-pytorch and mblm with rotary positions, flash attention and all else as their authors set it, Llama
            with the defaults of transformers. Each runs in the mode in which it takes the most steps in the time: fp32
            or bf16 autocast, and the faster of these also compiled where there is time for that; all are measured
            first, compiling twice, for the first time warms the compiler up. The C library keeps memory
            for all, and subnormal numbers, with which processors are slow, are zeros for all.
  windows   paper, megabyte-pytorch and mblm have as many bytes in a batch as ours, in windows as long (pictures), half
            as long (sound) or a quarter (text, code), in patches of 4 bytes of text, 8 of sound, 12 of pictures. Llama,
            whose steps cost more the longer its context is, has a quarter.
  pictures  all learn windows that begin where those of the scorer do, at the same places of each picture.
  training  all but ours try AdamW at two learning rates, and our Muon at our recipe's rate (--muon-factors: also at
            others), with the first seed. What is best on windows of the valid split, evenly spread, is taken for the
            other seeds too; the test split has no say.

After each run the JSON file is written anew, so a stop costs one run; --resume goes on, also with other sets, models,
seeds or learning rates. Each row has the steps of every tenth of its time, for a machine may slow down. A standard
error is over items (articles, files, photographs, recordings), of the mean over seeds; that of a ratio is over what the
same items' bits are above the ratio.
"""

import dataclasses
import functools
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import peers
import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from byteloom import ModelConfig, Multiscale, StageConfig, evaluate, recipes
from byteloom.corpus import Corpus
from byteloom.documents import DataError
from byteloom.evaluation import CHUNK, IDS_AT_ONCE, standard_error
from byteloom.files import write_json
from byteloom.losses import bits_per_byte
from byteloom.models.store import CheckpointError, digest
from byteloom.shards import open_data
from byteloom.train import acceleration
from byteloom.train.loop import RunConfig, TrainingError, train
from byteloom.train.optim import OptimConfig, Optimizers

Model = Literal["ours", "paper", "megabyte-pytorch", "mblm", "llama"]
MAKERS: dict[Model, Callable[[peers.Shape], peers.Peer]] = {
    "megabyte-pytorch": peers.megabyte_pytorch,
    "mblm": peers.mblm,
    "llama": peers.llama,
}
WIDTHS = tuple(range(64, 769, 32))
LAYERS = ((2, 2), (2, 3), (2, 4), (3, 2), (3, 3))
LLAMA_LAYERS = (4, 5, 6)
"""Widths and layers among which a model of equal parameters is looked for; local widths are half of global ones."""
CPU = torch.device("cpu")
TRIED_STEPS = 6
"""Steps of which the fastest is the speed of a mode, after one to warm up."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What suits the peers on data of a kind."""

    recipe: str
    """Ours."""
    patch_size: int
    """Bytes in a patch of those with patches."""
    parts: int = 1
    """Windows into which one of ours is cut for those with patches."""
    llama_parts: int = 1
    """Windows into which it is cut for Llama."""

    def parts_of(self, model: Model) -> int:
        """Windows into which one of ours is cut for this model."""
        return {"ours": 1, "llama": self.llama_parts}.get(model, self.parts)


KINDS = {
    "text": Kind(recipe="text-small", patch_size=4, parts=4, llama_parts=4),
    "code": Kind(recipe="code-small", patch_size=4, parts=4, llama_parts=4),
    "image": Kind(recipe="image-small", patch_size=12, llama_parts=4),
    "audio": Kind(recipe="audio-small", patch_size=8, parts=2, llama_parts=4),
    "audio:pcm16": Kind(recipe="audio16-small", patch_size=8, parts=2, llama_parts=4),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is compared, and for how long."""

    suite: tyro.conf.Positional[Path]
    """Folder of sets."""
    sets: tuple[str, ...] = (
        "text_wiki_en", "text_books_en", "code", "image_rgb32", "audio_speech", "audio_speech:pcm16",
    )  # fmt: skip
    """Folders in it; of audio also NAME:pcm16."""
    seconds: float = 300.0
    """How long each run learns."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of first weights and order of the data."""
    models: tuple[Model, ...] = get_args(Model)
    """Who takes part."""
    adamw_rates: tuple[float, ...] = (1e-3, 3e-3)
    """Learning rates of AdamW that all but ours try; none: Muon alone."""
    muon_factors: tuple[float, ...] = (1.0,)
    """By how much of our recipe's rate all but ours try Muon."""
    parts: int | None = None
    """Windows into which one of ours is cut for all others; None: as many as suit them (above)."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether ours, paper mode included, is compiled; "auto" as `byteloom train` decides."""
    valid_bytes: int = 131072
    """How much of the valid split the choice among ways of training rests on."""
    runs: Path | None = None
    """Keep our RUN folders here."""
    json: Path = Path("quality.json")
    """Where all numbers go."""
    resume: bool = False
    """Go on with this file."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A set: its bytes as all read them, and how windows are laid over them."""

    name: str
    kind: Kind
    run: RunConfig
    """Our recipe, with what its codec has to know."""
    corpora: dict[str, Corpus]
    """The splits as documents."""
    payloads: dict[str, np.ndarray]
    """The splits as bytes (N,) uint8."""
    owners: np.ndarray
    """(N,), for each byte of the test split the number of its item."""
    mark: int
    """The MARK of its modality."""
    given: int = 1
    """Bytes at the start of a window that are not scored: its overlap with the one before."""
    lead: int = 1
    """Bytes at the start of a split that nobody is scored on."""
    aligned: bool = False
    """Windows to learn from begin where windows to score do, and not just anywhere."""

    def starts(self, split: str, context: int, learned: bool = False) -> range:
        """Where windows may begin: to score each byte once, or to learn from, when all are whole."""
        stride, size = context - self.given, len(self.payloads[split])
        if learned:
            step = stride if self.aligned else self.given
            return range(self.lead - self.given, size - context + 1, step)
        return range(self.lead - self.given, size - self.given, stride)


@dataclass(frozen=True, kw_only=True)
class Mode:
    """How a peer computes."""

    precision: Literal["fp32", "bf16"] = "fp32"
    compiled: bool = False

    def __str__(self) -> str:
        return self.precision + (" compiled" if self.compiled else "")


def open_task(suite: Path, name: str) -> Task:
    """Opens a set. Raises DataError where it is not there or not of a kind that this program knows."""
    folder, coding = suite / name.partition(":")[0], name.partition(":")[2]
    known = name.split("_")[0].split(":")[0]
    if known not in KINDS or coding not in (("", "pcm16") if known == "audio" else ("",)):
        raise DataError(f"{name}: a set begins with {', '.join(KINDS)}; only audio can end with :pcm16")
    if not (folder / "meta.json").exists():
        raise DataError(f"{folder}: holds no meta.json; build the set with benchmarks/suite.py")
    kind, meta = KINDS[known + (coding and f":{coding}")], json.loads((folder / "meta.json").read_text())
    run, grid, modality = recipes.by_name(kind.recipe), {}, None
    if known == "image":
        if meta.get("shape") != [32, 32, 3]:
            raise DataError(f"{folder}: has tiles of {meta.get('shape')}; {kind.recipe} is made for [32, 32, 3]")
        picture = dataclasses.replace(run.media.image, shape=tuple(meta["shape"]))
        run = dataclasses.replace(run, media=dataclasses.replace(run.media, image=picture))
        modality = "image"
        grid = {"given": picture.patch**2 * 3, "lead": math.prod(picture.shape), "aligned": True}
    if known == "audio":
        if not isinstance(meta.get("rate"), int) or meta.get("channels", 1) != 1:
            raise DataError(f"{folder}: its meta.json must have the rate of its samples, and one channel")
        sound = dataclasses.replace(run.media.audio, raw_rate=meta["rate"])
        run = dataclasses.replace(run, media=dataclasses.replace(run.media, audio=sound))
        sample = 2 if coding else 1
        grid = {"given": sample, "lead": sample}
    corpora = {split: open_data([file_of(folder, split)], modality, run.media) for split in ("train", "valid", "test")}
    payloads = {split: payload(corpus) for split, corpus in corpora.items()}
    for split, data in payloads.items():
        if len(data) <= grid.get("lead", 1):
            raise DataError(f"{file_of(folder, split)}: has {len(data):,} bytes, and the first of them are not scored")
    return Task(
        name=name, kind=kind, run=run, corpora=corpora, payloads=payloads, mark=int(corpora["test"].segment_marks[0]),
        owners=owners(folder, len(payloads["test"]), tiles=known == "image"), **grid,
    )  # fmt: skip


def file_of(folder: Path, split: str) -> Path:
    """The data of a split. Raises DataError where there is not one file of it."""
    found = [path for path in folder.glob(f"{split}.*") if path.suffix != ".json"]
    if len(found) != 1:
        raise DataError(f"{folder}: must hold one file {split}.* beside {split}.index.json, and holds {len(found)}")
    return found[0]


def payload(corpus: Corpus) -> np.ndarray:
    """All bytes of a corpus, end to end."""
    return np.concatenate([corpus.payload(number) for number in range(len(corpus.segment_lengths))]).astype(np.uint8)


def owners(folder: Path, size: int, tiles: bool = False) -> np.ndarray:
    """Of each byte of the test split the number of its item. Of pictures, tiles of one photograph, NAME@..., are one.

    Raises DataError where the sizes in the index do not add up to the bytes, or twice as many.
    """
    index = json.loads((folder / "test.index.json").read_text())
    sizes = np.array([entry[1] for entry in index])
    each = sizes.sum() // size if size else 1
    if each not in (1, 2) or sizes.sum() != each * size or (sizes % each).any():
        raise DataError(f"{folder}/test.index.json: names {sizes.sum():,} bytes, and the split has {size:,}")
    numbers: dict[str, int] = {}
    names = (entry[0].rsplit("@", 1)[0] if tiles else entry[0] for entry in index)
    labels = [numbers.setdefault(name, len(numbers)) for name in names]
    return np.repeat(labels, sizes // each)


# -- who takes part ----------------------------------------------------------------------------------------------------


def count(model: nn.Module) -> int:
    """How many numbers a model trains."""
    return sum(p.numel() for p in model.parameters())


def nearest(target: int, shapes: Sequence[peers.Shape], make: Callable[[peers.Shape], nn.Module]) -> peers.Shape:
    """The shape whose model, which is not really built, has the number of parameters nearest to `target`."""

    def distance(shape: peers.Shape) -> float:
        with torch.device("meta"), peers.quiet():
            return abs(math.log(count(make(shape)) / target))

    return min(shapes, key=distance)


def paper_model(shape: peers.Shape) -> ModelConfig:
    """Ours in paper mode."""

    def stage(dim: int, num_layers: int, **more: Any) -> StageConfig:
        return StageConfig(
            dim=dim, num_layers=num_layers, num_heads=max(1, dim // 64), head_dim=64, position="learned",
            norm="layer", norm_eps=1e-5, qk_norm=False, mlp="relu", attention_bias=True, mlp_bias=True, zero_init=False,
            **more,
        )  # fmt: skip

    patch_size, (dim, local_dim) = shape.patch_size, shape.dims
    width = {"embed_dim": -(-dim // patch_size), "expand": "linear" if dim % patch_size else "slice"}
    positions = -(-shape.context // patch_size)
    return ModelConfig(
        stages=(
            stage(dim, shape.num_layers[0], patch_size=patch_size, max_positions=positions, **width),
            stage(local_dim, shape.num_layers[1]),
        ),
        context=shape.context,
        init_std=0.006,
    )


def shape_of(task: Task, model: Model) -> peers.Shape | None:
    """How large a model is for a task: as many parameters as ours has, and the windows that suit it. None: ours."""
    if model == "ours":
        return None
    with torch.device("meta"):
        ours = Multiscale(task.run.model)
    target = count(ours) - sum(table.weight.numel() for table in ours.string_tables)
    patch_size, parts = task.kind.patch_size, task.kind.parts_of(model)
    context = (task.run.model.context - task.given) // parts // task.given * task.given + task.given
    if model == "llama":
        sizes: Sequence[Any] = [((width,), (layers,)) for width, layers in product(WIDTHS, LLAMA_LAYERS)]
    else:
        sizes = [((width, width // 2), layers) for width, layers in product(WIDTHS, LAYERS)]
        context = context // patch_size * patch_size
    shapes = [
        peers.Shape(dims=dims, num_layers=layers, patch_size=patch_size, context=context, rotary=True)
        for dims, layers in sizes
    ]
    if model == "paper":
        return nearest(target, shapes, lambda shape: Multiscale(paper_model(shape)))
    return nearest(target, shapes, lambda shape: MAKERS[model](shape).model)


def batch_of(task: Task, model: Model) -> int:
    """Windows in a batch."""
    return task.run.train.batch_size * (1 if model == "ours" else task.kind.parts_of(model))


def ways(task: Task, model: Model, options: Options) -> dict[str, OptimConfig]:
    """How a model may be trained, by name."""
    recipe = task.run.optim
    if model == "ours":
        return {"recipe": recipe}
    found = {
        f"AdamW {rate:g}": dataclasses.replace(recipe, optimizer="adamw", learning_rate=rate)
        for rate in options.adamw_rates
    }
    for factor in options.muon_factors:
        rate = factor * recipe.muon_learning_rate
        name = "Muon" if factor == 1 else f"Muon x {factor:g}"
        found[name] = dataclasses.replace(recipe, optimizer="muon", muon_learning_rate=rate)
    return found


# -- the scorer --------------------------------------------------------------------------------------------------------

Nats = Callable[[Tensor, Sequence[int]], Tensor]
"""ids (B, T) and where in the split each row begins -> nats (B, T - 1) of all bytes of a row but the first."""


def score(task: Task, split: str, context: int, nats: Nats, max_bytes: int | None = None) -> np.ndarray:
    """Nats (N,) of each byte of a split after its first `lead`, each once, in windows of `context` bytes.

    With `max_bytes` of windows that are spread evenly over the split, about so many bytes of them.
    """
    data = task.payloads[split]
    found, asked = np.full(len(data), math.nan), np.zeros(len(data), bool)
    starts = [start for start in task.starts(split, context) if start + task.given < len(data)]
    if max_bytes is not None and (most := -(-max_bytes // (context - task.given))) < len(starts):
        starts = [starts[i * len(starts) // most] for i in range(most)]
    for group in groups(starts, lambda start: min(context, len(data) - start), max(1, IDS_AT_ONCE // context)):
        rows = np.stack([data[start : start + context] for start in group]).astype(np.int64)
        with torch.inference_mode():
            scored = nats(torch.from_numpy(rows), group).double().numpy()
        for start, row in zip(group, scored, strict=True):
            place = slice(start + task.given, start + rows.shape[1])
            found[place], asked[place] = row[task.given - 1 :], True
    return found[asked]


def groups(starts: Sequence[int], length: Callable[[int], int], most: int) -> Iterator[list[int]]:
    """Up to `most` starts that follow each other and whose windows are equally long."""
    group: list[int] = []
    for start in starts:
        if group and (len(group) == most or length(start) != length(group[0])):
            yield group
            group = []
        group.append(start)
    if group:
        yield group


def nats_of_ours(model: Multiscale, task: Task, split: str) -> Nats:
    """Ours as the scorer asks for it: it is told which modality the bytes are of, and where in a segment they begin."""
    begins = np.cumsum(np.append(0, task.corpora[split].segment_lengths))

    def nats(ids: Tensor, starts: Sequence[int]) -> Tensor:
        since = np.asarray(starts) - begins[begins.searchsorted(starts, "right") - 1]
        mark = torch.full((len(starts),), task.mark)
        return model.nats(ids, CHUNK, mark=mark, since=torch.from_numpy(since))[:, 1:]

    return nats


def nats_of_peer(peer: peers.Peer) -> Nats:
    """A peer as the scorer asks for it."""

    def nats(ids: Tensor, starts: Sequence[int]) -> Tensor:
        logits, comes = peer.logits(ids).float(), ids[:, 1:]
        return F.cross_entropy(logits.flatten(0, 1), comes.flatten(), reduction="none").view(comes.shape)

    return nats


def by_item(nats: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Nats (N,) of bytes summed by their owners (N,): (items, 2: nats and bytes)."""
    return np.stack((np.bincount(owners, nats), np.bincount(owners)), axis=1)


# -- training ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a run left."""

    nats: Callable[[str], Nats]
    """For each split, what the scorer asks for."""
    about: dict[str, Any]
    """For the table."""
    documents: Callable[[], float] | None = None
    """Ours: bits per byte of the test split as `byteloom evaluate` measures it."""


def learn_ours(task: Task, config: RunConfig, folder: Path, seed: int, options: Options) -> Learned:
    """Trains ours, or ours in paper mode. Raises TrainingError where the loss does not stay finite."""
    settings = dataclasses.replace(
        config.train, seed=seed, steps=None, max_bytes=None, max_seconds=options.seconds, compile=options.compile,
        device="cpu", validations=0,
    )  # fmt: skip
    config = dataclasses.replace(config, train=settings)
    trained = train(
        config, task.corpora["train"], folder, valid=task.corpora["valid"], resume=options.resume, show=True
    )
    model, progress = trained.model, trained.progress
    return Learned(
        nats=lambda split: nats_of_ours(model, task, split),
        about={
            "parameters": count(model), "steps": progress.step, "bytes": progress.bytes, "seconds": progress.seconds,
            "mode": str(Mode(precision=progress.precision, compiled=progress.compiled)),  # type: ignore[arg-type]
            "pace": pace([(row["seconds"], row["step"]) for row in trained.metrics]),
        },
        documents=lambda: evaluate(model, task.corpora["test"]).bits_per_byte,
    )  # fmt: skip


def pace(log: Sequence[tuple[float, int]]) -> list[float]:
    """Steps a second in each tenth of a run, of pairs of seconds and steps done by then."""
    seconds, steps = np.array([(0.0, 0), *log]).T
    ends = np.interp(np.linspace(0, seconds[-1], 11), seconds, steps)
    return [round(float(each), 2) for each in np.diff(ends) / (seconds[-1] / 10)]


def faster(task: Task, config: RunConfig, options: Options) -> Literal["on", "off"]:
    """Whether ours in paper mode takes more steps in the time when it is compiled, measured as peers are."""
    if options.compile != "auto":
        return options.compile
    if options.seconds < acceleration.WORTH_SECONDS or not acceleration.can_compile(CPU):
        return "off"
    data, steps = batches(task, config.model.context, config.train.batch_size, 0), []
    for compiled in (False, True):
        torch._dynamo.reset()
        model = Multiscale(config.model).train()
        optimizers = Optimizers(model, config.optim, "fp32")

        def step(model: Multiscale = model, optimizers: Optimizers = optimizers) -> None:
            loss = model.loss(next(data))
            (loss.nats / loss.count).backward()
            optimizers.step(0.5)

        with acceleration.accelerated(model, compiled):
            first, *rest = (acceleration.timed(step) for _ in range(1 + TRIED_STEPS))
        steps.append(1 + max(options.seconds - first, 0) / statistics.median(rest))
        acceleration.give_back()
    print(f"  steps in the time: fp32 {steps[0]:.0f}, fp32 compiled {steps[1]:.0f}", flush=True)
    return "on" if steps[1] > steps[0] else "off"


def batches(task: Task, context: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Windows of the train split (B, T), without end: in each pass one after another of the same length, shuffled.

    Raises DataError where it is too short.
    """
    data, starts = task.payloads["train"], task.starts("train", context, learned=True)
    if not starts:
        raise DataError(f"{task.name}: the train split has {len(data):,} bytes, fewer than a window of {context}")
    random = np.random.default_rng(seed)

    def passes() -> Iterator[int]:
        each = context // starts.step if not task.aligned else 1
        while True:
            places = starts[int(random.integers(min(each, len(starts)))) :: each]
            yield from (places[int(i)] for i in random.permutation(len(places)))

    drawn = passes()
    while True:
        rows = [data[start : start + context] for start in itertools.islice(drawn, batch_size)]
        yield torch.from_numpy(np.stack(rows).astype(np.int64))


def matrices(model: nn.Module) -> set[str]:
    """The names of matrices between vectors, which Muon takes: all linear layers but the head."""
    heads = ("to_logits", "lm_head")
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return {f"{name}.weight" for name in linear if name.rpartition(".")[2] not in heads}


def stepping(peer: peers.Peer, data: Iterator[Tensor], optim: OptimConfig, mode: Mode) -> Callable[[float], bool]:
    """A call that makes one update, at a progress from 0 to 1, and says whether its gradient was finite."""
    model = peer.model.train()
    if mode.compiled:
        model.forward = torch.compile(model.forward, dynamic=False)  # type: ignore[method-assign]
    optimizers = Optimizers(model, optim, acceleration.choose_precision("auto", CPU), matrices(model))

    def step(progress: float) -> bool:
        with torch.autocast("cpu", torch.bfloat16, enabled=mode.precision == "bf16"):
            loss = peer.loss(next(data))
        loss.backward()
        return bool(optimizers.step(progress).isfinite())

    return step


def fastest(
    make: Callable[[], peers.Peer], data: Iterator[Tensor], optim: OptimConfig, seconds: float
) -> tuple[Mode, dict[str, float]]:
    """The mode in which a peer takes the most steps in the time, and how many that would be in each."""
    found: dict[Mode, float] = {}

    def measure(mode: Mode) -> None:
        torch._dynamo.reset()
        step = functools.partial(stepping(make(), data, optim, mode), 0.5)
        first, *rest = (acceleration.timed(step) for _ in range(1 + TRIED_STEPS))
        found[mode] = 1 + max(seconds - first, 0) / statistics.median(rest)
        acceleration.give_back()

    measure(Mode(precision="fp32"))
    measure(Mode(precision="bf16"))
    if seconds >= acceleration.WORTH_SECONDS and acceleration.can_compile(CPU):
        compiled = dataclasses.replace(max(found, key=found.__getitem__), compiled=True)
        try:
            measure(compiled)
            measure(compiled)
        except Exception as problem:  # whatever the compiler does not like
            print(f"  cannot be compiled: {repr(problem)[:100]}", flush=True)
    return max(found, key=found.__getitem__), {str(mode): steps for mode, steps in found.items()}


def learn_peer(
    task: Task, make: Callable[[], peers.Peer], shape: peers.Shape, batch_size: int, optim: OptimConfig, mode: Mode,
    seed: int, seconds: float,
) -> Learned:  # fmt: skip
    """Trains a peer. Raises TrainingError where the loss does not stay finite."""
    data = batches(task, shape.context, batch_size, seed)
    # The first model that a process compiles takes longer than others, and is compiled twice where no step came before.
    for compiled in sorted({False, mode.compiled}):
        stepping(make(), data, optim, dataclasses.replace(mode, compiled=compiled))(0.0)
    torch._dynamo.reset()
    acceleration.give_back()
    torch.manual_seed(seed)
    peer, data = make(), batches(task, shape.context, batch_size, seed)
    step = stepping(peer, data, optim, mode)
    first, taken, log, began = 0.0, 0.0, list[tuple[float, int]](), time.monotonic()
    while taken < seconds:
        if not step((taken - first) / (seconds - first)):
            raise TrainingError(f"the gradient is not finite at step {len(log) + 1}")
        taken = time.monotonic() - began
        first = first or taken
        log.append((taken, len(log) + 1))
    peer.model.eval()
    if mode.compiled:
        del peer.model.forward
    about = {
        "parameters": peer.parameters, "steps": len(log), "bytes": len(log) * batch_size * shape.context,
        "seconds": taken, "mode": str(mode), "pace": pace(log),
    }  # fmt: skip
    return Learned(nats=lambda split: nats_of_peer(peer), about=about)


# -- the program -------------------------------------------------------------------------------------------------------


class Results:
    """All that was measured so far, in a file that is written anew after each run."""

    def __init__(self, options: Options):
        self.path = options.json
        settings = {key: getattr(options, key) for key in ("seconds", "valid_bytes", "parts", "compile")}
        self.found: dict[str, Any] = {
            "settings": settings,
            "machine": {"torch": torch.__version__, "threads": torch.get_num_threads(), "cores": os.cpu_count()},
            "recipes": {}, "modes": {}, "runs": {}, "summary": {},
        }  # fmt: skip
        if not self.path.exists():
            return
        if not options.resume:
            raise DataError(f"{self.path}: holds results already; add --resume to go on, or name another --json")
        try:
            found = json.loads(self.path.read_text())
            same = found["settings"] == settings and found.keys() == self.found.keys()
        except (ValueError, LookupError, TypeError) as problem:
            raise DataError(f"{self.path}: is not a file of this program") from problem
        if not same:
            raise DataError(f"{self.path}: was begun with {found['settings']}; give the same, or name another --json")
        self.found = found

    def begin(self, task: Task) -> None:
        """Goes on with a set. Raises DataError where it was begun with another recipe of ours."""
        recipe = digest(dataclasses.asdict(task.run))
        if self.found["recipes"].setdefault(task.name, recipe) != recipe:
            raise DataError(f"{self.path}: {task.name} was begun with another {task.kind.recipe}; name another --json")

    def of(self, name: str) -> dict[Model, list[dict[str, Any]]]:
        """The finished runs of each model on a set, of the way that was best with its first seed."""
        found: dict[Model, list[dict[str, Any]]] = {}
        for row in self.found["runs"].values():
            if row["set"] == name:
                found.setdefault(row["model"], []).append(row)
        best = {model: chosen([r for r in rows if r["seed"] == rows[0]["seed"]]) for model, rows in found.items()}
        finished = {
            model: [row for row in rows if row["way"] == best[model] and row["test"] is not None]
            for model, rows in found.items()
        }
        return {model: rows for model, rows in finished.items() if rows}

    def write(self) -> None:
        """Writes the file, whole or not at all."""
        write_json(self.path, self.found)


def run(
    task: Task, model: Model, shape: peers.Shape | None, way: str, seed: int, options: Options, results: Results
) -> dict[str, Any]:
    """One run, trained and scored, or what is known of it from before."""
    key = f"{task.name} / {model} / {way} / {seed}"
    if key in results.found["runs"]:
        return results.found["runs"][key]
    optim = ways(task, model, options)[way]
    context = task.run.model.context if shape is None else shape.context
    row: dict[str, Any] = {
        "set": task.name, "model": model, "way": way, "seed": seed, "batch_size": batch_of(task, model),
        "context": context, "shape": None if shape is None else dataclasses.asdict(shape), "valid": None, "test": None,
    }  # fmt: skip
    print(f"{key}: {row['batch_size']} x {context} bytes", flush=True)
    torch._dynamo.reset()  # it gives up on code that it has compiled for many models
    with tempfile.TemporaryDirectory() as spare:
        folder = (options.runs or Path(spare)) / key.replace(" / ", "/").replace(" ", "-").replace(":", "-")
        try:
            if shape is None:
                learned = learn_ours(task, task.run, folder, seed, options)
            elif model == "paper":
                windows = dataclasses.replace(task.run.train, batch_size=row["batch_size"])
                config = dataclasses.replace(task.run, model=paper_model(shape), optim=optim, train=windows)
                chosen_mode = dataclasses.replace(options, compile=faster(task, config, options))
                learned = learn_ours(task, config, folder, seed, chosen_mode)
            else:
                learned = learn_peer(
                    task, lambda: quietly(model, shape), shape, row["batch_size"], optim,
                    mode_of(task, model, shape, optim, options, results), seed, options.seconds,
                )  # fmt: skip
            row |= learned.about | measured(task, learned, context, options.valid_bytes)
        except TrainingError as problem:
            row["problem"] = str(problem)
    acceleration.give_back()
    results.found["runs"][key] = row
    results.write()
    print(f"  {row.get('problem') or said(row)}", flush=True)
    return row


def quietly(model: Model, shape: peers.Shape) -> peers.Peer:
    """A peer that does not greet."""
    with peers.quiet():
        return MAKERS[model](shape)


def mode_of(
    task: Task, model: Model, shape: peers.Shape, optim: OptimConfig, options: Options, results: Results
) -> Mode:
    """The mode of a peer on a task, which is measured once."""
    key, modes = f"{task.name} / {model}", results.found["modes"]
    if key not in modes:
        data = batches(task, shape.context, batch_of(task, model), 0)
        best, steps = fastest(lambda: quietly(model, shape), data, optim, options.seconds)
        modes[key] = {"mode": dataclasses.asdict(best), "steps": steps}
        results.write()
        print("  steps in the time: " + ", ".join(f"{name} {number:.0f}" for name, number in steps.items()), flush=True)
    return Mode(**modes[key]["mode"])


def measured(task: Task, learned: Learned, context: int, valid_bytes: int) -> dict[str, Any]:
    """A run's bits per byte on both splits, and on the test split by item."""
    valid = score(task, "valid", context, learned.nats("valid"), valid_bytes)
    test = score(task, "test", context, learned.nats("test"))
    if not math.isfinite(valid.sum() + test.sum()):
        raise TrainingError("its bits per byte are not finite")
    row: dict[str, Any] = {
        "valid": bits_per_byte(float(valid.sum()), len(valid)),
        "test": bits_per_byte(float(test.sum()), len(test)),
        "items": by_item(test, task.owners[task.lead :]).round(4).tolist(),
    }
    if learned.documents is not None:
        row["documents"] = learned.documents()
    return row


def said(row: dict[str, Any]) -> str:
    """A run in a line."""
    return (
        f"valid {row['valid']:.4f}, test {row['test']:.4f} bits per byte; {row['parameters'] / 1e6:.2f}M parameters, "
        f"{row['steps']:,} steps, {row['bytes'] / 1e6:.2f} MB in {row['seconds']:.0f} s, {row['mode']}"
    )


def chosen(rows: Sequence[dict[str, Any]]) -> str | None:
    """The way that is best on the valid split; None where none went well."""
    finished = [row for row in rows if row["valid"] is not None]
    return min(finished, key=lambda row: row["valid"])["way"] if finished else None


def summarised(rows: dict[Model, list[dict[str, Any]]]) -> dict[Model, dict[str, Any]]:
    """Means over seeds, and how they stand to the best peer: for each model its rows of one set, all of one way."""
    means = {model: np.mean([row["items"] for row in found], axis=0) for model, found in rows.items()}
    summary: dict[Model, dict[str, Any]] = {}
    for model, found in rows.items():
        tests = [row["test"] for row in found]
        first = found[0]
        summary[model] = {
            "test": statistics.mean(tests), "standard_error": standard_error(means[model]),
            "smallest": min(tests), "largest": max(tests), "seeds": len(tests), "way": first["way"],
            "mode": first["mode"], "parameters": first["parameters"], "batch_size": first["batch_size"],
            "context": first["context"],
            **{key: statistics.mean(row[key] for row in found) for key in ("bytes", "steps", "seconds")},
        }  # fmt: skip
        if "documents" in first:
            summary[model]["documents"] = statistics.mean(row["documents"] for row in found)
    others = [model for model in rows if model in MAKERS]
    if not others:
        return summary
    best = min(others, key=lambda model: summary[model]["test"])
    for model, row in summary.items():
        row["ratio"] = row["test"] / summary[best]["test"]
        above = np.stack((means[model][:, 0] - row["ratio"] * means[best][:, 0], means[best][:, 1]), axis=1)
        error = standard_error(above)
        row["ratio_error"] = None if error is None else error / summary[best]["test"]
    return summary


def show(name: str, summary: dict[Model, dict[str, Any]], console: Console) -> None:
    """Prints the table of a set."""
    table = Table(title=f"{name}: bits per byte of the test split")
    for column in (
        "", "bits per byte", "seeds", "of the best peer", "documents", "parameters", "batch", "trained with", "mode",
        "bytes seen", "steps", "seconds",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for model, row in sorted(summary.items(), key=lambda entry: entry[1]["test"]):
        table.add_row(
            model,
            with_error(row["test"], row["standard_error"]),
            f"{row['smallest']:.4f} to {row['largest']:.4f}" if row["seeds"] > 1 else "",
            with_error(row["ratio"], row["ratio_error"], 3) if "ratio" in row else "",
            f"{row['documents']:.4f}" if "documents" in row else "",
            f"{row['parameters'] / 1e6:.2f}M",
            f"{row['batch_size']} x {row['context']}",
            row["way"],
            row["mode"],
            f"{row['bytes'] / 1e6:.2f}M",
            f"{row['steps']:,.0f}",
            f"{row['seconds']:.0f}",
        )
    console.print(table)


def with_error(value: float, error: float | None, digits: int = 4) -> str:
    """A number and its standard error."""
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def compare(task: Task, model: Model, options: Options, results: Results) -> None:
    """All runs of a model on a set: every way with the first seed, then the best of them with the others."""
    shape, (first, *others) = shape_of(task, model), options.seeds
    tried = [run(task, model, shape, way, first, options, results) for way in ways(task, model, options)]
    if (best := chosen(tried)) is not None:
        for seed in others:
            run(task, model, shape, best, seed, options, results)


def main(options: Options) -> None:
    """Runs the program."""
    torch._inductor.config.force_disable_caches = True  # or all but the first run would compile for nothing
    acceleration.keep_memory()
    if not options.seeds:
        raise DataError("--seeds names none; give one or more")
    if options.parts is not None and not 1 <= options.parts <= 64:
        raise DataError(f"--parts is {options.parts}; give a number of windows from 1 to 64")
    results = Results(options)
    tasks = [open_task(options.suite, name) for name in options.sets]
    for task in tasks:
        results.begin(task)
    if options.parts is not None:
        cut = {"parts": options.parts, "llama_parts": options.parts}
        tasks = [dataclasses.replace(task, kind=dataclasses.replace(task.kind, **cut)) for task in tasks]
    console = Console(width=170, highlight=False)
    for task in tasks:
        for model in options.models:
            try:
                compare(task, model, options, results)
            except (ImportError, DataError) as problem:
                print(f"{model} is left out: {problem}")
        results.found["summary"][task.name] = summarised(results.of(task.name))
        results.write()
        show(task.name, results.found["summary"][task.name], console)


if __name__ == "__main__":
    torch.set_flush_denormal(True)  # before there are other threads, which inherit it
    try:
        main(tyro.cli(Options))
    except (DataError, CheckpointError) as problem:
        sys.exit(str(problem))
    except KeyboardInterrupt:
        sys.exit("stopped; what was measured is kept, and --resume goes on")
