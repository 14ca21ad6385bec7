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

from byteloom.sampling import Noise, SamplingConfig, Utf8, choose, filter_logits, penalize, sample


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
    occurred = torch.zeros(3, 20, dtype=torch.bool).scatter(1, ids, True)
    torch.testing.assert_close(penalize(logits, occurred, penalty), expected)
    torch.testing.assert_close(penalize(logits, torch.zeros_like(occurred), penalty), logits)


def test_draws_have_the_models_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    logits = probabilities.log().expand(20000, -1)
    noise = torch.empty(20000, 5).exponential_(generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(sample(logits, noise), minlength=5) / 20000
    torch.testing.assert_close(counts, probabilities, atol=0.012, rtol=0)
    assert counts[4] == 0


def test_noise_depends_on_the_seed_and_the_draw_alone() -> None:
    cpu = torch.device("cpu")
    together = Noise([5, 6, 7], 30, cpu)
    first = [together.take([0, 1, 2], 3), together.take([1], 1), together.take([0, 1, 2], 20)]
    alone = Noise([6], 30, cpu).take([0], 24)
    torch.testing.assert_close(torch.cat((first[0][:, 1], first[1][:, 0], first[2][:, 1])), alone[:, 0])
    torch.testing.assert_close(torch.cat((first[0][:, 2], first[2][:, 2])), Noise([7], 30, cpu).take([0], 23)[:, 0])
    assert 0.9 < float(Noise([8], 1000, cpu).take([0], 9).mean()) < 1.1


def test_temperature_zero_takes_the_likeliest() -> None:
    config = SamplingConfig(temperature=0, top_k=3)
    logits = torch.randn(5, 30)
    assert sample(filter_logits(logits, config), None).tolist() == logits.argmax(-1).tolist()


def test_what_is_not_allowed_is_never_chosen() -> None:
    logits, allowed = torch.randn(50, 30), torch.rand(50, 30) < 0.3
    allowed[:, 0] = True
    occurred, noise = torch.rand(50, 30) < 0.5, torch.empty(50, 30).exponential_()
    for draw in (None, noise):
        chosen = choose(logits, allowed, occurred, draw, SamplingConfig(repetition_penalty=1.2, top_p=0.9))
        assert allowed[torch.arange(50), chosen].all()


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
