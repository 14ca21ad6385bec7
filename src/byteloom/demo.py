"""The main job in a few minutes: learn from this interpreter's own source, measure, write, and show it.

In: nothing. Out: a run folder with report.html and report.json. Cost: about four minutes on two cores.
"""

import json
import re
import shutil
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from byteloom import recipes
from byteloom.corpus import Corpus, split
from byteloom.documents import DataError
from byteloom.evaluation import baselines, evaluate, nats_of_each
from byteloom.files import held, write_atomically, write_json
from byteloom.generation import prompt_ids, stream
from byteloom.losses import VOCABULARY
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import CheckpointError, load
from byteloom.names import Names
from byteloom.report import page
from byteloom.sampling import SamplingConfig
from byteloom.train.loop import train

PROMPT = 'def read_lines(path, encoding="utf-8"):\n    """'
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo", "pydoc_data", "__pycache__"}
"""Folders that are not the library's own source; pydoc_data is one file of 700 KB of English."""
WRITTEN = re.compile(
    r"config\.json|model\.safetensors|metrics\.jsonl|checkpoints|best|report\.html|report\.json"
    r"|\.best\.partial|\.best\.old|\.metrics\.jsonl\.partial|\.byteloom\.[0-9a-f]{16}\.partial"
)
"""What a demo leaves in its folder, and if it is killed."""


def demo(
    out: Path,
    seconds: float = 180.0,
    seed: int = 0,
    held_out_bytes: int | None = None,
    shown: TextIO | None = None,
) -> dict[str, Any]:
    """Trains, evaluates, writes and reports; returns what report.json holds.

    Args:
        out: the folder to make; an earlier demo in it is replaced.
        seconds: how long to train.
        seed: of weights, order of data, and sampling.
        held_out_bytes: measure on the first so many bytes of the unseen files alone.
        shown: where the function is written while it is continued; stdout where it is None.

    Raises:
        DataError: the interpreter has no source files.
        CheckpointError: `out` holds something other than a demo, or another process works there.
        RuntimeError: the model restored from disk gives other logits than the trained one.
    """
    about = {"python": sys.version.split()[0], "prompt": PROMPT}
    corpus = standard_library()
    clear(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "report.json", about)  # first, so that a demo that is cut off is known as one
    train_corpus, held_out = split(corpus)
    held_out = held_out if held_out_bytes is None else held_out.head(held_out_bytes)
    note(
        f"byteloom learns Python from the source of Python {about['python']}: {len(corpus)} files, "
        f"{corpus.num_bytes / 1e6:.1f} MB.\nIt sees {len(train_corpus)} files for {seconds:.0f} seconds, byte by byte, "
        f"without a tokenizer; {len(held_out)} files it never sees.\n"
    )
    config = recipes.by_name("code-small")
    config = replace(config, train=replace(config.train, max_seconds=seconds, validations=6, seed=seed))
    trained = train(config, train_corpus, out, valid=held_out, show=True)

    note(f"\nHow many bits does a byte of the {held_out.num_bytes / 1e6:.2f} MB of unseen files take?")
    found = evaluate(trained.model, held_out)
    others = baselines(held_out)
    rows = [(entry["bits_per_byte"], name) for name, entry in others.items()]
    for bits, name in sorted([*rows, (found.bits_per_byte, "this model")]):
        note(f"  {name:<12}{bits:.3f} bits per byte")

    note("\nThe model, read back from the disk, continues a function:\n")
    restored = load(out)
    same = check_same_logits(trained.model, restored, held_out)
    continuation = bytearray()
    place = (shown or sys.stdout).buffer
    place.write(PROMPT.encode())
    for step in stream(
        restored, [PROMPT], max_bytes=500, sampling=SamplingConfig(temperature=0.7), seed=seed, valid_utf8=True
    ):
        for _, value in step:
            continuation.append(value)
            place.write(bytes([value]))
            place.flush()
    place.write(b"\n")
    place.flush()

    evaluation = found.to_json()
    numbers = {
        **about,
        "trained_on_bytes": train_corpus.num_bytes,
        "held_out_bytes": held_out.num_bytes,
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "training": trained.summary(),
        "evaluation": evaluation,
        "baselines": others,
        "largest_difference_after_reload": same,
        "continuation": continuation.decode("utf-8", "replace"),
    }
    write_json(out / "report.json", numbers)
    html = page(
        title="What byteloom learned in a few minutes",
        lead=f"A two-stage model of {numbers['parameters'] / 1e6:.1f}M parameters read "
        f"{trained.progress.bytes / 1e6:.1f} MB of Python source in {trained.progress.seconds:.0f} seconds. "
        f"The numbers are for {len(held_out)} files ({held_out.num_bytes / 1e6:.2f} MB) that it never saw.",
        metrics=trained.metrics,
        evaluation=evaluation,
        baselines=others,
        prompt=PROMPT.encode(),
        continuation=bytes(continuation),
        bits=surprise(restored, PROMPT.encode() + bytes(continuation)),
    )
    write_atomically(out / "report.html", html.encode())
    note(
        f"\nThe model read back from the disk gives the same logits (largest difference {same:g}).\n"
        f"Curves, and the sample tinted by surprise: {out}/report.html\n\n"
        "Next, with your own files:\n"
        "  byteloom train text-small --data FOLDER --out runs/mine\n"
        "  byteloom evaluate runs/mine OTHER_FILES\n"
        "  byteloom generate runs/mine --prompt 'Once upon'"
    )
    return numbers


def note(line: str) -> None:
    """Says something on stderr, where progress is shown too."""
    print(line, file=sys.stderr, flush=True)


def standard_library() -> Corpus:
    """The source files of this interpreter's standard library but those in LEFT_OUT. Raises DataError for none."""
    home = Path(sysconfig.get_paths()["stdlib"])
    files = [
        path
        for path in sorted(home.rglob("*.py"))
        if not LEFT_OUT & set(path.relative_to(home).parts) and not path.name.startswith("test_")
    ]
    entries = [(path, path.relative_to(home).as_posix()) for path in files if path.is_file() and path.stat().st_size]
    if len(entries) < 20:
        raise DataError(f"{home}: this interpreter has no source files to learn from; train on files of your own")
    corpus = Corpus.from_paths([path for path, _ in entries], modality="text")
    return replace(corpus, names=Names([[name for _, name in entries]]))


def check_same_logits(trained: Multiscale, restored: Multiscale, held_out: Corpus) -> float:
    """The largest difference of logits on the first held-out bytes. Raises RuntimeError where there is one."""
    data = held_out.head(512).payload(0)
    ids = torch.from_numpy(prompt_ids(bytes(data), trained.config.span(0), "text").astype(np.int64)).unsqueeze(0)
    with torch.inference_mode():
        difference = float((trained(ids) - restored(ids)).abs().max())
    if difference:
        raise RuntimeError(f"the restored model's logits differ by {difference:g}")
    return difference


def surprise(model: Multiscale, data: bytes) -> list[float]:
    """The bits that each byte of a text costs the model, within its context."""
    bits: list[float] = []
    size = model.config.context // 2
    for start in range(0, len(data), size):
        ids = prompt_ids(data[start : start + size], model.config.span(0), "text")
        nats = nats_of_each(model, torch.from_numpy(ids.astype(np.int64)).unsqueeze(0))[0].numpy()
        bits += (nats[ids < VOCABULARY.num_bytes] / np.log(2)).tolist()
    return bits


def clear(out: Path) -> None:
    """Removes an earlier demo, file by file. Raises CheckpointError where the folder is in use, or holds anything else.

    A demo has its prompt in report.json, and learned from data that no path names, as no run of `train` does.
    """
    entries = list(out.iterdir()) if out.exists() else []
    if not entries:
        return
    for path in entries:
        if not WRITTEN.fullmatch(path.name):
            raise CheckpointError(f"{out}: holds other files, such as {path.name}; name another folder with --out")
    data = fields(fields(fields(out / "config.json").get("run")).get("data"))
    if fields(out / "report.json").get("prompt") != PROMPT or data.get("names"):
        raise CheckpointError(f"{out}: holds a run that is no demo; name another folder with --out")
    with held(out, CheckpointError(f"{out}: another process works there; wait for it, or name another with --out")):
        for path in sorted(entries, key=lambda path: path.name == "report.json"):  # last: it says whose the rest is
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def fields(found: object) -> dict[str, Any]:
    """An object, or that in a JSON file; an empty one for anything else."""
    if isinstance(found, Path):
        try:
            found = json.loads(found.read_text("utf-8"))
        except (OSError, ValueError):
            found = None
    return found if isinstance(found, dict) else {}
