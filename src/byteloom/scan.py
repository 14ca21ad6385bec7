"""Pictures as rows of bytes: the order in which a model reads pixels.

In: pixels (N, H, W, C) uint8. Out: the same bytes, (N, H * W * C), and back. Cost: one copy.

In *raster* order rows follow each other. In *patch* order square patches of p x p pixels follow each other, row of
patches by row of patches, each in raster order inside, so that a model's patch of p * p * C bytes is a piece of the
picture. Where a side is no multiple of p, the last patches of a row or column are as narrow as what is left. Channels
come last in both.
"""

import math
from collections.abc import Iterator

import numpy as np

from byteloom.media import MAX_PAYLOAD

MAX_SIDE = 15
"""The longest side of a patch: a header has four bits for it, 0 standing for raster order."""


def scan(pixels: np.ndarray, side: int) -> np.ndarray:
    """Pixels (N, H, W, C) in patch order with patches of `side`, or in raster order where it is 0: (N, H * W * C)."""
    if side == 0:
        return pixels.reshape(len(pixels), math.prod(pixels.shape[1:]))
    data = np.empty((len(pixels), math.prod(pixels.shape[1:])), pixels.dtype)
    for part, place in _regions(pixels, data, side):
        place[...] = part
    return data


def unscan(data: np.ndarray, height: int, width: int, channels: int, side: int) -> np.ndarray:
    """The inverse of `scan`: (N, H * W * C) to pixels (N, H, W, C)."""
    if side == 0:
        return data.reshape(len(data), height, width, channels)
    pixels = np.empty((len(data), height, width, channels), data.dtype)
    for part, place in _regions(pixels, np.ascontiguousarray(data), side):
        part[...] = place
    return pixels


def check_pixels(patch: int, shape: tuple[int, int, int] | None) -> None:
    """Refuses a patch or a shape (H, W, C) that no header can say. Raises ValueError."""
    if patch > MAX_SIDE:
        raise ValueError(f"patch is {patch}; it must be 1 to {MAX_SIDE} pixels")
    if shape is not None and (max(shape) > 65535 or shape[2] > 4 or math.prod(shape) > MAX_PAYLOAD):
        raise ValueError(
            f"shape is {shape}; it must be height, width (to 65,535 pixels) and channels (1 to 4), "
            f"at most {MAX_PAYLOAD:,} bytes"
        )


def reduced(width: int, height: int, longest: int | None) -> tuple[int, int]:
    """Width and height of a picture whose longest side may have `longest` pixels, its proportions kept."""
    if longest is None or max(width, height) <= longest:
        return width, height
    scale = longest / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _regions(pixels: np.ndarray, data: np.ndarray, side: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Views of the pixels and of their places in the scan, both (N, rows of patches, patches, h, w, C).

    There are up to four: the whole patches, those narrower at the right, those lower at the bottom, and the corner.
    """
    n, height, width, channels = pixels.shape
    for top, bottom, h in _runs(height, side):
        rows = (bottom - top) // h
        bands = data[:, top * width * channels : bottom * width * channels].reshape(n, rows, h * width * channels)
        for left, right, w in _runs(width, side):
            columns = (right - left) // w
            part = pixels[:, top:bottom, left:right].reshape(n, rows, h, columns, w, channels).swapaxes(2, 3)
            place = bands[:, :, left * h * channels : right * h * channels]
            yield part, place.reshape(n, rows, columns, h, w, channels)


def _runs(length: int, side: int) -> list[tuple[int, int, int]]:
    """What is cut into whole sides, and what is left: start, stop and the side there."""
    whole = length - length % side
    return [run for run in ((0, whole, side), (whole, length, length - whole)) if run[0] < run[1]]
