"""What the codecs of media share."""

import os
import sys
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from byteloom.documents import DataError
from byteloom.media import check_options, container, decoding, fit, reason


@dataclass(frozen=True)
class Options:
    """One option of each type."""

    kind: Literal["a", "b"] = "a"
    count: int | None = None
    share: float = 1.0
    flag: bool = False
    shape: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_options(self)


def test_options_are_checked_and_lists_become_tuples() -> None:
    assert Options(shape=[1, 2]).shape == (1, 2)  # pyrefly: ignore[bad-argument-type]
    assert Options(share=2).share == 2.0 and isinstance(Options(share=2).share, float)
    for bad in (
        {"kind": "c"},
        {"kind": []},
        {"count": "3"},
        {"count": 0},
        {"count": True},
        {"count": 1.5},
        {"share": float("nan")},
        {"share": float("inf")},
        {"share": None},
        {"flag": 1},
        {"shape": [1]},
        {"shape": [1, -2]},
        {"shape": "12"},
    ):
        with pytest.raises(ValueError, match=f"^{next(iter(bad))} is "):
            Options(**bad)  # pyrefly: ignore[bad-argument-type]


@pytest.mark.parametrize("error", [ValueError("two\nlines"), MemoryError(), KeyError(3), OSError(2, "gone")])
def test_whatever_is_raised_becomes_one_line_that_names_the_file(error: Exception) -> None:
    with (
        pytest.raises(DataError, match=r"^x\.png: cannot be decoded \(.+\); do this$") as caught,
        decoding("x.png", "do this"),
    ):
        raise error
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"^as it is$"), decoding("x.png", "do this"):
        raise DataError("as it is")
    with pytest.raises(KeyboardInterrupt), decoding("x.png", "do this"):
        raise KeyboardInterrupt


def test_a_library_that_is_not_here_is_named() -> None:
    with pytest.raises(DataError, match=r"needs a library .*smell.*install byteloom\[media\]"), decoding("x.png", ""):
        import smell  # noqa: F401  # pyrefly: ignore[missing-import]


def test_what_libraries_print_and_warn_of_is_thrown_away(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with decoding("x.png", ""):
            os.write(2, b"noise of a C library")
            warnings.warn("a warning", stacklevel=1)
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def test_stderr_comes_back_when_threads_decode_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    begun, may_end = threading.Barrier(3), [threading.Event(), threading.Event()]

    def decode(event: threading.Event) -> None:
        with decoding("x.png", ""):
            begun.wait(10)
            event.wait(10)

    threads = [threading.Thread(target=decode, args=(event,)) for event in may_end]
    for thread in threads:
        thread.start()
    begun.wait(10)
    for event, thread in zip(may_end, threads, strict=True):  # the first to come is the first to go
        event.set()
        thread.join()
    print("heard", file=sys.stderr)
    assert capfd.readouterr().err == "heard\n"


def test_data_are_cut_or_filled_to_a_length() -> None:
    data = np.array([1, 2, 3], np.uint8)
    assert fit(data, 2).tolist() == [1, 2] and fit(data, 5).tolist() == [1, 2, 3, 0, 0] and len(fit(data, 0)) == 0


def test_a_reason_is_never_empty() -> None:
    assert reason(MemoryError()) == "MemoryError()"


@pytest.mark.parametrize("content", [b"#EXTM3U\n#EXTINF:10,\n{}\n", b"ffconcat version 1.0\nfile '{}'\n"])
def test_playlists_open_no_other_file(content: bytes, tmp_path: Path) -> None:
    from byteloom.codecs import video

    frames = video.from_array(np.zeros((2, 4, 4, 3), np.uint8), 25)
    (tmp_path / "real.mkv").write_bytes(video.decode(frames))
    for name in ("real.mkv", str(tmp_path / "real.mkv")):
        path = tmp_path / "list.mkv"
        path.write_bytes(content.replace(b"{}", name.encode()))
        with pytest.raises(DataError, match=r"list\.mkv"), decoding(path, ""), container(path):
            pass
