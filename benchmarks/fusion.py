"""Time-aligned streams fused into one model, on real video: what context is worth, and what its absence costs.

    python benchmarks/fusion.py SUITE OUT [--max-bytes 600000] [--seeds 0 1] [--json FILE]

SUITE is the folder of benchmarks/suite.py, with video_rgb64. Of each clip there are three streams, and a patch of the
model holds the same 2 x 2 pixels of all of them:

    luminance   given       the frame in grey, 4 bytes a patch: known when its colours are predicted
    pixels      predicted   the frame in RGB, 12 bytes
    past        past        12 bytes known one patch later: see below

As the past stream, `--past before` takes the frame before, one patch ahead, so that when a patch is to be predicted the
same place of the frame before was just seen; `--past differences` takes what changed since the frame before, modulo
256, at the patch itself.

What is made is kept in OUT: the streams as raw files, and a manifest for each way to put them together, where a stream
that is missing is an empty text (`byteloom.manifests`). Models are trained by `byteloom.train.loop.train` on these:
one that knows pixels alone, and for both kinds of fusion layer one that always has all streams and one from which each
is kept away in a share of the sequences. All see the same number of bytes of pixels, in windows of as many patches.

Reported: bits per byte of the pixels of the test split with all streams, and with streams absent from it.
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from byteloom import ModelConfig, Multiscale, StageConfig, evaluate
from byteloom.layers.modalities import EmbedderConfig, StreamConfig
from byteloom.scan import scan
from byteloom.train.acceleration import choose_precision
from byteloom.train.loop import RunConfig, TrainConfig, train
from byteloom.train.optim import OptimConfig

SIDE = 64
"""Of a frame, in pixels."""
PATCH = 2
"""Side of a patch."""
STREAMS = (
    StreamConfig(name="luminance", size=PATCH * PATCH, role="given"),
    StreamConfig(name="pixels", size=PATCH * PATCH * 3),
    StreamConfig(name="past", size=PATCH * PATCH * 3, role="past"),
)
ABSENT: dict[str, tuple[str, ...]] = {
    "all": (),
    "no luminance": ("luminance",),
    "no past": ("past",),
    "neither": ("luminance", "past"),
}
"""The ways to test: which streams are missing."""
PIXELS = STREAMS[1:2]


def clips(suite: Path, split: str) -> dict[str, np.ndarray]:
    """The frames (F, 64, 64, 3) of each clip."""
    folder = suite / "video_rgb64"
    frames = np.fromfile(folder / f"{split}.bin", np.uint8).reshape(-1, SIDE, SIDE, 3)
    names = [name.partition("@")[0] for name, _ in json.loads((folder / f"{split}.index.json").read_text())]
    return {name: frames[[other == name for other in names]] for name in dict.fromkeys(names)}


def past_of(frames: np.ndarray, kind: str) -> np.ndarray:
    """The past stream (N,) beside all frames but the first."""
    if kind == "differences":
        return scan(frames[1:] - frames[:-1], PATCH).ravel()
    return scan(frames[:-1], PATCH).ravel()[STREAMS[2].size :]


def write_streams(suite: Path, out: Path, kind: str) -> None:
    """Writes every stream of every clip, and the manifests that put them together."""
    weights = np.array([0.299, 0.587, 0.114])
    for split in ("train", "valid", "test"):
        (out / split).mkdir(parents=True, exist_ok=True)
        found = clips(suite, split)
        parts: dict[str, list[dict[str, Any]]] = {stream.name: [] for stream in STREAMS}
        for name, frames in found.items():
            contents = {
                "luminance": (np.rint(frames[1:] @ weights).astype(np.uint8), "grey.u8", "video"),
                "pixels": (frames[1:], "rgb", "video"),
                "past": (past_of(frames, kind), "past.bin", "bytes"),
            }
            for stream, (data, suffix, modality) in contents.items():
                path = out / split / f"{name}.{suffix}"
                data.tofile(path)
                part: dict[str, Any] = {"modality": modality, "path": f"{split}/{path.name}"}
                if modality == "video":
                    part["shape"] = [SIDE, SIDE, 3 if stream == "pixels" else 1]
                parts[stream].append(part)
        missing = [{"modality": "text", "text": ""}] * len(found)
        write_manifest(out / f"{split}.pixels.jsonl", parts["pixels"])
        for way, absent in ABSENT.items():
            streams = [missing if stream.name in absent else parts[stream.name] for stream in STREAMS]
            write_manifest(manifest(out, split, way), *streams)


def manifest(out: Path, split: str, way: str) -> Path:
    """Where the manifest of a split lies."""
    return out / f"{split}.{way.replace(' ', '-')}.jsonl"


def write_manifest(path: Path, *streams: list[dict[str, Any]]) -> None:
    """Writes a document of these streams for each clip."""
    path.write_text("".join(json.dumps(document) + "\n" for document in zip(*streams, strict=True)))


def run_config(
    streams: tuple[StreamConfig, ...], fuse: Any, dropout: float, seed: int, options: "Options"
) -> RunConfig:
    """Two stages; the bytes of a patch also see the patch before."""
    size = sum(stream.size for stream in streams)
    return RunConfig(
        model=ModelConfig(
            stages=(
                StageConfig(dim=192, num_layers=2, num_heads=3, patch_size=size, token_shift=True),
                StageConfig(dim=128, num_layers=1, num_heads=2, cross_patch=size, token_shift=True),
            ),
            embedder=EmbedderConfig(kind="fusion", streams=streams, fuse=fuse, stream_dropout=dropout),
            heads="by_modality",
            context=options.patches * size,
            init_std=0.08,
            init_waves=32.0,
        ),
        optim=OptimConfig(muon_learning_rate=0.01, warmup=0.05),
        train=TrainConfig(
            batch_size=options.batch_size, max_bytes=options.max_bytes, seed=seed, compile="off", validations=1
        ),
    )


def measure(model: Multiscale, path: Path) -> dict[str, Any]:
    """What `evaluate` finds of the pixels of a manifest."""
    found = evaluate(model, path, autocast=choose_precision("auto", torch.device("cpu")) == "bf16")
    return {"bits_per_byte": found.by_modality["pixels"]["bits_per_byte"], "bytes": found.bytes}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    suite: tyro.conf.Positional[Path]
    """Folder of benchmarks/suite.py, with video_rgb64."""
    out: tyro.conf.Positional[Path]
    """Where streams, manifests and runs go; runs that are there go on."""
    past: Literal["before", "differences"] = "before"
    """What the past stream holds."""
    fuse: tuple[Literal["sum", "attention"], ...] = ("sum", "attention")
    """Kinds of fusion layer."""
    dropout: tuple[float, ...] = (0.0, 0.3)
    """Shares of sequences in which a stream is kept away in training."""
    seeds: tuple[int, ...] = (0, 1)
    """Of the first weights and the order of the data."""
    max_bytes: int = 600_000
    """Bytes of pixels that each model sees."""
    patches: int = 256
    """Patches in a window."""
    batch_size: int = 1
    """Windows in an update."""
    threads: int = 1
    """Cores to use."""
    json: Path | None = None
    """Write the figures here."""


def main(options: Options) -> None:
    """Runs the program."""
    torch.set_num_threads(options.threads)
    write_streams(options.suite, options.out, options.past)
    table = Table("fusion", "left out in training", "seed", *ABSENT, title="bits per byte of the test split's pixels")
    rows: list[dict[str, Any]] = []
    kinds: list[tuple[Any, float]] = [("pixels alone", 0.0), *itertools.product(options.fuse, options.dropout)]
    for seed, (kind, dropout) in itertools.product(options.seeds, kinds):
        alone = kind == "pixels alone"
        streams, fuse = (PIXELS, "sum") if alone else (STREAMS, kind)
        learned, valid = (
            options.out / f"{split}.pixels.jsonl" if alone else manifest(options.out, split, "all")
            for split in ("train", "valid")
        )
        run = options.out / f"run-{kind.replace(' ', '-')}-{dropout}-{seed}"
        config = run_config(streams, fuse, dropout, seed, options)
        trained = train(config, [learned], run, valid=[valid], resume=run.exists())
        if alone:
            found = {"neither": measure(trained.model, options.out / "test.pixels.jsonl")}
        else:
            found = {way: measure(trained.model, manifest(options.out, "test", way)) for way in ABSENT}
        row = {"kind": kind, "dropout": dropout, "seed": seed, **trained.summary(), "test": found}
        rows.append(row)
        cells = [f"{found[way]['bits_per_byte']:.3f}" if way in found else "" for way in ABSENT]
        table.add_row(kind, "" if alone else f"{dropout:.0%}", str(seed), *cells)
        print(f"{kind}, {dropout:.0%}, seed {seed}: {', '.join(cells)}, {row['seconds']:.0f} s", flush=True)
    Console(width=120).print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
