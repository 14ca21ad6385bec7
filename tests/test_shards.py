"""Prepared data: round trips, atomicity, and one clear line for every kind of damage."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_corpus import contents, folder_of, picture, text
from test_documents import documents as random_documents

import byteloom.commands.prepare as prepare_command
from byteloom.codecs import DEFAULT_MEDIA, media_from_dict
from byteloom.corpus import Corpus
from byteloom.documents import DataError, Document, Segment
from byteloom.preparation import prepare
from byteloom.shards import checksum, is_prepared, media_of, open_data, open_prepared, read_manifest, write


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


def test_text_has_no_file_of_headers(tmp_path: Path) -> None:
    write([text(b"hello", name="a")], tmp_path / "text")
    assert not (tmp_path / "text" / "00000.headers.npy").exists()
    page = Document(segments=(text(b"x").segments[0], picture(7)), name="b")
    write([page, text(b"y", name="c")], tmp_path / "page")
    assert (tmp_path / "page" / "00000.headers.npy").exists()
    both = open_data([tmp_path / "text", tmp_path / "page"])
    assert both[1] == page and both[2].segments[0].header == b""


@pytest.mark.parametrize(("largest", "dtype"), [(255, "|u1"), (65535, "<u2"), (2**32 - 1, "<u4")])
def test_ids_are_stored_as_wide_as_they_are(tmp_path: Path, largest: int, dtype: str) -> None:
    parts = ([1, 2], [320, 400], [largest], [3])
    documents = [Document(segments=(Segment(modality="codes", data=np.array(part, np.uint32)),)) for part in parts]
    documents = [document for document in documents if document.segments[0].data.max() <= largest]
    manifest = write(documents, tmp_path / "out", marks={"codes": 280})
    assert manifest["shards"][0]["dtype"] == dtype
    corpus = open_prepared(tmp_path / "out", verify=True)
    assert [corpus[i] for i in range(len(corpus))] == documents and corpus.modalities == {280: "codes"}
    prepare(tmp_path / "out", tmp_path / "again")
    assert open_prepared(tmp_path / "again")[0] == documents[0]


def test_modalities_without_a_mark_are_refused(tmp_path: Path) -> None:
    codes = Document(segments=(Segment(modality="codes", data=np.array([320], np.uint16)),))
    with pytest.raises(ValueError, match="'codes' is unknown"):
        write([codes], tmp_path / "out")
    with pytest.raises(ValueError, match="cannot have mark"):
        write([codes], tmp_path / "out", marks={"codes": 260})
    assert list(tmp_path.iterdir()) == []


def test_prepared_media_say_how_they_were_read(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    folder_of(tmp_path / "in", {"a.txt": b"text", "m.jsonl": b'[{"modality": "image", "path": "p.png"}]'})
    Image.fromarray(pixels).save(tmp_path / "in" / "p.png")
    raster = dataclasses.replace(DEFAULT_MEDIA, image=dataclasses.replace(DEFAULT_MEDIA.image, scan="raster"))
    counts = prepare(tmp_path / "in", tmp_path / "out", media=raster)
    assert counts["modalities"] == {"text": 4, "image": 2 * pixels.size}
    corpus = open_prepared(tmp_path / "out")
    assert corpus.names == ("a.txt", "m.jsonl:1", "p.png")
    assert bytes(corpus[1].segments[0].data) == bytes(corpus[2].segments[0].data) == pixels.tobytes()
    assert corpus[2].segments == open_data(tmp_path / "in", media=raster)[2].segments
    made = media_of(tmp_path / "out")
    assert made is not None and list(made) == ["image"] and media_from_dict(made) == raster
    prepare(tmp_path / "in" / "a.txt", tmp_path / "text", media=raster)
    assert media_of(tmp_path / "text") is None

    prepare([tmp_path / "out", tmp_path / "in"], tmp_path / "both", media=raster)
    assert media_of(tmp_path / "both") == made
    with pytest.raises(DataError, match="in: has image read otherwise"):
        prepare([tmp_path / "out", tmp_path / "in"], tmp_path / "torn")
    prepare([tmp_path / "out", tmp_path / "in" / "a.txt"], tmp_path / "text-too")
    assert media_of(tmp_path / "text-too") == made
    assert not (tmp_path / "torn").exists()

    rewrite(tmp_path / "out", {"media": ["image"]})
    with pytest.raises(DataError, match="field media is wrong"):
        media_of(tmp_path / "out")


def test_the_command_takes_options_of_media(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of(tmp_path / "in", {"tiles.bin": bytes(range(24)), "empty.txt": b""})
    argv = [str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--image.shape", "2", "2", "3"]
    prepare_command.main([*argv, "--modality", "image", "--image.scan", "raster"])
    said = capsys.readouterr()
    assert "1 documents, 24 bytes of image; 1 skipped" in said.out and "skipped empty.txt: is empty" in said.err
    corpus = open_prepared(tmp_path / "out")
    assert [bytes(segment.data) for segment in corpus[0].segments] == [bytes(range(12)), bytes(range(12, 24))]
    assert (media_of(tmp_path / "out") or {})["image"]["shape"] == [2, 2, 3]


def test_a_file_that_goes_while_it_is_read_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "in", {"a.txt": b"a", "b.txt": b"b"})

    def vanish(source: object) -> np.ndarray:
        raise DataError("a.txt: cannot be read")

    calls = iter([vanish, lambda source: np.frombuffer(b"b", np.uint8)])
    monkeypatch.setattr("byteloom.preparation.map_payload", lambda source: next(calls)(source))
    counts = prepare(tmp_path / "in", tmp_path / "out")
    assert counts["documents"] == 1 and counts["skipped"] == [{"file": "a.txt", "reason": "a.txt: cannot be read"}]


def test_data_of_the_first_version_are_read(prepared: Path) -> None:
    manifest = read_manifest(prepared)
    (shard,) = manifest["shards"]
    (prepared / "00000.names.json").write_text(json.dumps(["a", "b"]))
    accept(prepared / "00000.names.json")
    shard = {**read_manifest(prepared)["shards"][0]}
    del shard["stem"], manifest["media"], manifest["sha256"]
    for name in ("names", "ends.npy", "checks.npy"):
        (prepared / f"00000.{name}").unlink()
        del shard["files"][f"00000.{name}"]
    (prepared / "manifest.json").write_text(json.dumps({**manifest, "version": 1, "shards": [shard]}))
    assert contents(open_prepared(prepared, verify=True)) == {"a": b"hello", "b": b"world"}
    assert media_of(prepared) is None
    for names, reason in (("[1, 2]", "not a list of names"), ('["a"]', "does not fit"), ("[", "not JSON")):
        path = prepared / "00000.names.json"
        path.write_text(names)
        about = {"size": len(names), "sha256": hashlib.sha256(names.encode()).hexdigest()}
        changed = {**shard, "files": {**shard["files"], path.name: about}}
        (prepared / "manifest.json").write_text(json.dumps({**manifest, "version": 1, "shards": [changed]}))
        with pytest.raises(DataError, match=rf"00000\.names\.json: is damaged: it .*{reason}"):
            open_prepared(prepared)


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


def rewrite(folder: Path, change: dict[str, object]) -> None:
    """Changes a manifest as somebody who knows how its checksum is made."""
    manifest = {**json.loads((folder / "manifest.json").read_text()), **change}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "sha256": checksum(manifest)}))


def accept(path: Path) -> None:
    """Makes a manifest say of a file what is so."""
    (shard,) = read_manifest(path.parent)["shards"]
    about = {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    rewrite(path.parent, {"shards": [{**shard, "files": {**shard["files"], path.name: about}}]})


@pytest.mark.parametrize(
    "name", ["ids", "lengths.npy", "marks.npy", "counts.npy", "names", "ends.npy", "checks.npy", "headers.npy"]
)
def test_every_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    prepared = tmp_path / "data"
    write([text(b"hello", name="a"), Document(segments=(picture(5), picture(4)), name="b")], prepared)
    path = prepared / f"00000.{name}"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=rf"00000\.{name}: is damaged"):
        open_prepared(prepared)
    for place in (0, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(DataError, match=rf"00000\.{name}: is damaged"):
            open_prepared(prepared, verify=True)
        with pytest.raises(DataError, match=rf"00000\.{name}: is damaged"):  # found on opening, or when it is read
            contents(open_prepared(prepared))
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
    rewrite(prepared, change)
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
    (shard,) = read_manifest(prepared)["shards"]
    files = {**shard["files"], "../secret": shard["files"]["00000.ids"]}
    del files["00000.ids"]
    rewrite(prepared, {"shards": [{**shard, "files": files}]})
    with pytest.raises(DataError, match=r"00000\.ids"):
        open_prepared(prepared)
    for stem in ("../secret", "/etc/passwd", "00000/", "..", "", 7, "00000\n", "٠٠٠٠٠"):
        rewrite(prepared, {"shards": [{**shard, "stem": stem}]})
        with pytest.raises(DataError, match="its field stem is missing or wrong"):
            open_prepared(prepared)


def test_arrays_are_never_unpickled(prepared: Path) -> None:
    path = prepared / "00000.lengths.npy"
    np.save(path, np.array([object()], dtype=object), allow_pickle=True)
    accept(path)
    with pytest.raises(DataError, match="no array"):
        open_prepared(prepared)


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((2, 3), np.uint8),  # a segment has none
        np.full((3, 3), 3, np.uint8),  # longer than there is room for
        np.zeros((3, 0), np.uint8),
        np.zeros((3, 40), np.uint8),
        np.zeros(3, np.uint8),
        np.zeros((3, 3), np.int64),
    ],
)
def test_headers_that_cannot_be_are_refused(tmp_path: Path, rows: np.ndarray) -> None:
    folder = tmp_path / "data"
    write([text(b"hello", name="a"), Document(segments=(picture(5), picture(4)), name="b")], folder)
    path = folder / "00000.headers.npy"
    np.save(path, rows)
    accept(path)
    with pytest.raises(DataError, match=r"00000\.headers\.npy: is damaged"):
        open_prepared(folder)
