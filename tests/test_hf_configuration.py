"""Configs for transformers: the native fields survive, and others find what they ask for."""

import dataclasses
import json
from pathlib import Path

import configs
import pytest
from hypothesis import given
from test_multiscale import TWO

from byteloom.documents import BOS, EOS, PAD
from byteloom.hf.configuration import ByteloomConfig
from byteloom.models.config import ModelConfig
from byteloom.models.store import read_model_config, read_run


@given(configs.models())
def test_any_config_comes_back(config: ModelConfig) -> None:
    made = ByteloomConfig.from_model_config(config)
    assert ByteloomConfig(**json.loads(made.to_json_string())).model_config == config


def test_a_saved_config_is_native_too(tmp_path: Path) -> None:
    made = ByteloomConfig.from_model_config(TWO, {"train": {"seed": 1}})
    made.save_pretrained(tmp_path)
    assert read_model_config(tmp_path) == TWO
    assert read_run(tmp_path) == {"train": {"seed": 1}}
    assert ByteloomConfig.from_pretrained(tmp_path).model_config == TWO


def test_it_says_what_others_ask() -> None:
    made = ByteloomConfig.from_model_config(TWO)
    finest = TWO.stages[-1]
    assert (made.vocab_size, made.hidden_size, made.max_position_embeddings) == (320, finest.dim, TWO.context)
    assert (made.num_hidden_layers, made.num_attention_heads) == (finest.num_layers, finest.num_heads)
    assert (made.pad_token_id, made.bos_token_id, made.eos_token_id) == (PAD, BOS, EOS)
    bytes_only = ByteloomConfig.from_model_config(dataclasses.replace(TWO, vocab_size=256))
    assert (bytes_only.bos_token_id, bytes_only.eos_token_id) == (None, None)


def test_a_bad_config_is_named() -> None:
    with pytest.raises(ValueError, match=r"model\.colour"):
        ByteloomConfig(model={"colour": 1})
    with pytest.raises(ValueError, match="from_model_config"):
        _ = ByteloomConfig().model_config
