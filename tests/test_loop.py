"""Training: it learns, it resumes bit for bit after SIGKILL, it stops well, and it loses nothing."""

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
from safetensors.torch import load_file
from test_corpus import folder_of
from test_multiscale import TWO

from byteloom.codecs import MARKS, media_from_dict
from byteloom.corpus import Corpus
from byteloom.documents import DataError, Document, Segment
from byteloom.layers.modalities import EmbedderConfig, StreamConfig
from byteloom.losses import Loss
from byteloom.models.config import ModalityConfig, ModelConfig
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import CheckpointError, load
from byteloom.train import acceleration, loop
from byteloom.train.checkpoint import alone_in, list_checkpoints
from byteloom.train.distributed import World
from byteloom.train.loop import RunConfig, TrainConfig, TrainingError, train
from byteloom.train.optim import OptimConfig, learning_rate_at

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
    before = weights(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    for resume in (False, True):
        with pytest.raises(CheckpointError, match=r"has a model and no checkpoints; .*--init"):
            train(config(steps=6), [data], tmp_path / "run", resume=resume)
    assert same(before, weights(tmp_path / "run"))


def test_a_run_goes_on_in_its_precision_or_the_one_that_is_asked_for(data: Path, tmp_path: Path) -> None:
    for step, (asked, found) in enumerate([("bf16", "bf16"), ("auto", "bf16"), ("fp32", "fp32"), ("auto", "fp32")], 1):
        run = config(steps=step, precision=asked, validations=0)
        assert train(run, [data], tmp_path / "run", resume=True).progress.precision == found


def test_two_do_not_train_in_the_same_folder(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with alone_in(run, World(device=torch.device("cpu"))):
        partial = run / "checkpoints" / ".step-00000003.partial"
        partial.mkdir(parents=True)
        with pytest.raises(CheckpointError, match="run: another process trains in it"):
            train(config(), [data], run, resume=True)
        assert partial.exists() and not (run / "metrics.jsonl").exists()
    train(config(steps=1), [data], run, resume=True)


def test_files_that_are_skipped_are_said_and_a_modality_reads_all(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of(data, {"broken.png": b"no picture", "empty": b""})
    train(config(steps=1), [data], tmp_path / "run", show=True)
    err = capsys.readouterr().err
    assert err.count("skipped empty: is empty") == 1 and err.count("skipped broken.png: ") == 1
    with pytest.raises(DataError, match="hold bytes"):
        train(with_model(knowing("text")), [data], tmp_path / "other", modality="bytes")


@pytest.mark.parametrize("name", ["state.json", "shard-00001-model-00001-of-00001.safetensors", "config.json"])
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


# -- several modalities ----------------------------------------------------------------------------------------------


def knowing(*modalities: str, kind: str = "specific", model: ModelConfig = TWO) -> ModelConfig:
    """A model that tells these modalities apart."""
    return dataclasses.replace(
        model,
        modalities=tuple(ModalityConfig(name=name, mark=MARKS[name]) for name in modalities),
        embedder=EmbedderConfig(kind=kind),
        heads="by_modality",
    )


def with_model(model: ModelConfig, **fields: object) -> RunConfig:
    return dataclasses.replace(config(**fields), model=model)


@pytest.fixture
def mixed(tmp_path: Path) -> list[Path]:
    """Text, and bytes that no model can predict."""
    noise = {f"{i}.bin": np.random.default_rng(i).integers(0, 256, 400, np.uint8).tobytes() for i in range(20)}
    return [
        folder_of(tmp_path / "words", {f"{i}.txt": TEXT[:1500] for i in range(12)}),
        folder_of(tmp_path / "noise", noise),
    ]


@pytest.mark.parametrize("model", [TWO, knowing("text", "bytes"), knowing("bytes", "text", kind="universal")])
def test_modalities_are_reported_one_by_one(
    mixed: list[Path], tmp_path: Path, model: ModelConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run = with_model(model, steps=40, validations=2, mixture=(1.0, 1.0), log_every=10)
    trained = train(run, mixed, tmp_path / "run", show=True)
    last = trained.metrics[-1]
    for parts, whole in (("by_modality", "bits_per_byte"), ("valid_by_modality", "valid_bits_per_byte")):
        assert last[parts].keys() == {"text", "bytes"}
        assert last[parts]["text"] < last[whole] < last[parts]["bytes"]
    assert last["by_modality"]["text"] < 7 and last["by_modality"]["bytes"] > 7.9
    shown = ", ".join(f"{name} {bits:.3f}" for name, bits in last["valid_by_modality"].items())
    assert f"({shown})" in capsys.readouterr().err
    described = json.loads((tmp_path / "run" / "config.json").read_text())["run"]
    assert described["modalities"] == ["bytes", "text"] and described["train"]["mixture"] == [1.0, 1.0]


def test_one_modality_alone_has_no_parts(data: Path, tmp_path: Path) -> None:
    rows = train(config(steps=2), [data], tmp_path / "run").metrics
    assert not [row for row in rows if "by_modality" in row or "valid_by_modality" in row]


def test_weights_say_what_is_learned_from(mixed: list[Path], tmp_path: Path) -> None:
    def after(**fields: object) -> dict[str, torch.Tensor]:
        run = with_model(knowing("text", "bytes"), steps=1, validations=0, mixture=(1.0, 1.0), **fields)
        plain = OptimConfig(optimizer="adamw", clip=0.0, warmup=0.0, schedule="constant")
        return train(dataclasses.replace(run, optim=plain), mixed, tmp_path / str(fields)).model.state_dict()

    torch.manual_seed(0)
    first = Multiscale(knowing("text", "bytes")).state_dict()
    of_text, of_bytes = "embedders.1.parts.1.table.weight", "embedders.1.parts.2.table.weight"
    everything, only_text = after(), after(loss_weights={"bytes": 0.0})
    assert not torch.equal(everything[of_bytes], first[of_bytes])
    assert torch.equal(only_text[of_bytes], first[of_bytes]) and not torch.equal(only_text[of_text], first[of_text])
    assert same(after(loss_weights={"bytes": 1.0}), everything)
    with pytest.raises(ValueError, match="'image', which is not learned from; there are bytes, text"):
        after(loss_weights={"image": 2.0})


def test_weighted_nats_are_the_rows_times_their_weights() -> None:
    table = torch.tensor([[1.0, 1, 0], [20.0, 9, 9], [300.0, 8, 8]], requires_grad=True)
    loss = Loss(nats=table[:, 0].sum(), count=torch.tensor(18), bytes=torch.tensor(17), table=table)
    found = loop.weighted(loss, loop.row_weights({"a": 0.5, "b": 1.0}, {1: "a", 2: "b"}))
    assert float(found.detach()) == 1 + 10 + 300
    found.backward()
    assert table.grad[:, 0].tolist() == [1.0, 0.5, 1.0]


def test_a_run_of_several_sources_resumes_with_the_same_bits(mixed: list[Path], tmp_path: Path) -> None:
    fields = {"mixture": (3.0, 1.0), "loss_weights": {"bytes": 0.5}, "checkpoint_steps": 3}
    run = with_model(knowing("text", "bytes", model=DROPOUT), **fields)
    whole = train(run, mixed, tmp_path / "whole")
    loaded = tmp_path / "again"
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "step-00000009", loaded / "checkpoints" / "step-00000009")
    again = train(run, mixed, loaded, resume=True)
    assert again.progress.step == 12 and same(again.model.state_dict(), whole.model.state_dict())


def test_a_modality_that_was_never_seen_keeps_its_weights_and_the_run_resumes(data: Path, tmp_path: Path) -> None:
    model = knowing("text", "image")
    run = with_model(model, steps=2, validations=0)
    train(run, [data], tmp_path / "run")
    trained = train(with_model(model, steps=4, validations=0), [data], tmp_path / "run", resume=True)
    torch.manual_seed(0)
    for name, weight in Multiscale(model).state_dict().items():
        if ".parts.2." in name:
            assert torch.equal(weight, trained.model.state_dict()[name])
        if ".parts.1.table" in name:
            assert not torch.equal(weight, trained.model.state_dict()[name])


def test_an_unknown_modality_is_refused(mixed: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"hold bytes \(mark 259\), which the model does not know; .* text \(260\)"):
        train(with_model(knowing("text")), mixed, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_how_media_were_read_stands_in_the_run(data: Path, tmp_path: Path) -> None:
    media = media_from_dict({"image": {"scan": "raster"}})
    train(dataclasses.replace(config(steps=1), media=media), [data], tmp_path / "run")
    described = json.loads((tmp_path / "run" / "config.json").read_text())["run"]["media"]
    assert media_from_dict(described) == media


def fused_corpus(number: int = 12, length: int = 60) -> Corpus:
    """Sounds that say nothing beside a text that repeats one letter."""
    random = np.random.default_rng(0)
    documents = []
    for i in range(number):
        sound = Segment(modality="bytes", data=random.integers(0, 256, length, np.uint8))
        words = Segment(modality="text", data=np.full(length, 97, np.uint8))
        documents.append(Document(segments=(sound, words), name=f"{i}"))
    return Corpus.from_documents(documents)


def test_a_fused_model_learns_the_streams_that_it_predicts(tmp_path: Path) -> None:
    streams = (StreamConfig(name="sound", size=2, role="given"), StreamConfig(name="words", size=2))
    model = dataclasses.replace(
        TWO, embedder=EmbedderConfig(kind="fusion", streams=streams, stream_dropout=0.2), heads="by_modality"
    )
    run = dataclasses.replace(with_model(model, steps=60), optim=OptimConfig(learning_rate=0.02))
    trained = train(run, fused_corpus(), tmp_path / "run")
    assert trained.metrics[-1]["valid_bits_per_byte"] < 4, "of words alone; sound would cost 8"
    assert 0 < trained.metrics[0]["bytes"] <= 4 * model.context / 2, "what is given is not counted"
    with pytest.raises(ValueError, match="'sound', which is not learned from; there are words"):
        train(with_model(model, loss_weights={"sound": 2.0}), fused_corpus(), tmp_path / "other")


def test_budgets_end_a_run(data: Path, tmp_path: Path) -> None:
    by_bytes = train(config(steps=None, max_bytes=1000, validations=0), [data], tmp_path / "bytes")
    assert 1000 <= by_bytes.progress.bytes < 1000 + 4 * 32
    began = time.monotonic()
    train(config(steps=None, max_seconds=1.0, validations=0), [data], tmp_path / "seconds")
    assert time.monotonic() - began < 30
    with pytest.raises(ValueError, match="no end"):
        TrainConfig()


def test_a_long_first_step_takes_nothing_from_warm_up(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def slow_at_first(
        model: Multiscale, ids: torch.Tensor, mark: torch.Tensor | None = None, **options: object
    ) -> Loss:
        steps.append(mark is not None)  # the plan asks without
        if sum(steps) == 1 and steps[-1]:
            time.sleep(1.0)  # as compiling would
        return plain(model, ids, mark=mark, **options)  # type: ignore[arg-type]

    plain = Multiscale.loss
    monkeypatch.setattr(Multiscale, "loss", slow_at_first)
    run = config(steps=None, max_seconds=2.0, validations=0, log_every=1, checkpoint_seconds=1e9)
    run = dataclasses.replace(run, optim=OptimConfig(learning_rate=1.0, warmup=0.5, schedule="linear"))
    rows = train(run, [data], tmp_path / "run").metrics
    assert rows[0]["seconds"] >= 1.0 and rows[0]["learning_rate"] == 0.0
    for row in rows[1:]:
        share = (row["seconds"] - rows[0]["seconds"]) / (2.0 - rows[0]["seconds"])
        assert row["learning_rate"] == pytest.approx(learning_rate_at(share, run.optim), abs=0.01)
    assert rows[-1]["learning_rate"] == pytest.approx(run.optim.final)


def test_validation_data_may_be_given(data: Path, tmp_path: Path) -> None:
    result = train(config(steps=2), [data / "a.txt"], tmp_path / "run", valid=[data / "b.txt"])
    assert result.metrics[-1]["valid_bits_per_byte"] > 0


def test_precision_is_as_asked_or_measured() -> None:
    device = torch.device("cpu")
    assert acceleration.choose_precision("bf16", device) == "bf16"
    assert acceleration.choose_precision("auto", device) in ("bf16", "fp32")


def test_compiled_training_takes_the_same_steps(data: Path, tmp_path: Path) -> None:
    fields = {"steps": 2, "validations": 0}
    plain = dataclasses.replace(config(**fields), model=TWO)
    compiled = dataclasses.replace(config(**fields, compile="on"), model=TWO)
    a, b = train(plain, [data], tmp_path / "a"), train(compiled, [data], tmp_path / "b")
    assert a.metrics[0]["loss"] == pytest.approx(b.metrics[0]["loss"], rel=1e-4)
    assert os.path.exists(tmp_path / "b" / "model.safetensors")
