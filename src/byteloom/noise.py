"""Noise on a stream of data, which is the same in every window and on every machine.

In: a stream and a share. Out: which of its places are noisy, and the bytes that stand there. Cost: two random numbers a
place.
"""

import numpy as np

from byteloom.documents import PAD
from byteloom.packing import PackedStream

READ_AT_ONCE = 1 << 20
"""Ids read from the disk at a time."""
NOISE_BLOCK = 1 << 12
"""Ids whose noise is drawn together."""


def byte_frequencies(stream: PackedStream) -> np.ndarray:
    """How often each byte (256,) stands in a stream. Raises ValueError where none does. Cost: reads the stream once."""
    found = np.zeros(PAD, np.int64)
    for start in range(0, len(stream), READ_AT_ONCE):
        ids = stream.read(start, min(start + READ_AT_ONCE, len(stream)))
        found += np.bincount(ids[ids < PAD], minlength=PAD)
    if not found.any():
        raise ValueError("noise replaces bytes, and the data hold none")
    return found


def noise_at(start: int, stop: int, share: float, seed: int, frequencies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which places of a stream are noisy, (stop - start,) bool, and the byte that stands there, int64.

    Bytes are drawn as often as the data have them, so that noise looks like the data. A place has the same noise in
    every window.
    """
    first, last = start // NOISE_BLOCK, -(-stop // NOISE_BLOCK)
    chosen, values = [], []
    for block in range(first, last):
        random = np.random.default_rng([seed, block])
        chosen.append(random.random(NOISE_BLOCK) < share)
        values.append(random.integers(frequencies.sum(), size=NOISE_BLOCK))
    here = slice(start - first * NOISE_BLOCK, stop - first * NOISE_BLOCK)
    drawn = frequencies.cumsum().searchsorted(np.concatenate(values)[here], "right")
    return np.concatenate(chosen)[here], drawn
