"""Measure a model in bits per byte over files, beside gzip, bzip2, xz and zstd."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from byteloom.codecs import MediaConfig, media_from_dict
from byteloom.commands import UsageError, check_output, note, parse, prepare_pictures, write_report
from byteloom.corpus import Corpus
from byteloom.documents import DataError
from byteloom.dynamic import DYNAMIC_RATE
from byteloom.evaluation import Evaluation, Method, baselines, evaluate, first_bytes, predicted_part
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import load, read_run
from byteloom.quantization import Weights, quantize
from byteloom.shards import open_data
from byteloom.words import check_text, per_word


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure a model in bits per byte over files, beside gzip, bzip2, xz and zstd.

    Media files are read as those that the model learned from, unless an option says otherwise.
    """

    model: tyro.conf.Positional[Path]
    """Run or model folder."""
    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Files, folders and prepared data."""
    method: Method = "basic"
    """Windows side by side, or advancing by half (sliding), or two passes half a patch apart (strided)."""
    context: int | None = None
    """Ids in a window; default: the model's."""
    batch_size: int | None = None
    """Windows at once; with --dynamic also between two steps of learning, where the default is 1."""
    dynamic: bool = False
    """Let the model keep learning from what it has been scored on, as a compressor may; methods basic and sliding."""
    dynamic_rate: float = DYNAMIC_RATE
    """How fast it learns with --dynamic."""
    noise: float = 0.0
    """Measure also what a damaged past costs: put bytes drawn as often as the data have them in this share of the
    places, and score the others."""
    seed: int = 0
    """Of the noise."""
    words: bool = False
    """Say also what a word of the text costs, and its perplexity."""
    max_bytes: int | None = None
    """Measure only about the first so many bytes."""
    modality: str | None = None
    """Read every file as this one; by default each by its name and content."""
    device: str = "auto"
    """Where to run: "cpu", "cuda", or "auto" for CUDA where there is one."""
    weights: Weights = "fp32"
    """Type of the weights, to see what bf16 and int8 cost."""
    baseline: bool = True
    """Also compress the same bytes with the four compressors."""
    json: str | None = None
    """Write all numbers as JSON to this file, or to stdout with "-"."""
    pictures: Path | None = None
    """Show a few items in this folder, as index.html: what each place costs in bits, and what the model writes when it
    is given the first half."""
    show: int = 4
    """Items of each modality that --pictures shows, chosen evenly over the data."""
    show_bytes: int = 4096
    """Most bytes to write for each item that --pictures shows; 0: none."""
    media: Annotated[MediaConfig, tyro.conf.arg(name="")] = field(default_factory=MediaConfig)


def main(argv: list[str]) -> None:
    """Runs the command. The run itself says how media are read by default: the options are parsed again with that."""
    options = parse(Options, argv, "evaluate")
    if not options.paths:
        raise UsageError("name the data to measure on, as in: byteloom evaluate RUN FILE_OR_FOLDER ...")
    media = media_from_dict(read_run(options.model).get("media", {}))
    options = parse(Options, argv, "evaluate", replace(options, media=media))
    if options.show < 1 or options.show_bytes < 0:
        raise UsageError(f"--show is {options.show} and --show-bytes {options.show_bytes}; give at least 1 and 0")
    if not 0 <= options.noise < 1:
        raise UsageError(f"--noise is {options.noise}; it is a share of the bytes, from 0 to below 1")
    check_numbers(options.context, options.batch_size, options.max_bytes)
    check_learning(options.dynamic, options.weights)
    check_output(options.json, *options.paths)
    if options.pictures is not None:
        prepare_pictures(options.pictures)
    network = quantize(load(options.model, options.device), options.weights)
    corpus = open_data(list(options.paths), options.modality, options.media)
    if options.max_bytes is not None:
        corpus = first_bytes(corpus, options.max_bytes, network.config)
    counted = predicted_part(corpus, network.config)
    if options.words:
        check_text([name for mark, name in counted.modalities.items() if mark in counted.segment_marks])
    settings: dict[str, Any] = {
        "method": options.method,
        "context": options.context,
        "batch_size": options.batch_size,
        "dynamic": options.dynamic_rate if options.dynamic else None,
    }
    found = measured(options.model, network, corpus, **settings)
    noisy = None
    if options.noise:
        noisy = measured(options.model, network, corpus, **settings, noise=options.noise, seed=options.seed)
    report = found.to_json()
    if noisy is not None:
        report["noisy"] = {"noise": noisy.noise, "bits_per_byte": noisy.bits_per_byte, "bytes": noisy.bytes}
    if options.words:
        report |= per_word(found, counted)
    report["baselines"] = baselines(counted) if options.baseline else {}
    report["skipped"] = [{"file": name, "reason": reason} for name, reason in corpus.skipped]
    if options.json != "-":
        show(options.model, found, report)
    write_report(report, options.json)
    if options.pictures is not None:
        from byteloom.showcase import show_evaluation

        count, most = options.show, options.show_bytes
        path = show_evaluation(options.pictures, network, corpus, found, count=count, most_bytes=most)
        note(f"shown in {path}")


def check_numbers(context: int | None, batch_size: int | None, max_bytes: int | None) -> None:
    """Refuses numbers of which nothing comes. Raises UsageError."""
    for name, value in (("context", context), ("batch-size", batch_size), ("max-bytes", max_bytes)):
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}; give at least 1")


def check_learning(dynamic: bool, weights: Weights) -> None:
    """Refuses weights that do not learn where they are to. Raises UsageError."""
    if dynamic and weights != "fp32":
        raise UsageError(f"--dynamic changes weights, and {weights} ones do not learn; take --weights fp32")


def measured(path: Path, model: Multiscale, corpus: Corpus, **settings: Any) -> Evaluation:
    """What `evaluate` finds of the model of a folder. Raises UsageError, and DataError where it finds no number."""
    try:
        found = evaluate(model, corpus, **settings)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    if not math.isfinite(found.bits_per_byte):
        cause = "the model gives logits that are no numbers; take another checkpoint of it"
        raise DataError(f"{path}: {cause if found.bytes else 'there is no byte that it is measured on; add data'}")
    return found


def show(model: Path, found: Evaluation, report: Mapping[str, Any]) -> None:
    """Prints the numbers as tables, and what was skipped."""
    console = Console(highlight=False)
    how = f"method {found.method}" + ("" if found.dynamic is None else f", learning on at {found.dynamic:g}")
    table = Table("", "bits per byte", "bytes", title=f"{found.bytes:,} bytes, {how}")
    table.columns[1].justify = table.columns[2].justify = "right"
    error = "" if found.standard_error is None else f" ± {found.standard_error:.4f}"
    size = f"{found.bits_per_byte * found.bytes / 8:,.0f}"
    table.add_row(f"[bold]{escape(str(model))}", f"[bold]{found.bits_per_byte:.4f}{error}", size)
    for name, entry in report["baselines"].items():
        table.add_row(name, f"{entry['bits_per_byte']:.4f}", f"{entry['bytes']:,}")
    console.print(table)
    if error:
        console.print(
            f"± standard error over {found.items:,} documents, or segments where a document has many of a kind"
        )
    if len(found.by_modality) > 1 or any("bits_per_sample" in sums for sums in found.by_modality.values()):
        table = Table("modality", "bits per byte", "bits per sample", "bytes")
        for name, sums in found.by_modality.items():
            sample = sums.get("bits_per_sample", sums.get("bits_per_dimension"))
            wide = "" if sample is None else f"{sample:.4f}"
            table.add_row(escape(name), f"{sums['bits_per_byte']:.4f}", wide, f"{sums['bytes']:,}")
        console.print(table)
    if len(found.by_position_in_patch) > 1:
        shown = ("none" if bits is None else f"{bits:.3f}" for bits in found.by_position_in_patch)
        console.print("by position in the patch: " + " ".join(shown))
    if "noisy" in report:
        noisy = report["noisy"]
        console.print(
            f"with {noisy['noise']:.1%} of the bytes replaced: {noisy['bits_per_byte']:.4f} bits per byte of the "
            f"{noisy['bytes']:,} others"
        )
    if report.get("words"):
        perplexity = report["perplexity_per_word"]
        shown = "" if perplexity is None else f", perplexity {perplexity:,.2f}"
        console.print(f"by word: {report['bits_per_word']:.3f} bits{shown}, {report['words']:,} words")
    for entry in report["skipped"]:
        console.print(f"skipped {entry['file']}: {entry['reason']}", markup=False)
