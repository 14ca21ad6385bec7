"""Samplers against transformers' processors, and UTF-8 against Python's decoder."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from byteloom.sampling import SamplingConfig, Utf8, filter_logits, penalize, sample


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.sampled_from([None, 1, 5, 500]),
    top_p=st.sampled_from([None, 0.01, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([None, 0.05, 0.5, 1.0]),
)
def test_filters_agree_with_transformers(
    seed: int, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> None:
    logits = 3 * torch.randn(4, 40, generator=torch.Generator().manual_seed(seed))
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    for value, warper in ((top_k, TopKLogitsWarper), (top_p, TopPLogitsWarper), (min_p, MinPLogitsWarper)):
        if value is not None:
            expected = warper(value)(None, expected)
    found = filter_logits(logits, config)
    assert (found > -torch.inf).any(-1).all()
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1))


@given(seed=st.integers(0, 2**31), penalty=st.sampled_from([0.8, 1.0, 1.3]))
def test_the_repetition_penalty_agrees_with_transformers(seed: int, penalty: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, ids = torch.randn(3, 20, generator=generator), torch.randint(0, 20, (3, 7), generator=generator)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    torch.testing.assert_close(penalize(logits, ids, torch.full((3,), 7), penalty), expected)
    short = penalize(logits, ids, torch.tensor([0, 3, 7]), penalty)
    torch.testing.assert_close(short[0], logits[0])
    torch.testing.assert_close(short[1:2], RepetitionPenaltyLogitsProcessor(penalty)(ids[1:2, :3], logits[1:2].clone()))


def test_draws_have_the_models_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    logits = probabilities.log().expand(20000, -1)
    generators = [torch.Generator().manual_seed(row) for row in range(20000)]
    counts = torch.bincount(sample(logits, SamplingConfig(), generators), minlength=5) / 20000
    torch.testing.assert_close(counts, probabilities, atol=0.012, rtol=0)
    assert counts[4] == 0


def test_a_row_draws_in_a_batch_as_alone() -> None:
    logits = torch.randn(5, 30)
    together = sample(logits, SamplingConfig(), [torch.Generator().manual_seed(row) for row in range(5)])
    alone = [int(sample(logits[r : r + 1], SamplingConfig(), [torch.Generator().manual_seed(r)])) for r in range(5)]
    assert together.tolist() == alone


def test_temperature_zero_takes_the_likeliest() -> None:
    config = SamplingConfig(temperature=0, top_k=3)
    logits = torch.randn(5, 30)
    assert sample(filter_logits(logits, config), config, []).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    "fields",
    [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"min_p": 2.0}, {"repetition_penalty": 0.0}],
)
def test_senseless_settings_are_refused_by_name(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        SamplingConfig(**fields)


def can_go_on(prefix: bytes) -> bool:
    """Python's own decoder: valid so far, perhaps inside a character."""
    try:
        prefix.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


def allowed_after(prefix: bytes, left: int = 4) -> set[int]:
    state = Utf8(torch.tensor([0]))
    for value in prefix:
        assert bool(state.allowed(4)[0, value])
        state = state.advance(torch.tensor([value]))
    return set(state.allowed(left)[0].nonzero().flatten().tolist())


def test_the_automaton_is_pythons_decoder() -> None:
    """Exhaustive over every valid prefix of one and two bytes, and the special leads of three and four."""
    prefixes = [b""] + [bytes([a]) for a in range(256) if can_go_on(bytes([a])) and a >= 0x80]
    prefixes += [p + bytes([b]) for p in prefixes[1:] for b in range(256) if p[0] >= 0xE0 and can_go_on(p + bytes([b]))]
    for prefix in prefixes:
        assert allowed_after(prefix) == {b for b in range(256) if can_go_on(prefix + bytes([b]))}, prefix


@given(text=st.text(max_size=5), cut=st.integers(0, 20))
def test_the_state_after_a_prompt_finishes_its_last_character(text: str, cut: int) -> None:
    prompt = text.encode()[:cut]
    state = Utf8.after([prompt])
    try:
        prompt.decode()
        assert state.complete.all()
    except UnicodeDecodeError:
        assert not state.complete.any()
        missing = text.encode()[cut : cut + 1]
        assert bool(state.allowed(4)[0, missing[0]])


def test_invalid_prompts_count_as_finished() -> None:
    assert Utf8.after([b"\xff\xfe", b"\x80\x80\x80", b"", b"\xc3\xa4", b"\xe2\x82"]).state.tolist() == [0, 0, 0, 0, 1]


def test_no_character_is_begun_that_cannot_be_finished() -> None:
    assert max(allowed_after(b"", left=1)) == 0x7F
    assert max(allowed_after(b"", left=2)) == 0xDF
    assert max(allowed_after(b"", left=3)) == 0xEF
    assert max(allowed_after(b"", left=4)) == 0xF4
