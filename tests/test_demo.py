"""The demo in seconds instead of minutes."""

import json
import sys
from pathlib import Path

import pytest

from byteloom.demo import PROMPT, clear, demo, standard_library
from byteloom.models.store import CheckpointError, load


def test_the_demo_runs_from_end_to_end_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = demo(tmp_path / "demo", seconds=2.0, held_out_bytes=4000)
    out, err = capsys.readouterr()
    assert out.startswith("def read_lines") and "byteloom train" in err and "gzip" in err
    assert json.loads((tmp_path / "demo" / "report.json").read_text()) == json.loads(json.dumps(numbers))
    assert "<svg" in (tmp_path / "demo" / "report.html").read_text()
    assert numbers["largest_difference_after_reload"] == 0.0
    load(tmp_path / "demo")
    demo(tmp_path / "demo", seconds=1.0, held_out_bytes=4000, shown=sys.stderr)
    out, err = capsys.readouterr()
    assert out == "" and "def read_lines" in err
    clear(tmp_path / "demo")
    assert not list((tmp_path / "demo").iterdir())


DEMO, RUN = {"prompt": PROMPT}, {"run": {"data": {"names": ["mine"]}}}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"thesis.txt": {}, "report.json": DEMO}, "other files, such as thesis.txt"),
        ({".git": {}, "report.json": DEMO}, "other files, such as .git"),
        ({"config.json": RUN, "model.safetensors": {}, "metrics.jsonl": {}}, "a run that is no demo"),
        ({"config.json": RUN, "model.safetensors": {}, "report.json": DEMO}, "a run that is no demo"),
        ({"config.json": {}, "report.json": {"bits_per_byte": 1}}, "a run that is no demo"),
    ],
)
def test_other_folders_are_left_alone(tmp_path: Path, files: dict, said: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=said):
        clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(files)


def test_a_demo_that_was_killed_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(DEMO))
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / ".byteloom.0123456789abcdef.partial").touch()
    (tmp_path / "checkpoints" / ".step-00000003.partial").mkdir(parents=True)
    clear(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_standard_library_is_there_without_its_tests() -> None:
    corpus = standard_library()
    assert "json/decoder.py" in corpus.names
    assert not [name for name in corpus.names if name.startswith("test/") or "site-packages" in name]
    assert len(set(corpus.names)) == len(corpus)
