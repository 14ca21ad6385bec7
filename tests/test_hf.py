"""byteloom.hf as other people's tools use it: Auto classes, pipelines, Trainer, PEFT, lm-eval, a server, quantizers.

Each is the real tool on a real model, small and trained for a few seconds on Python's own source.
"""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_hf_cache import close
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForLanguageModeling,
    TextIteratorStreamer,
    TextStreamer,
    TorchAoConfig,
    Trainer,
    TrainingArguments,
    pipeline,
)

import byteloom
from byteloom import cli
from byteloom.hf import ByteloomConfig, ByteloomForCausalLM, ByteloomProcessor, ByteloomTokenizer
from byteloom.hf.folder import export_hf
from byteloom.hf.remote import CODE

ROOT = Path(__file__).parents[1]
TEXT = "".join(path.read_text("utf-8") for path in sorted(Path(os.__file__).parent.glob("[a-d]*.py")))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the command, on text."""
    home = tmp_path_factory.mktemp("hf")
    (home / "text.txt").write_text(TEXT[:80000])
    out = home / "run"
    options = [
        "--steps",
        "40",
        "--batch-size",
        "1",
        "--model.context",
        "4096",
        "--valid-bytes",
        "2048",
        "--compile",
        "off",
        "--device",
        "cpu",
    ]
    finest = "--model.stages.1.dim 64 --model.stages.1.num-layers 2 --model.stages.1.ngram-rows 1009".split()
    options += ["--model.stages.0.dim", "64", *finest]
    cli.main(["train", "text-small", "--data", str(home / "text.txt"), "--out", str(out), *options])
    return out


@pytest.fixture(scope="module")
def folder(run: Path) -> Path:
    """That run, exported."""
    out = run.parent / "exported"
    cli.main(["export", str(run), "--to", "hf", str(out)])
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> ByteloomForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> ByteloomTokenizer:
    return AutoTokenizer.from_pretrained(folder)


# -- folders ---------------------------------------------------------------------------------------------------------


def test_logits_are_the_same_native_wrapped_saved_and_loaded(
    run: Path, folder: Path, model: ByteloomForCausalLM, tokenizer: ByteloomTokenizer
) -> None:
    ids = tokenizer("What a stage is", return_tensors="pt")["input_ids"]
    native = byteloom.load(run)
    with torch.no_grad():
        wanted = ByteloomForCausalLM.from_native(native)(ids).logits
        assert (model(ids).logits - wanted).abs().max() <= 1e-6
        assert (AutoModelForCausalLM.from_pretrained(run)(ids).logits - wanted).abs().max() <= 1e-6
        assert (ByteloomForCausalLM.from_native(byteloom.load(folder))(ids).logits - wanted).abs().max() <= 1e-6


@pytest.mark.parametrize("which", ["run", "folder"])
def test_auto_classes_open_runs_and_exports(which: str, request: pytest.FixtureRequest) -> None:
    place = request.getfixturevalue(which)
    assert type(AutoConfig.from_pretrained(place)) is ByteloomConfig
    assert type(AutoModelForCausalLM.from_pretrained(place)) is ByteloomForCausalLM
    assert type(AutoTokenizer.from_pretrained(place)) is ByteloomTokenizer
    assert type(AutoProcessor.from_pretrained(place)) is ByteloomProcessor


def test_an_export_that_fails_leaves_nothing_and_other_files_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("no space left")

    out = tmp_path / "clone"
    out.mkdir()
    for name in ("LICENSE", "README.md"):
        (out / name).write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(ByteloomTokenizer, "save_pretrained", broken)
        with pytest.raises(OSError, match="no space left"):
            export_hf(run, out)
    assert sorted(path.name for path in out.iterdir()) == ["LICENSE", "README.md"]
    cli.main(["export", str(run), "--to", "hf", str(out)])
    said = capsys.readouterr().out
    assert f"{AutoModelForCausalLM.from_pretrained(out).num_parameters():,} parameters" in said
    assert "its README.md was kept" in said
    assert (out / "LICENSE").read_text() == (out / "README.md").read_text() == "mine"
    assert not any(str(tmp_path) in path.read_text("utf-8") for path in out.glob("*.json"))


def test_without_our_import_a_folder_needs_trust_and_no_more(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, AutoTokenizer\n"
        "kinds = (AutoConfig, AutoModelForCausalLM, AutoTokenizer, AutoProcessor)\n"
        "made = [kind.from_pretrained(sys.argv[1], trust_remote_code=True) for kind in kinds]\n"
        "for one in made: one.save_pretrained(sys.argv[2])\n"
        "print(*(type(one).__module__ for one in made))\n"
    )
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    arguments = [sys.executable, "-c", code, str(folder), str(tmp_path / "again")]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    names = ("configuration", "modeling", "tokenization", "processing")
    assert done.stdout.split() == [f"byteloom.hf.{name}" for name in names]
    assert (tmp_path / "again" / "byteloom_hf.py").read_text() == CODE
    assert sorted(path.name for path in (tmp_path / "again").glob("*.py")) == ["byteloom_hf.py"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "again").num_parameters() > 0


def test_the_card_says_what_there_is(run: Path, folder: Path) -> None:
    card = (folder / "README.md").read_text()
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    best = min(row["valid_bits_per_byte"] for row in rows if "valid_bits_per_byte" in row)
    assert f"at best {best:.3f}" in card
    for part in ("text.txt: ", "library_name: transformers", "- text", '"learning_rate"'):
        assert part in card
    (code,) = [part.split("```")[0] for part in card.split("```python\n")[1:]]
    names: dict = {}
    exec(code.replace("THIS_FOLDER", str(folder)), names)


def test_the_guides_examples_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "huggingface.md").read_text()
    monkeypatch.chdir(folder.parent)
    names: dict = {"picture": Image.new("RGB", (8, 8), (200, 30, 40))}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, names)
    first, picture, last = names["parts"]
    assert (first, picture.getpixel((3, 3)), last) == ("This is ", (200, 30, 40), ", is it not?")


def test_the_core_does_without_transformers(tmp_path: Path) -> None:
    code = (
        "import sys, importlib, pkgutil, byteloom\n"
        "sys.modules['transformers'] = None\n"
        "for entry in pkgutil.walk_packages(byteloom.__path__, 'byteloom.'):\n"
        "    if '.hf' not in entry.name and '__main__' not in entry.name: importlib.import_module(entry.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# -- text ------------------------------------------------------------------------------------------------------------


def test_pipelines_go_on_with_text_and_chats(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write = pipeline("text-generation", str(folder), do_sample=False)
    (one,) = write("The model", max_new_tokens=8)
    assert one["generated_text"].startswith("The model") and len(one["generated_text"]) > len("The model")
    several = write(["The model", "A", "bits per byte"], max_new_tokens=8, batch_size=3)
    assert several[0][0]["generated_text"] == one["generated_text"]
    (chat,) = write([{"role": "user", "content": "What is a patch?"}], max_new_tokens=8)
    assert chat["generated_text"][-1]["role"] == "assistant"


def test_streams_and_stop_strings(
    model: ByteloomForCausalLM, tokenizer: ByteloomTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = tokenizer("The model is ", return_tensors="pt")
    whole = tokenizer.decode(model.generate(**inputs, max_new_tokens=24)[0], skip_special_tokens=True)
    model.generate(**inputs, max_new_tokens=24, streamer=TextStreamer(tokenizer, skip_special_tokens=True))
    assert capsys.readouterr().out.strip() == whole.strip()
    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True, skip_prompt=True)
    model.generate(**inputs, max_new_tokens=24, streamer=streamer)
    assert "The model is " + "".join(streamer) == whole
    stop = whole[len("The model is ") + 4]
    ended = model.generate(**inputs, max_new_tokens=24, stop_strings=[stop], tokenizer=tokenizer)
    text = tokenizer.decode(ended[0], skip_special_tokens=True)
    assert text.endswith(stop) and whole.startswith(text)


# -- training --------------------------------------------------------------------------------------------------------


def trainer(model: torch.nn.Module, tokenizer: ByteloomTokenizer, out: Path, **options: object) -> Trainer:
    rows = [tokenizer(TEXT[i : i + 200], truncation=True, max_length=200) for i in range(200000, 208000, 200)]
    arguments = TrainingArguments(
        output_dir=str(out), max_steps=6, per_device_train_batch_size=4, gradient_accumulation_steps=2, save_steps=3,
        eval_strategy="steps", eval_steps=3, learning_rate=3e-4, report_to=[], use_cpu=True, disable_tqdm=True,
        **options,
    )  # fmt: skip
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows[:4],
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )


def test_trainer_trains_saves_evaluates_and_resumes_exactly(
    folder: Path, tokenizer: ByteloomTokenizer, tmp_path: Path
) -> None:
    first = AutoModelForCausalLM.from_pretrained(folder)
    whole = trainer(first, tokenizer, tmp_path / "out", gradient_checkpointing=True)
    before = whole.evaluate()["eval_loss"]
    whole.train()
    assert whole.evaluate()["eval_loss"] < before
    second = AutoModelForCausalLM.from_pretrained(folder)
    trainer(second, tokenizer, tmp_path / "out").train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    for name, tensor in first.state_dict().items():
        assert torch.allclose(second.state_dict()[name], tensor, atol=1e-6), name
    saved = tmp_path / "out" / "checkpoint-6"
    native = byteloom.load(saved)  # a checkpoint of Trainer is a folder for byteloom too
    assert all(torch.equal(native.state_dict()[name], tensor) for name, tensor in first.model.state_dict().items())
    assert byteloom.evaluate(native, TEXT[:2000].encode()).bits_per_byte < 6


def test_lora_reaches_every_linear_layer_and_merges(folder: Path, tokenizer: ByteloomTokenizer, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(folder)
    linear = {name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    tuned = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4))
    reached = {
        name.split("base_model.model.")[1].split(".lora_A")[0]
        for name, _ in tuned.named_parameters()
        if ".lora_A" in name
    }
    assert reached == linear
    trainer(tuned, tokenizer, tmp_path / "out").train()
    tuned.eval().save_pretrained(tmp_path / "adapter")
    inputs = tokenizer(["The model", "A"], return_tensors="pt", padding=True)
    with torch.no_grad():
        wanted = tuned(**inputs).logits
        assert not close(AutoModelForCausalLM.from_pretrained(folder)(**inputs).logits, wanted)
        again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
        assert close(again(**inputs).logits, wanted)
        written = tuned.generate(**inputs, max_new_tokens=8)
        merged = tuned.merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        back = ByteloomForCausalLM.from_native(byteloom.load(tmp_path / "merged"))
        assert close(back(**inputs).logits, wanted)
        assert torch.equal(back.generate(**inputs, max_new_tokens=8), written)


# -- measuring and serving -------------------------------------------------------------------------------------------


def test_lm_eval_agrees_with_evaluate(folder: Path, run: Path, tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    # Not learned from, or it would matter where patches begin in it; one window, for of several lm-eval fills the last.
    text = TEXT[80000:104000]
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "pages.json").write_text(json.dumps([{"page": text}]))
    questions = [
        {"start": text[i : i + 60], "choices": [text[i + 60 : i + 80], "qqqq zzzz qqqq"]} for i in range(0, 600, 100)
    ]
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    common = {"dataset_path": "json", "test_split": "test"}
    tasks = {
        "pages": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{page}}",
                  "metric_list": [{"metric": "bits_per_byte"}]},
        "choices": {"output_type": "multiple_choice", "doc_to_text": "{{start}}", "doc_to_choice": "{{choices}}",
                    "doc_to_target": 0, "metric_list": [{"metric": "acc"}]},
        "written": {"output_type": "generate_until", "doc_to_text": "{{start}}", "doc_to_target": "{{choices[0]}}",
                    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
                    "metric_list": [{"metric": "exact_match"}]},
    }  # fmt: skip
    for name, task in tasks.items():
        data = "pages.json" if name == "pages" else "questions.json"
        files = {"dataset_kwargs": {"data_files": {"test": str(tmp_path / data)}}}
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"task": name, **common, **files, **task}))
    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(folder), device="cpu", batch_size=2, max_length=32768),
        tasks=list(tasks),
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    ours = byteloom.evaluate(byteloom.load(run), text.encode(), context=32768)
    assert found["pages"]["bits_per_byte,none"] == pytest.approx(ours.bits_per_byte, rel=1e-3)
    assert found["choices"]["acc,none"] > 0.5
    assert "exact_match,none" in found["written"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = 18000 + os.getpid() % 10000
    log = tmp_path_factory.mktemp("server") / "log"
    code = "import sys; sys.argv[0] = 'transformers'; from transformers.cli.transformers import main; main()"
    arguments = ["serve", "--trust-remote-code", "--device", "cpu", "--port", str(port)]
    with open(log, "wb") as file:
        process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=file, stderr=file)
    try:
        for _ in range(600):
            time.sleep(0.1)
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"http://localhost:{port}/health", timeout=5).read()
                break
            except urllib.error.URLError:
                continue
        yield f"http://localhost:{port}/v1"
    finally:
        process.kill()
        process.wait()


def asked(address: str, body: dict) -> bytes:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def test_a_server_answers_chats_and_completions(server: str, folder: Path) -> None:
    chat = {"model": str(folder), "messages": [{"role": "user", "content": "What is a patch?"}], "max_tokens": 8}
    answer = json.loads(asked(f"{server}/chat/completions", chat))
    assert answer["usage"]["completion_tokens"] == 8
    events = [
        line for line in asked(f"{server}/chat/completions", chat | {"stream": True}).decode().splitlines() if line
    ]
    parts = [json.loads(line.removeprefix("data: "))["choices"] for line in events if line.startswith("data: {")]
    streamed = "".join(part[0]["delta"].get("content") or "" for part in parts if part)
    assert len(events) > 4 and streamed
    completion = json.loads(
        asked(f"{server}/completions", {"model": str(folder), "prompt": "The model", "max_tokens": 8})
    )
    assert completion["choices"][0]["text"]


# -- narrow weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loads_and_writes(
    dtype: torch.dtype, folder: Path, model: ByteloomForCausalLM, tokenizer: ByteloomTokenizer
) -> None:
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    assert {p.dtype for p in half.parameters()} == {dtype}
    inputs = tokenizer("The model", return_tensors="pt")
    with torch.no_grad():
        wide, found = model(**inputs).logits.softmax(-1), half(**inputs).logits.float().softmax(-1)
    assert 0 < (wide - found).abs().max() < 0.05
    assert half.generate(**inputs, max_new_tokens=6, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.parametrize("kind", ["torchao", "bitsandbytes int8", "bitsandbytes nf4"])
def test_narrow_weights_load_on_a_cpu(
    kind: str, folder: Path, model: ByteloomForCausalLM, tokenizer: ByteloomTokenizer
) -> None:
    if kind == "torchao":
        quantization = pytest.importorskip("torchao.quantization")
        config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    else:
        pytest.importorskip("bitsandbytes")
        int8 = kind.endswith("int8")
        config = BitsAndBytesConfig(load_in_8bit=int8, load_in_4bit=not int8, bnb_4bit_quant_type="nf4")
    narrow = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map="cpu")
    inputs = tokenizer("The model", return_tensors="pt")
    with torch.no_grad():
        wide, found = model(**inputs).logits.softmax(-1), narrow(**inputs).logits.float().softmax(-1)
        assert 0 < (wide - found).abs().max() < 0.3
        cached = narrow.generate(**inputs, max_new_tokens=6, return_dict_in_generate=True, output_logits=True)
        whole = narrow(cached.sequences).logits[0, inputs["input_ids"].shape[1] - 1 : -1]
        assert (torch.cat(cached.logits) - whole).abs().max() < 0.5 * whole.abs().max()
