"""Prepared data: round trips, atomicity, and one clear line for every kind of damage."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_corpus import contents, folder_of, text
from test_documents import documents as random_documents

from byteloom.corpus import Corpus
from byteloom.documents import DataError, Document
from byteloom.shards import is_prepared, open_data, open_prepared, prepare, write


@settings(max_examples=40)
@given(documents=st.lists(random_documents, max_size=6), shard_bytes=st.integers(1, 40))
def test_documents_come_back(
    documents: list[Document], shard_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shards") / "out"
    manifest = write(iter(documents), folder, shard_bytes=shard_bytes)
    corpus = open_prepared(folder, verify=True)
    assert [corpus[i] for i in range(len(corpus))] == documents
    assert manifest["bytes"] == corpus.num_bytes == sum(len(s.data) for d in documents for s in d.segments)


def test_prepare_reads_folders_and_counts_what_it_skips(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", {"a.txt": b"text", "b": b"\0\1", "c": b""})
    counts = prepare(tmp_path / "in", tmp_path / "out")
    assert counts["documents"] == 2 and counts["bytes"] == 6
    assert counts["modalities"] == {"text": 4, "bytes": 2}
    assert counts["skipped"] == [{"file": "c", "reason": "is empty"}]
    assert contents(open_data(tmp_path / "out")) == {"a.txt": b"text", "b": b"\0\1"}
    mixed = open_data([tmp_path / "in", tmp_path / "out", tmp_path / "in" / "b"])
    assert len(mixed) == 5
    again = prepare(tmp_path / "out", tmp_path / "again")
    assert again["bytes"] == 6
    assert list(Corpus.from_paths(tmp_path).names) == ["in/a.txt", "in/b"], "prepared folders are no raw files"


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    def broken() -> Iterator[Document]:
        yield text(b"one", name="one")
        raise DataError("the second is broken")

    with pytest.raises(DataError, match="second"):
        write(broken(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="no file with bytes"):
        prepare(folder_of(tmp_path / "in", {"empty": b""}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_prepared_data_are_ever_replaced(tmp_path: Path) -> None:
    folder_of(tmp_path, {"in/a": b"a", "mine/file": b"precious"})
    with pytest.raises(DataError, match="exists already"):
        prepare(tmp_path / "in", tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "file").read_bytes() == b"precious"
    prepare(tmp_path / "in", tmp_path / "out")
    with pytest.raises(DataError, match="overwrite"):
        prepare(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "b").write_bytes(b"b")
    assert prepare(tmp_path / "in", tmp_path / "out", overwrite=True)["documents"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "mine", "out"]


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    write([text(b"hello", name="a"), text(b"wor", b"ld", name="b")], tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["ids", "lengths.npy", "marks.npy", "counts.npy", "names.json"])
def test_every_damaged_file_is_named(prepared: Path, name: str) -> None:
    path = prepared / f"00000.{name}"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=rf"00000\.{name}: is damaged"):
        open_prepared(prepared)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="is damaged"):
        open_prepared(prepared, verify=True)
    path.unlink()
    with pytest.raises(DataError, match=rf"00000\.{name}: cannot be read"):
        open_prepared(prepared)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not a byteloom manifest"),
        ({"version": 99}, "version 99"),
        ({"bytes": 11}, "totals"),
        ({"documents": "many"}, "many"),
        ({"shards": None}, "missing or wrong"),
        ({"shards": [{}]}, "missing or wrong"),
        ({"modalities": {"text": 12}}, "cannot have mark"),
        ({"modalities": {}}, "does not list"),
    ],
)
def test_a_damaged_manifest_is_named(prepared: Path, change: dict[str, object], message: str) -> None:
    path = prepared / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, **change}))
    with pytest.raises(DataError, match=message) as caught:
        open_prepared(prepared)
    assert "manifest.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_manifest_that_is_no_json_is_named(prepared: Path) -> None:
    (prepared / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        open_prepared(prepared)
    assert is_prepared(prepared)


def test_names_in_a_manifest_lead_nowhere(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x" * 10)
    path = prepared / "manifest.json"
    manifest = json.loads(path.read_text())
    entry = manifest["shards"][0]["files"].pop("00000.ids")
    manifest["shards"][0]["files"]["../secret"] = entry
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"00000\.ids"):
        open_prepared(prepared)


def test_arrays_are_never_unpickled(prepared: Path) -> None:
    path = prepared / "00000.lengths.npy"
    np.save(path, np.array([object()], dtype=object), allow_pickle=True)
    manifest = json.loads((prepared / "manifest.json").read_text())
    manifest["shards"][0]["files"][path.name]["size"] = path.stat().st_size
    (prepared / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="no array"):
        open_prepared(prepared)
