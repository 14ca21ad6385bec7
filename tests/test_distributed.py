"""Several processes do what one does: equal curves, and runs that go on among other numbers of processes.

The runs of several processes are this file's own program under torchrun, all in one start of it.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from test_loop import DROPOUT, TEXT, knowing
from test_multiscale import THREE, TWO

from byteloom.corpus import Corpus
from byteloom.documents import Document, Segment
from byteloom.losses import Loss
from byteloom.models.config import ModelConfig
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import load
from byteloom.train.checkpoint import list_checkpoints
from byteloom.train.distributed import ParallelConfig, World, drop_unused, open_world, reached
from byteloom.train.loop import RunConfig, TrainConfig, train
from byteloom.train.optim import OptimConfig, dealt_out, orthogonal

ADAMW = OptimConfig(optimizer="adamw", weight_decay=0.1)
SLOW_STEP = "BYTELOOM_TEST_SECONDS_A_STEP"


def run(model: ModelConfig = TWO, optim: OptimConfig | None = None, parallel: dict | None = None, **train) -> RunConfig:
    fields = {"steps": 12, "batch_size": 4, "precision": "fp32", "validations": 2, "log_every": 1, "device": "cpu"}
    return RunConfig(
        model=model,
        optim=optim or OptimConfig(),
        train=TrainConfig(**{**fields, **train}),
        parallel=ParallelConfig(**(parallel or {})),
    )


STRINGS = dataclasses.replace(
    TWO,
    stages=tuple(dataclasses.replace(s, ngrams=(2, 4), ngram_rows=101, ngram_dim=4) for s in TWO.stages),
    matches=(2, 4),
)
CASES = {
    "plain": run(checkpoint_steps=6),
    "adamw": run(optim=ADAMW, batch_size=2, accumulation=2, ema=0.9),
    "recomputed": run(model=THREE, activation_memory=1e-5),
    "modalities": run(model=knowing("text", "bytes", "image"), optim=ADAMW, batch_size=2),
    "replicas": run(parallel={"replicas": 2}),
    "tensor parallel": run(parallel={"tensor_parallel": 2}),
    "strings": run(model=STRINGS, optim=dataclasses.replace(ADAMW, optimizer="muon"), batch_size=2, accumulation=2),
    "bf16": run(precision="bf16"),
}


def corpus() -> Corpus:
    """Text, and a few bytes that no model can predict, so that a batch's rows are often of one kind."""
    texts = [Segment(modality="text", data=np.frombuffer(TEXT[i * 900 : (i + 1) * 900], np.uint8)) for i in range(14)]
    noise = [Segment(modality="bytes", data=np.random.default_rng(i).integers(0, 256, 300, np.uint8)) for i in range(6)]
    documents = [Document(segments=(segment,), name=f"{i}") for i, segment in enumerate([*texts, *noise])]
    return Corpus.from_documents(documents[::2] + documents[1::2])


def main(task: str, out: Path) -> None:
    """What each process does under torchrun."""
    torch.set_num_threads(1)
    if delay := float(os.environ.get(SLOW_STEP, "0")):
        fast = Multiscale.loss

        def slow(*args: object, **options: object) -> Loss:
            time.sleep(delay)
            return fast(*args, **options)  # type: ignore[arg-type]

        Multiscale.loss = slow
    if task != "cases":
        train(run(model=DROPOUT, steps=int(task), checkpoint_steps=2, validations=0), corpus(), out, resume=True)
        return
    with open_world(ParallelConfig(), "cpu") as world:
        check_that_matrices_are_dealt_out(world.rank)
        for name, config in CASES.items():
            train(config, corpus(), out / name)
        train(CASES["plain"], corpus(), out / "resumed", resume=True)


def check_that_matrices_are_dealt_out(rank: int) -> None:
    """Each of two ranks gets its rows of orthogonal matrices, also where one owns no matrix or holds no row."""
    generator = torch.Generator().manual_seed(0)
    for shapes in ([(5, 3)], [(1, 4)], [(4, 6), (1, 2), (7, 2), (3, 3)]):
        whole = [torch.randn(shape, generator=generator) for shape in shapes]
        rows = [slice(rank * -(-matrix.shape[0] // 2), (rank + 1) * -(-matrix.shape[0] // 2)) for matrix in whole]
        given = {i: (matrix[rows[i]], matrix.shape) for i, matrix in enumerate(whole)}
        found = dealt_out(given, torch.float32, dist.group.WORLD)
        for i, matrix in enumerate(whole):
            torch.testing.assert_close(found[i], orthogonal(matrix, torch.float32)[rows[i]])


def torchrun(processes: int, task: str, out: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=1"]
    return subprocess.Popen(
        [*command, f"--nproc-per-node={processes}", __file__, task, str(out)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all cases as one process ran them, and as two did."""
    root = tmp_path_factory.mktemp("runs")
    for name, config in CASES.items():
        train(dataclasses.replace(config, parallel=ParallelConfig()), corpus(), root / "one" / name)
    middle = Path("checkpoints", "step-00000006")
    shutil.copytree(root / "one" / "plain" / middle, root / "two" / "resumed" / middle)
    process = torchrun(2, "cases", root / "two")
    assert process.wait() == 0, process.communicate()[1]
    shutil.copytree(root / "two" / "plain" / middle, root / "one" / "resumed" / middle)
    train(CASES["plain"], corpus(), root / "one" / "resumed", resume=True)
    return root


def curve(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def furthest(a: Path, b: Path, share: float = 0.0) -> float:
    """The largest difference between two models' weights, this share of them left out."""
    first, second = (load_file(folder / "model.safetensors") for folder in (a, b))
    assert first.keys() == second.keys()
    apart = torch.cat([(first[name] - second[name]).abs().flatten() for name in first]).sort().values
    return float(apart[-1 - int(share * len(apart))])


@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_as_one(runs: Path, name: str) -> None:
    one, two = runs / "one" / name, runs / "two" / name
    near = 0.03 if name == "bf16" else 1e-4  # in bf16 the weights of norms are rounded too
    for a, b in zip(curve(one), curve(two), strict=True):
        assert a.keys() == b.keys() and (a["step"], a["bytes"]) == (b["step"], b["bytes"])
        for key in ("loss", "bits_per_byte", "valid_bits_per_byte", "learning_rate"):
            assert a.get(key, 0.0) == pytest.approx(b.get(key, 0.0), abs=near)
        assert a.get("by_modality", {}) == pytest.approx(b.get("by_modality", {}), abs=near)
        assert a.get("valid_by_modality", {}) == pytest.approx(b.get("valid_by_modality", {}), abs=near)
    # Where all of a weight's gradient is rounding, Adam and Adagrad still go a whole step, in a direction by chance.
    share = 0.002 if name in ("modalities", "strings") else 0.0
    assert name == "bf16" or furthest(one, two, share) < 1e-4
    assert name == "bf16" or furthest(one / "best", two / "best", share) < 1e-4
    assert load(two).config == CASES[name].model


def test_what_no_process_met_keeps_its_weights(runs: Path) -> None:
    model = CASES["modalities"].model
    torch.manual_seed(0)
    first, last = Multiscale(model).state_dict(), load_file(runs / "two" / "modalities" / "model.safetensors")
    assert torch.equal(first["embedders.1.parts.3.table.weight"], last["embedders.1.parts.3.table.weight"])
    assert not torch.equal(first["embedders.1.parts.1.table.weight"], last["embedders.1.parts.1.table.weight"])


def test_a_checkpoint_has_a_piece_of_each_process_and_opens_whole(runs: Path) -> None:
    folder = list_checkpoints(runs / "two" / "plain")[-1]
    assert len(list(folder.glob("shard-*.safetensors"))) == 2
    assert json.loads((folder / "state.json").read_text())["processes"] == 2
    weights, whole = load(folder).state_dict(), load(runs / "two" / "plain").state_dict()
    assert all(torch.equal(weights[name], whole[name]) for name in whole)


def test_a_run_goes_on_among_more_or_fewer_processes(runs: Path) -> None:
    for folder in (runs / "one" / "resumed", runs / "two" / "resumed"):
        assert [row["step"] for row in curve(folder)] == list(range(7, 13))
        assert furthest(runs / "one" / "plain", folder) < 1e-5
        for a, b in zip(curve(runs / "one" / "plain")[6:], curve(folder), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-5) and a["bytes"] == b["bytes"]


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun started, by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {}
    for child in map(int, children):
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks |= {int(entry[5:]): child for entry in environment if entry.startswith(b"RANK=")}
    return [ranks[rank] for rank in sorted(ranks)]


def wait_for(step: int, out: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not ((out / "metrics.jsonl").exists() and any(row["step"] >= step for row in curve(out))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_a_killed_process_ends_all_and_torchrun_goes_on_and_a_stopped_one_saves(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = torchrun(2, "100", out, **{SLOW_STEP: "0.1"})
    wait_for(5, out, process)
    os.kill(workers(process)[1], signal.SIGKILL)
    wait_for(12, out, process)
    os.kill(workers(process)[0], signal.SIGTERM)  # the other one hears of it
    _, errors = process.communicate(timeout=60)
    assert "process 0 of 2 cannot go on" in errors and "--resume" in errors
    stopped = int(list_checkpoints(out)[-1].name[-8:])
    assert 12 <= stopped < 100 and errors.count(f"stopped at step {stopped}, saved in") == 2
    config = run(model=DROPOUT, steps=stopped + 2, validations=0)
    result = train(config, corpus(), out, resume=True)
    assert [row["step"] for row in result.metrics] == list(range(1, stopped + 3))


def test_the_processes_of_torchrun_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "6")
    with (
        pytest.raises(ValueError, match="6 processes cannot hold 2 replicas of 2 tensor-parallel"),
        open_world(ParallelConfig(replicas=2, tensor_parallel=2), "cpu"),
    ):
        pass
    for field in ("replicas", "tensor_parallel", "timeout_seconds"):
        with pytest.raises(ValueError, match=field):
            ParallelConfig(**{field: 0})


def test_a_single_process_is_a_world() -> None:
    with open_world(ParallelConfig(), "cpu") as world:
        assert world.main and world.mesh is None and (world.reader, world.readers) == (0, 1)
        assert world.sum(1.0, 2.0) == world.largest(1.0, 2.0) == [1.0, 2.0]
        assert world.gather("a") == ["a"] and torch.equal(world.sum_tensor(torch.ones(2)), torch.ones(2))
        assert world.sum_array(np.eye(2)).tolist() == [[1, 0], [0, 1]]


def test_it_is_found_what_a_loss_depends_on() -> None:
    model = Multiscale(knowing("text", "bytes"))
    world = World(device=torch.device("cpu"), size=2)
    ids = torch.full((1, 32), 97)
    found = reached(model.loss(ids, mark=torch.tensor([260])).nats, model, world)
    assert "embedders.1.parts.1.table.weight" in found and "embedders.1.parts.2.table.weight" not in found
    assert not [name for name in found if name.startswith("stacks.")]
    assert reached(model.loss(ids).nats, model, World(device=torch.device("cpu"))) == set()
    drop_unused(model, set(), World(device=torch.device("cpu")))


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]))
    except (KeyboardInterrupt, Exception) as error:
        if not str(error):
            raise
        print(f"{error}", file=sys.stderr)
        sys.exit(1)
