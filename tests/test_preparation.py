"""Preparing in several processes: the same files from any number of them, and from any number of stops."""

import fcntl
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_corpus import contents, folder_of

import byteloom.commands.prepare as prepare_command
from byteloom import preparation
from byteloom.commands import UsageError
from byteloom.documents import DataError
from byteloom.preparation import Interrupted, prepare
from byteloom.shards import open_prepared


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def unfinished(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*.partial"))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Texts, pictures that grow when they are read, a manifest, and files of which some cannot be read."""
    home = folder_of(tmp_path / "in", {f"{i:02d}.txt": bytes([65 + i]) * (20 + i) for i in range(12)})
    folder_of(home, {"05.png": b"\x89PNG", "empty": b"", "sub/x.bin": bytes(range(200))})
    for i in range(3):
        Image.fromarray(np.full((20, 20, 3), i, np.uint8)).save(home / f"p{i}.png")
    lines = [[{"modality": "text", "text": "red"}, {"modality": "image", "path": f"p{i}.png"}] for i in range(3)]
    (home / "m.jsonl").write_text(
        "\n".join(map(json.dumps, [*lines, [{"modality": "text", "path": "gone"}], lines[0]]))
    )
    return home


def test_workers_make_what_one_makes(mixed: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    one = prepare(mixed, tmp_path / "one", shard_bytes=100, progress=lambda *numbers: told.append(numbers))
    assert len(told) > 5 and told[-1][0] == told[-1][1] and told == sorted(told)
    many = prepare(mixed, tmp_path / "many", shard_bytes=100, workers=3)
    assert many == one
    assert [entry["file"] for entry in one["skipped"]] == ["05.png", "empty", "m.jsonl:4"]
    assert files_in(tmp_path / "many") == files_in(tmp_path / "one")
    assert any(name.endswith("-1.ids") for name in files_in(tmp_path / "one")), "a task may make several shards"
    again = prepare(tmp_path / "one", tmp_path / "again", shard_bytes=150, workers=2)
    assert again["skipped"] == [] and again["modalities"] == one["modalities"]
    for name in ("one", "again"):
        corpus = open_prepared(tmp_path / name, verify=True)
        assert len(corpus) == one["documents"] == 20 and corpus.num_bytes == one["bytes"]
    assert contents(open_prepared(tmp_path / "again")) == contents(open_prepared(tmp_path / "one"))
    assert not unfinished(tmp_path)


KILLED = """
import os, signal, sys
from byteloom.preparation import prepare

def stop(done, total):
    if done >= int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    prepare(sys.argv[1], sys.argv[2], shard_bytes=100, workers=int(sys.argv[3]), resume=True, progress=stop)
"""


def killed(source: Path, out: Path, workers: int, after: int) -> None:
    """Prepares until so many bytes are done. It returns when every process is gone that could write to the pipe."""
    script = out.with_suffix(".py")
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(source), str(out), str(workers), str(after)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=100)
    assert done.returncode == -9, done.stdout


def test_what_a_kill_cuts_off_goes_on(mixed: Path, tmp_path: Path) -> None:
    whole = prepare(mixed, tmp_path / "whole", shard_bytes=100)
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        for after in (200, 500):
            killed(mixed, out, workers, after)
            assert not out.exists()
            with pytest.raises(DataError, match=f"{out.name}: is unfinished; ask to resume it"):
                prepare(mixed, out, shard_bytes=100)
        (partial,) = unfinished(tmp_path)
        assert stat.S_IMODE(partial.stat().st_mode) == 0o700
        first = partial / "data" / "00000.ids"
        inode, time = first.stat().st_ino, first.stat().st_mtime_ns
        assert prepare(mixed, out, shard_bytes=100, workers=workers, resume=True) == whole
        kept = (out / "00000.ids").stat()
        assert (kept.st_ino, kept.st_mtime_ns) == (inode, time), "finished shards are not made again"
        assert files_in(out) == files_in(tmp_path / "whole")
        assert not unfinished(tmp_path)
        assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE((tmp_path / "in").stat().st_mode)


def stop_after(monkeypatch: pytest.MonkeyPatch, tasks: int, error: BaseException) -> None:
    """Makes the task after so many fail, half written."""

    def written(documents: Any, folder: Path, stems: Any, known: Any, shard_bytes: int) -> Any:
        if len(list(folder.parent.glob("0*.json"))) == tasks:
            (folder / f"{tasks:05d}.ids").write_bytes(b"half")
            raise error
        return preparation_write(documents, folder, stems, known, shard_bytes)

    preparation_write = preparation.write_shards
    monkeypatch.setattr(preparation, "write_shards", written)


@pytest.mark.parametrize("change", ["content", "a file before", "options", "a damaged record", "a missing shard"])
def test_what_has_changed_since_is_done_again(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt, match=r"out: is unfinished \(stopped\); --resume goes on with it"):
            prepare(mixed, out, shard_bytes=100)
    (partial,) = unfinished(tmp_path)
    size = 100
    if change == "content":
        (mixed / "00.txt").write_bytes(b"B" * 20)
    elif change == "a file before":
        (mixed / "+").write_bytes(b"new")
    elif change == "options":
        size = 50
    elif change == "a damaged record":
        (partial / "00000.json").write_text('{"shards": [{"files": 3}]}')
    else:
        (partial / "data" / "00001.names").unlink()
    prepare(mixed, out, shard_bytes=size, resume=True)
    prepare(mixed, tmp_path / "anew", shard_bytes=size)
    assert files_in(out) == files_in(tmp_path / "anew") and not unfinished(tmp_path)


def test_a_full_disk_keeps_what_is_finished(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tasks, kept in ((0, False), (3, True)):
        with monkeypatch.context() as patch:
            stop_after(patch, tasks, OSError(28, "No space left on device"))
            with pytest.raises(Interrupted if kept else OSError, match="No space left on device") as caught:
                prepare(mixed, tmp_path / "out", shard_bytes=100)
        assert ("--resume goes on" in str(caught.value)) == kept == bool(unfinished(tmp_path))
    prepare(mixed, tmp_path / "out", shard_bytes=100, overwrite=True)
    assert not unfinished(tmp_path) and open_prepared(tmp_path / "out", verify=True)


def test_what_no_resume_could_mend_is_not_kept(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(monkeypatch, 3, DataError("x: is damaged"))
    with pytest.raises(DataError, match="x: is damaged"):
        prepare(mixed, tmp_path / "out", shard_bytes=100)
    assert not unfinished(tmp_path)


def test_a_worker_that_dies_is_said(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "_make", _die)
    with pytest.raises(Interrupted, match="a process died"):
        prepare(mixed, tmp_path / "out", shard_bytes=100, workers=2)


def _die(*arguments: object) -> None:
    os._exit(9)


def test_two_do_not_prepare_the_same(mixed: Path, tmp_path: Path) -> None:
    partial = tmp_path / ".out.abc.partial"
    partial.mkdir()
    descriptor = os.open(partial, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(DataError, match="out: is being prepared by another process"):
            prepare(mixed, tmp_path / "out", **options)
    os.close(descriptor)
    assert prepare(mixed, tmp_path / "out", resume=True)["documents"] == 20


def test_it_works_where_the_system_knows_less(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as macOS
    assert prepare_command.num_cores() == os.cpu_count()
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as Windows
    assert prepare(mixed, tmp_path / "out")["documents"] == 20


def test_a_link_is_no_unfinished_folder(mixed: Path, tmp_path: Path) -> None:
    folder_of(tmp_path / "mine", {"data/precious": b"p"})
    os.symlink(tmp_path / "mine", tmp_path / ".out.abc.partial")
    prepare(mixed, tmp_path / "out", resume=True)
    assert (tmp_path / "mine" / "data" / "precious").read_bytes() == b"p"


def test_bad_numbers_are_refused(mixed: Path, tmp_path: Path) -> None:
    for options in ({"workers": 0}, {"shard_bytes": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            prepare(mixed, tmp_path / "out", **options)


def test_the_command_verifies(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    prepare_command.main([str(mixed), "--out", str(out), "--workers", "2", "--shard-bytes", "100"])
    assert "20 documents" in capsys.readouterr().out
    prepare_command.main([str(out), "--verify", "--json", str(tmp_path / "found.json")])
    assert "every file is as it was written" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())[str(out)]
    assert found["documents"] == 20 and found["shards"] > 8
    path = out / "00000.ids"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with pytest.raises(DataError, match=r"00000\.ids: is damaged"):
        prepare_command.main([str(out), "--verify"])
    for arguments in (["--verify"], [str(mixed)]):
        with pytest.raises(UsageError):
            prepare_command.main(arguments)
