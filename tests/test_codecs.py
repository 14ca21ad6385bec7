"""Codecs: any file in, the same bytes out; the right codec for a file; options."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st

from byteloom import codecs
from byteloom.codecs import audio, image, video
from byteloom.documents import FIRST_DIGIT, FIRST_MARK, MAX_HEADER_BYTES, DataError, Segment


def test_every_codec_keeps_the_contract() -> None:
    marks = list(codecs.MARKS.values())
    assert len(set(marks)) == len(marks) and all(FIRST_MARK <= mark < FIRST_DIGIT for mark in marks)
    assert codecs.MARKS == {"bytes": 259, "text": 260, "image": 261, "audio": 262, "video": 263}
    assert codecs.HEADERS == {"bytes": 0, "text": 0, "image": 5, "audio": 4, "video": 9}
    assert max(codecs.HEADERS.values()) <= MAX_HEADER_BYTES
    suffixes = [suffix for name in codecs.MARKS for suffix in codecs.by_modality(name).SUFFIXES]
    assert len(set(suffixes)) == len(suffixes)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in suffixes)


@given(data=st.binary(max_size=50))
def test_any_bytes_survive(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("codec") / "file"
    path.write_bytes(data)
    for name in ("bytes", "text"):
        segment = codecs.read(path, name).segments[0]
        assert segment.modality == name and codecs.payload_size(name, segment.header) is None
        assert codecs.by_modality(name).decode(segment) == data


@pytest.mark.parametrize(
    ("name", "content", "modality"),
    [
        ("a.txt", b"\xff\x00", "text"),
        ("a.PY", b"x", "text"),
        ("a.zip", b"plain", "bytes"),
        ("a.JPG", b"plain", "image"),
        ("a.s16le", b"plain", "audio"),
        ("a.mp4", b"plain", "video"),
        ("a", "äöü ДНК".encode(), "text"),
        ("a", b"nul \x00 nul", "bytes"),
        ("a", b"\xff\xfe", "bytes"),
        ("a", b"x" * 65535 + "ä".encode(), "text"),
        ("a", b"end \xc3", "bytes"),
    ],
)
def test_the_codec_is_found_by_name_then_content(tmp_path: Path, name: str, content: bytes, modality: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert modality == codecs.for_path(path).MODALITY


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.txt: cannot be found"):
        codecs.read(tmp_path / "gone.txt")
    with pytest.raises(DataError, match="is a folder"):
        codecs.read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        codecs.read(tmp_path / "pipe")
    with pytest.raises(ValueError, match="'smell' is unknown"):
        codecs.by_modality("smell")


def test_options_are_one_field_for_each_codec_that_has_some() -> None:
    options = {field.name: field.default for field in dataclasses.fields(codecs.MediaConfig)}
    assert options == {"audio": audio.Config(), "image": image.Config(), "video": video.Config()}
    assert codecs.MediaConfig() == codecs.DEFAULT_MEDIA and hash(codecs.MediaConfig()) == hash(codecs.DEFAULT_MEDIA)


def test_options_come_back_from_json_and_from_the_command_line() -> None:
    media = codecs.MediaConfig(
        image=image.ImageConfig(scan="raster", shape=(4, 5, 3)), audio=audio.AudioConfig(coding="mulaw", mono=True)
    )
    assert codecs.media_from_dict(json.loads(json.dumps(dataclasses.asdict(media)))) == media
    line = "--image.scan raster --image.shape 4 5 3 --audio.coding mulaw --audio.mono"
    assert tyro.cli(codecs.MediaConfig, args=line.split()) == media
    assert codecs.media_from_dict({}) == codecs.DEFAULT_MEDIA


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"smell": {}}, "'smell'"),
        ({"text": {}}, "'text'"),
        ({"image": 3}, "media.image must be"),
        ({"image": {"sice": 3}}, "media.image.sice"),
        ({"image": {"size": "3"}}, "media.image.size"),
        ({"audio": {"coding": "mp3"}}, "media.audio.coding"),
        ({"video": {"shape": [1, 2]}}, "media.video.shape"),
    ],
)
def test_options_that_are_none_are_named(values: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        codecs.media_from_dict(values)


def test_options_reach_the_codec(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype=np.uint8)
    (tmp_path / "tiles.bin").write_bytes(pixels.tobytes())
    media = codecs.MediaConfig(image=image.ImageConfig(shape=(2, 2, 3), scan="raster"))
    assert codecs.for_path(tmp_path / "tiles.bin").MODALITY == "bytes"
    assert codecs.for_path(tmp_path / "tiles.bin", media).MODALITY == "image"
    assert codecs.read(tmp_path / "tiles.bin", None, media) == codecs.read(tmp_path / "tiles.bin", "image", media)
    both = dataclasses.replace(media, video=video.VideoConfig(shape=(2, 2, 3)))
    with pytest.raises(DataError, match=r"tiles\.bin: may be image or video by the options given"):
        codecs.for_path(tmp_path / "tiles.bin", both)
    document = codecs.read(tmp_path / "tiles.bin", "image", media)
    assert document.name == "tiles.bin" and [len(segment.data) for segment in document.segments] == [12, 12]
    assert [codecs.payload_size("image", segment.header) for segment in document.segments] == [12, 12]


@given(
    header=st.binary(max_size=10), data=st.binary(max_size=40), modality=st.sampled_from(["image", "audio", "video"])
)
def test_what_a_model_writes_is_decoded_or_refused_in_one_line(header: bytes, data: bytes, modality: str) -> None:
    codec = codecs.by_modality(modality)
    segment = Segment(modality=modality, data=np.frombuffer(data, np.uint8), header=header)
    try:
        said = codec.to_array(segment).ndim
    except ValueError as error:
        said = str(error)
    assert said == {"image": 3, "audio": 2, "video": 4}[modality] or f" {modality} segment" in str(said)


@pytest.mark.parametrize("modality", ["image", "audio", "video"])
def test_an_empty_or_foreign_file_is_refused_by_name(modality: str, tmp_path: Path) -> None:
    for content in (b"", b"just a text, which no library opens as anything", bytes(1000)):
        path = tmp_path / "file.xyz"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"file\.xyz: .+; give a .*--"):
            codecs.read(path, modality)


@pytest.mark.parametrize("modality", ["image", "audio", "video"])
def test_ids_that_are_no_bytes_are_refused(modality: str) -> None:
    made = {
        "image": lambda: image.from_array(np.zeros((1, 1, 3), np.uint8)),
        "audio": lambda: audio.from_array(np.zeros(3, np.uint8), 8000),
        "video": lambda: video.from_array(np.zeros((1, 1, 1, 3), np.uint8), 25),
    }[modality]()
    wide = dataclasses.replace(made, data=np.array([1, 400, 3], np.uint16))
    with pytest.raises(ValueError, match="above 255"):
        codecs.by_modality(modality).decode(wide)
    narrow = dataclasses.replace(made, data=np.array([1, 2, 3], np.uint16))
    assert codecs.by_modality(modality).decode(narrow)


def test_no_file_made_to_break_decoders_does(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "hostile.py"
    command = [sys.executable, str(script), "--files", "150", "--seed", "7", "--json", str(tmp_path / "numbers.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["read"] + numbers["refused"] == 150 and numbers["read"] > 30 and numbers["refused"] > 30
    assert numbers["bad"] == [] and numbers["printed"] == "" and numbers["peak_MiB"] < 2048
