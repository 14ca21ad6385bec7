"""Model folders: round trips, and one clear line for every kind of damage."""

import json
from pathlib import Path

import configs
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import load_file, save_file
from test_multiscale import THREE, TWO, random_ids

from byteloom.models.config import ModelConfig
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import CheckpointError, load, read_run, save


@settings(max_examples=25)
@given(config=configs.models())
def test_config_and_weights_are_enough_to_rebuild_a_model(
    config: ModelConfig, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("model")
    model = configs.build(config)
    save(model, folder, {"modalities": ["text"]})
    restored = load(folder)
    assert restored.config == config and not restored.training
    ids = random_ids(2, 9)
    assert torch.equal(restored(ids), model(ids))
    assert read_run(folder) == {"modalities": ["text"]}
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(Multiscale(TWO), tmp_path / "model")
    return tmp_path / "model"


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    return message


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    assert "config.json: not found" in refusal(tmp_path / "gone")
    (tmp_path / "config.json").write_text('{"architectures": ["Llama"]}')
    assert "not the config of a byteloom model" in refusal(tmp_path)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_truncated_weights_are_named(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert "model.safetensors: is damaged" in refusal(folder)


def test_foreign_weights_are_named(folder: Path) -> None:
    save_file({"something": torch.zeros(3)}, folder / "model.safetensors")
    assert "does not match its config.json" in refusal(folder)
    torch.save({"something": torch.zeros(3)}, folder / "model.safetensors")
    assert "is damaged or no safetensors file" in refusal(folder)
    (folder / "model.safetensors").unlink()
    assert "model.safetensors: not found" in refusal(folder)


def test_a_config_that_does_not_match_the_weights_is_named(folder: Path) -> None:
    save(Multiscale(THREE), folder / "other")
    (folder / "config.json").write_bytes((folder / "other" / "config.json").read_bytes())
    assert "does not match its config.json" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "model.colour is not a field"),
        ({"vocab_size": "many"}, "model.vocab_size is 'many'; it must be of type int"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"vocab_size": True}, "must be of type int"),
        ({"logit_cap": float("nan")}, "logit_cap"),
        ({"stages": 3}, "model.stages must be a list"),
        ({"stages": [{"dim": 8}]}, "not a complete StageConfig"),
        ({"stages": [{"dim": 8, "num_layers": 1, "num_heads": 1, "mlp": "magic"}]}, "must be one of 'relu'"),
        ({"stages": [3]}, "must be an object"),
    ],
)
def test_a_damaged_config_is_named(folder: Path, change: dict[str, object], message: str) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "model": {**config["model"], **change}}))
    assert message in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xff", b"[" * 100000])
def test_a_config_that_is_no_json_is_named(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert "config.json: is damaged" in refusal(folder)


def test_saving_again_replaces_whole_files(folder: Path) -> None:
    before = load_file(folder / "model.safetensors")
    save(configs.build(TWO, seed=5), folder)
    after = load_file(folder / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
