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
    seed=st.integers(0, 2**31),
)
def test_every_backend_agrees_with_the_slow_twin(
    reach: Reach, length: int, heads: tuple[int, int], dtype: torch.dtype, backend: Backend, alibi: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = -(-length // reach.patch_size) * reach.patch_size if reach.patch_size else length
    q, k, v = (
        torch.randn(2, size, count, 6, generator=generator).to(dtype).requires_grad_()
        for count in (heads[0], heads[1], heads[1])
    )
    slopes = alibi_slopes(heads[0]) if alibi else None
    fast = attend(q, k, v, reach, slopes, backend)
    slow = attend_reference(q, k, v, reach, slopes)
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


def test_one_query_over_a_cache_equals_the_last_row() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 7, count, 4, generator=generator) for count in (4, 2, 2))
    positions = torch.arange(7)
    bias = bias_between(positions[-1:], positions, torch.ones(1, 7, dtype=torch.bool), None)
    out = attend_cached(q[:, -1], k, v, bias.squeeze(-2).expand(3, -1, -1))
    torch.testing.assert_close(out, attend_reference(q, k, v, Reach())[:, -1], atol=1e-5, rtol=1e-5)


def test_alibi_has_the_papers_slopes() -> None:
    assert alibi_slopes(8).tolist() == pytest.approx([2.0**-i for i in range(1, 9)])


def test_the_choice_depends_on_the_type_on_cpu() -> None:
    assert choose_backend(torch.ones(1)) == "sdpa"
    assert choose_backend(torch.ones(1, dtype=torch.bfloat16)) == "matmul"
