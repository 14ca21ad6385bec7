"""Compare models with each other, with compressors and with media codecs on your own files."""

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, cast

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from byteloom.codecs import MediaConfig, media_from_dict
from byteloom.commands import UsageError, check_output, note, parse, write_output, write_report
from byteloom.commands.evaluate import check_learning, check_numbers, measured
from byteloom.comparison import Comparison, Measured, columns, compare, valid_utf8
from byteloom.corpus import Corpus
from byteloom.dynamic import DYNAMIC_RATE
from byteloom.evaluation import Method, first_bytes
from byteloom.generation import generate
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import load, read_run
from byteloom.quantization import Weights, quantize
from byteloom.shards import open_data


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare models with each other, with compressors and with media codecs on your own files.

    Beside the models stand gzip, bzip2, xz and zstd, and for media, as far as they are installed, PNG, WebP, JPEG XL,
    FLAC and FFV1. Each model reads media files as those that it learned from, unless an option says otherwise.
    """

    models: tyro.conf.Positional[tuple[Path, ...]]
    """Run or model folders."""
    data: tuple[Path, ...] = ()
    """Files, folders and prepared data to compare on."""
    out: Path | None = None
    """Write a page with tables and plots to this file, such as report.html; it needs no other file."""
    method: Method = "basic"
    """Windows side by side, or advancing by half (sliding), or two passes half a patch apart (strided)."""
    context: int | None = None
    """Ids in a window; default: each model's own."""
    batch_size: int | None = None
    """Windows at once."""
    dynamic: bool = False
    """Let the models keep learning from what they have been scored on, as a compressor may."""
    dynamic_rate: float = DYNAMIC_RATE
    """How fast they learn with --dynamic."""
    max_bytes: int | None = None
    """Compare on only about the first so many bytes."""
    modality: str | None = None
    """Read every file as this one; by default each by its name and content."""
    device: str = "auto"
    """Where to run: "cpu", "cuda", or "auto" for CUDA where there is one."""
    weights: Weights = "fp32"
    """Type of the weights of all models."""
    others: bool = True
    """Also compress the files with the compressors and codecs."""
    samples: int = 0
    """Let each model that knows text write so many samples, and say how much of them is valid UTF-8."""
    sample_bytes: int = 256
    """Bytes of each of these samples."""
    seed: int = 0
    """Of the samples."""
    json: str | None = None
    """Write all numbers as JSON to this file, or to stdout with "-"."""
    media: Annotated[MediaConfig, tyro.conf.arg(name="")] = field(default_factory=MediaConfig)


def main(argv: list[str]) -> None:
    """Runs the command. Each run says how it reads media by default: the options are parsed again with that."""
    options = parse(Options, argv, "compare")
    if not options.models or not options.data:
        raise UsageError("name models and data, as in: byteloom compare RUN RUN --data FILE_OR_FOLDER ...")
    if len(set(options.models)) < len(options.models):
        raise UsageError("a model is named twice; name each once")
    if options.samples < 0 or options.sample_bytes < 1:
        raise UsageError(
            f"--samples is {options.samples} and --sample-bytes {options.sample_bytes}; give 0 and 1, at least"
        )
    check_numbers(options.context, options.batch_size, options.max_bytes)
    check_learning(options.dynamic, options.weights)
    for path in (options.out, options.json):
        check_output(path, *options.data)
    if options.out is not None:  # what is missing for the page is said before the work and not after it
        importlib.import_module("byteloom.comparison_page")

    read: dict[MediaConfig, Corpus] = {}
    models: dict[str, Measured] = {}
    for name, path in zip(short_names(options.models), options.models, strict=True):
        run = read_run(path)
        media = parse(Options, argv, "compare", replace(options, media=media_from_dict(run.get("media") or {}))).media
        if media not in read:
            read[media] = open_data(list(options.data), options.modality, media)
        models[name] = measure(path, run, read[media], options)
        note(f"{path}: {models[name].found.bits_per_byte:.4f} bits per byte")
    comparison = compare(models, options.others)
    skipped = next(iter(read.values())).skipped
    report = comparison.to_json() | {"skipped": [{"file": name, "reason": reason} for name, reason in skipped]}
    if options.json != "-":
        show(comparison)
        for name, reason in skipped:
            Console(highlight=False).print(f"skipped {name}: {reason}", markup=False)
    write_report(report, options.json)
    if options.out is not None:
        from byteloom.comparison_page import page

        write_output(options.out, page(comparison, "Comparison").encode())
        note(f"shown in {options.out}")


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, or all paths whole where two end alike."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def measure(path: Path, run: dict[str, Any], corpus: Corpus, options: Options) -> Measured:
    """Loads a model and evaluates it."""
    model = load(path, options.device)
    parameters = sum(weight.numel() for weight in model.parameters())
    model = quantize(model, options.weights)
    if options.max_bytes is not None:
        corpus = first_bytes(corpus, options.max_bytes, model.config)
    began = time.perf_counter()
    found = measured(
        path,
        model,
        corpus,
        method=options.method,
        context=options.context,
        batch_size=options.batch_size,
        dynamic=options.dynamic_rate if options.dynamic else None,
    )
    details: dict[str, Any] = {"parameters": parameters, "seconds": time.perf_counter() - began}
    if options.samples and writes_text(model, run):
        texts = generate(model, [""] * options.samples, max_bytes=options.sample_bytes, seed=options.seed)
        details["valid_utf8"] = valid_utf8(cast(list[bytes], texts))
    return Measured(model.config, corpus, found, details)


def writes_text(model: Multiscale, run: dict[str, Any]) -> bool:
    """Whether a model knows text and can write it by itself."""
    config = model.config
    apart = [modality.name for modality in config.modalities]
    return not config.embedder.streams and "text" in (apart or run.get("modalities") or ["text"])


def show(comparison: Comparison) -> None:
    """Prints the numbers as a table."""
    heads, rows = columns(comparison)
    size, files = int(comparison.bytes.sum()), len(comparison.files)
    table = Table(*map(escape, heads), title=f"{files:,} file{'s' * (files != 1)}, {size:,} bytes")
    for column in table.columns[1:]:
        column.justify = "right"
    for entry, row in zip(comparison.entries, rows, strict=True):
        table.add_row(*map(escape, row), style="bold" if entry.kind == "model" else "")
    console = Console(highlight=False)
    console.print(table)
    if comparison.error(comparison.entries[0]) is not None:
        items = len(comparison.bytes)
        console.print(f"± standard error over {items:,} documents, or segments where a document has many of a kind")
