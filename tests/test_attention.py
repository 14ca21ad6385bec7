"""Attention: every backend against the slow twin."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from byteloom.layers.attention import (
    BACKENDS,
    Backend,
    Reach,
    alibi_slopes,
    attend,
    attend_cached,
    attend_reference,
    attention_bias,
    bias_between,
    choose_backend,
)

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}

reaches = st.one_of(
    st.just(Reach()),
    st.builds(Reach, window=st.integers(1, 9)),
    st.integers(1, 6).flatmap(lambda size: st.builds(Reach, patch_size=st.just(size), lookback=st.integers(0, size))),
)


def test_the_table_lists_every_backend() -> None:
    assert set(get_args(Backend)) == set(BACKENDS)


@settings(max_examples=80)
@given(
    reach=reaches,
    length=st.integers(1, 21),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (4, 1)]),
    dtype=st.sampled_from(list(TOLERANCE)),
    backend=st.sampled_from(BACKENDS),
    alibi=st.booleans(),
    before=st.integers(0, 12),
    seed=st.integers(0, 2**31),
)
def test_every_backend_agrees_with_the_slow_twin(
    reach: Reach,
    length: int,
    heads: tuple[int, int],
    dtype: torch.dtype,
    backend: Backend,
    alibi: bool,
    before: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = -(-length // reach.patch_size) * reach.patch_size if reach.patch_size else length
    q, k, v = (
        torch.randn(2, size, count, 6, generator=generator).to(dtype).requires_grad_()
        for count in (heads[0], heads[1], heads[1])
    )
    slopes = alibi_slopes(heads[0]) if alibi else None
    past = None
    if reach.back and before:  # what is before ends at a border, which the slow twin counts from
        before = min(before, reach.back)
        past = tuple(torch.randn(2, before, heads[1], 6, generator=generator).to(dtype) for _ in range(2))
    bias = attention_bias(reach, size, 0 if past is None else before, slopes, backend)
    fast = attend(q, k, v, reach, bias, backend, past)
    slow = attend_reference(q, k, v, reach, slopes, past)
    torch.testing.assert_close(fast, slow, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    weight = torch.randn(fast.shape, generator=generator).to(dtype)
    for a, b in zip(
        torch.autograd.grad((fast * weight).sum(), (q, k, v)), torch.autograd.grad((slow * weight).sum(), (q, k, v))
    ):
        torch.testing.assert_close(a, b, atol=4 * TOLERANCE[dtype], rtol=4 * TOLERANCE[dtype])


@given(reach=reaches, position=st.integers(0, 40))
def test_first_is_the_first_position_seen(reach: Reach, position: int) -> None:
    first = int(reach.first(torch.tensor(position)))
    if reach.patch_size is not None:
        assert first == position // reach.patch_size * reach.patch_size - reach.lookback
    elif reach.window is not None:
        assert position - first + 1 == reach.window
    else:
        assert first == 0
    if reach.limit is not None:
        assert position - first + 1 <= reach.limit


@pytest.mark.parametrize("alibi", [False, True])
def test_one_query_over_a_cache_equals_the_last_row(alibi: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 7, count, 4, generator=generator) for count in (4, 2, 2))
    positions, slopes = torch.arange(7), alibi_slopes(4) if alibi else None
    bias = bias_between(positions[-1:], positions, torch.ones(1, 7, dtype=torch.bool), slopes)
    bias = bias.squeeze(-2).expand(3, -1, -1) if alibi else None
    out = attend_cached(q[:, -1], k.transpose(1, 2), v.transpose(1, 2), bias)
    torch.testing.assert_close(out, attend_reference(q, k, v, Reach(), slopes)[:, -1], atol=1e-5, rtol=1e-5)


def test_alibi_has_the_papers_slopes() -> None:
    assert alibi_slopes(8).tolist() == pytest.approx([2.0**-i for i in range(1, 9)])


def test_the_choice_depends_on_type_and_length_on_cpu() -> None:
    cpu, patch = torch.device("cpu"), Reach(patch_size=8)
    assert choose_backend(patch, 8, cpu, torch.float32) == "sdpa"
    assert choose_backend(patch, 8, cpu, torch.bfloat16) == "matmul"
    assert choose_backend(Reach(), 256, cpu, torch.bfloat16) == "matmul"
    assert choose_backend(Reach(), 4096, cpu, torch.bfloat16) == "sdpa"
    assert choose_backend(patch, 8, torch.device("cuda"), torch.bfloat16) == "sdpa"
