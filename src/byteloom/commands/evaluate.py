"""Measure a model in bits per byte over files, beside gzip, bzip2, xz and zstd."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from byteloom.codecs import MediaConfig, media_from_dict
from byteloom.commands import UsageError, note, parse, prepare_pictures, write_report
from byteloom.evaluation import Evaluation, Method, baselines, evaluate, first_bytes, predicted_part
from byteloom.models.store import load, read_run
from byteloom.quantization import Weights, quantize
from byteloom.shards import open_data


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
    """Windows at once."""
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
    if options.pictures is not None:
        prepare_pictures(options.pictures)
    network = quantize(load(options.model, options.device), options.weights)
    corpus = open_data(list(options.paths), options.modality, options.media)
    if options.max_bytes is not None:
        corpus = first_bytes(corpus, options.max_bytes, network.config)
    found = evaluate(network, corpus, method=options.method, context=options.context, batch_size=options.batch_size)
    report = found.to_json()
    report["baselines"] = baselines(predicted_part(corpus, network.config)) if options.baseline else {}
    report["skipped"] = [{"file": name, "reason": reason} for name, reason in corpus.skipped]
    write_report(report, options.json)
    if options.json != "-":
        show(options.model, found, report)
    if options.pictures is not None:
        from byteloom.showcase import show_evaluation

        count, most = options.show, options.show_bytes
        path = show_evaluation(options.pictures, network, corpus, found, count=count, most_bytes=most)
        note(f"shown in {path}")


def show(model: Path, found: Evaluation, report: Mapping[str, Any]) -> None:
    """Prints the numbers as tables, and what was skipped."""
    console = Console(highlight=False)
    table = Table("", "bits per byte", "bytes", title=f"{found.bytes:,} bytes, method {found.method}")
    table.columns[1].justify = table.columns[2].justify = "right"
    error = "" if found.standard_error is None else f" ± {found.standard_error:.4f}"
    size = f"{found.bits_per_byte * found.bytes / 8:,.0f}"
    table.add_row(f"[bold]{model}", f"[bold]{found.bits_per_byte:.4f}{error}", size)
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
            wide = f"{sums['bits_per_sample']:.4f}" if "bits_per_sample" in sums else ""
            table.add_row(name, f"{sums['bits_per_byte']:.4f}", wide, f"{sums['bytes']:,}")
        console.print(table)
    if len(found.by_position_in_patch) > 1:
        shown = ("none" if bits is None else f"{bits:.3f}" for bits in found.by_position_in_patch)
        console.print("by position in the patch: " + " ".join(shown))
    for entry in report["skipped"]:
        console.print(f"skipped {entry['file']}: {entry['reason']}", markup=False)
