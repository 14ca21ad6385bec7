"""Codecs: any file in, the same bytes out; the right codec for a file."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byteloom import codecs
from byteloom.documents import FIRST_MARK, VOCAB_SIZE, DataError


def test_every_codec_keeps_the_contract() -> None:
    marks = list(codecs.MARKS.values())
    assert len(set(marks)) == len(marks) and all(FIRST_MARK <= mark < VOCAB_SIZE for mark in marks)
    assert codecs.MARKS["bytes"] == 259 and codecs.MARKS["text"] == 260
    suffixes = [suffix for name in codecs.MARKS for suffix in codecs.by_modality(name).SUFFIXES]
    assert len(set(suffixes)) == len(suffixes)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in suffixes)


@given(data=st.binary(max_size=50))
def test_any_bytes_survive(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("codec") / "file"
    path.write_bytes(data)
    for name in ("bytes", "text"):
        segment = codecs.read(path, name).segments[0]
        assert segment.modality == name
        assert codecs.by_modality(name).decode(segment) == data


@pytest.mark.parametrize(
    ("name", "content", "modality"),
    [
        ("a.txt", b"\xff\x00", "text"),
        ("a.PY", b"x", "text"),
        ("a.zip", b"plain", "bytes"),
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
