"""One byte at a time: the device's path and the compiled one beside the plain one, and prompts in chunks."""

import dataclasses

import configs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_multiscale import THREE, TWO, random_ids

from byteloom.generation import generate
from byteloom.models import decoding
from byteloom.models.config import ModelConfig
from byteloom.sampling import SamplingConfig


@settings(max_examples=40)
@given(config=configs.models(late_parent=False), seed=st.integers(0, 2**31), data=st.data())
def test_the_path_on_the_device_is_the_path_on_the_host(config: ModelConfig, seed: int, data: st.DataObject) -> None:
    model, rows = configs.build(config, seed), 2
    length = data.draw(st.integers(1, configs.CONTEXT - 2))
    prompt = data.draw(st.integers(0, length - 1))
    ids = random_ids(rows, length, seed)
    host, device = (model.start(rows, configs.CONTEXT) for _ in range(2))
    for state in (host, device):
        if prompt:
            model.prefill(ids[:, :prompt], [prompt] * rows, state)
    device.compiled = True
    device.runs = [
        *[decoding.run_on_device] * len(model.stacks),
        decoding.note_on_device,
    ]  # what is compiled, not compiled
    for t in range(prompt, length):
        torch.testing.assert_close(model.step(ids[:, t], device), model.step(ids[:, t], host), atol=2e-4, rtol=1e-3)


@settings(max_examples=60)
@given(config=configs.models(), seed=st.integers(0, 2**31), data=st.data())
def test_a_prompt_in_chunks_is_the_prompt_at_once(config: ModelConfig, seed: int, data: st.DataObject) -> None:
    model, longest = configs.build(config, seed), configs.CONTEXT - 2
    lengths = data.draw(st.lists(st.integers(0, longest), min_size=1, max_size=3))
    ids = random_ids(len(lengths), longest, seed)
    states = [model.start(len(lengths), configs.CONTEXT) for _ in range(2)]
    model.prefill(ids, lengths, states[0], chunk=data.draw(st.integers(1, 40)))
    model.prefill(ids, lengths, states[1])
    for _ in range(2):
        torch.testing.assert_close(states[0].logits, states[1].logits, atol=2e-4, rtol=1e-3)
        for state in states:
            model.step(torch.full((len(lengths),), 65), state)


MATCHED = dataclasses.replace(TWO, matches=(1, 2))


@pytest.mark.parametrize("config", [TWO, THREE, MATCHED], ids=["two stages", "three stages", "matches"])
def test_compiled_generation_writes_the_same_bytes(config: ModelConfig) -> None:
    stages = tuple(dataclasses.replace(stage, num_layers=1) for stage in config.stages)
    model = configs.build(dataclasses.replace(config, stages=stages), seed=1)
    prompts, greedy = ["a", "some words", "", "sixteen letters."], SamplingConfig(temperature=0)
    plain = generate(model, prompts, max_bytes=12, sampling=greedy)
    assert generate(model, prompts, max_bytes=12, sampling=greedy, compiled=True) == plain
    ends = plain[1][5:7]
    stopped = generate(model, prompts, max_bytes=12, sampling=greedy, stop=ends)
    assert len(stopped[1]) == 7, "a row ends before the others"
    assert generate(model, prompts, max_bytes=12, sampling=greedy, stop=ends, compiled=True) == stopped
    # Weights of another type need another function; what is compiled does not look at them again.
    assert len(decoding.COMPILED[model]) == len(model.stacks) + bool(config.matches)
    model.to(torch.float64)
    assert generate(model, "some words", max_bytes=4, sampling=greedy, compiled=True) == plain[1][:4]


def test_what_was_compiled_goes_with_its_model() -> None:
    model = configs.build(TWO)
    decoding.compiled_run(model, 0, model.start(1, 8))
    before = len(decoding.COMPILED)
    del model
    assert len(decoding.COMPILED) == before - 1
