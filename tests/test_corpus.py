"""Files and folders as they are, and the split."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byteloom.corpus import Corpus, concatenate, split
from byteloom.documents import DataError, Document, Segment


def folder_of(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def text(*parts: bytes, name: str = "") -> Document:
    return Document(segments=tuple(Segment(modality="text", data=np.frombuffer(p, np.uint8)) for p in parts), name=name)


def contents(corpus: Corpus) -> dict[str, bytes]:
    return {d.name: b"".join(bytes(s.data) for s in d.segments) for d in (corpus[i] for i in range(len(corpus)))}


def test_a_folder_is_read_in_order_of_its_names(tmp_path: Path) -> None:
    folder_of(tmp_path, {"b.txt": b"B", "a/c.bin": b"\0", ".hidden": b"x", ".git/x": b"x", "empty": b""})
    corpus = Corpus.from_paths(tmp_path)
    assert contents(corpus) == {"a/c.bin": b"\0", "b.txt": b"B"}
    assert corpus.modalities == {259: "bytes", 260: "text"}
    assert corpus.skipped == (("empty", "is empty"),)
    assert corpus.num_bytes == 2
    both = Corpus.from_paths([tmp_path / "a", tmp_path / "b.txt"])
    assert list(contents(both)) == ["a/c.bin", "b.txt"]


def test_links_do_not_lead_out_of_a_folder(tmp_path: Path) -> None:
    folder_of(tmp_path, {"out/secret": b"s", "in/a": b"a", "in/sub/b": b"b"})
    os.symlink(tmp_path / "out" / "secret", tmp_path / "in" / "link")
    os.symlink(tmp_path / "out", tmp_path / "in" / "linked")
    os.symlink(tmp_path / "in" / "a", tmp_path / "in" / "own")
    os.symlink(tmp_path / "in", tmp_path / "in" / "sub" / "loop")
    os.mkfifo(tmp_path / "in" / "pipe")
    assert contents(Corpus.from_paths(tmp_path / "in")) == {"a": b"a", "own": b"a", "sub/b": b"b"}


@pytest.mark.parametrize(
    ("path", "message"),
    [("gone", "cannot be found"), ("empty", "is empty"), ("nothing", "no file with bytes"), ("pipe", "regular file")],
)
def test_what_gives_no_bytes_is_named(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=f"{path}.*{message}"):
        Corpus.from_paths(tmp_path / path)


def test_a_file_that_shrinks_is_noticed(tmp_path: Path) -> None:
    corpus = Corpus.from_paths(folder_of(tmp_path, {"a": b"0123456789"}))
    (tmp_path / "a").write_bytes(b"01")
    with pytest.raises(DataError, match="shrunk"):
        corpus.payload(0)


@given(
    parts=st.lists(st.lists(st.binary(max_size=9), min_size=1, max_size=3), min_size=1, max_size=5),
    size=st.integers(0, 60),
)
def test_head_is_a_prefix_of_the_payload(parts: list[list[bytes]], size: int) -> None:
    corpus = Corpus.from_documents([text(*segments, name=str(i)) for i, segments in enumerate(parts)])
    everything = b"".join(contents(corpus).values())
    head = corpus.head(size)
    assert b"".join(contents(head).values()) == everything[:size]
    joined = concatenate([corpus, head])
    assert b"".join(bytes(s.data) for d in map(joined.__getitem__, range(len(joined))) for s in d.segments) == (
        everything + everything[:size]
    )
    assert contents(corpus.subset([len(corpus) - 1])) == {str(len(parts) - 1): b"".join(parts[-1])}


@given(sizes=st.lists(st.integers(20, 400), min_size=2, max_size=40), fraction=st.floats(0.05, 0.5))
def test_a_split_is_disjoint_whole_and_repeats(sizes: list[int], fraction: float) -> None:
    corpus = Corpus.from_documents([text(bytes([i]) * size, name=f"{i}.txt") for i, size in enumerate(sizes)])
    train, valid = split(corpus, fraction)
    assert train.num_bytes + valid.num_bytes == corpus.num_bytes
    assert min(train.num_bytes, valid.num_bytes) > 0
    together = contents(train)
    for name, data in contents(valid).items():
        together[name] = together.get(name, b"") + data
    assert together == contents(corpus)
    again = split(corpus, fraction)
    assert contents(again[1]) == contents(valid)


def test_a_split_holds_out_whole_files_by_name(tmp_path: Path) -> None:
    files = {f"{i:03d}.txt": bytes([65 + i % 26]) * (500 + i) for i in range(100)}
    train, valid = split(Corpus.from_paths(folder_of(tmp_path / "a", files)))
    assert not set(train.names) & set(valid.names)
    assert 0.05 <= valid.num_bytes / sum(map(len, files.values())) < 0.07
    (tmp_path / "a").rename(tmp_path / "b")
    assert split(Corpus.from_paths(tmp_path / "b"))[1].names == valid.names


def test_one_file_is_cut_at_a_line_near_its_tail(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_bytes(b"a line of text\n" * 1000)
    train, valid = split(Corpus.from_paths(path))
    assert contents(train)["one.txt"].endswith(b"\n")
    assert contents(train)["one.txt"] + contents(valid)["one.txt"] == path.read_bytes()
    assert valid.num_bytes / 15000 == pytest.approx(0.05, abs=0.001)
    with pytest.raises(DataError, match="too small"):
        split(Corpus.from_documents([text(b"x", name="tiny")]))
    with pytest.raises(ValueError, match="fraction"):
        split(train, 1.0)
