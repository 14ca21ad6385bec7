"""Runs that are cut short, and files that are damaged: whether anything is lost, and what is said.

    python benchmarks/faults.py [--kills 50] [--damages 500] [--parts curves kills damages ends] [--json FILE]

curves   1, 2 and 4 processes over 50 steps: how far their losses are from each other.
kills    `kill -9` of one process or of all at random moments, half of them while a checkpoint is being written; then
         the run goes on, among 1 process, 2, or one and the other in turn. At the end weights, metrics and the rows
         that were read are compared with those of a run that nobody killed.
damages  files of checkpoints, models and prepared data cut, changed in one bit, overwritten, swapped, lengthened or
         removed. Each must be refused, by name.
ends     what a run under torchrun says when a process dies, hangs, is stopped, or the disk is full, read-only or gone.

Needs a system with /proc; a full and a read-only disk need the right to mount.
"""

import contextlib
import dataclasses
import hashlib
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from json import dumps, loads
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from byteloom.corpus import Corpus
from byteloom.documents import DataError, Document, Segment
from byteloom.models.config import ModelConfig, StageConfig
from byteloom.models.store import CheckpointError, load, read_run
from byteloom.shards import open_prepared, write
from byteloom.train import loop
from byteloom.train.checkpoint import list_checkpoints
from byteloom.train.distributed import LostError, ParallelConfig
from byteloom.train.loop import RunConfig, TrainConfig, train
from byteloom.train.optim import OptimConfig

MODEL = ModelConfig(
    stages=(
        StageConfig(dim=32, num_layers=2, num_heads=2, patch_size=4),
        StageConfig(dim=16, num_layers=2, num_heads=2),
    ),
    context=32,
)
BATCH, STEPS = 8, 48
TEXT = "".join(f"line {i} of a text that is easy to learn\n" for i in range(1200)).encode()


def corpus() -> Corpus:
    """A text of 40 documents."""
    parts = [np.frombuffer(TEXT[i * 1000 : (i + 1) * 1000], np.uint8) for i in range(40)]
    segments = [Segment(modality="text", data=part) for part in parts]
    return Corpus.from_documents([Document(segments=(s,), name=f"{i}.txt") for i, s in enumerate(segments)])


def config(parallel: dict[str, int] | None = None, optimizer: str = "muon", **fields: Any) -> RunConfig:
    """A small run in fp32."""
    fields = {"batch_size": BATCH, "precision": "fp32", "device": "cpu", "log_every": 1, "validations": 3, **fields}
    return RunConfig(
        model=MODEL,
        optim=OptimConfig(optimizer=optimizer),
        train=TrainConfig(**fields),
        parallel=ParallelConfig(timeout_seconds=60, **(parallel or {})),
    )


# -- processes -------------------------------------------------------------------------------------------------------


def work(rank: int, size: int, port: int, run: RunConfig, out: Path, read: Path | None, delay: float) -> None:
    """What a process does: trains, and notes in a folder `read` which rows it reads at which step."""
    torch.set_num_threads(1)
    if size > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if read is not None:
        read.mkdir(parents=True, exist_ok=True)
        make = loop.make_loader

        def noting(*args: Any) -> Any:
            loader = make(*args)
            return Noting(loader, read / f"{os.getpid()}.jsonl", delay)

        loop.make_loader = noting
    with contextlib.suppress(LostError):
        train(run, corpus(), out, resume=True)


class Noting:
    """A loader that notes the step and the digests of the rows of each batch."""

    def __init__(self, loader: Any, path: Path, delay: float):
        self.loader, self.path, self.delay = loader, path, delay
        self.set_state, self.get_state = loader.set_state, loader.get_state

    def __next__(self) -> dict[str, np.ndarray]:
        step = self.get_state()["windows"] // BATCH
        batch = next(self.loader)
        rows = [hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in batch["ids"]]
        with open(self.path, "a") as file:
            file.write(dumps([step, rows]) + "\n")
        time.sleep(self.delay)
        return batch


def start(size: int, run: RunConfig, out: Path, read: Path | None = None, delay: float = 0.0) -> list[Any]:
    """The processes of a run, in forks of one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["byteloom.train.loop", "__main__"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=work, args=(rank, size, port, run, out, read, delay)) for rank in range(size)]
    for process in processes:
        process.start()
    return processes


def finish(processes: list[Any]) -> None:
    """Waits for all of them; raises RuntimeError where one failed."""
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"exit codes {[process.exitcode for process in processes]}")


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, as far as they are there."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [loads(line) for line in lines if line.endswith("}")]


def furthest(a: Path, b: Path) -> float:
    """The largest difference between two runs' weights; 0 where all bits are equal."""
    first, second = (load_file(run / "model.safetensors") for run in (a, b))
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def furthest_loss(a: Path, b: Path) -> float:
    """The largest difference between two curves, over what is learned from and what is held out."""
    keys = ("loss", "valid_bits_per_byte")
    pairs = list(zip(metrics(a), metrics(b), strict=True))
    if any(x["bytes"] != y["bytes"] for x, y in pairs):
        raise RuntimeError(f"{b} counted other bytes than {a}")
    return max(abs(x[key] - y[key]) for x, y in pairs for key in keys if key in x)


# -- the parts -------------------------------------------------------------------------------------------------------


def curves(root: Path) -> list[dict[str, Any]]:
    """Each way to train over 50 steps, in 2 and 4 processes, against one process."""
    ways = {
        "Muon": config(steps=50),
        "AdamW": config(steps=50, optimizer="adamw"),
        "accumulation of 2": config(steps=50, batch_size=BATCH // 2, accumulation=2),
        "layers recomputed": config(steps=50, activation_memory=1e-5),
        "average of weights": config(steps=50, ema=0.99),
        "2 replicas": config({"replicas": 2}, steps=50),
        "tensor parallel by 2": config({"tensor_parallel": 2}, steps=50),
    }
    rows = []
    for name, run in ways.items():
        alone = dataclasses.replace(run, parallel=ParallelConfig())
        finish(start(1, alone, root / name / "1"))
        for size in (2, 4):
            finish(start(size, run, root / name / str(size)))
            loss, weights = (far(root / name / "1", root / name / str(size)) for far in (furthest_loss, furthest))
            rows.append({"training": name, "processes": size, "loss": loss, "weights": weights})
    return rows


def kills(root: Path, number: int, seed: int) -> list[dict[str, Any]]:
    """`number` kills, shared by runs in one process, in two, and in one and two in turn."""
    chance = random.Random(seed)
    run = config(steps=STEPS, checkpoint_steps=3, keep=2)
    for size in (1, 2):
        finish(start(size, run, root / f"whole {size}", root / f"rows {size}"))
    wanted = rows_read(root / "rows 1")
    rows = []
    for name, sizes, share in (("1", (1,), 0.3), ("2", (2,), 0.3), ("1 and 2 in turn", (1, 2), 0.4)):
        due = round(number * share) if name != "1 and 2 in turn" else number - sum(row["kills"] for row in rows)
        found = {"processes": name, "kills": 0, "of one": 0, "while writing": 0, "runs": 0}
        found |= {"weights": 0.0, "metrics": 0.0, "seconds to end": 0.0, "rows lost or repeated": 0}
        while found["kills"] < due:
            out, read, attempt = root / f"{name} {found['runs']}", root / f"{name} {found['runs']} rows", 0
            while True:
                size = sizes[attempt % len(sizes)]
                attempt += 1
                processes = start(size, run, out, read, delay=0.05)
                if found["kills"] >= due or not kill(processes, out, chance, found):
                    finish(processes)
                    break
            whole = root / f"whole {sizes[0]}"
            found["runs"] += 1
            found["weights"] = max(found["weights"], furthest(whole, out))
            found["metrics"] = max(found["metrics"], furthest_loss(whole, out))
            found["rows lost or repeated"] += lost_or_repeated(rows_read(read), wanted)
        rows.append(found)
    return rows


def kill(processes: list[Any], out: Path, chance: random.Random, found: dict[str, Any]) -> bool:
    """Kills one process or all, some steps from here or while something is being written; False where none was left.

    Of several that lose one, the others have to end by themselves.
    """
    first = (metrics(out) or [{"step": 0}])[-1]["step"]
    steps, writing = chance.randrange(1, 9), chance.random() < 0.5
    while not metrics(out) or metrics(out)[-1]["step"] < first + steps:
        if not any(process.is_alive() for process in processes):
            return False
        time.sleep(0.002)
    while writing and not any(out.glob("checkpoints/.step-*.partial")):
        if not any(process.is_alive() for process in processes):
            return False
    time.sleep(chance.random() * (0.02 if writing else 0.1))
    alone = len(processes) > 1 and chance.random() < 0.6
    for process in [chance.choice(processes)] if alone else processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    began = time.monotonic()
    for process in processes:
        process.join()
    found["seconds to end"] = max(found["seconds to end"], time.monotonic() - began)
    found["kills"] += 1
    found["of one"] += alone
    found["while writing"] += any(out.glob("checkpoints/.step-*.partial"))
    return True


def rows_read(folder: Path) -> dict[int, list[list[str]]]:
    """For each step the rows that each process read, in all sittings."""
    found: dict[int, list[list[str]]] = {}
    for path in folder.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            if line.endswith("]]"):
                step, rows = loads(line)
                found.setdefault(step, []).append(rows)
    return found


def lost_or_repeated(read: dict[int, list[list[str]]], wanted: dict[int, list[list[str]]]) -> int:
    """Rows that a step read and should not have, or that no sitting read at it."""
    wrong = 0
    for step, (rows,) in wanted.items():
        seen = {row for part in read.get(step, []) for row in part}
        wrong += len(seen ^ set(rows))
    return wrong


def cut(path: Path, other: Path, chance: random.Random) -> None:
    """Keeps the beginning only."""
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def flip(path: Path, other: Path, chance: random.Random) -> None:
    """Changes one bit."""
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def overwrite(path: Path, other: Path, chance: random.Random) -> None:
    """Puts noise over a stretch."""
    content = bytearray(path.read_bytes())
    begin = chance.randrange(len(content))
    stretch = min(chance.randrange(1, 4096), len(content) - begin)
    content[begin : begin + stretch] = bytes(
        byte ^ chance.randrange(1, 256) for byte in content[begin : begin + stretch]
    )
    path.write_bytes(content)


def lengthen(path: Path, other: Path, chance: random.Random) -> None:
    """Appends noise."""
    path.write_bytes(path.read_bytes() + chance.randbytes(chance.randrange(1, 100)))


def swap(path: Path, other: Path, chance: random.Random) -> None:
    """Puts another file of the same kind in its place."""
    shutil.copyfile(other, path)


def remove(path: Path, other: Path, chance: random.Random) -> None:
    """Deletes it."""
    path.unlink()


DAMAGES = (cut, flip, overwrite, lengthen, swap, remove)


def damages(root: Path, number: int, seed: int) -> list[dict[str, Any]]:
    """Damages files of a checkpoint of two processes, of a model folder and of prepared data; counts refusals."""
    chance = random.Random(seed)
    run = config(steps=12, checkpoint_steps=6, ema=0.9, validations=0)
    finish(start(2, run, root / "run"))
    finish(start(1, dataclasses.replace(run, train=dataclasses.replace(run.train, seed=1)), root / "other"))
    write(corpus(), root / "data", shard_bytes=10_000)
    old, new = list_checkpoints(root / "run")
    longer = dataclasses.replace(run, train=dataclasses.replace(run.train, steps=13))
    models, data = [root / "run", root / "other"], root / "data"
    kinds: list[tuple[str, Path, list[Path], Callable[[Path], object]]] = [
        (
            "checkpoint, to go on",
            new,
            list(old.iterdir()),
            lambda copy: train(longer, corpus(), copy.parents[1], resume=True),
        ),
        ("checkpoint, to evaluate", new, list(old.iterdir()), lambda copy: (load(copy), read_run(copy))),
        (
            "model",
            models[0],
            [models[1] / name for name in ("config.json", "model.safetensors")],
            lambda copy: (load(copy), read_run(copy)),
        ),
        ("prepared data", data, [], lambda copy: open_prepared(copy, verify=True)),
        ("prepared data, in use", data, [], lambda copy: read_all(open_prepared(copy))),
    ]
    rows = []
    for name, whole, others, use in kinds:
        found = {
            "what": name,
            "damaged": 0,
            "refused by name": 0,
            "refused otherwise": 0,
            "meant nothing": 0,
            "used": 0,
        }
        files = [path for path in whole.iterdir() if path.is_file() and path.suffix != ".jsonl"]
        for _ in range(number // len(kinds)):
            with tempfile.TemporaryDirectory(dir=root) as folder:
                path = chance.choice(files)
                copy = Path(folder, "run", "checkpoints", whole.name) if whole == new else Path(folder, "copy")
                shutil.copytree(whole, copy, ignore=shutil.ignore_patterns("checkpoints", "best"))
                damage = chance.choice(DAMAGES)
                alike = [
                    p for p in (others or files) if p.suffix == path.suffix and p.read_bytes() != path.read_bytes()
                ]
                if damage is swap and not alike:
                    damage = flip
                before = use(copy) if name == "model" else None
                damage(copy / path.name, chance.choice(alike or [path]), chance)
                found["damaged"] += 1
                try:
                    after = use(copy)
                except (CheckpointError, DataError) as error:
                    named = path.name in str(error) or (damage is swap and str(copy) in str(error))
                    found["refused by name" if named else "refused otherwise"] += 1
                else:
                    harmless = before is not None and equal(before, after)
                    found["meant nothing" if harmless else "used"] += 1
        rows.append(found)
    return rows


def equal(before: Any, after: Any) -> bool:
    """Whether two models and what is said of their runs are the same."""
    (model, run), (other, again) = before, after
    ours, theirs = model.state_dict(), other.state_dict()
    return model.config == other.config and run == again and all(torch.equal(ours[n], theirs[n]) for n in ours)


def read_all(data: Corpus) -> None:
    """Reads every byte, as training does sooner or later."""
    for segment, length in enumerate(data.segment_lengths.tolist()):
        data.payload(segment, 0, length)


def ends(root: Path) -> list[dict[str, Any]]:
    """Runs of two processes under torchrun, each with a mishap: what is said, after how long, and what is left."""
    (root / "data").mkdir(parents=True)
    (root / "data" / "a.txt").write_bytes(TEXT)
    (root / "data" / "b.txt").write_bytes(TEXT[:3000])

    def signalled(number: int, *ranks: int) -> Callable[[Any, Path], None]:
        def act(process: Any, out: Path) -> None:
            for rank in ranks:
                os.kill(children(process.pid)[rank], number)

        return act

    def deleted(process: Any, out: Path) -> None:
        shutil.rmtree(out)

    mishaps: dict[str, tuple[Callable[[Any, Path], None] | None, list[str], str]] = {
        "kill -9 of a process": (signalled(signal.SIGKILL, 1), [], ""),
        "the same, with --max-restarts 1": (signalled(signal.SIGKILL, 1), ["--max-restarts=1"], ""),
        "a process hangs (SIGSTOP)": (signalled(signal.SIGSTOP, 1), [], ""),
        "SIGTERM to torchrun": (lambda process, out: process.terminate(), [], ""),
        "SIGTERM to one process": (signalled(signal.SIGTERM, 0), [], ""),
        "OUT is deleted": (deleted, [], ""),
        "the disk is full": (None, [], "size=45m"),
        "the disk is read-only": (None, [], "ro"),
        "the loss becomes infinite": (None, [], ""),
    }
    rows = []
    for number, (name, (act, options, mount)) in enumerate(mishaps.items()):
        with mounted(root / f"{number}", mount) as disk:
            if disk is None:
                rows.append({"mishap": name, "said": "not tried: no right to mount", "seconds": 0.0, "left": ""})
                continue
            rows.append({"mishap": name, **mishap(act, options, root / "data", disk / "run", "infinite" in name)})
    return rows


def mishap(
    act: Callable[[Any, Path], None] | None, options: list[str], data: Path, out: Path, diverges: bool
) -> dict[str, Any]:
    """Runs text-small under torchrun, makes it go wrong after step 5, and reports."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options, "-m"]
    command += [
        "byteloom",
        "train",
        "text-small",
        "--data",
        str(data),
        "--out",
        str(out),
        "--resume",
        "--batch-size",
        "2",
    ]
    command += ["--model.context", "256", "--validations", "0", "--log-every", "1", "--compile", "off"]
    command += [
        "--steps",
        "24",
        "--checkpoint-steps",
        "3",
        "--precision",
        "fp32",
        "--timeout-seconds",
        "8",
        "--keep",
        "9",
    ]
    command += ["--checkpoint-steps", "1", "--optim.learning-rate", "1e38", "--optim.clip", "0"] if diverges else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while act is not None and (not metrics(out) or metrics(out)[-1]["step"] < 5) and process.poll() is None:
        time.sleep(0.01)
    began = time.monotonic()
    if act is not None:
        act(process, out)
    text, _ = process.communicate()
    told = [line for line in text.splitlines() if line.startswith("byteloom: ") or " was deleted " in line]
    said = [line.removeprefix("byteloom: ") for line in told]
    last = list_checkpoints(out)[-1:]
    for checkpoint in last:
        load(checkpoint)
    return {
        "said": re.sub(r"\S*/run\b", "OUT", said[0])
        if said
        else f"nothing; it went on to step {metrics(out)[-1]['step']}",
        "seconds": time.monotonic() - began,
        "exit code": process.returncode,
        "left": last[0].name if last else "",
    }


def children(parent: int) -> list[int]:
    """The processes that torchrun started, by rank."""
    found = {}
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found |= {int(entry[5:]): int(child) for entry in environment if entry.startswith(b"RANK=")}
    return [found[rank] for rank in sorted(found)]


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path | None]:
    """A folder, or a disk of its own with these options; None where nothing may be mounted."""
    folder.mkdir(parents=True)
    if not options:
        yield folder
        return
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


PARTS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "curves": curves,
    "kills": kills,
    "damages": damages,
    "ends": ends,
}


def main(
    parts: tuple[str, ...] = tuple(PARTS),
    kills: int = 50,
    damages: int = 500,
    seed: int = 0,
    json: Path | None = None,
) -> None:
    """Whether runs survive what happens to them.

    Args:
        parts: which of curves, kills, damages and ends.
        kills: how many times processes are killed.
        damages: how many files are damaged.
        seed: of the moments and the damages.
        json: where to write the numbers.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            began = time.monotonic()
            arguments = {"kills": (kills, seed), "damages": (damages, seed)}.get(part, ())
            found[part] = PARTS[part](Path(folder, part), *arguments)
            show(f"{part}, {time.monotonic() - began:.0f} s", found[part])
    if json is not None:
        json.write_text(dumps(found, indent=1) + "\n")


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Prints rows as a table."""
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*(f"{value:.2g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
