"""What SECURITY.md promises: that each promise has its test, and those that belong to no file alone."""

import ast
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_corpus import folder_of, text

from byteloom import shards
from byteloom.documents import DataError, Document
from byteloom.models import store
from byteloom.models.store import CheckpointError, read_weights
from byteloom.preparation import prepare
from byteloom.shards import open_prepared, write

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "byteloom").rglob("*.py"))
UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "jsonpickle"}
RUNNERS = {"eval", "exec", "compile", "__import__", "execfile"}
SAFE = {"load": {"allow_pickle": False, "weights_only": True}, "save": {"allow_pickle": False}}


def test_every_promise_has_its_test() -> None:
    page = (ROOT / "SECURITY.md").read_text()
    promises = [line for line in page.splitlines() if line.startswith("*") and not line.startswith("**")]
    assert len(promises) > 15
    for promise in promises:
        named = re.findall(r"`(tests/\w+\.py)::(\w+)`", promise)
        assert named, promise
        for file, name in named:
            assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{name}"


def offences(tree: ast.AST) -> Iterator[str]:
    """What a source would have to do to run what a file says."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"imports {name}" for name in names if name.split(".")[0] in UNPICKLERS)
        if not isinstance(node, ast.Call):
            continue
        options = {word.arg: getattr(word.value, "value", ...) for word in node.keywords}
        if isinstance(node.func, ast.Name) and node.func.id in RUNNERS:
            yield f"calls {node.func.id}"
        if isinstance(node.func, ast.Attribute):
            owner, name = ast.unparse(node.func.value), node.func.attr
            if owner in ("np", "numpy", "torch", "torch.serialization") and name in SAFE:
                known = {option: value for option, value in options.items() if option in SAFE[name]}
                if not known or any(value is not SAFE[name][option] for option, value in known.items()):
                    yield f"calls {owner}.{name} without what makes it safe"
            if (owner, name) in (("os", "system"), ("os", "popen"), ("tempfile", "mktemp")):
                yield f"calls {owner}.{name}"
            if name in ("extractall", "FileSystemReader", "FileSystemWriter"):  # the last two pickle their metadata
                yield f"calls {name}"
        if options.get("shell", False) is not False or options.get("trust_remote_code", False) is not False:
            yield "runs what it is given"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_code_of_ours_runs_what_a_file_says(path: Path) -> None:
    assert list(offences(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "eval(text)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=wanted)",
        "np.save(path, array)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "subprocess.run(line, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "archive.extractall(folder)",
        "dcp.FileSystemReader(path)",
        "os.system(line)",
    ],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert list(offences(ast.parse(source)))


WHOLE_WAY = """
import collections
import pickle
import sys

import byteloom
from byteloom import ModelConfig, StageConfig
from byteloom.preparation import prepare
from byteloom.shards import open_prepared
from byteloom.train.loop import RunConfig, TrainConfig, train

asked = []
sys.addaudithook(lambda event, details: asked.append(details) if event == "pickle.find_class" else None)
source, folder = sys.argv[1:]
prepare(source, f"{folder}/data")
stages = (StageConfig(dim=16, num_layers=1, num_heads=1, patch_size=4), StageConfig(dim=8, num_layers=1, num_heads=1))
for steps in (2, 3):
    settings = TrainConfig(steps=steps, batch_size=2, validations=1, precision="fp32")
    config = RunConfig(model=ModelConfig(stages=stages, context=32), train=settings)
    train(config, [f"{folder}/data"], f"{folder}/run", resume=True)
assert byteloom.evaluate(byteloom.load(f"{folder}/run"), open_prepared(f"{folder}/data")).bits_per_byte > 0
assert not asked, asked
pickle.loads(pickle.dumps(collections.OrderedDict()))
assert asked, "or the question above was never put"
"""


def test_the_whole_way_unpickles_nothing(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", {f"{i}.txt": b"a line of text\n" * 40 for i in range(8)})
    command = [sys.executable, "-c", WHOLE_WAY, str(tmp_path / "in"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr


def test_an_index_of_weights_names_only_its_own_folder(tmp_path: Path) -> None:
    for name in ("../model.safetensors", "/etc/passwd", "sub/model.safetensors"):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
        with pytest.raises(CheckpointError, match="lists no files of this folder"):
            read_weights(tmp_path)


def test_configs_and_manifests_have_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path, {"config.json": b'{"model": {}}'})
    monkeypatch.setattr(store, "MAX_CONFIG_BYTES", 5)
    with pytest.raises(CheckpointError, match=r"config\.json: is too large"):
        store.read_json(tmp_path / "config.json")
    write([text(b"hello", name="a")], tmp_path / "data")
    monkeypatch.setattr(shards, "MAX_MANIFEST_BYTES", 5)
    with pytest.raises(DataError, match=r"manifest\.json: is damaged: it is too large"):
        open_prepared(tmp_path / "data")


def test_what_is_unfinished_is_private(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def documents() -> Iterator[Document]:
        yield text(b"one", name="one")
        seen.extend((path.name, stat.S_IMODE(path.stat().st_mode)) for path in tmp_path.glob(".out.*"))
        yield text(b"two", name="two")

    for _ in range(2):
        write(documents(), tmp_path / "out", overwrite=True)
    folder_of(tmp_path / "in", {"a": b"a"})
    prepare(
        tmp_path / "in",
        tmp_path / "out",
        overwrite=True,
        progress=lambda done, total: seen.extend(
            (path.name, stat.S_IMODE(path.stat().st_mode)) for path in tmp_path.glob(".out.*")
        ),
    )
    assert len({name for name, _ in seen}) == 3 and {mode for _, mode in seen} == {0o700}
    np.testing.assert_array_equal(open_prepared(tmp_path / "out")[0].segments[0].data, [97])
