"""Paths in, documents out: what is read, what is passed over, and what is said about it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_corpus import contents, folder_of

from byteloom.codecs import DEFAULT_MEDIA
from byteloom.corpus import Corpus
from byteloom.documents import DataError
from byteloom.sources import PayloadFile, each_document


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


def test_runs_in_a_folder_are_no_files_of_it(tmp_path: Path) -> None:
    ours = b'{"model_type": "byteloom", "byteloom": "1"}'
    run = {"runs/a/config.json": ours, "runs/a/metrics.jsonl": b"{}", "runs/a/checkpoints/step-00000001/x": b"x"}
    other = {"theirs/config.json": b"{}", "theirs/model.safetensors": b"t", "settings/config.json": ours}
    folder_of(tmp_path, {"a.txt": b"a", "model/config.json": ours, "model/model.safetensors": b"m", **run, **other})
    assert list(contents(Corpus.from_paths(tmp_path))) == ["a.txt", *sorted(["settings/config.json", *list(other)[:2]])]
    assert "metrics.jsonl" in Corpus.from_paths(tmp_path / "runs" / "a").names, "what is named is read"


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


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a": b"a"})
    os.symlink(tmp_path / "circle", tmp_path / "circle")
    corpus = Corpus.from_paths(tmp_path)
    assert corpus.names == ("a",)
    assert [name for name, _ in corpus.skipped] == ["circle"] and "cannot be found" in corpus.skipped[0][1]


def test_media_are_decoded_and_text_is_not_opened(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.txt": b"text", "broken.png": b"no picture"})
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    media = DEFAULT_MEDIA.__class__(image=type(DEFAULT_MEDIA.image)(scan="raster"))
    skipped: list[tuple[str, str]] = []
    found = dict(each_document(tmp_path, None, media, skipped))
    assert found["a.txt"][0].payload == PayloadFile(tmp_path / "a.txt", "|u1", 4)
    assert [name for name, _ in skipped] == ["broken.png"] and "broken.png" in skipped[0][1]
    corpus = Corpus.from_paths(tmp_path, media=media)
    (segment,) = corpus[1].segments
    assert segment.modality == "image" and bytes(segment.data) == pixels.tobytes()
    assert segment.header == bytes([0, 7, 0, 5, 3 << 4])
    with pytest.raises(ValueError, match="'smell' is unknown"):
        Corpus.from_paths(tmp_path, "smell")
    raw = Corpus.from_paths(tmp_path / "p.png", "bytes")
    assert bytes(raw[0].segments[0].data) == (tmp_path / "p.png").read_bytes()


def test_manifests_in_folders_are_documents_of_their_own(tmp_path: Path) -> None:
    line = json.dumps([{"modality": "text", "text": "a page, "}, {"modality": "text", "path": "b.txt"}]).encode()
    folder_of(tmp_path, {"d/b.txt": b"B", "d/m.jsonl": line + b"\nnonsense\n" + line, "d/rows.jsonl": b'{"text": 1}\n'})
    corpus = Corpus.from_paths(tmp_path)
    assert contents(corpus) == {
        "d/b.txt": b"B",
        "d/m.jsonl:1": b"a page, B",
        "d/m.jsonl:3": b"a page, B",
        "d/rows.jsonl": b'{"text": 1}\n',
    }
    assert [name for name, _ in corpus.skipped] == ["d/m.jsonl:2"]
    assert isinstance(corpus.files[2], PayloadFile), "files of a manifest are mapped when touched"
    assert len(Corpus.from_paths(tmp_path / "d" / "m.jsonl", "text")) == 1, "a modality reads it as it is"
