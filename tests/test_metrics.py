"""metrics.jsonl survives crashes and resumes."""

from pathlib import Path

from byteloom.train.metrics import MetricsLog, ProgressBar, read_metrics


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
