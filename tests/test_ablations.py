"""benchmarks/ablations.py: every change makes another model that can be built, and a short run of all of it."""

import dataclasses
import json
from pathlib import Path

import ablations
import pytest

from byteloom import recipes
from byteloom.documents import DataError
from byteloom.sizing import build

RECIPES = {"text": "text-small", "code": "code-small", "image": "image-small", "audio": "audio-small"}


@pytest.mark.parametrize("kind", RECIPES)
def test_every_change_makes_another_run_that_can_be_built(kind: str) -> None:
    recipe = recipes.by_name(RECIPES[kind])
    for name, change in ablations.CHANGES[kind].items():
        changed = change(recipe)
        assert changed != recipe, name
        build(changed.model)


def test_changes_go_together() -> None:
    recipe = recipes.by_name("text-small")
    found = ablations.chosen("text_tiny", ["WSD + strings of 2 and 3", "none"])
    assert list(found) == ["none", "WSD + strings of 2 and 3"] and found["none"](recipe) == recipe
    changed = found["WSD + strings of 2 and 3"](recipe)
    assert (changed.optim.schedule, changed.model.stages[-1].ngrams) == ("wsd", (2, 3))
    with pytest.raises(DataError, match="knows no change 'magic'"):
        ablations.chosen("text_tiny", ["WSD + magic"])


def test_it_runs_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    small = recipes.by_name("text-small")
    stages = tuple(dataclasses.replace(s, dim=32, num_heads=1, ngram_rows=97) for s in small.model.stages)
    small = dataclasses.replace(small, model=dataclasses.replace(small.model, stages=stages, context=64))
    monkeypatch.setitem(recipes.NAMES, "text-small", lambda: small)
    folder = tmp_path / "suite" / "text_tiny"
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text("{}")
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_bytes(b"some words, and some more of them; " * 60)
        (folder / f"{split}.index.json").write_text(json.dumps([["all", 35 * 60]]))
    options = {
        "suite": tmp_path / "suite", "sets": ("text_tiny",), "seconds": 0.2, "only": ("no strings",),
        "valid_bytes": 500, "json": tmp_path / "found.json",
    }  # fmt: skip
    ablations.main(ablations.Options(**options))
    found = json.loads((tmp_path / "found.json").read_text())["runs"]["text_tiny"]
    assert list(found) == ["none", "no strings"] and all(0 < rows["0"]["valid"] < 10 for rows in found.values())
    with pytest.raises(DataError, match="--resume"):
        ablations.main(ablations.Options(**options))
    ablations.main(ablations.Options(**options, resume=True, seeds=(0, 1)))
    again = json.loads((tmp_path / "found.json").read_text())["runs"]["text_tiny"]
    assert again["none"]["0"] == found["none"]["0"] and set(again["no strings"]) == {"0", "1"}
    assert "no strings" in capsys.readouterr().out
    with pytest.raises(DataError, match="knows no change"):
        ablations.main(ablations.Options(**options | {"only": ("magic",)}, resume=True))
    for content in ("{", "[]", '{"settings": {}}'):
        (tmp_path / "found.json").write_text(content)
        with pytest.raises(DataError, match="is not a file of this program"):
            ablations.main(ablations.Options(**options, resume=True))
        assert (tmp_path / "found.json").read_text() == content
