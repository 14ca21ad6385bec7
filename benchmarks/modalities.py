"""Pictures, sound, video and a mixture: the recipes' bits per byte beside compressors, and what mixing costs.

    python benchmarks/modalities.py SUITE OUT [--seconds 600] [--methods basic] [--only image mixed]

SUITE is the folder of benchmarks/suite.py. The `byteloom` command does all of it, and each call is printed first. What
is made is kept in OUT: prepared data, runs, and figures.json, which is written anew after every run. A run that is
there is gone on with, and one that has ended is only measured again: an interrupted program may be called again.

    image     image-small on image_rgb32
    speech    audio-small on audio_speech, in mu-law
    video     video-small on video_rgb64
    mixed     mixed-small on text_wiki_en, image_rgb32 and audio_speech, measured on each
    alone     text-small, image-small and audio-small, each for as many bytes of its modality as the mixed run saw
    raster    image-small on rows of pixels instead of patches, for as many bytes as `image` saw

Beside the models: gzip -9, bzip2 -9, xz -9e and zstd -19 over a whole test split, in the order that the model reads
and, of pictures and video, row by row too; PNG of each tile or frame; FLAC of the mu-law codes as 8-bit samples.
"""

import io
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import torch
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

from byteloom import recipes
from byteloom.evaluation import Method, baselines, packed, row_names, rows_of
from byteloom.loader import Loader, LoaderConfig
from byteloom.losses import VOCABULARY
from byteloom.models.store import read_model_config, read_run
from byteloom.shards import is_prepared, open_prepared

Part = Literal["image", "speech", "video", "mixed", "alone", "raster"]
PARTS: tuple[Part, ...] = ("image", "speech", "video", "mixed", "alone", "raster")
ROW_BEFORE = (93, 96, 99)
"""In rows of 32 RGB pixels, how far back the pixels above lie: to the right, straight, and to the left."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Data to learn from and to measure on."""

    file: str
    """In the suite, with the split for {}."""
    recipe: str
    """Of models that learn from it alone."""
    modality: str
    """As the library names it."""
    options: str = ""
    """Of `byteloom prepare`."""
    shape: tuple[int, int, int] | None = None
    """Of tiles or frames."""


TILES = "--modality image --image.shape 32 32 3"
SOURCES = {
    "text": Source(file="text_wiki_en/{}.txt", recipe="text-small", modality="text"),
    "image": Source(
        file="image_rgb32/{}.bin", recipe="image-small", modality="image", options=TILES, shape=(32, 32, 3)
    ),
    "raster": Source(
        file="image_rgb32/{}.bin", recipe="image-small", modality="image", options=f"{TILES} --image.scan raster"
    ),
    "speech": Source(
        file="audio_speech/{}.s16le", recipe="audio-small", modality="audio",
        options="--audio.raw-rate 8000 --audio.coding mulaw",
    ),
    "video": Source(
        file="video_rgb64/{}.bin", recipe="video-small", modality="video",
        options="--modality video --video.shape 64 64 3", shape=(64, 64, 3),
    ),
}  # fmt: skip
MIXED = ("text", "image", "speech")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    suite: tyro.conf.Positional[Path]
    """Folder of benchmarks/suite.py."""
    out: tyro.conf.Positional[Path]
    """Where prepared data, runs and figures go."""
    seconds: float = 600
    """How long a model learns, where no other run says how many bytes it sees."""
    mixture: tuple[float, float, float] = (1, 1, 1)
    """Weights of text, pictures and sound in the mixed run."""
    methods: tuple[Method, ...] = ("basic",)
    """Methods of evaluation."""
    only: tuple[Part, ...] = PARTS
    """Parts to run. `alone` needs what `mixed` left in OUT, and `raster` what `image` left."""


def byteloom(*words: object) -> None:
    """Runs the command, printed as it is typed. Ends the program where it fails."""
    command = [str(word) for word in words]
    print(f"\n$ byteloom {shlex.join(command)}", flush=True)
    if code := subprocess.run([sys.executable, "-m", "byteloom", *command]).returncode:
        sys.exit(f"that failed (exit code {code}); what was measured before is in OUT/figures.json")


def prepared(options: Options, source: str, split: str) -> Path:
    """A split as prepared data, which are made where they are not there."""
    folder = options.out / "data" / source / split
    if not is_prepared(folder):
        kind = SOURCES[source]
        byteloom("prepare", options.suite / kind.file.format(split), *kind.options.split(), "--out", folder)
    return folder


class Figures:
    """What was measured so far, in OUT/figures.json."""

    def __init__(self, options: Options):
        self.options, self.path = options, options.out / "figures.json"
        self.found: dict[str, Any] = {"runs": {}, "coders": {}, "mixed_saw": {}}
        if self.path.exists():
            self.found = json.loads(self.path.read_text())

    def run(self, name: str, recipe: str, sources: tuple[str, ...], *flags: object) -> None:
        """Trains a model, measures it on the test split of each source, and keeps and shows the figures."""
        run, report = self.options.out / "runs" / name, self.options.out / "report.json"
        learned, held_out, tests = (
            [prepared(self.options, source, split) for source in sources] for split in ("train", "valid", "test")
        )
        data = ("--data", *learned, "--valid", *held_out)
        byteloom("train", recipe, *data, "--out", run, "--resume", "--json", report, *flags)
        row = json.loads(report.read_text()) | {"recipe": recipe, "test": {}}
        for source, test in zip(sources, tests, strict=True):
            if source not in self.found["coders"]:
                self.found["coders"][source] = coders(self.options, source)
            row["test"][source] = {}
            for method in self.options.methods:
                byteloom("evaluate", run, test, "--method", method, "--no-baseline", "--json", report)
                measured = json.loads(report.read_text())
                kept = ("bits_per_byte", "standard_error", "bytes", "items")
                row["test"][source][method] = {key: measured[key] for key in kept}
        report.unlink()
        self.found["runs"][name] = row
        self.path.write_text(json.dumps(self.found, indent=1) + "\n")
        show(self.found)

    def bytes_seen(self, name: str) -> int:
        """By a run of before. Ends the program where there was none."""
        if name not in self.found["runs"]:
            sys.exit(f"this needs the figures of {name!r} in {self.path}; run that part before or with it")
        return self.found["runs"][name]["bytes"]


def bytes_by_source(options: Options, run: Path, steps: int) -> dict[str, int]:
    """How many bytes of each source a mixed run has seen: its batches are drawn again, and counted."""
    config, settings = read_model_config(run), read_run(run)["train"]
    corpora = [open_prepared(prepared(options, source, "train")) for source in MIXED]
    streams = [(packed(corpus, config), weight) for corpus, weight in zip(corpora, settings["mixture"], strict=True)]
    drawn = LoaderConfig(context=config.context, batch_size=settings["batch_size"], seed=settings["seed"])
    names = row_names(config, {mark: name for corpus in corpora for mark, name in corpus.modalities.items()})
    loader, counts = Loader(drawn, streams), np.zeros(max(names) + 1, np.int64)
    for _ in range(steps * settings["accumulation"]):
        batch = next(loader)
        rows = rows_of(config, torch.from_numpy(batch["ids"]), torch.from_numpy(batch["mark"]))
        counts += np.bincount(rows[batch["ids"] < VOCABULARY.num_bytes], minlength=len(counts))
    found = {names[row]: int(counts[row]) for row in names}
    return {source: found[SOURCES[source].modality] for source in MIXED}


def coders(options: Options, source: str) -> dict[str, dict[str, float]]:
    """Bits per byte of a test split under compressors, for each order of its bytes."""
    kind, corpus = SOURCES[source], open_prepared(prepared(options, source, "test"))
    found = {"as the model reads": bits(baselines(corpus))}
    data = (options.suite / kind.file.format("test")).read_bytes()
    if kind.shape is not None:
        found["row by row"] = bits(baselines(data)) | {"PNG": png_size(data, kind.shape) * 8 / len(data)}
    if kind.modality == "audio":
        found["as the model reads"]["FLAC"] = flac_size(corpus.payload(0)) * 8 / corpus.num_bytes
    return found


def bits(sizes: dict[str, dict[str, float]]) -> dict[str, float]:
    """Of what `baselines` found, bits per byte."""
    return {name: entry["bits_per_byte"] for name, entry in sizes.items()}


def png_size(data: bytes, shape: tuple[int, int, int]) -> int:
    """Bytes of the tiles as PNG files."""
    total = 0
    for tile in np.frombuffer(data, np.uint8).reshape(-1, *shape):
        file = io.BytesIO()
        Image.fromarray(tile).save(file, "PNG", optimize=True)
        total += file.tell()
    return total


def flac_size(codes: np.ndarray) -> int:
    """Bytes of mu-law codes (N,) as one FLAC file of 8-bit samples, loudest below zero to loudest above."""
    code = ~codes.astype(np.int16) & 255
    samples = np.where(code & 128, -1 - (code & 127), code)
    file = io.BytesIO()
    soundfile.write(file, (samples << 8).astype(np.int16), 8000, "PCM_S8", format="FLAC")
    return len(file.getvalue())


def show(found: dict[str, Any]) -> None:
    """Prints the tables."""
    console = Console(width=120, highlight=False)
    table = Table("run", "recipe", "bytes seen", "seconds", "test split of", "method", "bits per byte")
    for name, row in found["runs"].items():
        for source, by_method in row["test"].items():
            for method, measured in by_method.items():
                error = measured["standard_error"]
                value = f"{measured['bits_per_byte']:.4f}" + ("" if error is None else f" ± {error:.4f}")
                table.add_row(name, row["recipe"], f"{row['bytes']:,}", f"{row['seconds']:.0f}", source, method, value)
    console.print(table)
    columns = dict.fromkeys(column for orders in found["coders"].values() for row in orders.values() for column in row)
    table = Table("bits per byte of", "order", *columns)
    for source, orders in found["coders"].items():
        for order, row in orders.items():
            table.add_row(source, order, *(f"{row[column]:.4f}" if column in row else "" for column in columns))
    console.print(table)
    if found["mixed_saw"]:
        console.print(
            "the mixed run saw " + ", ".join(f"{n:,} bytes of {name}" for name, n in found["mixed_saw"].items())
        )


def main(options: Options) -> None:
    """Runs the program."""
    options.out.mkdir(parents=True, exist_ok=True)
    figures = Figures(options)
    for part in (part for part in PARTS if part in options.only):
        if part == "mixed":
            weights = ("--mixture", *options.mixture)
            figures.run(part, "mixed-small", MIXED, "--max-seconds", options.seconds, *weights)
        elif part == "alone":
            total = figures.bytes_seen("mixed")
            seen = bytes_by_source(options, options.out / "runs" / "mixed", figures.found["runs"]["mixed"]["step"])
            if sum(seen.values()) != total:
                sys.exit(
                    f"the mixed run saw {total:,} bytes, and its batches, drawn again, have {sum(seen.values()):,}"
                )
            figures.found["mixed_saw"] = seen
            for source, size in seen.items():
                figures.run(f"{source}-alone", SOURCES[source].recipe, (source,), "--max-bytes", size)
        elif part == "raster":
            near = [n for n in recipes.image_small().model.stages[1].offsets if n < min(ROW_BEFORE)]
            offsets = ("--model.stages.1.offsets", *near, *ROW_BEFORE)
            rows = ("--model.modalities.0.predictor.side", 1)
            figures.run(part, "image-small", (part,), "--max-bytes", figures.bytes_seen("image"), *offsets, *rows)
        else:
            figures.run(part, SOURCES[part].recipe, (part,), "--max-seconds", options.seconds)


if __name__ == "__main__":
    main(tyro.cli(Options))
