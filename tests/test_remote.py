"""Data elsewhere: addresses of files and folders, whatever file system is behind them."""

import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image
from test_corpus import contents, folder_of

from byteloom import remote
from byteloom.corpus import Corpus
from byteloom.documents import DataError
from byteloom.preparation import prepare
from byteloom.remote import RemoteFile, each_remote_file, fetched, is_address
from byteloom.shards import open_data
from byteloom.sources import path_list

FILES = {"b.txt": b"B", "a/c.bin": b"\0", "a/.hidden": b"x", ".git/x": b"x", "empty": b"", "a.txt": b"long" * 500_000}


@pytest.fixture
def memory() -> Iterator[str]:
    system = fsspec.filesystem("memory")
    for name, content in FILES.items():
        system.pipe(f"/home/{name}", content)
    yield "memory://home"
    system.rm("/home", recursive=True)


def test_a_folder_elsewhere_is_read_as_one_here(memory: str, tmp_path: Path) -> None:
    folder_of(tmp_path / "here", FILES)
    here, there = Corpus.from_paths(tmp_path / "here"), Corpus.from_paths(memory)
    assert there.names == here.names == ("a.txt", "a/c.bin", "b.txt")
    assert contents(there) == contents(here) and there.skipped == here.skipped == (("empty", "is empty"),)
    both = Corpus.from_paths([memory, f"{memory}/b.txt", tmp_path / "here"])
    assert list(both.names)[3:] == ["b.txt", "here/a.txt", "here/a/c.bin", "here/b.txt"]
    assert both.names[0] == "home/a.txt"


def test_it_is_prepared_as_what_is_here(memory: str, tmp_path: Path) -> None:
    folder_of(tmp_path / "here", FILES)
    for source, name in ((memory, "there"), (tmp_path / "here", "too")):
        counts = prepare(source, tmp_path / name, workers=4)
        assert counts["documents"] == 3 and counts["skipped"] == [{"file": "empty", "reason": "is empty"}]
    for path in (tmp_path / "there").iterdir():
        assert path.read_bytes() == (tmp_path / "too" / path.name).read_bytes()


def test_media_and_archives_are_read(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "p.png", "sub/p.png")
        archive.writestr("../../escaped.txt", "text")
        archive.writestr("broken.png", b"\x89PNG")
        archive.writestr("m.jsonl", '[{"modality": "text", "path": "escaped.txt"}]')
    counts = prepare(f"zip://::{tmp_path}/all.zip", tmp_path / "out", workers=2, shard_bytes=1)
    assert counts["modalities"] == {"image": pixels.size}, "names that lead out are passed over, as hidden files"
    said = {entry["file"]: entry["reason"] for entry in counts["skipped"]}
    assert "all.zip/broken.png: cannot be decoded" in said["broken.png"] and "/file" not in said["broken.png"]
    assert "is a manifest" in said["m.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.zip", "out", "p.png"], "nothing is unpacked"
    assert not (tmp_path.parent / "escaped.txt").exists()


def test_prepared_data_are_fetched_once(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", {"a.txt": b"hello", "b.txt": b"world"})
    prepare(tmp_path / "in", tmp_path / "data")
    fsspec.filesystem("memory").put(f"{tmp_path}/data", "/shards", recursive=True)
    corpus = open_data("memory://shards")
    assert contents(corpus) == {"a.txt": b"hello", "b.txt": b"world"}
    copy = remote.fetch_folder("memory://shards")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o700
    assert prepare(["memory://shards", tmp_path / "in"], tmp_path / "both")["documents"] == 4
    fsspec.filesystem("memory").put(f"{tmp_path}/data", "/above/shards", recursive=True)
    with pytest.raises(DataError, match="no file with bytes"):  # prepared data are no raw files
        Corpus.from_paths("memory://above")


def test_a_copy_is_private_and_goes(memory: str) -> None:
    (file,) = (file for name, file, _ in each_remote_file(memory) if name == "b.txt")
    with fetched(file) as copy:
        assert copy.read_bytes() == b"B" and copy.suffix == ".txt"
        assert stat.S_IMODE(copy.parent.stat().st_mode) == 0o700
        mapped = np.memmap(copy, np.uint8, mode="r")
    assert not copy.parent.exists() and bytes(mapped) == b"B"
    with pytest.raises(DataError, match=r"^memory://home/b.txt: is bad$"), fetched(file) as copy:
        raise DataError(f"{copy}: is bad")
    assert not copy.parent.exists()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("memory://gone", "memory://gone: cannot be found"),
        ("nothing://x", "nothing://x: cannot be read .*nothing"),
        ("zip://::/gone.zip", "cannot be read .*(No such file|gone)"),
    ],
)
def test_what_cannot_be_read_is_one_line(address: str, reason: str, tmp_path: Path) -> None:
    for use in (Corpus.from_paths, open_data, lambda path: prepare(path, tmp_path / "out")):
        with pytest.raises(DataError, match=reason) as caught:
            use(address)
        assert "\n" not in str(caught.value)


def test_a_file_that_has_gone_is_skipped(memory: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listed = list(each_remote_file(memory))
    listed.append(("gone.txt", RemoteFile(memory, "/home/gone.txt", "gone.txt"), 5))
    monkeypatch.setattr("byteloom.sources.each_remote_file", lambda address: iter(listed))
    counts = prepare(memory, tmp_path / "out")
    assert [entry["file"] for entry in counts["skipped"]] == ["empty", "gone.txt"]
    assert "memory://home/gone.txt: cannot be read" in counts["skipped"][1]["reason"]


def test_a_path_is_an_address_only_with_its_mark(tmp_path: Path) -> None:
    assert is_address("s3://a/b") and not is_address("a/b") and not is_address(Path("s3://a"))
    assert path_list(["file:///a/b", "s3://a", Path("c"), "d"]) == [Path("/a/b"), "s3://a", Path("c"), Path("d")]
    folder_of(tmp_path / "in", {"a": b"a", "secret": b"s"})
    os.symlink(tmp_path, tmp_path / "in" / "link")
    assert len(open_data(f"file://{tmp_path}/in")) == 2, "links are those of a local folder"


def test_fsspec_is_imported_only_for_addresses(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", {"a": b"a"})
    code = (
        "import sys; from byteloom.preparation import prepare; "
        f"prepare({str(tmp_path / 'in')!r}, {str(tmp_path / 'out')!r}); assert 'fsspec' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
