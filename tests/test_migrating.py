"""docs/migrating.md: both sides' code runs, and what it claims of the logits holds."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from byteloom import cli

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


def test_the_commands_work_one_after_the_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    run(BLOCKS[0][1], folder)
    options = run(BLOCKS[1][1], folder)["options"]
    (folder / "options.json").write_text(json.dumps(options))
    config = LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    config.vocab_size, config.bos_token_id, config.max_position_embeddings = 320, 257, 64
    llama = LlamaForCausalLM(config)
    llama.save_pretrained("FOLDER")
    commands = re.findall(r"`byteloom ([a-z][^`]*)`", PAGE)
    assert len(commands) == 3
    for command in commands:
        cli.main(shlex.split(command))
    assert (folder / "imported" / "model.safetensors").exists()
    back = LlamaForCausalLM.from_pretrained("BACK").state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in llama.state_dict().items())


def test_a_native_model_moves_to_transformers(folder: Path) -> None:
    names = run(BLOCKS[3][1], folder)
    assert names["outputs"].sequences.shape[0] == 2
    assert len(names["outputs"].scores) <= 5
