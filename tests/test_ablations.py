"""benchmarks/ablations.py: every change makes another model that can be built, and a short run of all of it."""

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from byteloom import recipes
from byteloom.documents import DataError
from byteloom.sizing import build

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RECIPES = {"text": "text-small", "code": "code-small", "image": "image-small", "audio": "audio-small"}


@pytest.fixture(scope="module")
def ablations() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("ablations_program", BENCHMARKS / "ablations.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(BENCHMARKS))  # where it finds quality.py
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize("kind", RECIPES)
def test_every_change_makes_another_run_that_can_be_built(ablations: ModuleType, kind: str) -> None:
    recipe = recipes.by_name(RECIPES[kind])
    for name, change in ablations.CHANGES[kind].items():
        changed = change(recipe)
        assert changed != recipe, name
        build(changed.model)


def test_it_runs_and_goes_on(
    ablations: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
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
