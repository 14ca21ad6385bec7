"""The command: each one on real files, and one clear line for every mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from MEGABYTE_pytorch import MEGABYTE
from test_corpus import folder_of
from test_loop import TEXT
from test_multiscale import TWO

from byteloom import cli
from byteloom.commands import one_line
from byteloom.models.config import ModelConfig, StageConfig
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import save

TINY = (
    "--model.stages.0.dim 32 --model.stages.0.num-layers 1 --model.stages.0.num-heads 2 --model.stages.1.dim 16 "
    "--model.stages.1.num-layers 1 --model.stages.1.num-heads 2 --model.context 64 --precision fp32"
).split()


def byteloom(*args: object, code: int = 0, cwd: Path | None = None) -> tuple[str, str]:
    """Runs the command in a process of its own; returns stdout and stderr."""
    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "byteloom", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, errors="replace")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str]:
    """Runs the command in this process; returns its exit code and the one line on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main([str(arg) for arg in args])
    err = capsys.readouterr().err
    assert err.startswith("byteloom: ") and err.count("\n") == 1, err
    return int(caught.value.code), err


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save(Multiscale(TWO), tmp_path / "model", {"modalities": ["text"]})
    return tmp_path / "model"


def test_the_whole_way_from_files_to_bytes(tmp_path: Path) -> None:
    """prepare, train, resume, evaluate, info, generate: as a user types them."""
    folder_of(tmp_path / "in", {f"{i}.txt": TEXT[i * 100 : i * 100 + 4000] for i in range(8)})
    (tmp_path / "in" / "empty.txt").touch()
    out, err = byteloom("prepare", tmp_path / "in", "--out", tmp_path / "data")
    assert "8 documents" in out and "skipped empty.txt: is empty" in err
    run = tmp_path / "run"
    train = ["train", "text-small", "--data", tmp_path / "data", "--out", run, *TINY]
    out, err = byteloom(*train, "--steps", 6)
    assert "6 steps" in out and "held out" in err
    out, _ = byteloom(*train, "--steps", 8, "--resume", "--json", "-")
    assert json.loads(out)["step"] == 8
    out, _ = byteloom("evaluate", run, tmp_path / "in" / "0.txt", "--json", "-", "--method", "strided")
    report = json.loads(out)
    assert report["bytes"] == 4000 and set(report["baselines"]) == {"gzip", "bzip2", "xz", "zstd"}
    assert report["method"] == "strided" and len(report["by_position_in_patch"]) == 4
    out, _ = byteloom("evaluate", run, tmp_path / "in", "--no-baseline")
    assert "32,000 bytes" in out
    out, _ = byteloom("info", run)
    assert "FLOPs per byte" in out
    out, _ = byteloom("info", "--list")
    assert "paper-text" in out and "million-base" in out
    out, _ = byteloom("info", "--parameters", 1000000, "--context", 4096, "--json", "-")
    assert 700000 < json.loads(out)["parameters"] <= 1000000
    out, _ = byteloom("generate", run, "--prompt", "line", "--max-bytes", 20, "--valid-utf8")
    assert out.startswith("line")
    again, _ = byteloom("generate", run, "--prompt", "line", "--max-bytes", 20, "--valid-utf8")
    assert again == out
    out, _ = byteloom("generate", run, "--prompt", "line", "--max-bytes", 20, "--weights", "int8", "--compile")
    assert out.startswith("line")
    exact, narrow = (
        json.loads(byteloom("evaluate", run, tmp_path / "in" / "0.txt", "--weights", weights, "--json", "-")[0])
        for weights in ("fp32", "int8")
    )
    assert narrow["bits_per_byte"] == pytest.approx(exact["bits_per_byte"], rel=0.01)
    assert narrow["bits_per_byte"] != exact["bits_per_byte"]
    byteloom("generate", run, "--prompt-file", tmp_path / "in" / "empty.txt", "--max-bytes", 9, "--out", tmp_path / "o")
    assert len((tmp_path / "o").read_bytes()) <= 9


def test_a_machine_is_measured(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = byteloom("bench", model, "--profile", "--rounds", 1, "--compile", "off", "--json", "-")
    report = json.loads(out)
    assert report["training"]["bytes_per_second"]["median"] > 0 and report["training"]["share"] > 0
    assert report["training"]["profile"].keys() >= {"stage 0 MLP", "stage 1 attention", "head and loss", "optimizer"}
    assert report["generation"].keys() == {"fp32", "bf16", "int8"}
    assert report["generation"]["int8"]["bytes_read"] < report["generation"]["fp32"]["bytes_read"]
    out, _ = byteloom("bench", model, "--part", "generation", "--rounds", 1, "--compile", "off", "--weights", "bf16")
    assert "of bandwidth" in out and "training" not in out
    for args, expected in (
        (["bench", "nothing"], "no such folder"),
        (["bench", model, "--rounds", 0], "--rounds"),
        (["bench", model, "--batch-size", -1], "batch_size"),
        (["bench", model, "--weights", "int4"], "int4"),
    ):
        code, line = refused(capsys, *args)
        assert code == 2 and expected in line, line


def test_weights_come_in_and_go_out(tmp_path: Path, capsys: pytest.CaptureFixture[str], model: Path) -> None:
    options = {"num_tokens": 259, "dim": [32, 16], "depth": [1, 1], "max_seq_len": [8, 4], "heads": 1, "dim_head": 8}
    tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    torch.save(MEGABYTE(**tuples).state_dict(), tmp_path / "peer.pt")
    source = ["import", "megabyte-pytorch", tmp_path / "peer.pt"]
    out, _ = byteloom(*source, "--config", json.dumps(options), tmp_path / "peer")
    assert "in 2 stages" in out
    stage = StageConfig(dim=16, num_layers=1, num_heads=2, mlp="swiglu", qk_norm=False)
    save(Multiscale(ModelConfig(stages=(stage,), context=32)), tmp_path / "one")
    byteloom("export", tmp_path / "one", tmp_path / "llama", "--format", "llama")
    byteloom("import", "llama", tmp_path / "llama", tmp_path / "back")
    byteloom("export", model, tmp_path / "copy")
    for args, code, expected in (
        ([*source, tmp_path / "other"], 2, "--config"),
        ([*source, tmp_path / "other", "--config", "{"], 2, "not JSON"),
        ([*source, tmp_path / "other", "--config", '{"dim": 3}'], 2, "num_tokens is missing"),
        ([*source, tmp_path / "peer", "--config", json.dumps(options)], 1, "holds a model already"),
        (
            ["import", "megabyte-pytorch", tmp_path / "no.pt", tmp_path / "x", "--config", json.dumps(options)],
            1,
            "no.pt",
        ),
        (["import", "gpt", model, tmp_path / "other"], 2, "gpt"),
        (["import", "llama", model, tmp_path / "other"], 1, "model_type"),
        (["export", model, tmp_path / "other", "--format", "llama"], 1, "more than one stage"),
        (["export", model, tmp_path / "copy"], 1, "holds a model already"),
    ):
        found, line = refused(capsys, *args)
        assert found == code and expected in line, line
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("command", cli.command_names())
def test_every_command_explains_every_option(command: str) -> None:
    out, _ = byteloom(command, "--help")
    assert "usage: byteloom " + command in out
    overview, _ = byteloom("--help")
    assert f"\n  {command} " in overview
    for line, following in zip(out.splitlines(), out.splitlines()[1:]):
        if line.startswith("│ --") and " (" not in line:
            assert following.strip("│ "), line


def test_a_recipes_options_are_listed() -> None:
    out, _ = byteloom("train", "text-small", "--help")
    for option in "data valid out resume init steps max-bytes max-seconds seed deterministic".split():
        assert f"--{option}" in out
    assert "--model.stages.0.dim" in out and "--optim.learning-rate" in out


def test_bad_usage_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    data = folder_of(tmp_path / "in", {"a.txt": TEXT})
    train = ["train", "text-small", "--data", data, "--out", tmp_path / "run"]
    for args, expected in (
        (["trian"], "not a command"),
        (["train"], "name a recipe"),
        (["train", "txt-small", "--data", data], "did you mean text-small"),
        (["train", "text-small"], "--data"),
        ([*train, "--step", 3], "--step"),
        ([*train, "--steps", "many"], "many"),
        ([*train, "--steps", 0], "steps is 0"),
        ([*train, "--model.stages.0.num-heads", 3], "num_heads is 3"),
        ([*train, "--optim.schedule", "sine"], "sine"),
        (["evaluate", model, data / "a.txt", "--method", "guess"], "guess"),
        (["generate", model, "--prompt", "x" * 40], "context is 32"),
        (["generate", model, "--prompt", "x", "--prompt-file", data / "a.txt"], "two prompts"),
        (["generate", model, "--temperature", "-1"], "temperature"),
        (["generate", model, "--top-p", "7"], "top_p"),
        (["info", "nothing"], "unknown"),
        (["info"], "--list"),
        (["prepare", data], "--out"),
    ):
        code, line = refused(capsys, *args)
        assert code == 2 and expected in line, line
    assert not (tmp_path / "run").exists()


def test_bad_files_are_one_line_and_code_1(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    data = folder_of(tmp_path / "in", {"a.txt": TEXT, "empty": b""})
    (tmp_path / "nothing").mkdir()
    run = tmp_path / "run"
    truncated = tmp_path / "truncated"
    save(Multiscale(TWO), truncated)
    (truncated / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-9])
    for args, expected in (
        (["train", "text-small", "--data", tmp_path / "gone", "--out", run], "gone: cannot be found"),
        (["train", "text-small", "--data", data / "empty", "--out", run], "empty: is empty"),
        (["train", "text-small", "--data", tmp_path / "nothing", "--out", run], "nothing: no file with bytes"),
        (["train", "text-small", "--data", data, "--out", model], "holds a run already"),
        (["evaluate", tmp_path / "gone", data / "a.txt"], "config.json: not found"),
        (["evaluate", data, data / "a.txt"], "config.json: not found"),
        (["evaluate", truncated, data / "a.txt"], "model.safetensors: is damaged"),
        (["evaluate", model, tmp_path / "gone"], "gone: cannot be found"),
        (["evaluate", model, data / "a.txt", "--json", tmp_path / "no" / "where"], "No such file"),
        (["generate", truncated], "is damaged"),
        (["generate", model, "--prompt-file", tmp_path / "gone"], "gone: No such file"),
        (["generate", model, "--device", "cuda:9"], "cuda"),
        (["prepare", data, "--out", data], "exists already"),
    ):
        code, line = refused(capsys, *args)
        assert code == 1 and expected in line, line
    assert not run.exists()


def test_an_unreadable_file_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = folder_of(tmp_path, {"locked": TEXT}) / "locked"
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser reads everything; a folder where a file is wanted is refused alike
        path.unlink()
        path.mkdir()
    code, line = refused(capsys, "train", "text-small", "--data", path, "--out", tmp_path / "run")
    assert code == 1 and "locked" in line


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "byteloom", "evaluate", str(tmp_path / "gone"), "x", "--debug"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_a_closed_pipe_ends_quietly(model: Path) -> None:
    command = f"'{sys.executable}' -m byteloom generate '{model}' --max-bytes 3000 --context 5000 | head -c 5"
    done = subprocess.run(command, shell=True, capture_output=True)
    assert len(done.stdout) == 5 and done.stderr == b""


def test_a_missing_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.startswith(("byteloom.commands.train", "byteloom.recipes"))]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("byteloom.train.loop", "byteloom.loader"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "grain", None)
    code, line = refused(capsys, "train", "text-small", "--data", tmp_path, "--out", tmp_path / "run")
    assert code == 1 and 'pip install "byteloom[train]"' in line


def test_boxed_messages_become_one_line() -> None:
    boxed = (
        "\x1b[31m╭─ Bad ───╮\n│ this is │\n│ wrong   │\n│ ──────  │\n│ For full helptext, run x │\n╰─────────╯\x1b[0m"
    )
    assert one_line(boxed) == "Bad this is wrong"
