"""Measure a model in bits per byte over files, beside gzip, bzip2, xz and zstd."""

from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from byteloom.commands import call, write_report
from byteloom.evaluation import baselines, evaluate
from byteloom.models.store import load
from byteloom.quantization import Weights, quantize
from byteloom.shards import open_data


def main(argv: list[str]) -> None:
    """Runs the command."""
    call(run, argv, "evaluate")


def run(
    model: tyro.conf.Positional[Path],
    paths: tyro.conf.Positional[tuple[Path, ...]],
    /,
    method: Literal["basic", "sliding", "strided", "sliding-strided"] = "basic",
    context: int | None = None,
    batch_size: int | None = None,
    max_bytes: int | None = None,
    modality: str | None = None,
    device: str = "auto",
    weights: Weights = "fp32",
    baseline: bool = True,
    json: str | None = None,
) -> None:
    """Measure a model in bits per byte over files, beside gzip, bzip2, xz and zstd.

    Args:
        model: Run or model folder.
        paths: Files, folders and prepared data.
        method: Windows side by side, or advancing by half (sliding), or two passes half a patch apart (strided).
        context: Ids in a window; default: the model's.
        batch_size: Windows at once.
        max_bytes: Measure only about the first so many bytes.
        modality: Read every file as this one; by default each by its name and content.
        device: Where to run: "cpu", "cuda", or "auto" for CUDA where there is one.
        weights: Type of the weights, to see what bf16 and int8 cost.
        baseline: Also compress the same bytes with the four compressors.
        json: Write all numbers as JSON to this file, or to stdout with "-".
    """
    network = quantize(load(model, device), weights)
    corpus = open_data(list(paths), modality)
    found = evaluate(network, corpus, method=method, context=context, batch_size=batch_size, max_bytes=max_bytes)
    report = found.to_json()
    report["baselines"] = baselines(corpus, max_bytes=max_bytes) if baseline else {}
    report["skipped"] = [{"file": name, "reason": reason} for name, reason in corpus.skipped]
    write_report(report, json)
    if json == "-":
        return
    table = Table("", "bits per byte", "bytes", title=f"{found.bytes:,} bytes, method {method}")
    table.columns[1].justify = table.columns[2].justify = "right"
    table.add_row(f"[bold]{model}", f"[bold]{found.bits_per_byte:.4f}", f"{found.bits_per_byte * found.bytes / 8:,.0f}")
    for name, entry in report["baselines"].items():
        table.add_row(name, f"{entry['bits_per_byte']:.4f}", f"{entry['bytes']:,}")
    console = Console(highlight=False)
    console.print(table)
    if len(found.by_modality) > 1:
        console.print(
            "by modality: " + ", ".join(f"{k} {v['bits_per_byte']:.3f}" for k, v in found.by_modality.items())
        )
    if len(found.by_position_in_patch) > 1:
        console.print("by position in the patch: " + " ".join(f"{bits:.3f}" for bits in found.by_position_in_patch))
    for name, reason in corpus.skipped:
        console.print(f"skipped {name}: {reason}", markup=False)
