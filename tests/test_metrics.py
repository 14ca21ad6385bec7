"""metrics.jsonl survives crashes and resumes."""

import sys
from pathlib import Path

import pytest
import torch

from byteloom.losses import Loss
from byteloom.train.distributed import World
from byteloom.train.metrics import MetricsLog, ProgressBar, Window, read_metrics


def test_a_resumed_log_drops_later_and_broken_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
    log = MetricsLog(path, after_step=2)
    log.write(step=3, loss=1.5)
    log.close()
    assert read_metrics(path) == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 1.5}]
    assert read_metrics(tmp_path / "none") == []


def test_the_bar_is_silent_where_it_should_be(capsys) -> None:
    with ProgressBar(0.5, show=False) as bar:
        bar.update(0.7, 2.0, 1000.0)
        bar.say("nothing")
    assert capsys.readouterr() == ("", "")
    with ProgressBar(0.5, show=True) as bar:
        bar.say("a line [with] brackets")
    assert capsys.readouterr().err == "a line [with] brackets\n"


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl", after_step=0, writes=False, tensorboard=True)
    log.write(step=1)
    log.close()
    assert not list(tmp_path.iterdir())


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for step in (1, 2, 2):  # the second sitting repeats a step
        log = MetricsLog(tmp_path / "metrics.jsonl", after_step=step - 1, tensorboard=True)
        log.write(step=step, loss=1.0 / step, by_modality={"text": 2.0 * step})
        log.close()
    found = events.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert {"loss", "by_modality/text"} <= set(found.Tags()["scalars"])
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(1, 1.0), (2, 0.5)]
    assert found.Scalars("by_modality/text")[-1].value == 4.0


def test_without_tensorboard_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard" or "utils.tensorboard" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match="tensorboard"):
        MetricsLog(tmp_path / "metrics.jsonl", after_step=0, tensorboard=True)


def test_a_window_sums_before_it_divides() -> None:
    window, table = Window(), torch.tensor([[0.0, 0, 0], [2.0, 3, 2]])
    for _ in range(2):
        window.add(Loss(nats=torch.tensor(2.0), count=torch.tensor(3), bytes=torch.tensor(2), table=table))
    assert window.read(World(device=torch.device("cpu"))) == (4.0, 4, True)
    assert window.by_modality({1: "text"}) == {"text": pytest.approx(1 / 0.6931472)}
    window.norm = float("nan")
    assert not window.read(World(device=torch.device("cpu")))[2]
