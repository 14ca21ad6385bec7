"""Streaming: the windows that a corpus would give, exact state, nothing read ahead, nothing held out learned from."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_hub
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hub import LINES, parse
from test_loop import config, same, weights
from test_multiscale import TWO

from byteloom import streaming
from byteloom.corpus import Corpus
from byteloom.documents import BOS, PAD, DataError, Document
from byteloom.hub import Rows, open_rows, read_corpus
from byteloom.loader import Loader, LoaderConfig
from byteloom.packing import PackedStream
from byteloom.streaming import StreamLoader
from byteloom.train.checkpoint import list_checkpoints
from byteloom.train.data import open_run_data
from byteloom.train.loop import train


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few lines are many packs."""
    monkeypatch.setattr(streaming, "PACK_BYTES", 150)


def shards(root: Path, rows: list[list[str]], name: str = "text") -> Path:
    for number, lines in enumerate(rows):
        test_hub.write_parquet(root / f"train-{number:05d}.parquet", {name: lines})
    return root


def loader_of(*sources: Rows, patch_size: int = 4, weights: Sequence[float] = (), **fields: Any) -> StreamLoader:
    config = LoaderConfig(**{"context": 24, "batch_size": 2, **fields})
    return StreamLoader(config, list(zip(sources, weights or [1.0] * len(sources), strict=True)), patch_size)


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and np.array_equal(a[key], b[key]) for key in a)


def lines(loader: StreamLoader, windows: int) -> list[str]:
    """The documents in the next so many windows, from the first that begins there."""
    ids = np.concatenate([next(loader)["ids"].ravel() for _ in range(windows)])
    parts = np.split(ids, np.flatnonzero(ids == BOS))[1:]
    return [part[part < PAD].astype(np.uint8).tobytes().decode("utf-8", "replace") for part in parts]


@pytest.mark.parametrize("make", [*test_hub.TEXTS, *test_hub.IMAGES, *test_hub.SOUNDS])
def test_a_stream_is_what_a_corpus_gives_in_its_own_order(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    spec = parse(str(make(tmp_path / "data")), True)
    stream = PackedStream(read_corpus(spec), 4)
    expected = Loader(LoaderConfig(context=24, batch_size=3, shuffle=False), [(stream, 1.0)])
    found = loader_of(open_rows(spec), batch_size=3, shuffle=False)
    for _ in range(3 * len(stream) // 72):
        assert equal(next(found), next(expected))


class Written:
    """Rows of documents that are there, without a dataset."""

    def __init__(self, documents: list[list[Document | None]]):
        self.shards, self.held = documents, [0] * len(documents)
        self.spec, self.columns = "written", {}

    def shard(self, number: int) -> "Written":
        self.number, self.row = number, 0
        return self

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.row = state["row"]

    def state_dict(self) -> dict[str, int]:
        return {"row": self.row}

    def each(self, rows: Any, first: int, shard: int, skipped: Any) -> Iterator[Document | None]:
        assert rows is self and first == self.row and shard == self.number
        while self.row < len(self.shards[shard]):
            self.row += 1
            yield self.shards[shard][self.row - 1]


@settings(max_examples=50)
@given(
    lengths=st.lists(st.lists(st.none() | st.integers(1, 400), max_size=5), min_size=1, max_size=4),
    context=st.integers(1, 90),
    patch_size=st.integers(1, 7),
)
def test_any_documents_are_laid_end_to_end(lengths: list[list[int | None]], context: int, patch_size: int) -> None:
    rows: Any = Written([[n and text_of(b"%d" % (i % 10) * n) for i, n in enumerate(shard)] for shard in lengths])
    documents = [document for shard in rows.shards for document in shard if document is not None]
    loader = loader_of(rows, context=context, patch_size=patch_size, shuffle=False)
    if not documents:
        with pytest.raises(DataError, match="has no rows to learn from"):
            next(loader)
        return
    stream = PackedStream(Corpus.from_documents(documents), patch_size)
    expected = Loader(LoaderConfig(context=context, batch_size=2, shuffle=False), [(stream, 1.0)])
    for _ in range(len(stream) // context + 3):
        assert equal(next(loader), next(expected))


def text_of(data: bytes) -> Document:
    return Document(segments=(test_hub.Segment(modality="text", data=np.frombuffer(data, np.uint8)),))


def text_rows(tmp_path: Path, per_shard: int = 8) -> Rows:
    lines = [LINES[i : i + per_shard] for i in range(0, len(LINES), per_shard)]
    return open_rows(parse(str(shards(tmp_path / "data", lines)), True))


def test_lines_streams_side_by_side(tmp_path: Path) -> None:
    columns = {"a": ["aaaaaaaaaaa", "b"] * 9, "b": ["xyz", None] * 9}
    spec = parse(f"{test_hub.write_parquet(tmp_path / 'a.parquet', columns)}::a+b", True)
    config = LoaderConfig(context=16, batch_size=2, shuffle=False)
    expected = Loader(config, [(PackedStream(read_corpus(spec), 4, (3, 1)), 1.0)])
    found = StreamLoader(config, [(open_rows(spec), 1.0)], 4, (3, 1))
    for _ in range(30):
        assert equal(next(found), next(expected))


def test_every_document_comes_once_an_epoch_and_shards_in_a_new_order(tmp_path: Path) -> None:
    rows = text_rows(tmp_path, 4)
    size = -(-len(PackedStream(read_corpus(rows.spec), 4)) // 24)
    loaders = [loader_of(rows, batch_size=1, seed=seed) for seed in (0, 0, 1)]
    epochs = [[lines(loader, size) for _ in range(3)] for loader in loaders]
    orders = set()
    for epoch in epochs[0]:
        assert sorted(epoch) == sorted(LINES)
        first = [LINES.index(line) // 4 for line in epoch[::4]]
        assert epoch == [line for shard in first for line in LINES[4 * shard : 4 * shard + 4]], (
            "in order within a shard"
        )
        orders.add(tuple(first))
    assert len(orders) == 3 and epochs[0] == epochs[1] != epochs[2]


@pytest.mark.parametrize(
    "make",
    [test_hub.parquet, test_hub.jsonl, test_hub.csv, test_hub.texts, test_hub.saved, test_hub.imagefolder],
)
def test_a_state_restores_the_next_batch_exactly(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    spec = parse(str(make(tmp_path / "data")), True)
    rows = open_rows(spec)
    rows.hold_out(100)
    loader = loader_of(rows, batch_size=1)
    states, batches = [], []
    for _ in range(150):
        states.append(json.dumps(loader.get_state()))
        batches.append(next(loader))
    for place in [*range(6), *range(6, 150, 29)]:
        rows = open_rows(spec)
        rows.hold_out(100)
        other = loader_of(rows, batch_size=1)
        next(other)
        other.set_state(json.loads(states[place]))
        assert json.dumps(other.get_state()) == states[place]
        for batch in batches[place : place + 8]:
            assert equal(next(other), batch)


def test_nothing_is_read_ahead_but_a_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    document = Rows._document

    def counted(rows: Rows, row: Any, name: str) -> Document:
        made.append(name)
        return document(rows, row, name)

    monkeypatch.setattr(Rows, "_document", counted)
    loader = loader_of(text_rows(tmp_path), batch_size=1, shuffle=False)
    for used in range(0, 300, 24):
        next(loader)
        assert len("".join(LINES[: len(made)]).encode()) <= used + 24 + 150 + 3 * len(LINES[1])


def test_what_is_held_out_is_not_learned_from(tmp_path: Path) -> None:
    spec = text_rows(tmp_path, 3).spec
    opened = open_run_data([spec], valid_bytes=len("".join(LINES[:4]).encode()) + 1)
    assert test_hub.words([opened.held_out[i].segments[0] for i in range(5)]) == LINES[:5] and len(opened.held_out) == 5
    [(rows, weight)] = opened.streams
    assert weight == 1.0 and rows.held == [3, 2, 0, 0, 0, 0, 0, 0] and opened.sources == ()
    assert test_hub.words([document.segments[0] for document in rows.documents([])]) == LINES[5:]
    learned = lines(loader_of(rows, batch_size=1), 300)[:-1]
    assert set(learned) == set(LINES[5:])
    given = open_run_data([spec], [parse(str(tmp_path / "data" / "train-00001.parquet"))])
    assert len(given.held_out) == 3 and given.streams[0][0].held == [0] * 8
    with pytest.raises(
        DataError, match=r"data: has no rows to learn from but the 24 that are held out; hold out fewer"
    ):
        next(loader_of(open_run_data([spec], valid_bytes=10**6).streams[0][0]))


def test_weights_are_the_shares_of_the_mixture(tmp_path: Path) -> None:
    sources = []
    for letter, size in (("a", 40), ("b", 900)):
        spec = parse(str(shards(tmp_path / letter, [[letter * size]] * 2)), True)
        sources.append(open_rows(spec))
    loader = loader_of(*sources, weights=(1.0, 3.0), batch_size=4)
    for _ in range(20):
        ids = next(loader)["ids"]
        assert (ids == ord("a")).any(1).sum() == 1 and (ids == ord("b")).any(1).sum() >= 2
    state = json.loads(json.dumps(loader.get_state()))
    expected = [next(loader) for _ in range(5)]
    loader.set_state(state)
    assert all(equal(next(loader), batch) for batch in expected)
    for bad in ([], [(sources[0], 0.0)]):
        with pytest.raises(ValueError, match="weight"):
            StreamLoader(loader.config, bad, 4)


def test_shares_are_parts_of_the_same_batches(tmp_path: Path) -> None:
    rows = text_rows(tmp_path)
    whole = loader_of(rows, batch_size=4)
    parts = [loader_of(rows, batch_size=4, share=share, shares=2) for share in range(2)]
    for _ in range(20):
        batch, halves = next(whole), [next(part) for part in parts]
        for share, half in enumerate(halves):
            assert equal(half, {key: values[share::2] for key, values in batch.items()})
    assert whole.get_state() == parts[0].get_state() == parts[1].get_state()


def test_the_state_of_another_dataset_is_refused(tmp_path: Path) -> None:
    rows = text_rows(tmp_path)
    loader = loader_of(rows)
    next(loader)
    state = loader.get_state()
    other = open_rows(parse(str(shards(tmp_path / "other", [LINES])), True))
    held = open_rows(rows.spec)
    held.hold_out(10)
    for wrong in (loader_of(other), loader_of(rows, rows), loader_of(held)):
        with pytest.raises(DataError, match="is not what this run has learned from so far"):
            wrong.set_state(state)
    shards(tmp_path / "data", [["short"]] * 3)
    with pytest.raises(DataError, match="has changed since this run was saved"):
        loader_of(open_rows(rows.spec)).set_state(state)


def test_a_process_that_ends_while_it_reads_says_nothing(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom byteloom import hub, loader, streaming\n"
        "rows = hub.open_rows(hub.parse(sys.argv[1], True))\n"
        "streaming.PACK_BYTES = 100\n"
        "kept = streaming.StreamLoader(loader.LoaderConfig(context=8, batch_size=1), [(rows, 1.0)], 4)\n"
        "next(kept)\nraise SystemExit(3)"
    )
    data = str(text_rows(tmp_path).spec.path)
    done = subprocess.run([sys.executable, "-c", code, data], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "")


def test_streams_are_not_mixed_with_other_data(tmp_path: Path) -> None:
    spec = text_rows(tmp_path).spec
    for other in (tmp_path / "data", dataclasses.replace(spec, streaming=False)):
        with pytest.raises(ValueError, match="streamed datasets cannot be mixed with other data"):
            open_run_data([spec, other])
    with pytest.raises(ValueError, match="mixture has 1 weights for 2"):
        open_run_data([spec, spec], mixture=(1.0,))
    both = open_run_data(
        [dataclasses.replace(spec, streaming=False), tmp_path / "data" / "train-00000.parquet"], [spec]
    )
    assert len(both.sources) == 1 and len(both.sources[0][0]) == len(LINES) + 1


# -- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "make", [test_hub.parquet, test_hub.jsonl, test_hub.saved, test_hub.imagefolder, test_hub.audiofolder]
)
def test_a_model_learns_from_it(tmp_path: Path, make: Callable[[Path], Path], streamed: bool) -> None:
    spec = parse(str(make(tmp_path / "data")), streamed)
    run = dataclasses.replace(config(steps=2, validations=1, valid_bytes=200), model=TWO)
    trained = train(run, [spec], tmp_path / "run")
    assert trained.progress.step == 2 and trained.metrics[-1]["valid_bits_per_byte"] > 0
    about = json.loads((tmp_path / "run" / "config.json").read_text())["run"]
    if make is test_hub.imagefolder:
        assert about["modalities"] == ["image"] and about["headers"] == {"image": "0004000632"}


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    spec, run = text_rows(tmp_path).spec, tmp_path / "run"
    run_config = config(steps=8, valid_bytes=300, validations=2, checkpoint_steps=3, keep=9)
    train(run_config, [spec], run)
    whole, checkpoints = weights(run), list_checkpoints(run)
    for later in checkpoints[1:]:
        shutil.rmtree(later)
    train(run_config, [spec], run, resume=True)
    assert [path.name for path in list_checkpoints(run)] == [path.name for path in checkpoints] and len(
        checkpoints
    ) == 3
    assert same(whole, weights(run))
    shards(tmp_path / "data", [["more"]] * 4)
    shutil.rmtree(list_checkpoints(run)[-1])
    with pytest.raises(DataError, match="is not what this run has learned from so far"):
        train(run_config, [spec], run, resume=True)
