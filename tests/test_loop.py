"""Training: it learns, it resumes bit for bit after SIGKILL, it stops well, and it loses nothing."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_corpus import folder_of
from test_multiscale import TWO

from byteloom.losses import Loss
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import CheckpointError, load
from byteloom.train import loop
from byteloom.train.checkpoint import list_checkpoints
from byteloom.train.loop import RunConfig, TrainConfig, TrainingError, train
from byteloom.train.optim import OptimConfig

TEXT = "".join(f"line {i} of a text that is easy to learn\n" for i in range(400)).encode()
DROPOUT = dataclasses.replace(TWO, stages=tuple(dataclasses.replace(s, dropout=0.1) for s in TWO.stages))


def config(**fields: object) -> RunConfig:
    settings = {"steps": 12, "batch_size": 4, "precision": "fp32", "deterministic": True, "validations": 3}
    return RunConfig(model=DROPOUT, train=TrainConfig(**{**settings, "log_every": 1, **fields}))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "data", {"a.txt": TEXT, "b.txt": TEXT[:3000]})


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_it_learns(data: Path, tmp_path: Path, optimizer: str) -> None:
    run = dataclasses.replace(config(steps=60), optim=OptimConfig(optimizer=optimizer))
    result = train(run, [data], tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["bits_per_byte"] > 7 and rows[-1]["valid_bits_per_byte"] < 5.5
    assert {"step", "bytes", "seconds", "loss", "bits_per_byte", "learning_rate"} <= set(rows[0])
    assert result.summary()["step"] == 60 and result.progress.best == min(r.get("valid_bits_per_byte", 9) for r in rows)
    for folder in (tmp_path / "run", tmp_path / "run" / "best"):
        assert load(folder).config == DROPOUT
    assert same(weights(tmp_path / "run"), result.model.state_dict())
    assert len(list_checkpoints(tmp_path / "run")) == 1


def test_accumulation_is_a_larger_batch(data: Path, tmp_path: Path) -> None:
    fields = {"steps": 3, "validations": 0}
    plain = dataclasses.replace(config(**fields), model=TWO)
    split = dataclasses.replace(config(**fields, batch_size=2, accumulation=2), model=TWO)
    a, b = train(plain, [data], tmp_path / "a"), train(split, [data], tmp_path / "b")
    for x, y in zip(a.model.parameters(), b.model.parameters()):
        torch.testing.assert_close(x, y, atol=2e-4, rtol=1e-3)
    assert a.progress.bytes == b.progress.bytes


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import torch; torch.set_num_threads(1)
import time
import test_loop
from pathlib import Path
fast = test_loop.Multiscale.loss
def loss(*args, **kwargs):
    time.sleep(float(sys.argv[4]) if "mark" in kwargs else 0)
    return fast(*args, **kwargs)
test_loop.Multiscale.loss = loss
try:
    test_loop.train(test_loop.config(checkpoint_steps=3), [sys.argv[2]], sys.argv[3], resume=True)
except KeyboardInterrupt as error:
    print(error); sys.exit(130)
"""


def start(data: Path, run: Path, delay: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(data), str(run), str(delay)],
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, text: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not (path.exists() and text in path.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_killed_and_resumed_ends_with_the_same_bits(data: Path, tmp_path: Path) -> None:
    whole = train(config(checkpoint_steps=3), [data], tmp_path / "whole")
    run = tmp_path / "killed"
    for step in (2, 5, 8):  # before the first checkpoint, and in the middle between two
        process = start(data, run, 0.15)
        wait_for(run / "metrics.jsonl", f'"step": {step},', process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    resumed = train(config(checkpoint_steps=3), [data], run, resume=True)
    assert same(weights(run), weights(tmp_path / "whole"))
    assert same(weights(run / "best"), weights(tmp_path / "whole" / "best"))
    assert [row["step"] for row in resumed.metrics] == list(range(1, 13))
    for a, b in zip(resumed.metrics, whole.metrics):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(data: Path, tmp_path: Path, number: int) -> None:
    whole = train(config(), [data], tmp_path / "whole")
    run = tmp_path / "stopped"
    process = start(data, run, 0.15)
    wait_for(run / "metrics.jsonl", '"step": 4,', process)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in out
    saved = list_checkpoints(run)
    assert 4 <= int(saved[-1].name[-8:]) < 12
    assert same(train(config(), [data], run, resume=True).model.state_dict(), whole.model.state_dict())


def test_an_existing_run_is_not_overwritten(data: Path, tmp_path: Path) -> None:
    train(config(steps=2), [data], tmp_path / "run")
    before = weights(tmp_path / "run")
    with pytest.raises(CheckpointError, match="--resume"):
        train(config(steps=4), [data], tmp_path / "run")
    other = dataclasses.replace(config(), model=TWO)
    with pytest.raises(CheckpointError, match=r"model\.stages\.0\.dropout 0\.1, now asked for 0\.0"):
        train(other, [data], tmp_path / "run", resume=True)
    with pytest.raises(CheckpointError, match="and these data have"):
        train(config(steps=4), [data / "a.txt"], tmp_path / "run", resume=True)
    assert same(before, weights(tmp_path / "run"))
    assert train(config(steps=4), [data], tmp_path / "run", resume=True).progress.step == 4


@pytest.mark.parametrize("name", ["state.json", "optimizer.safetensors", "model.safetensors", "config.json"])
def test_a_damaged_checkpoint_is_named(data: Path, tmp_path: Path, name: str) -> None:
    train(config(steps=2), [data], tmp_path / "run")
    path = list_checkpoints(tmp_path / "run")[-1] / name
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        train(config(), [data], tmp_path / "run", resume=True)
    path.unlink()
    with pytest.raises(CheckpointError, match="not found"):
        train(config(), [data], tmp_path / "run", resume=True)


def test_a_half_written_checkpoint_is_no_checkpoint(data: Path, tmp_path: Path) -> None:
    train(config(steps=2), [data], tmp_path / "run")
    partial = tmp_path / "run" / "checkpoints" / ".step-00000009.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-00000002"]
    assert train(config(steps=3), [data], tmp_path / "run", resume=True).progress.step == 3


def test_only_the_last_checkpoints_are_kept(data: Path, tmp_path: Path) -> None:
    train(config(checkpoint_steps=2, keep=3), [data], tmp_path / "run")
    assert [int(path.name[-8:]) for path in list_checkpoints(tmp_path / "run")] == [8, 10, 12]


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def poisoned(model: Multiscale, ids: torch.Tensor, mark: torch.Tensor | None = None, **options: object) -> Loss:
        loss = healthy(model, ids, mark=mark, **options)  # type: ignore[arg-type]
        steps.append(mark is not None)  # the plan asks without
        return dataclasses.replace(loss, nats=loss.nats * (float("nan") if sum(steps) == 7 else 1.0))

    healthy = Multiscale.loss
    monkeypatch.setattr(Multiscale, "loss", poisoned)
    with pytest.raises(TrainingError, match="step-00000006 is the last good checkpoint"):
        train(config(checkpoint_steps=3), [data], tmp_path / "run")
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run").values())


def test_a_read_only_folder_is_an_error_of_the_system(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"):
        train(config(steps=1), [data], tmp_path / "file" / "run")


def test_init_takes_the_weights_of_another_run(data: Path, tmp_path: Path) -> None:
    first = train(config(steps=20), [data], tmp_path / "first")
    second = train(config(steps=1), [data], tmp_path / "second", init=tmp_path / "first")
    assert second.metrics[0]["bits_per_byte"] < first.metrics[0]["bits_per_byte"] - 1
    with pytest.raises(CheckpointError, match="dropout"):
        train(dataclasses.replace(config(), model=TWO), [data], tmp_path / "third", init=tmp_path / "first")


def test_budgets_end_a_run(data: Path, tmp_path: Path) -> None:
    by_bytes = train(config(steps=None, max_bytes=1000, validations=0), [data], tmp_path / "bytes")
    assert 1000 <= by_bytes.progress.bytes < 1000 + 4 * 32
    began = time.monotonic()
    train(config(steps=None, max_seconds=1.0, validations=0), [data], tmp_path / "seconds")
    assert time.monotonic() - began < 30
    with pytest.raises(ValueError, match="no end"):
        TrainConfig()


def test_validation_data_may_be_given(data: Path, tmp_path: Path) -> None:
    result = train(config(steps=2), [data / "a.txt"], tmp_path / "run", valid=[data / "b.txt"])
    assert result.metrics[-1]["valid_bits_per_byte"] > 0


def test_precision_is_as_asked_or_measured() -> None:
    device = torch.device("cpu")
    assert loop.choose_precision("bf16", device) == "bf16"
    assert loop.choose_precision("auto", device) in ("bf16", "fp32")


def test_compiled_training_takes_the_same_steps(data: Path, tmp_path: Path) -> None:
    fields = {"steps": 2, "validations": 0}
    plain = dataclasses.replace(config(**fields), model=TWO)
    compiled = dataclasses.replace(config(**fields, compile="on"), model=TWO)
    a, b = train(plain, [data], tmp_path / "a"), train(compiled, [data], tmp_path / "b")
    assert a.metrics[0]["loss"] == pytest.approx(b.metrics[0]["loss"], rel=1e-4)
    assert os.path.exists(tmp_path / "b" / "model.safetensors")
