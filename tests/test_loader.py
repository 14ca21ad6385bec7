"""The loader: every window once an epoch, exact state, mixtures."""

import json
import subprocess
import sys

import numpy as np
import pytest
from test_corpus import text

from byteloom.corpus import Corpus
from byteloom.documents import Document, Segment
from byteloom.loader import Loader, LoaderConfig
from byteloom.packing import PackedStream


def stream_of(size: int, first: int = 0, patch_size: int = 4) -> PackedStream:
    data = bytes((first + i) % 256 for i in range(size))
    return PackedStream(Corpus.from_documents([text(data, name="d")]), patch_size)


def config(**fields: object) -> LoaderConfig:
    return LoaderConfig(**{"context": 16, "batch_size": 2, **fields})


def test_every_window_comes_once_an_epoch_in_a_new_order() -> None:
    stream = stream_of(16 * 10 - 8)
    loader = Loader(config(batch_size=1), [(stream, 1.0)])
    windows = -(-len(stream) // 16)
    epochs = [[tuple(next(loader)["ids"][0]) for _ in range(windows)] for _ in range(2)]
    whole = stream.read(0, len(stream)).tolist()
    whole += [256] * (-len(whole) % 16)
    expected = sorted(tuple(whole[i : i + 16]) for i in range(0, len(whole), 16))
    assert sorted(epochs[0]) == expected == sorted(epochs[1])
    assert epochs[0] != epochs[1]


def test_a_row_says_what_stands_before_it() -> None:
    stream = stream_of(100)
    loader = Loader(config(shuffle=False), [(stream, 1.0)])
    batch = next(loader)
    assert batch["ids"].shape == (2, 16)
    assert all(batch[key].dtype == np.int64 for key in ("ids", "mark", "since"))
    assert batch["mark"].tolist() == [256, 260]
    assert batch["since"].tolist() == [0, 12]
    assert next(loader)["since"].tolist() == [28, 44]


def test_fused_streams_are_cut_like_others() -> None:
    parts = tuple(Segment(modality="bytes", data=np.full(size, size, np.uint8)) for size in (30, 10))
    stream = PackedStream(Corpus.from_documents([Document(segments=parts)]), 4, (3, 1))
    batch = next(Loader(config(shuffle=False), [(stream, 1.0)]))
    assert batch["ids"][0].tolist() == [257, 259, 259, 256, *([30, 30, 30, 10] * 3)]
    assert batch["since"].tolist() == [0, 12]


@pytest.mark.parametrize("num_threads", [0, 2])
def test_a_state_restores_the_next_batch_exactly(num_threads: int) -> None:
    sources = [(stream_of(300), 1.0), (stream_of(500, first=7), 2.0)]
    loader = Loader(config(num_threads=num_threads), sources)
    for _ in range(23):
        next(loader)
    state = json.loads(json.dumps(loader.get_state()))
    expected = [next(loader) for _ in range(40)]
    other = Loader(config(num_threads=num_threads), sources)
    next(other)
    other.set_state(state)
    for batch in expected:
        found = next(other)
        assert found.keys() == batch.keys() and all(np.array_equal(found[key], batch[key]) for key in batch)


@pytest.mark.parametrize("shares", [2, 4])
def test_shares_together_are_the_batch_of_one_loader(shares: int) -> None:
    sources = [(stream_of(300), 1.0), (stream_of(500, first=7), 2.0)]
    whole = Loader(config(batch_size=4), sources)
    parts = [Loader(config(batch_size=4, share=share, shares=shares), sources) for share in range(shares)]
    for _ in range(30):
        rows, found = next(whole), [next(part) for part in parts]
        for key in rows:
            joined = np.concatenate([part[key] for part in found])
            assert sorted(map(str, joined.tolist())) == sorted(map(str, rows[key].tolist()))
            assert np.array_equal(found[1][key], rows[key][1::shares])
    assert {str(loader.get_state()) for loader in [whole, *parts]} == {"{'windows': 120}"}


def test_a_run_goes_on_with_other_shares_and_batches_and_no_window_is_lost_or_repeated() -> None:
    stream = stream_of(16 * 24 - 8)
    windows = -(-len(stream) // 16)
    seen, state = [], {"windows": 0}
    for batch_size, shares, batches in ((4, 2, 2), (2, 1, 3), (8, 4, 1)):
        if state["windows"] % batch_size:
            continue
        loaders = [
            Loader(config(batch_size=batch_size, share=i, shares=shares), [(stream, 1.0)]) for i in range(shares)
        ]
        for loader in loaders:
            loader.set_state(state)
            seen += [tuple(row) for _ in range(batches) for row in next(loader)["ids"].tolist()]
        state = loaders[0].get_state()
    single = Loader(config(batch_size=1), [(stream, 1.0)])
    assert sorted(seen) == sorted(tuple(next(single)["ids"][0].tolist()) for _ in range(len(seen)))
    assert 14 <= len(seen) < windows
    for wrong in ({"windows": 3}, {"windows": -2}, {"windows": "2"}, {"next_index": 1}):
        with pytest.raises(ValueError, match="batch size"):
            Loader(config(), [(stream, 1.0)]).set_state(wrong)


def test_the_order_is_that_of_the_seed_in_every_process() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_loader as t\n"
        "loader = t.Loader(t.config(seed=5), [(t.stream_of(400), 1.0)])\n"
        "print([next(loader)['ids'].sum().item() for _ in range(9)])"
    )
    folder = __file__.rsplit("/", 1)[0]
    out = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True).stdout
    loader = Loader(config(seed=5), [(stream_of(400), 1.0)])
    assert json.loads(out) == [next(loader)["ids"].sum().item() for _ in range(9)]
    other = Loader(config(seed=6), [(stream_of(400), 1.0)])
    assert json.loads(out) != [next(other)["ids"].sum().item() for _ in range(9)]


def test_weights_are_the_shares_of_the_mixture() -> None:
    sizes, weights = {"a": 200, "b": 900, "c": 5000}, [1.0, 3.0, 0.5]
    streams = [
        PackedStream(Corpus.from_documents([text(name.encode() * size, name=name)]), 4) for name, size in sizes.items()
    ]
    loader = Loader(config(batch_size=8), list(zip(streams, weights)))
    ids = np.concatenate([next(loader)["ids"] for _ in range(100)])
    for name, weight in zip(sizes, weights):
        assert (ids == ord(name)).any(1).mean() == pytest.approx(weight / 4.5, abs=0.01)


def test_a_stream_shorter_than_a_window_repeats() -> None:
    loader = Loader(config(context=64), [(stream_of(5), 1.0)])
    assert np.array_equal(next(loader)["ids"][0], next(loader)["ids"][1])


def test_bad_configs_are_refused() -> None:
    for fields, named in (
        ({"context": 0}, "context"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_threads": -1}, "num"),
        ({"shares": 3}, "batch_size"),
        ({"share": 1}, "shares"),
    ):
        with pytest.raises(ValueError, match=named):
            config(**fields)
    for sources in ([], [(stream_of(5), 0.0)]):
        with pytest.raises(ValueError, match="weight"):
            Loader(config(), sources)
