"""The command: each one on real files, and one clear line for every mistake."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from MEGABYTE_pytorch import MEGABYTE
from PIL import Image
from test_corpus import folder_of
from test_loop import TEXT
from test_multiscale import TWO

from byteloom import cli, codecs
from byteloom.commands import one_line
from byteloom.layers.modalities import EmbedderConfig, StreamConfig
from byteloom.models.config import ModalityConfig, ModelConfig, StageConfig
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import save
from byteloom.preparation import prepare

TINY = (
    "--model.stages.0.dim 32 --model.stages.0.num-layers 1 --model.stages.0.num-heads 2 --model.stages.1.dim 16 "
    "--model.stages.1.num-layers 1 --model.stages.1.num-heads 2 --model.stages.1.ngram-rows 101 --model.context 64 "
    "--precision fp32"
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
    run = tmp_path / "text-small"  # as the recipe is called
    train = ["train", "text-small", "--data", "data", "--out", "text-small", *TINY]
    out, err = byteloom(*train, "--steps", 6, "--json", "text-small/found.json", cwd=tmp_path)
    assert "6 steps" in out and "held out" in err and (run / "found.json").exists()
    out, _ = byteloom(*train, "--steps", 8, "--resume", "--json", "-", cwd=tmp_path)
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


def test_several_modalities_from_files_to_numbers(tmp_path: Path) -> None:
    """A mixture with options of media; evaluation reads pictures as the run did, unless it is told otherwise."""
    folder_of(tmp_path / "words", {f"{i}.txt": TEXT[i * 100 : i * 100 + 2000] for i in range(6)})
    (tmp_path / "shown").mkdir()
    for i in range(30):
        pixels = np.random.default_rng(i).integers(0, 256, (6, 4, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "shown" / f"{i}.png")
    run = tmp_path / "run"
    mixture = ["--data", tmp_path / "words", tmp_path / "shown", "--mixture", 1, 2, "--image.scan", "raster"]
    train = ["train", "text-small", "--out", run, *TINY, "--steps", 4, "--validations", 1]
    _, err = byteloom(*train, *mixture, "--loss-weights", "image", 0.5)
    assert "(text " in err and ", image " in err
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["by_modality"].keys() == last["valid_by_modality"].keys() == {"text", "image"}
    described = json.loads((run / "config.json").read_text())["run"]
    assert described["media"]["image"]["scan"] == "raster" and described["train"]["loss_weights"] == {"image": 0.5}

    def measured(*options: object) -> dict:
        return json.loads(byteloom("evaluate", run, tmp_path / "shown", "--no-baseline", "--json", "-", *options)[0])

    report = measured()
    assert report["items"] == 30 and report["standard_error"] > 0 and report["bytes"] == 30 * 72
    assert report == measured("--image.scan", "raster")
    assert report["nats"] != measured("--image.scan", "patch")["nats"]
    out, _ = byteloom("evaluate", run, tmp_path / "shown", tmp_path / "words", "--no-baseline")
    assert "±" in out and "36 documents" in out and "image" in out and "14,160 bytes" in out
    _, err = byteloom(*train[:3], tmp_path / "second", *train[4:], "--data", tmp_path / "words", "--init", run)
    assert f"tensors begin as those of {run}" in err


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
        (["bench", model, "--batch-size", -1], "--batch-size is -1; it must be at least 1"),
        (["bench", model, "--context", 0], "--context is 0; it must be at least 1"),
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
    byteloom("export", tmp_path / "one", tmp_path / "llama", "--to", "llama")
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
        (["export", model, tmp_path / "other", "--to", "llama"], 1, "more than one stage"),
        (["export", model, tmp_path / "copy"], 1, "holds a model already"),
    ):
        found, line = refused(capsys, *args)
        assert found == code and expected in line, line
    assert not (tmp_path / "other").exists()


@pytest.fixture
def modal(tmp_path: Path) -> Path:
    """A model of text, pictures and sound that hardly ever ends a document."""
    modalities = tuple(ModalityConfig(name=name, mark=codecs.MARKS[name]) for name in ("text", "image", "audio"))
    embedder = EmbedderConfig(kind="universal")
    config = dataclasses.replace(TWO, modalities=modalities, embedder=embedder, head_bias=True, context=200)
    torch.manual_seed(0)
    network = Multiscale(config)
    with torch.no_grad():
        network.head_bias[258] = -1e4
    save(network, tmp_path / "modal", {"media": {"image": {"scan": "raster"}, "audio": {"coding": "pcm8"}}})
    return tmp_path / "modal"


def run_here(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """Runs the command in this process; returns what it said on stderr."""
    capsys.readouterr()
    cli.main([str(arg) for arg in args])
    return capsys.readouterr().err


def test_files_of_every_modality_are_continued_as_such(
    modal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    soundfile.write(tmp_path / "in.wav", np.linspace(-0.5, 0.5, 40), 20, subtype="PCM_U8")
    (tmp_path / "page.jsonl").write_text(
        '[{"modality": "text", "text": "a picture"}, {"modality": "image", "path": "in.png"}]\n'
    )
    generate = ["generate", modal, "--overwrite", "--out", tmp_path / "out.png"]
    run_here(capsys, *generate, "--prompt-file", tmp_path / "in.png")
    found = np.asarray(Image.open(tmp_path / "out.png"))
    assert found.shape == (6, 4, 3) and (found[:3] == pixels[:3]).all() and (found[3:] != pixels[3:]).any()
    run_here(capsys, *generate, "--prompt-file", tmp_path / "in.png", "--prompt-share", 0.9, "--seed", 1)
    assert (np.asarray(Image.open(tmp_path / "out.png"))[:5] == pixels[:5]).all()
    run_here(capsys, *generate, "--size", "3x2", "--modality", "image")
    assert Image.open(tmp_path / "out.png").size == (3, 2)
    sound = ["generate", modal, "--overwrite", "--prompt-file", tmp_path / "in.wav", "--out", tmp_path / "out.wav"]
    for options, seconds in (("--seconds", 0.5), 2.5), (("--prompt-share", 0.25), 2.0), (("--max-bytes", 10), 2.5):
        run_here(capsys, *sound, *options)
        samples, rate = soundfile.read(tmp_path / "out.wav")
        assert len(samples) == seconds * rate and abs(samples[5] - (-0.5 + 5 / 39)) < 0.01
    err = run_here(capsys, *generate, "--prompt-file", tmp_path / "page.jsonl", "--follow", "text", "--max-bytes", 50)
    assert "out.png.0.txt" in err and Image.open(tmp_path / "out.png.1.png").size == (4, 6)
    assert len((tmp_path / "out.png.2.txt").read_bytes()) == 50 - 36
    for args, expected in (
        (["--prompt-file", tmp_path / "in.png"], "--out is needed: image"),
        (["--prompt-file", tmp_path / "in.png", "--out", tmp_path / "x.txt"], "no picture format"),
        (["--modality", "image", "--size", "3", "--out", tmp_path / "x.png"], "WIDTHxHEIGHT"),
        (["--size", "3x3", "--out", tmp_path / "x.png"], "modality text"),
        (["--size", "3x3", "--prompt", "a"], "--size"),
        (["--prompt", "a", "--seconds", 1], "--seconds"),
        (["--prompt-file", tmp_path / "in.png", "--seconds", 1, "--out", tmp_path / "x.png"], "--seconds"),
        (["--prompt", "a", "--prompt-share", 2], "--prompt-share"),
        (["--prompt", "a", "--follow", "smell"], "smell"),
        (["--prompt-file", tmp_path / "in.png", "--stop", "x", "--out", tmp_path / "x.png"], "--stop"),
    ):
        code, line = refused(capsys, "generate", modal, *args)
        assert code == 2 and expected in line, line
    code, line = refused(capsys, "generate", modal, "--modality", "image", "--out", tmp_path / "x.png", "--top-k", 1)
    assert code == 1 and "the model wrote no header" in line and "--seed" in line
    assert not list(tmp_path.glob("x.*"))


def test_a_fused_model_writes_one_stream_beside_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    streams = (StreamConfig(name="audio", size=3, role="given"), StreamConfig(name="text", size=1))
    config = dataclasses.replace(TWO, embedder=EmbedderConfig(kind="fusion", streams=streams), tied_head=False)
    save(Multiscale(config), tmp_path / "fused")
    soundfile.write(tmp_path / "in.wav", np.linspace(-0.5, 0.5, 30), 20, subtype="PCM_U8")
    line = [{"modality": "audio", "path": "in.wav"}, {"modality": "text", "text": "abcd"}]
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n")
    generate = ["generate", tmp_path / "fused", "--overwrite", "--out", tmp_path / "out"]
    for prompt, beginning in (("in.jsonl", b"ab"), ("in.wav", b"")):
        err = run_here(capsys, *generate, "--prompt-file", tmp_path / prompt)
        assert "out.0.wav" in err and "out.1.txt" in err
        assert (soundfile.read(tmp_path / "out.0.wav")[0] == soundfile.read(tmp_path / "in.wav")[0]).all()
        written = (tmp_path / "out.1.txt").read_bytes()
        assert len(written) == 10 and written.startswith(beginning)
    code, line = refused(capsys, *generate[:2], "--prompt", "abc")
    assert code == 2 and "--out is needed" in line


def test_a_file_that_the_model_did_not_learn_is_refused_or_taken_as_it_is(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "in.bmp")
    code, line = refused(capsys, "generate", model, "--prompt-file", tmp_path / "in.bmp")
    assert code == 2 and "in.bmp is of modality image and the model learned text" in line
    as_text = ["--prompt-file", tmp_path / "in.bmp", "--modality", "text", "--max-bytes", 3, "--prompt-share", 0.01]
    run_here(capsys, "generate", model, *as_text, "--out", tmp_path / "out")
    assert (tmp_path / "out").read_bytes()[:2] == b"BM"


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
    data, nowhere = folder_of(tmp_path / "in", {"a.txt": TEXT}), tmp_path / "no" / "where"
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
        ([*train, "--mixture", 1, 2], "mixture has 2 weights for 1 paths"),
        ([*train, "--mixture", -1], "must be above 0"),
        ([*train, "--loss-weights", "text"], "key-value"),
        ([*train, "--loss-weights", "text", -1], "loss_weights"),
        ([*train, "--image.scan", "spiral"], "spiral"),
        ([*train, "--modality", "smell"], "'smell' is unknown"),
        ([*train, "--batch-size", 0], "batch_size is 0"),
        ([*train, "--model.context", 0], "context is 0"),
        ([*train, "--json", nowhere], "there is no folder"),
        ([*train, "--valid", data / "a.txt", "--json", data / "a.txt"], "is what this command reads"),
        (["demo", "--out", tmp_path / "run", "--json", nowhere], "there is no folder"),
        (["prepare", data, "--out", tmp_path / "run", "--json", nowhere], "there is no folder"),
        (["bench", model, "--json", nowhere], "there is no folder"),
        (["info", model, "--json", nowhere], "there is no folder"),
        (["info", model, "--context", "-5"], "--context is -5; it must be at least 1"),
        (["info", model, "--batch-size", 0], "--batch-size is 0; it must be at least 1"),
        (["evaluate", model], "name the data to measure on"),
        (["evaluate", model, data / "a.txt", "--method", "guess"], "guess"),
        (["evaluate", model, data / "a.txt", "--json", tmp_path / "no" / "where"], "there is no folder"),
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
    soundfile.write(tmp_path / "a.wav", np.zeros((9000, 2)), 8000, subtype="PCM_16")
    prepare(tmp_path / "a.wav", tmp_path / "sound")
    run = tmp_path / "run"
    truncated = tmp_path / "truncated"
    save(Multiscale(TWO), truncated)
    (truncated / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-9])
    for args, expected in (
        (["train", "text-small", "--data", tmp_path / "gone", "--out", run], "gone: cannot be found"),
        (["train", "text-small", "--data", data / "empty", "--out", run], "empty: is empty"),
        (["train", "text-small", "--data", tmp_path / "nothing", "--out", run], "nothing: no file with bytes"),
        (["train", "text-small", "--data", data, "--out", model], "has a model and no checkpoints"),
        (["train", "audio-small", "--data", tmp_path / "sound", "--out", run], "is audio in pcm16 with 2 channels"),
        (["train", "text-small", "--data", data, "--out", run, "--loss-weights", "image", 2], "there are text"),
        (["evaluate", tmp_path / "gone", data / "a.txt"], "config.json: not found"),
        (["evaluate", data, data / "a.txt"], "config.json: not found"),
        (["evaluate", truncated, data / "a.txt"], "model.safetensors: is damaged"),
        (["evaluate", model, tmp_path / "gone"], "gone: cannot be found"),
        (["generate", truncated], "is damaged"),
        (["generate", model, "--prompt-file", tmp_path / "gone"], "gone: cannot be found"),
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
