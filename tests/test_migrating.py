"""docs/migrating.md: both sides' code runs, and what it claims of the logits holds."""

import os
import re
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).parents[1] / "docs" / "migrating.md").read_text()
BLOCKS = re.findall(r"```python (\S+)\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("migrating")


def run(code: str, folder: Path) -> dict:
    before, names = Path.cwd(), {}
    os.chdir(folder)
    try:
        exec(compile(code, "docs/migrating.md", "exec"), names)
    finally:
        os.chdir(before)
    return names


def test_blocks_are_what_they_say() -> None:
    assert [kind for kind, _ in BLOCKS] == ["theirs", "ours", "not-run", "ours"]


def test_megabyte_pytorch_moves_with_its_logits(folder: Path) -> None:
    theirs, ours = run(BLOCKS[0][1], folder), run(BLOCKS[1][1], folder)
    ids = torch.randint(0, 256, (2, 64))
    with torch.no_grad():
        expected = theirs["theirs"].eval()(ids)
        found = ours["model"].eval()(torch.nn.functional.pad(ids, (0, 1)))
    assert (found[:, 1:] - expected).abs().max() < 1e-5
    assert all(0 < len(text) <= 20 for text in ours["written"])
    assert (folder / "ours" / "model.safetensors").exists()


def test_a_native_model_moves_to_transformers(folder: Path) -> None:
    names = run(BLOCKS[3][1], folder)
    assert names["outputs"].sequences.shape[0] == 2
    assert len(names["outputs"].scores) <= 5
