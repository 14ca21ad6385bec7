"""A run as a folder for Hugging Face: weights, configs, tokenizer, processor and a model card.

Cost: one copy of the weights.
"""

import json
import tempfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from byteloom import __version__
from byteloom.codecs import MARKS, media_from_dict
from byteloom.hf.modeling import ByteloomForCausalLM
from byteloom.hf.processing import ByteloomProcessor
from byteloom.hf.tokenization import ByteloomTokenizer
from byteloom.models.store import load, read_run
from byteloom.train.metrics import read_metrics


def export_hf(source: str | PathLike[str], folder: str | PathLike[str], max_shard_size: str = "5GB") -> int:
    """Writes a run, checkpoint or model folder as a folder for transformers; returns the number of parameters.

    A README.md that is there is kept, in place of a model card. config.json comes last: a folder that has one is whole.
    Raises CheckpointError where `source` is no model, OSError where `folder` cannot be written.
    """
    source, folder = Path(source), Path(folder)
    run = read_run(source)
    model = ByteloomForCausalLM.from_native(load(source), run)
    tokenizer = tokenizer_of(model, run)
    metrics = source / "metrics.jsonl"
    card = model_card(model, run, read_metrics(metrics) if metrics.exists() else [])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", suffix=".partial", dir=folder) as name:
        partial = Path(name)
        model.save_pretrained(partial, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(partial)
        if model.config.vocab_size >= len(tokenizer):
            ByteloomProcessor(tokenizer, media=media_from_dict(run.get("media") or {})).save_pretrained(partial)
        if not (folder / "README.md").exists():  # a clone of a repository on the hub has its own
            (partial / "README.md").write_text(card, "utf-8")
        for file in sorted(partial.iterdir(), key=lambda file: file.name == "config.json"):
            file.replace(folder / file.name)
    return model.num_parameters()


def tokenizer_of(model: ByteloomForCausalLM, run: Mapping[str, Any]) -> ByteloomTokenizer:
    """The tokenizer of a model; text is marked as what the run learned from, "bytes" where there was no text."""
    learned = run.get("modalities") or ["text"]
    modality = "text" if "text" in learned or "bytes" not in learned else "bytes"
    return ByteloomTokenizer.for_model(model.config.model_config, modality=modality)


def model_card(model: ByteloomForCausalLM, run: Mapping[str, Any], metrics: list[dict[str, Any]]) -> str:
    """The README.md of a model: what it is, what it learned from, how well, and how to load it."""
    config = model.config.model_config
    modalities = run.get("modalities") or []
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags:",
        *(f"- {tag}" for tag in ("byteloom", "megabyte", "byte-level", *modalities)),
        "---",
        "",
        "# A byteloom model",
        "",
        f"A multiscale model over raw bytes ([MEGABYTE](https://arxiv.org/abs/2305.07185)), made with byteloom "
        f"{__version__}. It has no vocabulary file: its ids are the 256 bytes, and 64 that say where documents and "
        "their parts begin and end.",
        "",
        f"| | |\n|---|---|\n| parameters | {model.num_parameters():,} |\n| context | {config.context:,} bytes |",
    ]
    for i, stage in enumerate(config.stages):
        lines.append(
            f"| stage {i} | one position for {config.span(i)} bytes, {stage.num_layers} layers of width {stage.dim} |"
        )
    lines += ["", "## How well", ""]
    if measured := [row for row in metrics if "valid_bits_per_byte" in row]:
        best = min(measured, key=lambda row: row["valid_bits_per_byte"])
        last = measured[-1]
        lines.append(
            f"{last['valid_bits_per_byte']:.3f} bits per byte on held-out data after {last['bytes']:,} bytes of "
            f"training ({last['step']:,} steps); at best {best['valid_bits_per_byte']:.3f}."
        )
        if parts := last.get("valid_by_modality"):
            lines += ["", "| modality | bits per byte |", "|---|---|"]
            lines += [f"| {name} | {value:.3f} |" for name, value in parts.items()]
    else:
        lines.append("The folder that this was made from does not say.")
    lines += ["", "## What it learned from", ""]
    data = run.get("data")
    lines.append(
        f"{', '.join(data['names']) or 'documents in memory'}: {data['bytes']:,} bytes of {', '.join(modalities)}."
        if data and data["bytes"]
        else f"{', '.join(modalities) or 'Nothing'}, as far as the folder says."
    )
    marks = ", ".join(sorted(MARKS))
    lines += [
        "",
        "## How to load it",
        "",
        "```python",
        'import byteloom.hf  # pip install "byteloom[hf]"; or pass trust_remote_code=True to each of these',
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
        'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")',
        'ids = tokenizer("Once upon a time", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=100)[0], skip_special_tokens=True))",
        "```",
        "",
        f"`AutoProcessor` takes text, pictures, sound and video (marks: {marks}). The native library reads the same",
        "folder: `byteloom evaluate THIS_FOLDER FILE`, `byteloom generate THIS_FOLDER --prompt TEXT`.",
        "",
        "## Config",
        "",
        "```json",
        json.dumps({key: run[key] for key in ("optim", "train", "media") if key in run}, indent=1),
        "```",
        "",
    ]
    return "\n".join(lines)
