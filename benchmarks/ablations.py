"""What pays: our recipe of a kind with one change at a time, each trained for the same seconds.

    python benchmarks/ablations.py SUITE [--sets text_wiki_en image_rgb32] [--seconds 120] [--seeds 0] [--json FILE]

SUITE, the names of sets, and the scorer are those of benchmarks/quality.py beside it; bits are per byte of the valid
split's first bytes, for this is how a recipe is chosen. Each seed runs all changes one after another, so that what the
machine does meanwhile falls on all; the difference is from the same seed's run without a change. Where a run is not
compiled, as in 120 seconds, models see the fewer bytes the more a byte costs, as they would in a longer one.
Changes that go together are named with " + " between them: --only "WSD + strings of 2 to 5".

After each run the JSON file is written anew; --resume goes on.
"""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import quality
import torch
import tyro
from rich.console import Console
from rich.table import Table

from byteloom.documents import DataError
from byteloom.files import write_json
from byteloom.layers.prediction import PredictorConfig
from byteloom.losses import bits_per_byte
from byteloom.train import acceleration
from byteloom.train.loop import RunConfig, TrainingError

Change = Callable[[RunConfig], RunConfig]


def model(**fields: Any) -> Change:
    """Other fields of the model."""
    return lambda run: dataclasses.replace(run, model=dataclasses.replace(run.model, **fields))


def stage(number: int, **fields: Any) -> Change:
    """Other fields of a stage, counted from the coarsest, or -1 for the finest."""

    def change(run: RunConfig) -> RunConfig:
        stages = list(run.model.stages)
        stages[number] = dataclasses.replace(stages[number], **fields)
        return model(stages=tuple(stages))(run)

    return change


def stages(**fields: Any) -> Change:
    """The same fields of all stages."""

    def change(run: RunConfig) -> RunConfig:
        return model(stages=tuple(dataclasses.replace(each, **fields) for each in run.model.stages))(run)

    return change


def optim(**fields: Any) -> Change:
    """Other fields of the optimizer."""
    return lambda run: dataclasses.replace(run, optim=dataclasses.replace(run.optim, **fields))


def training(**fields: Any) -> Change:
    """Other fields of training."""
    return lambda run: dataclasses.replace(run, train=dataclasses.replace(run.train, **fields))


def both(*changes: Change) -> Change:
    """One change after another."""

    def change(run: RunConfig) -> RunConfig:
        for each in changes:
            run = each(run)
        return run

    return change


def predictors(change: Callable[[PredictorConfig], PredictorConfig]) -> Change:
    """Bytes guessed in another way, in all modalities."""

    def changed(run: RunConfig) -> RunConfig:
        modalities = (dataclasses.replace(each, predictor=change(each.predictor)) for each in run.model.modalities)
        return model(modalities=tuple(modalities))(run)

    return changed


COMMON: dict[str, Change] = {
    "isolated patches": stages(window=None),
    "no token shift": stages(token_shift=False),
    "a layer more in the coarsest stage": lambda run: stage(0, num_layers=run.model.stages[0].num_layers + 1)(run),
    "a layer more in the finest stage": lambda run: stage(-1, num_layers=run.model.stages[-1].num_layers + 1)(run),
    "twice the batch": lambda run: training(batch_size=2 * run.train.batch_size)(run),
    "SwiGLU": stages(mlp="swiglu", mlp_ratio=8 / 3),
    "GELU": stages(mlp="gelu"),
    "no QK-norm": stages(qk_norm=False),
    "no zero-init": stages(zero_init=False),
    "residual and x0 scalars": stages(residual_scalars=True),
    "logits capped at 15": model(logit_cap=15.0),
    "a head of its own": model(tied_head=False),
    "weights start from 0.02": model(init_std=0.02),
    "WSD": optim(schedule="wsd"),
    "linear decay": optim(schedule="linear"),
    "Muon at half the rate": lambda run: optim(muon_learning_rate=run.optim.muon_learning_rate / 2)(run),
    "Muon at twice the rate": lambda run: optim(muon_learning_rate=run.optim.muon_learning_rate * 2)(run),
    "AdamW for matrices too, at 1e-3": optim(optimizer="adamw", learning_rate=1e-3),
    "weight decay 0.1": optim(weight_decay=0.1),
    "dropout 0.1": stages(dropout=0.1),
    "average of weights, 0.99": training(ema=0.99),
}
OF_TEXT: dict[str, Change] = {
    "no matches": model(matches=()),
    "matches of up to 8 bytes": model(matches=(3, 4, 6, 8)),
    "four times as many windows, a quarter as long": lambda run: both(
        model(context=run.model.context // 4), training(batch_size=4 * run.train.batch_size)
    )(run),
    "half as many windows, twice as long": lambda run: both(
        model(context=2 * run.model.context), training(batch_size=run.train.batch_size // 2)
    )(run),
    "no strings": stage(-1, ngrams=()),
    "strings of 2 and 3": stage(-1, ngrams=(2, 3)),
    "strings of 2 to 5": stage(-1, ngrams=(2, 3, 4, 5)),
    "strings of 2 to 8": stage(-1, ngrams=(2, 3, 4, 5, 6, 7, 8)),
    "half the rows": lambda run: stage(-1, ngram_rows=run.model.stages[-1].ngram_rows // 2)(run),
    "vectors of strings half as wide": lambda run: stage(-1, ngram_dim=run.model.stages[-1].ngram_dim // 2)(run),
    "strings at the patches too": stage(0, ngrams=(4, 6, 8), ngram_rows=1 << 16),
    "tables at a third of the rate": lambda run: optim(table_learning_rate=run.optim.table_learning_rate / 3)(run),
    "half the batch": lambda run: training(batch_size=run.train.batch_size // 2)(run),
    "text-small before there were strings": both(
        model(matches=(), context=1024),
        stage(-1, ngrams=(), num_layers=4),
        stage(0, num_layers=2),
        training(batch_size=4),
    ),
}
OF_SAMPLES: dict[str, Change] = {
    "bytes are not guessed": predictors(lambda each: dataclasses.replace(each, guess="none")),
    "guesses are told, or no longer": predictors(lambda each: dataclasses.replace(each, told=not each.told)),
    "no bytes at offsets": stage(-1, offsets=()),
    "bytes do not start as waves": model(init_waves=None),
    "strings of 2 to 4": stage(-1, ngrams=(2, 3, 4)),
}
CHANGES: dict[str, dict[str, Change]] = {
    "text": OF_TEXT | COMMON,
    "code": OF_TEXT | COMMON,
    "image": OF_SAMPLES | COMMON,
    "audio": OF_SAMPLES | COMMON,
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is tried, and for how long."""

    suite: tyro.conf.Positional[Path]
    """Folder of sets."""
    sets: tuple[str, ...] = ("text_wiki_en", "image_rgb32", "audio_speech")
    """Folders in it; of audio also NAME:pcm16."""
    seconds: float = 120.0
    """How long each run learns."""
    seeds: tuple[int, ...] = (0,)
    """Of first weights and order of the data."""
    only: tuple[str, ...] = ()
    """Only these changes, by name, or several at once, as "WSD + SwiGLU"; none: each by itself."""
    valid_bytes: int = 131072
    """How much of the valid split is scored."""
    compile: Literal["auto", "on", "off"] = "off"
    """Whether runs are compiled; "auto" as `byteloom train` decides."""
    json: Path = Path("ablations.json")
    """Where all numbers go."""
    resume: bool = False
    """Go on with this file."""


def chosen(name: str, only: Sequence[str]) -> dict[str, Change]:
    """What is tried on a set: nothing at all, then these changes, or each that its kind has.

    Raises DataError where the kind has no such change.
    """
    known = {"none": both()} | CHANGES[name.split("_")[0].split(":")[0]]
    for change in (part for each in only for part in each.split(" + ")):
        if change not in known:
            raise DataError(f"{name}: knows no change {change!r}; there are {', '.join(map(repr, known))}")
    return {"none": both()} | {each: both(*(known[part] for part in each.split(" + "))) for each in only or known}


def measure(options: Options, task: quality.Task, change: Change, seed: int) -> dict[str, Any]:
    """One run: bits per byte, or why there are none, and what it took."""
    config = change(task.run)
    changed = dataclasses.replace(task, run=config)
    asked = quality.Options(suite=options.suite, seconds=options.seconds, compile=options.compile)
    torch._dynamo.reset()
    with tempfile.TemporaryDirectory() as folder:
        try:
            learned = quality.learn_ours(changed, config, Path(folder) / "run", seed, asked)
        except TrainingError as problem:
            return {"problem": str(problem)}
        nats = quality.score(changed, "valid", config.model.context, learned.nats("valid"), options.valid_bytes)
    acceleration.give_back()
    return learned.about | {"valid": bits_per_byte(float(nats.sum()), len(nats))}


def show(name: str, found: dict[str, Any], seconds: float, console: Console) -> None:
    """Prints the table of a set, best first."""
    base = {seed: row["valid"] for seed, row in found.get("none", {}).items() if "valid" in row}
    table = Table(title=f"{name}: {seconds:.0f} seconds, bits per byte of the valid split")
    for column in ("change", "bits per byte", "difference", "bytes seen", "seeds"):
        table.add_column(column, justify="left" if column == "change" else "right")
    means = {}
    for change, rows in found.items():
        good = {seed: row for seed, row in rows.items() if "valid" in row}
        if good:
            means[change] = sum(row["valid"] for row in good.values()) / len(good), good
    for change, (mean, good) in sorted(means.items(), key=lambda entry: entry[1][0]):
        gains = [row["valid"] - base[seed] for seed, row in good.items() if seed in base]
        spread = f" ({min(gains):+.4f} to {max(gains):+.4f})" if len(gains) > 1 and change != "none" else ""
        table.add_row(
            change,
            f"{mean:.4f}",
            f"{sum(gains) / len(gains):+.4f}{spread}" if gains else "",
            f"{sum(row['bytes'] for row in good.values()) / len(good) / 1e6:.2f}M",
            f"{len(good)}",
        )
    console.print(table)


def main(options: Options) -> None:
    """Runs the program."""
    torch._inductor.config.force_disable_caches = True
    acceleration.keep_memory()
    settings = {"seconds": options.seconds, "valid_bytes": options.valid_bytes, "compile": options.compile}
    known: dict[str, Any] = {"settings": settings, "runs": {}}
    if options.json.exists():
        if not options.resume:
            raise DataError(f"{options.json}: holds results already; add --resume to go on, or name another --json")
        try:
            known = json.loads(options.json.read_text())
            begun, _ = known["settings"], known["runs"]
        except (ValueError, LookupError, TypeError) as problem:
            raise DataError(f"{options.json}: is not a file of this program; name another --json") from problem
        if begun != settings:
            raise DataError(f"{options.json}: was begun with other options; give the same, or name another --json")
    console = Console(width=140, highlight=False)
    for name in options.sets:
        task = quality.open_task(options.suite, name)
        changes = chosen(name, options.only)
        found = known["runs"].setdefault(name, {})
        for seed in options.seeds:
            for change in changes:
                rows = found.setdefault(change, {})
                if str(seed) in rows:
                    continue
                rows[str(seed)] = measure(options, task, changes[change], seed)
                write_json(options.json, known)
                row = rows[str(seed)]
                print(f"{name} / {change} / {seed}: {row.get('problem') or round(row['valid'], 4)}", flush=True)
        show(name, found, options.seconds, console)


if __name__ == "__main__":
    torch.set_flush_denormal(True)  # as benchmarks/quality.py does
    try:
        main(tyro.cli(Options))
    except DataError as problem:
        sys.exit(str(problem))
    except KeyboardInterrupt:
        sys.exit("stopped; what was measured is kept, and --resume goes on")
