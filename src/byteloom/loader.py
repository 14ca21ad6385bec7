"""Batches: streams of ids in, (B, T) windows out, in an order that a seed decides and a state restores exactly.

Each epoch takes every window of a stream once, in a new order; several streams are mixed by weight. Many processes
share each batch: the order is that of one process, and so is the state, which is the number of windows taken by all.
Cost: a window is read when its batch is due, by one process; no state grows with the data. The only file that imports
grain.
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
    """Windows in a batch, those of all shares together."""
    share: int = 0
    """Which share of each batch this loader reads: its windows number share, share + shares, ..."""
    shares: int = 1
    """Into how many shares a batch is cut; they divide batch_size."""
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
        if self.batch_size % self.shares or not 0 <= self.share < self.shares:
            raise ValueError(
                f"LoaderConfig.batch_size is {self.batch_size}; it must be a multiple of the {self.shares} shares, of "
                f"which {self.share} was asked for"
            )
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
    """Batches without end: `ids` (B, T) int64 and what stood before each row, so that it can be read on its own. Of
    several shares, B is the part that is this loader's.

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
        ours = mixed if config.shares == 1 else mixed[config.share :: config.shares]
        options = grain.ReadOptions(num_threads=config.num_threads, prefetch_buffer_size=max(config.num_threads, 0) * 2)
        self._batches = iter(ours.batch(config.batch_size // config.shares).to_iter_dataset(options))
        self.config = config

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch. Raises DataError where a file is gone or damaged."""
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        """Where the loaders of all shares stand, to be written as JSON: how many windows they have taken together."""
        return {"windows": self._batches.get_state()["next_index"] * self.config.batch_size}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where `get_state` was called, in any process and among any number of them, at no cost.

        The next batch is the one that came then. Raises ValueError where batches of this size do not end there.
        """
        windows = state.get("windows")
        if type(windows) is not int or windows < 0 or windows % self.config.batch_size:
            raise ValueError(
                f"the data were read up to window {windows!r:.20}, which is no multiple of the batch size "
                f"{self.config.batch_size}; go on with the batch size of before"
            )
        self._batches.set_state({"next_index": windows // self.config.batch_size})
