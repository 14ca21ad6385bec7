"""Orders of pixels: against loops, and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byteloom.scan import MAX_SIDE, check_pixels, reduced, scan, unscan


def slow_scan(pixels: np.ndarray, side: int) -> list[int]:
    """One picture (H, W, C), patch by patch."""
    height, width, channels = pixels.shape
    order = []
    for top in range(0, height, side):
        for left in range(0, width, side):
            for row in range(top, min(top + side, height)):
                for column in range(left, min(left + side, width)):
                    order += [int(pixels[row, column, channel]) for channel in range(channels)]
    return order


@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)),
    side=st.integers(0, MAX_SIDE),
    seed=st.integers(0, 9),
)
def test_the_scan_is_that_of_the_loops_and_comes_back(shape: tuple[int, int, int, int], side: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    data = scan(pixels, side)
    assert data.shape == (shape[0], shape[1] * shape[2] * shape[3])
    for frame, row in zip(pixels, data, strict=True):
        assert row.tolist() == (slow_scan(frame, side) if side else frame.reshape(-1).tolist())
    assert np.array_equal(unscan(data, *shape[1:], side), pixels)


def test_a_view_of_another_array_is_scanned_too() -> None:
    pixels = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    turned = pixels.transpose(0, 2, 1, 3)[:, ::-1]
    assert np.array_equal(scan(turned, 3), scan(turned.copy(), 3))


def test_a_patch_of_a_model_is_a_patch_of_the_picture() -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(1, 4, 6, 3)
    patches = scan(pixels, 2).reshape(-1, 12)
    assert np.array_equal(patches[4].reshape(2, 2, 3), pixels[0, 2:4, 2:4])


@given(width=st.integers(1, 5000), height=st.integers(1, 5000), longest=st.integers(1, 5000))
def test_reduced_pictures_keep_their_proportions(width: int, height: int, longest: int) -> None:
    new = reduced(width, height, longest)
    assert max(new) == min(longest, max(width, height)) and min(new) >= 1
    scale = max(new) / max(width, height)
    assert all(abs(side - max(1, old * scale)) <= 0.5 for side, old in zip(new, (width, height), strict=True))
    assert reduced(width, height, None) == (width, height)


def test_what_no_header_can_say_is_refused() -> None:
    check_pixels(15, (65535, 1, 4))
    for patch, shape in ((16, None), (2, (65536, 1, 3)), (2, (1, 1, 5)), (2, (65535, 65535, 3))):
        with pytest.raises(ValueError, match="it must be"):
            check_pixels(patch, shape)
