"""Batches: streams of ids in, (B, T) windows out, in an order that a seed decides and a state restores exactly.

Each epoch takes every window of a stream once, in a new order; several streams are mixed by weight. Cost: a window is
read when its batch is due; no state grows with the data. The only file that imports grain.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

logging.getLogger("absl").setLevel(logging.ERROR)  # or grain says on import that it found no JAX profiler
import grain  # noqa: E402

from byteloom.documents import PAD  # noqa: E402
from byteloom.packing import PackedStream  # noqa: E402

EPOCHS = 1 << 30  # without end in practice; grain's endless repetition is longer than len() can say


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How streams are cut and mixed."""

    context: int
    """Ids in a window, T."""
    batch_size: int
    """Windows in a batch, B."""
    seed: int = 0
    """Of the order and the mixture."""
    shuffle: bool = True
    """Take windows in a random order, a new one each epoch."""
    num_threads: int = 0
    """Threads that read ahead; 0 is fastest where the data are in memory or on a local disk."""

    def __post_init__(self) -> None:
        for name in ("context", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"LoaderConfig.{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_threads < 0:
            raise ValueError(f"LoaderConfig.num_threads is {self.num_threads}; it must be at least 0")


class Windows:
    """The windows of a stream as a random-access source: number i is ids [i * T, (i + 1) * T), PAD after the end."""

    def __init__(self, stream: PackedStream, context: int):
        self.stream, self.context = stream, context

    def __len__(self) -> int:
        return -(-len(self.stream) // self.context)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """`ids` (T,) int64, and what stands before them: `mark` () int64 and `since` () int64, as `Loader` has them."""
        start = int(index) * self.context
        ids = np.full(self.context, PAD, np.int64)
        read = self.stream.read(start, min(start + self.context, len(self.stream)))
        ids[: len(read)] = read
        return {
            "ids": ids,
            "mark": np.array(self.stream.mark_at(start)),
            "since": np.array(self.stream.since_at(start)),
        }

    def __repr__(self) -> str:  # grain keeps it in its state, where it must not depend on the process
        return f"Windows({len(self)} of {self.context})"


class Loader:
    """Batches without end: `ids` (B, T) int64 and what stood before each row, so that it can be read on its own.

    `mark` (B,) int64 is the MARK in force there, `since` (B,) int64 how many ids of payload stand directly before: what
    `PackedStream.mark_at` and `since_at` say.

    `sources` are streams with weights: the share of windows that comes from each.

    Raises:
        ValueError: there is no source, or a weight is not above 0.
    """

    def __init__(self, config: LoaderConfig, sources: Sequence[tuple[PackedStream, float]]):
        if not sources or any(not weight > 0 for _, weight in sources):
            raise ValueError("a loader needs sources, each with a weight above 0")
        parts = []
        for number, (stream, _) in enumerate(sources):
            part = grain.MapDataset.source(Windows(stream, config.context)).seed(config.seed + number)
            parts.append((part.shuffle() if config.shuffle else part).repeat(EPOCHS))
        mixed = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, [weight for _, weight in sources])
        options = grain.ReadOptions(num_threads=config.num_threads, prefetch_buffer_size=max(config.num_threads, 0) * 2)
        self._batches = iter(mixed.batch(config.batch_size).to_iter_dataset(options))

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch. Raises DataError where a file is gone or damaged."""
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        """Where the loader stands, to be written as JSON."""
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where `get_state` was called, also in another process; the next batch is the one that came then."""
        self._batches.set_state(state)
