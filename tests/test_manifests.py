"""Manifests: what is one, what a line says, and that it never leads out of its folder or ends a run."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_corpus import folder_of

from byteloom import manifests
from byteloom.codecs import DEFAULT_MEDIA
from byteloom.corpus import Corpus
from byteloom.documents import DataError
from byteloom.manifests import each_line, is_manifest

TEXT = {"modality": "text", "text": "hello"}


def manifest(folder: Path, *lines: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / "m.jsonl").write_bytes(b"\n".join(rows))
    return folder / "m.jsonl"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'[{"modality": "text", "text": "x"}]\nwhatever', True),
        (b'[{"modality": "video"}, {"modality": "audio"}]', True),
        (b'\xef\xbb\xbf[{"modality": "text"}]', True),
        (b'[{"modality": "text"}, {"text": "x"}]', False),
        (b'{"modality": "text"}', False),
        (b"[]", False),
        (b"[1]", False),
        (b"[" * 100_000, False),
        (b'[{"modality": "' + b"x" * 70_000 + b'"}]', False),
        (b"", False),
        (b"\xff\xfe", False),
    ],
)
def test_a_manifest_is_known_by_its_first_line(tmp_path: Path, content: bytes, expected: bool) -> None:
    folder_of(tmp_path, {"m.jsonl": content, "M.JSONL": content, "m.json": content})
    assert is_manifest(tmp_path / "m.jsonl") == is_manifest(tmp_path / "M.JSONL") == expected
    assert not is_manifest(tmp_path / "m.json")


def test_what_is_no_file_is_no_manifest(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("pipe.jsonl", "folder.jsonl", "gone.jsonl"):
        assert not is_manifest(tmp_path / name)


def test_a_line_is_a_document(tmp_path: Path) -> None:
    folder_of(tmp_path, {"sub/b.bin": b"\0\1", "a.s16le": bytes(range(8))})
    path = manifest(
        tmp_path,
        [TEXT, {"modality": "bytes", "path": "sub/b.bin"}, {"modality": "text", "text": ""}],
        b"  ",
        [{"modality": "audio", "path": "a.s16le", "raw_rate": 8000}],
        [{"modality": "audio", "path": "a.s16le", "raw_rate": 4000, "raw_channels": 2}],
    )
    corpus = Corpus.from_paths(path)
    assert corpus.names == ("m.jsonl:1", "m.jsonl:3", "m.jsonl:4") and corpus.skipped == ()
    assert [(s.modality, bytes(s.data)) for s in corpus[0].segments] == [
        ("text", b"hello"),
        ("bytes", b"\0\1"),
        ("text", b""),
    ]
    mono, stereo = corpus[1].segments[0], corpus[2].segments[0]
    assert bytes(mono.data) == bytes(stereo.data) == bytes(range(8))
    assert int.from_bytes(mono.header[:3], "big") == 8000 and int.from_bytes(stereo.header[:3], "big") == 4000
    assert [segment.header[3] >> 4 for segment in (mono, stereo)] == [0, 1]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"\xff", "is not JSON"),
        ({"modality": "text", "text": "x"}, "not a list of parts"),
        ([], "not a list of parts"),
        ([1], "no object"),
        ([{"text": "x"}], "no object"),
        ([{"modality": 3, "text": "x"}], "no object"),
        ([{"modality": "smell", "path": "a.txt"}], "'smell' is unknown"),
        ([{"modality": "text"}], "one of them"),
        ([{"modality": "text", "text": "x", "path": "a.txt"}], "one of them"),
        ([{"modality": "text", "text": 3}], "one of them"),
        ([{"modality": "text", "path": ["a.txt"]}], "one of them"),
        ([{"modality": "text", "text": "\ud800"}], "surrogates"),
        ([{"modality": "text", "text": "x", "rate": 3}], "no option 'rate'; it has none"),
        ([{"modality": "audio", "path": "a.txt", "loud": 3}], "no option 'loud'; it has .*rate"),
        ([{"modality": "audio", "path": "a.txt", "rate": "fast"}], "rate"),
        ([{"modality": "image", "text": "x"}], 'cannot be written as "text"'),
        ([{"modality": "image", "path": "a.txt"}], "a.txt"),
        ([{"modality": "text", "path": "gone.txt"}], "cannot be found"),
        ([{"modality": "text", "path": "empty.txt"}], "is empty"),
        ([{"modality": "text", "path": "pipe"}], "not a regular file"),
        ([{"modality": "text", "path": "."}], "is a folder"),
        ([{"modality": "text", "path": "circle"}], "cannot be found"),
        ([{"modality": "text", "path": "a\0b"}], "null"),
        ([{"modality": "text", "path": "x" * 5000}], "too long"),
        ([{"modality": "text", "path": "../secret"}], "leads out"),
        ([{"modality": "text", "path": "sub/../a.txt"}], "leads out"),
        ([{"modality": "text", "path": "link"}], "leads out"),
        ([{"modality": "text", "path": "linked/secret"}], "leads out"),
        ([{"modality": "text", "path": "{here}/a.txt"}], "leads out"),
        ([{"modality": "text", "text": ""}], "holds no bytes"),
    ],
)
def test_a_bad_line_is_skipped_and_the_others_are_read(tmp_path: Path, line: Any, reason: str) -> None:
    home = folder_of(tmp_path, {"secret": b"s", "in/a.txt": b"a", "in/empty.txt": b"", "in/sub/x": b"x"}) / "in"
    os.symlink(tmp_path / "secret", home / "link")
    os.symlink(tmp_path, home / "linked")
    os.symlink(home / "circle", home / "circle")
    os.mkfifo(home / "pipe")
    if isinstance(line, list) and line and isinstance(line[0], dict) and line[0].get("path") == "{here}/a.txt":
        line = [{**line[0], "path": str(home / "a.txt")}]
    corpus = Corpus.from_paths(manifest(home, [TEXT], line, [TEXT]))
    assert corpus.names == ("m.jsonl:1", "m.jsonl:3")
    ((name, said),) = corpus.skipped
    assert name == "m.jsonl:2"
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(said)


def test_long_lines_do_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "MAX_LINE_BYTES", 100)
    long = [{"modality": "text", "text": "x" * 1000}]
    corpus = Corpus.from_paths(manifest(tmp_path, [TEXT], long, [TEXT], long))
    assert corpus.names == ("m.jsonl:1", "m.jsonl:3")
    assert [(name, "longer than 100 bytes" in reason) for name, reason in corpus.skipped] == [
        ("m.jsonl:2", True),
        ("m.jsonl:4", True),
    ]
    exact = json.dumps([{"modality": "text", "text": ""}])
    exact = exact.replace('""', '"' + "y" * (99 - len(exact)) + '"')
    assert len(exact) == 99
    assert len(Corpus.from_paths(manifest(tmp_path, [TEXT], exact.encode(), [TEXT]))) == 3


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.lists(
                st.dictionaries(
                    st.sampled_from(["modality", "path", "text", "rate", "shape"]),
                    st.one_of(
                        st.sampled_from(["text", "image", "audio", "a.txt", "..", "", "\0"]),
                        st.none(),
                        st.integers(-5, 5),
                        st.lists(st.integers(0, 9), max_size=4),
                    ),
                ),
                max_size=3,
            ).map(lambda entries: json.dumps(entries).encode()),
        ),
        max_size=6,
    )
)
def test_no_line_ends_a_run(tmp_path: Path, lines: list[bytes]) -> None:
    path = manifest(folder_of(tmp_path, {"a.txt": b"a"}), *lines)
    skipped: list[tuple[str, str]] = []
    for name, parts in each_line(path, "m", DEFAULT_MEDIA, skipped):
        assert name.startswith("m:") and parts


def test_a_manifest_without_a_good_line_is_named(tmp_path: Path) -> None:
    path = manifest(tmp_path, [{"modality": "text", "path": "gone"}])
    with pytest.raises(DataError, match=r"m\.jsonl: no file with bytes.*m\.jsonl:1.*gone"):
        Corpus.from_paths(path)
