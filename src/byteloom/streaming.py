"""Batches of data that are read while they are learned from: rows of a dataset in, (B, T) windows out.

In: `hub.Rows`. Out: what `loader.Loader` makes of a corpus in its own order, with exact state. Cost: some 64 KiB of
documents are in memory, however large the dataset is; going to a state reads the rows of a shard up to it.
"""

import contextlib
import dataclasses
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from byteloom.corpus import Corpus
from byteloom.documents import PAD, DataError, Document
from byteloom.hub import Rows, payload_of
from byteloom.loader import LoaderConfig
from byteloom.packing import PackedStream

PACK_BYTES = 64 << 10


class StreamLoader:
    """Batches from streamed datasets, as `loader.Loader` makes them from corpora, without end.

    Documents are laid end to end as `PackedStream` has them and cut into windows in that order; each epoch takes the
    shards in a new order, and there is no other shuffling, so the state is a place and little else. Several datasets
    are mixed row by row, so that each has its share as exactly as can be.

    Of several shares, each loader reads everything and keeps its part of each batch, so all have the same state.

    Args:
        config: as for `Loader`; `shuffle` is of the shards, and nothing reads ahead.
        sources: opened datasets with weights: the share of the windows that comes from each.
        patch_size: in ids; payload begins on its multiples.
        streams: as for `PackedStream`.

    Raises:
        ValueError: there is no source, or a weight is not above 0.
    """

    def __init__(
        self,
        config: LoaderConfig,
        sources: Sequence[tuple[Rows, float]],
        patch_size: int,
        streams: Sequence[int] = (),
    ):
        if not sources or any(not weight > 0 for _, weight in sources):
            raise ValueError("a loader needs sources, each with a weight above 0")
        self.config = config
        self.weights = [weight for _, weight in sources]
        self.parts = [
            _Windows(rows, config.context, patch_size, streams, (config.seed, number) if config.shuffle else None)
            for number, (rows, _) in enumerate(sources)
        ]
        self.taken = [0] * len(sources)

    def __iter__(self) -> "StreamLoader":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch. Raises DataError where a dataset is damaged, out of reach, or has nothing but what is held
        out."""
        rows = []
        for _ in range(self.config.batch_size):
            due = [(taken + 1) / weight for taken, weight in zip(self.taken, self.weights, strict=True)]
            number = due.index(min(due))
            self.taken[number] += 1
            rows.append(self.parts[number].read())
        ours = rows[self.config.share :: self.config.shares]
        return {key: np.stack([row[key] for row in ours]) for key in ours[0]}

    def get_state(self) -> dict[str, Any]:
        """Where the loader stands, to be written as JSON."""
        return {"taken": list(self.taken), "parts": [part.get_state() for part in self.parts]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where `get_state` was called, also in another process; the next batch is the one that came then.

        Raises:
            DataError: the state is that of other datasets.
        """
        states = state.get("parts", ())
        if [part.identity() for part in self.parts] != [other.get("of") for other in states]:
            raise DataError(
                f"{', '.join(str(part.rows.spec) for part in self.parts)}: is not what this run has learned from so "
                "far; give the same datasets and held-out data"
            )
        self.taken = list(state["taken"])
        for part, saved in zip(self.parts, states, strict=True):
            part.set_state(saved)


@dataclass(frozen=True)
class _Place:
    """Where a pack of documents begins."""

    epoch: int = 0
    turn: int = 0  # of its shard in this epoch
    row: int = 0  # rows of that shard before it
    dataset: dict[str, Any] | None = None  # the shard's own state; None at its start
    mark: int = PAD  # in force there


class _Windows:
    """The windows of a dataset one after another.

    Documents are read by packs of some 64 KiB, each a `PackedStream`, of which the ids before `used` were given out.
    """

    def __init__(self, rows: Rows, context: int, patch_size: int, streams: Sequence[int], seed: tuple[int, int] | None):
        self.rows, self.context = rows, context
        self.patch_size, self.streams, self.seed = patch_size, tuple(streams), seed
        self.skipped = deque[tuple[str, str]](maxlen=1)
        self.open = contextlib.ExitStack()  # the shard that is read; closed before the libraries are, at the latest
        weakref.finalize(self, self.open.close)
        self._go_to(_Place())

    def read(self) -> dict[str, np.ndarray]:
        """The next window, as `loader.Windows` has it."""
        pack = self.pack
        while pack is None or self.used == len(pack):
            pack = self._read_pack()
        mark, since = self.begin.mark, 0
        if self.used:
            mark, since = pack.mark_at(self.used), pack.since_at(self.used)
        ids, filled = np.full(self.context, PAD, np.int64), 0
        while pack is not None and filled < self.context:
            taken = pack.read(self.used, min(self.used + self.context - filled, len(pack)))
            ids[filled : filled + len(taken)] = taken
            filled += len(taken)
            self.used += len(taken)
            if filled < self.context:  # what is left at the end of an epoch stays PAD
                pack = self._read_pack()
        return {"ids": ids, "mark": np.array(mark), "since": np.array(since)}

    def identity(self) -> list[Any]:
        """What tells these rows from others, as JSON has it."""
        spec = self.rows.spec
        return [spec.name, spec.split, list(self.rows.columns), list(self.rows.held)]

    def get_state(self) -> dict[str, Any]:
        """Where the next window begins."""
        return {"of": self.identity(), "begin": dataclasses.asdict(self.begin), "used": self.used}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to where `get_state` was called."""
        self._go_to(_Place(**state["begin"]))
        if state["used"]:
            pack = self._read_pack()
            if pack is None or len(pack) < state["used"]:
                raise DataError(f"{self.rows.spec}: has changed since this run was saved; give the same dataset")
            self.used = state["used"]

    def _go_to(self, place: _Place) -> None:
        """Makes ready to read the pack that begins there."""
        self.begin = self.end = place
        self.pack: PackedStream | None = None
        self.used = 0
        self.open.close()
        self.shard: Any = None
        self.documents: Iterator[Document | None] = iter(())

    def _read_pack(self) -> PackedStream | None:
        """Takes the next pack in hand; None where an epoch has ended and the next one is to begin."""
        place = self.end
        order = np.arange(len(self.rows.held))
        if self.seed is not None:
            order = np.random.default_rng((*self.seed, place.epoch)).permutation(order)
        while place.turn < len(order):
            if self.shard is None:
                self.shard = self._open_shard(int(order[place.turn]), place)
            documents, size, rows = [], 0, 0
            for document in self.documents:
                rows += 1
                if document is not None:
                    documents.append(document)
                    size += payload_of(document)
                if size >= PACK_BYTES:
                    break
            if documents:
                corpus = Corpus.from_documents(documents)
                self.begin, self.used = place, 0
                self.end = dataclasses.replace(
                    place,
                    row=place.row + rows,
                    dataset=self.shard.state_dict(),
                    mark=int(corpus.segment_marks[-1]),
                )
                self.pack = PackedStream(corpus, self.patch_size, self.streams)
                return self.pack
            self.shard = None
            place = _Place(epoch=place.epoch, turn=place.turn + 1, mark=place.mark)
        if self.pack is None:
            reason = f"; the last one skipped, {self.skipped[-1][0]}: {self.skipped[-1][1]}" if self.skipped else ""
            raise DataError(
                f"{self.rows.spec}: has no rows to learn from but the {sum(self.rows.held)} that are held out{reason}; "
                "hold out fewer bytes, or name other held-out data"
            )
        self._go_to(_Place(epoch=place.epoch + 1))
        return None

    def _open_shard(self, number: int, place: _Place) -> Any:
        """Makes ready to read a shard from a place in it on."""
        shard = self.rows.shard(number)
        if place.dataset is not None:
            shard.load_state_dict(place.dataset)
        self.open.close()
        documents = self.rows.each(shard, self.rows.held[number] + place.row, number, self.skipped)
        self.documents = self.open.enter_context(contextlib.closing(documents))
        return shard
