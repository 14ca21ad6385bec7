"""The demo in seconds instead of minutes."""

import json
from pathlib import Path

import pytest

from byteloom.demo import clear, demo, standard_library
from byteloom.models.store import CheckpointError, load


def test_the_demo_runs_from_end_to_end_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = demo(tmp_path / "demo", seconds=2.0, held_out_bytes=4000)
    out, err = capsys.readouterr()
    assert out.startswith("def read_lines") and "byteloom train" in err and "gzip" in err
    assert json.loads((tmp_path / "demo" / "report.json").read_text()) == json.loads(json.dumps(numbers))
    assert "<svg" in (tmp_path / "demo" / "report.html").read_text()
    assert numbers["largest_difference_after_reload"] == 0.0
    load(tmp_path / "demo")
    demo(tmp_path / "demo", seconds=1.0, held_out_bytes=4000)


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="other files"):
        clear(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_the_standard_library_is_there_without_its_tests() -> None:
    corpus = standard_library()
    assert "json/decoder.py" in corpus.names
    assert not [name for name in corpus.names if name.startswith("test/") or "site-packages" in name]
    assert len(set(corpus.names)) == len(corpus)
