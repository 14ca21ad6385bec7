"""Checkpoints: damage of any kind is found and the file named, and nothing half written is taken for whole."""

import errno
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_corpus import folder_of
from test_loop import TEXT, config, same, weights

from byteloom.models.multiscale import Multiscale
from byteloom.models.store import STATE, CheckpointError, check_pieces, load, read_pieces, read_run
from byteloom.train.checkpoint import Progress, Saver, checkpoints_of, clean_up, list_checkpoints
from byteloom.train.distributed import World
from byteloom.train.loop import train
from byteloom.train.optim import OptimConfig, Optimizers

PIECE = "shard-00001-model-00001-of-00001.safetensors"
LOCAL = World(device=torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("data"), {"a.txt": TEXT, "b.txt": TEXT[:3000]})


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps with checkpoints at 4 and 8."""
    run = tmp_path_factory.mktemp("finished") / "run"
    train(config(steps=8, checkpoint_steps=4), [data], run)
    return run


def truncate(path: Path, seed: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: np.random.default_rng(seed).integers(len(content))])


def flip(path: Path, seed: int) -> None:
    content = bytearray(path.read_bytes())
    bit = np.random.default_rng(seed).integers(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def remove(path: Path, seed: int) -> None:
    path.unlink()


def swap(path: Path, seed: int) -> None:
    """With the file of that name in the checkpoint before."""
    shutil.copyfile(path.parents[1] / "step-00000004" / path.name, path)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("damage", [truncate, flip, remove, swap], ids=lambda function: function.__name__)
@pytest.mark.parametrize("name", [PIECE, STATE, "config.json"])
def test_a_damaged_checkpoint_is_named_before_it_is_used(
    finished: Path, data: Path, tmp_path: Path, name: str, damage: Callable[[Path, int], None], seed: int
) -> None:
    if damage is swap and name == "config.json":
        return  # it is the same in both
    run = shutil.copytree(finished, tmp_path / "run")
    path = list_checkpoints(run)[-1] / name
    damage(path, seed)
    said = PIECE if (damage, name) == (swap, STATE) else name  # a state that is whole, and of other pieces
    with pytest.raises(CheckpointError, match=said.replace(".", r"\.")):
        train(config(), [data], run, resume=True)
    with pytest.raises(CheckpointError, match=said.replace(".", r"\.")):
        load(path.parent)
    shutil.rmtree(path.parent)  # the one before is as it was
    assert train(config(steps=5), [data], run, resume=True).progress.step == 5


def refusal(folder: Path) -> str:
    """What is said of a model folder that is not opened; nothing of one that is."""
    try:
        load(folder)
        read_run(folder)
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("seed", range(12))
def test_a_changed_bit_in_a_model_folder_is_found(finished: Path, tmp_path: Path, seed: int) -> None:
    folder = shutil.copytree(finished / "best", tmp_path / "best")
    flip(folder / "model.safetensors", seed)
    assert "model.safetensors" in refusal(folder)
    shutil.copyfile(finished / "best" / "model.safetensors", folder / "model.safetensors")
    whole, run = load(folder), read_run(folder)
    flip(folder / "config.json", seed)
    if said := refusal(folder):
        assert "config.json" in said
    else:  # a bit that nothing is read from: white space, or the names by which others know the folder
        assert load(folder).config == whole.config and read_run(folder) == run


def test_a_piece_too_many_is_named(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(list_checkpoints(finished)[-1], tmp_path / "step")
    shutil.copyfile(folder / PIECE, folder / "shard-00002-model-00001-of-00001.safetensors")
    with pytest.raises(CheckpointError, match=r"shard-00002.*does not belong"):
        check_pieces(folder)


def test_each_of_several_processes_looks_into_its_share(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(list_checkpoints(finished)[-1], tmp_path / "step")
    flip(folder / PIECE, 0)  # the second of two files, by name
    check_pieces(folder, 0, 2)
    with pytest.raises(CheckpointError, match=PIECE):
        check_pieces(folder, 1, 2)


def model_and_optimizers() -> tuple[Multiscale, Optimizers]:
    model = Multiscale(config().model)
    return model, Optimizers(model, OptimConfig())


def save(saver: Saver, step: int, model: Multiscale, optimizers: Optimizers) -> None:
    saver.save(model, optimizers, None, Progress(step=step), {"windows": 4 * step}, {"optim": {}})


def test_what_is_saved_is_what_was_there_when_saving_began(tmp_path: Path) -> None:
    model, optimizers = model_and_optimizers()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    saver = Saver(tmp_path, LOCAL, keep=2)
    save(saver, 1, model, optimizers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    saver.wait()
    saver.close()
    (folder,) = list_checkpoints(tmp_path)
    assert same(read_pieces(folder, "model."), before) and same(weights(tmp_path), before)


def test_what_cannot_be_written_leaves_the_checkpoints_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.checkpoint import filesystem

    model, optimizers = model_and_optimizers()
    saver = Saver(tmp_path, LOCAL, keep=2)
    save(saver, 1, model, optimizers)
    saver.wait()

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(filesystem.os, "fsync", full)
    save(saver, 2, model, optimizers)
    with pytest.raises(
        CheckpointError, match=r"step-00000002: cannot be written \(No space left on device\).*step-00000001"
    ):
        saver.wait()
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    check_pieces(list_checkpoints(tmp_path)[-1])
    save(saver, 3, model, optimizers)
    saver.wait()
    saver.close()
    assert len(list_checkpoints(tmp_path)) == 2


def test_a_run_that_cannot_save_ends_with_one_error(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("byteloom.train.checkpoint.described", lambda path: (_ for _ in ()).throw(OSError(5, "broken")))
    with pytest.raises(CheckpointError, match=r"cannot be written \(broken\); none was before"):
        train(config(checkpoint_steps=2, validations=0), [data], tmp_path / "run")


def test_a_deleted_folder_is_made_anew(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, healthy, calls = tmp_path / "run", Multiscale.loss, []

    def deleting(*args: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 7:
            shutil.rmtree(run)
        return healthy(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Multiscale, "loss", deleting)
    result = train(config(validations=0, checkpoint_seconds=1e6), [data], run)
    assert result.progress.step == 12 and [path.name for path in list_checkpoints(run)] == ["step-00000012"]
    assert result.metrics[-1]["step"] == 12


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    for name in (".best.partial", "checkpoints/.step-00000003.partial", "checkpoints/step-00000002", ".best.old"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".best.old" / "model.safetensors").write_text("the best so far")
    (tmp_path / ".model.safetensors.1234.partial").write_text("half")
    clean_up(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "checkpoints"]
    assert (tmp_path / "best" / "model.safetensors").read_text() == "the best so far"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_a_run_that_was_killed_before_its_first_checkpoint_had_a_name_begins_anew(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    first, last = list_checkpoints(run)
    shutil.rmtree(first)
    last.rename(last.with_name(f".{last.name}.partial"))
    assert checkpoints_of(run, resume=True) == []
    clean_up(run)  # and may be killed once more
    assert checkpoints_of(run, resume=True) == [] and not (run / "model.safetensors").exists()
    assert train(config(steps=2), [data], run, resume=True).metrics[0]["step"] == 1
    later = run / "checkpoints" / ".step-00000009.partial"
    later.mkdir()
    (later / STATE).touch()  # of a later one, when the model was there already
    shutil.rmtree(list_checkpoints(run)[0])
    with pytest.raises(CheckpointError, match="has a model and no checkpoints"):
        checkpoints_of(run, resume=True)


def test_when_a_checkpoint_has_its_name_the_run_has_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(folder: Path) -> None:
        raise OSError(errno.EIO, "what comes after the renaming")

    monkeypatch.setattr("byteloom.train.checkpoint.sync", cut_off)
    model, optimizers = model_and_optimizers()
    saver = Saver(tmp_path, LOCAL, keep=2)
    save(saver, 1, model, optimizers)
    with pytest.raises(CheckpointError, match="after the renaming"):
        saver.wait()
    saver.close()
    (folder,) = list_checkpoints(tmp_path)
    assert same(read_pieces(folder, "model."), weights(tmp_path))


def test_old_checkpoints_lose_their_name_before_they_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizers = model_and_optimizers()
    saver = Saver(tmp_path, LOCAL, keep=1)
    save(saver, 1, model, optimizers)
    saver.wait()
    monkeypatch.setattr("byteloom.train.checkpoint.shutil.rmtree", lambda path, **options: None)
    save(saver, 2, model, optimizers)
    saver.wait()
    saver.close()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002"]


def test_no_thread_is_left_when_a_checkpoint_is_written(tmp_path: Path) -> None:
    model = Multiscale(config().model)
    saver = Saver(tmp_path, LOCAL, 2)
    before = set(threading.enumerate())
    for step in (1, 2):
        saver.save(model, Optimizers(model, OptimConfig()), None, Progress(step=step), {}, {})
        saver.wait()
    deadline = time.monotonic() + 10  # a thread may take a moment to end after what it did
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before, "training would be half as fast from here on"
    saver.close()
    assert len(list_checkpoints(tmp_path)) == 2
