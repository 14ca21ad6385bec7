"""Generation: batches against single rows, the model's own argmax, stops, UTF-8, and what lies beyond the context."""

import dataclasses

import configs
import numpy as np
import pytest
import torch
from test_multiscale import BY_STAGES, ONE

from byteloom import codecs
from byteloom.documents import Document, Segment
from byteloom.generation import generate, prompt_ids, stream
from byteloom.models.config import ModelConfig, StageConfig
from byteloom.sampling import SamplingConfig

GREEDY = SamplingConfig(temperature=0)
LONG = {n: dataclasses.replace(config, context=96) for n, config in BY_STAGES.items()}


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_greedy_is_the_argmax_of_forward(num_stages: int) -> None:
    model = configs.build(LONG[num_stages])
    written = generate(model, "ab", max_bytes=12, sampling=GREEDY)
    ids = prompt_ids("ab", model.config.span(0), "text").tolist()
    for value in written:
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, 0]]))[0, -1]
        assert value == int(logits[:256].argmax())
        ids.append(value)
    assert len(written) == 12 or int(logits[258]) >= 0


@pytest.mark.parametrize("num_stages", [1, 2, 3])
@pytest.mark.parametrize("sampling", [GREEDY, SamplingConfig(temperature=0.8, top_k=20, repetition_penalty=1.2)])
def test_a_row_in_a_ragged_batch_writes_what_it_writes_alone(num_stages: int, sampling: SamplingConfig) -> None:
    model = configs.build(LONG[num_stages])
    prompts = ["", "a", "some longer prompt", "xyz"]
    together = generate(model, prompts, max_bytes=20, sampling=sampling, seed=3, stop=b"\x07")
    alone = [
        generate(model, p, max_bytes=20, sampling=sampling, seed=3 + i, stop=b"\x07") for i, p in enumerate(prompts)
    ]
    assert together == alone


def test_seeds_decide() -> None:
    model = configs.build(LONG[2])
    assert generate(model, "a", seed=1, max_bytes=30) == generate(model, "a", seed=1, max_bytes=30)
    assert generate(model, "a", seed=1, max_bytes=30) != generate(model, "a", seed=2, max_bytes=30)


def test_stops_end_rows_at_different_times() -> None:
    model = configs.build(LONG[2])
    free = generate(model, ["a", "bc"], max_bytes=30)
    stops = [free[0][3:5], free[1][8:9]]
    for row, found in enumerate(generate(model, ["a", "bc"], max_bytes=30, stop=stops)):
        ends = [free[row].find(stop) + len(stop) for stop in stops if stop in free[row]]
        assert found == free[row][: min(ends)]


def test_streaming_gives_the_same_bytes_as_they_come() -> None:
    model = configs.build(LONG[2])
    rows: dict[int, bytes] = {0: b"", 1: b""}
    for step in stream(model, ["a", "bc"], max_bytes=9):
        for row, value in step:
            rows[row] += bytes([value])
    assert list(rows.values()) == generate(model, ["a", "bc"], max_bytes=9)


@pytest.mark.parametrize("max_bytes", [1, 2, 3, 7, 64])
def test_valid_utf8_is_valid(max_bytes: int) -> None:
    model = configs.build(LONG[2])
    prompts = ["", "ä", b"cut \xe2\x82", "漢字"]
    for prompt, written in zip(prompts, generate(model, prompts, max_bytes=max_bytes, valid_utf8=True)):
        whole = (prompt.encode() if isinstance(prompt, str) else prompt) + written
        assert whole.decode()
        assert len(written) <= max_bytes


def test_a_begun_character_that_does_not_fit_is_gone_on_with() -> None:
    (written,) = generate(configs.build(LONG[2]), [b"\xf0\x9f"], max_bytes=1, valid_utf8=True)
    assert 0x80 <= written[0] < 0xC0


def test_a_model_of_bytes_alone_gets_bytes_alone() -> None:
    model = configs.build(dataclasses.replace(LONG[2], vocab_size=256))
    assert len(generate(model, ["ab", ""], max_bytes=6, valid_utf8=True)[1]) == 6


def test_the_end_of_a_document_ends_a_row() -> None:
    model = configs.build(dataclasses.replace(LONG[2], head_bias=True))
    with torch.no_grad():
        model.head_bias[258] = 1e4
    assert generate(model, ["a", ""], max_bytes=5) == [b"", b""]


def test_no_mark_or_pad_is_ever_written() -> None:
    model = configs.build(dataclasses.replace(LONG[2], head_bias=True))
    with torch.no_grad():
        model.head_bias[[256, 257, 260]] = 1e4
    assert len(generate(model, "", max_bytes=20)) <= 20


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_a_continuation_may_outgrow_the_context(num_stages: int) -> None:
    model = configs.build(dataclasses.replace(BY_STAGES[num_stages], context=24, head_bias=True))
    with torch.no_grad():
        model.head_bias[258] = -1e4
    prompts, span = ["a", "abcdefgh"], model.config.span(0)
    for prompt, written in zip(prompts, generate(model, prompts, max_bytes=80, sampling=GREEDY), strict=True):
        ids, expected = prompt_ids(prompt, span, "text").tolist(), []
        while len(expected) < 80:
            with torch.no_grad():
                expected.append(int(model(torch.tensor([[*ids, 0]]))[0, -1, :256].argmax()))
            if len(ids) >= 24:  # the older half is forgotten, up to a patch border
                ids = ids[-(-(len(ids) // 2) // span) * span :]
            ids.append(expected[-1])
        assert written == bytes(expected)


def test_learned_positions_do_too() -> None:
    stage = StageConfig(dim=16, num_layers=1, num_heads=2, position="learned", max_positions=24)
    model = configs.build(ModelConfig(stages=(stage,), context=24, head_bias=True))
    with torch.no_grad():
        model.head_bias[258] = -1e4
    assert len(generate(model, "a", max_bytes=60)) == 60


def test_a_prompt_is_a_document_that_has_not_ended() -> None:
    assert prompt_ids("hé", 4, "text").tolist() == [257, 256, 256, 256, 260, *"hé".encode()]
    document = Document(segments=(Segment(modality="bytes", data=np.array([1, 2], np.uint8)),))
    assert prompt_ids(document, 1, "text").tolist() == [257, 259, 1, 2]
    assert prompt_ids(np.array([5, 300]), 4, "text").tolist() == [5, 300]
    assert codecs.MARKS["text"] == 260


def test_bad_requests_are_refused() -> None:
    model = configs.build(ONE)
    with pytest.raises(ValueError, match="takes 33 ids and the context is 32"):
        generate(model, "x" * 31)
    with pytest.raises(ValueError, match="empty stop"):
        generate(model, "x", stop=[b""])
    with pytest.raises(ValueError, match="max_bytes"):
        generate(model, "x", max_bytes=-1)
    with pytest.raises(ValueError, match="'smell' is unknown"):
        generate(model, "x", modality="smell")
    assert generate(model, "x", max_bytes=0) == b""
    assert generate(model, [], max_bytes=4) == []
