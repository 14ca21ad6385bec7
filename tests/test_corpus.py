"""Documents with random access, and the split."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byteloom.codecs import audio, video
from byteloom.corpus import Corpus, concatenate, split
from byteloom.documents import DataError, Document, Segment


def folder_of(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def picture(size: int, seed: int = 0, header: bytes = b"\0\1\0\1\x10") -> Segment:
    return Segment(
        modality="image", data=np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8), header=header
    )


def text(*parts: bytes, name: str = "") -> Document:
    return Document(segments=tuple(Segment(modality="text", data=np.frombuffer(p, np.uint8)) for p in parts), name=name)


def contents(corpus: Corpus) -> dict[str, bytes]:
    return {d.name: b"".join(bytes(s.data) for s in d.segments) for d in (corpus[i] for i in range(len(corpus)))}


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


def test_headers_stay_with_their_segments() -> None:
    page = Document(segments=(text(b"one").segments[0], picture(9, header=b"\1\2"), picture(5, header=b"\3")), name="a")
    corpus = Corpus.from_documents([text(b"first", name="t"), page])
    assert corpus[1] == page and corpus[0].segments[0].header == b""
    assert [s.header for s in corpus.head(5 + 3 + 4)[1].segments] == [b"", b"\1\2"]
    plain = Corpus.from_documents([text(b"plain", name="p")])
    assert plain.segment_headers.shape == (1, 1), "text pays a byte"
    for joined in (concatenate([corpus, plain]), concatenate([plain, corpus])):
        documents = {document.name: document for document in map(joined.__getitem__, range(len(joined)))}
        assert documents["a"] == page and documents["p"].segments[0].header == b""


def test_modalities_without_a_codec_bring_their_marks() -> None:
    tokens = Document(segments=(Segment(modality="codes", data=np.array([70000, 5], np.uint32)),), name="t")
    corpus = Corpus.from_documents([tokens, text(b"x")], {"codes": 280})
    assert corpus[0] == tokens
    assert corpus.modalities == {260: "text", 280: "codes"}
    with pytest.raises(ValueError, match="'codes' is unknown"):
        Corpus.from_documents([tokens])
    for name, mark in (("codes", 260), ("codes", 304), ("codes", 258), ("text", 280)):
        with pytest.raises(ValueError, match=f"{name} cannot have mark {mark}"):
            Corpus.from_documents([], {name: mark})
    with pytest.raises(ValueError, match="cannot have mark"):
        Corpus.from_documents([], {"codes": 280, "others": 280})


def test_media_are_cut_between_segments_or_at_a_round_place() -> None:
    tiles = Document(segments=tuple(picture(3072, i) for i in range(40)), name="tiles")
    train, valid = split(Corpus.from_documents([tiles]))
    assert [len(s.data) for s in train[0].segments + valid[0].segments] == [3072] * 40
    assert 2 <= len(valid[0].segments) <= 3
    train, valid = split(Corpus.from_documents([Document(segments=(picture(100_000),), name="one")]))
    assert train.num_bytes % 4096 == 0 and valid.num_bytes / 100_000 == pytest.approx(0.05, abs=0.05)
    assert train.header(0) == valid.header(0) == picture(1).header
    frames = video.from_array(np.zeros((30, 9, 7, 3), np.uint8), 10)
    large = video.from_array(np.zeros((30, 99, 101, 3), np.uint8), 10)
    wide = audio.from_array(np.zeros((4000, 6), np.int32), 8000, audio.AudioConfig(coding="pcm24"))
    for segment, unit in ((frames, 189), (large, 29997), (wide, 18)):
        halves = split(Corpus.from_documents([Document(segments=(segment,), name="one")]), 0.3)
        assert not [half.num_bytes for half in halves if half.num_bytes % unit]
    pages = [Document(segments=(picture(3000, i), *text(b"words\n" * 99).segments), name=f"{i}") for i in range(3)]
    for half in split(Corpus.from_documents(pages)):
        assert all(len(s.data) == 3000 for i in range(len(half)) for s in half[i].segments if s.modality == "image")


def test_a_split_of_whole_documents_cuts_none() -> None:
    films = [Document(segments=(picture(5000, i), picture(100, i)), name=f"{i}") for i in range(3)]
    corpus = Corpus.from_documents(films)
    train, valid = split(corpus, whole_documents=True)
    assert sorted([*train.names, *valid.names]) == ["0", "1", "2"] and len(valid) == 1
    assert all(len(half[i].segments) == 2 for half in (train, valid) for i in range(len(half)))
    with pytest.raises(DataError, match="too small"):
        split(corpus.subset([0]), whole_documents=True)
