"""benchmarks/quality.py: what is scored, who is chosen, what a table says, and a short run of all of it."""

import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quality
import torch
import torch.nn.functional as F

from byteloom import ModelConfig, Multiscale, StageConfig, recipes
from byteloom.documents import DataError
from byteloom.train.loop import RunConfig, TrainConfig
from byteloom.train.optim import Muon, OptimConfig, Optimizers


def tiny(context: int) -> RunConfig:
    """A recipe for a second."""
    stages = (
        StageConfig(dim=32, num_layers=1, num_heads=1, patch_size=4),
        StageConfig(dim=16, num_layers=1, num_heads=1, window=8),
    )
    return RunConfig(
        model=ModelConfig(stages=stages, context=context),
        train=TrainConfig(batch_size=2, max_seconds=600, precision="fp32"),
    )


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recipes.NAMES, "text-small", lambda: tiny(64))
    monkeypatch.setattr(quality, "WIDTHS", (64,))
    monkeypatch.setattr(quality, "LAYERS", ((1, 1), (1, 2)))
    monkeypatch.setattr(quality, "LLAMA_LAYERS", (1,))


def write_set(folder: Path, suffix: str, items: dict[str, list[tuple[str, bytes]]], **meta: Any) -> None:
    """A set as benchmarks/suite.py makes it."""
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps(meta))
    for split, entries in items.items():
        (folder / f"{split}.{suffix}").write_bytes(b"".join(data for _, data in entries))
        (folder / f"{split}.index.json").write_text(json.dumps([[name, len(data)] for name, data in entries]))


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    random = np.random.default_rng(0)

    def some(count: int, size: int, kind: str) -> list[tuple[str, bytes]]:
        """Text of few letters, or random samples; every two tiles are of one photograph."""
        low, high = (97, 105) if kind == "text" else (0, 256)
        made = [random.integers(low, high, size).astype(np.uint8).tobytes() for _ in range(count)]
        return [(f"{kind} {i // 2}@32#{i}" if kind == "image" else f"{kind} {i}", data) for i, data in enumerate(made)]

    for kind, suffix, size, meta in (
        ("text", "txt", 700, {}),
        ("image", "bin", 3072, {"shape": [32, 32, 3]}),
        ("audio", "s16le", 6000, {"rate": 8000}),
    ):
        write_set(
            folder / f"{kind}_x",
            suffix,
            {"train": some(8, size, kind), "valid": some(3, size, kind), "test": some(5, size, kind)},
            **meta,
        )
    return folder


@pytest.mark.parametrize(
    ("name", "context", "lead"),
    [("text_x", 64, 1), ("text_x", 500, 1), ("image_x", 3084, 3072), ("image_x", 780, 3072), ("audio_x:pcm16", 512, 2)],
)
def test_every_byte_is_scored_once_and_the_last_of_a_window_is_given_to_the_next(
    suite: Path, name: str, context: int, lead: int
) -> None:
    task = quality.open_task(suite, name)
    size = len(task.payloads["test"])
    seen = np.zeros(size, int)

    def nats(ids: torch.Tensor, starts: list[int]) -> torch.Tensor:
        places = torch.tensor(starts)[:, None] + torch.arange(ids.shape[1])
        assert np.array_equal(ids.numpy(), task.payloads["test"][places.numpy()])
        seen[np.unique(places[:, task.given :].numpy())] += 1
        return places[:, 1:].float()

    found = quality.score(task, "test", context, nats)
    assert np.array_equal(found, np.arange(lead, size)), "the nats of each byte stand at its place"
    assert (seen[:lead] == 0).all() and (seen[lead:] == 1).all()
    seen[:] = 0
    assert len(quality.score(task, "test", context, nats, size // 2)) == seen.sum() <= size // 2 + context
    assert seen[-size // 4 :].any() and seen[: lead + size // 4].any(), "of windows all over the split"


def test_windows_of_pictures_begin_at_the_same_places_to_learn_from_and_to_score(suite: Path) -> None:
    task = quality.open_task(suite, "image_x")
    for context in (3084, 780):
        learned = task.starts("train", context, learned=True)
        assert {(start + 12) % (context - 12) for start in learned} == {0}
        assert max(learned) + context <= len(task.payloads["train"])
        assert set(learned) <= set(task.starts("train", context))
    text = quality.open_task(suite, "text_x").starts("train", 64, learned=True)
    assert text == range(8 * 700 - 64 + 1)


@pytest.mark.parametrize(("name", "context"), [("text_x", 64), ("image_x", 3084), ("audio_x:pcm16", 512)])
def test_a_pass_has_each_window_once(suite: Path, name: str, context: int) -> None:
    task = quality.open_task(suite, name)
    data, starts = task.payloads["train"], task.starts("train", context, learned=True)
    places = {data[start : start + context].tobytes(): start for start in starts}
    drawn = quality.batches(task, context, 1, 0)
    first = places[next(drawn).numpy().astype(np.uint8).tobytes()]
    stride = context - task.given if task.aligned else context
    whole = sorted(start for start in starts if start % stride == first % stride)
    passed = [first, *(places[next(drawn).numpy().astype(np.uint8).tobytes()] for _ in whole[1:])]
    assert passed != whole, "in no order"
    assert sorted(passed) == whole and len(whole) >= len(data) // context - 1


def test_the_pace_of_a_run_is_told_by_tenths() -> None:
    log = [(0.5 * step, step) for step in range(1, 101)] + [(50.0 + step, 100 + step) for step in range(1, 51)]
    assert quality.pace(log) == [2.0] * 5 + [1.0] * 5


def test_sound_is_learned_as_mu_law_or_as_it_is(suite: Path) -> None:
    raw = (suite / "audio_x" / "test.s16le").read_bytes()
    assert quality.open_task(suite, "audio_x:pcm16").payloads["test"].tobytes() == raw
    task = quality.open_task(suite, "audio_x")
    assert len(task.payloads["test"]) == len(raw) // 2 == len(task.owners)
    assert np.bincount(task.owners).tolist() == [3000] * 5, "an item's share of samples"


def test_tiles_of_one_photograph_are_one_item(suite: Path, tmp_path: Path) -> None:
    assert np.bincount(quality.open_task(suite, "image_x").owners).tolist() == [6144, 6144, 3072]
    (tmp_path / "test.index.json").write_text('[["a", 5], ["b", 6]]')
    with pytest.raises(DataError, match="names 11 bytes, and the split has 10"):
        quality.owners(tmp_path, 10)
    (tmp_path / "test.index.json").write_text('[["node_modules/@a/b@1", 5], ["node_modules/@c/d", 5]]')
    assert quality.owners(tmp_path, 10).tolist() == [0] * 5 + [1] * 5, "only of pictures"
    with pytest.raises(DataError, match="names 10 bytes, and the split has 5"):
        quality.owners(tmp_path, 5)


@pytest.mark.parametrize("name", ["megabyte-pytorch", "mblm", "llama"])
def test_a_peers_logits_are_causal_and_agree_with_the_loss_that_it_learns_by(name: str) -> None:
    if name == "mblm":
        pytest.importorskip("mblm")
    torch.manual_seed(0)
    dims, layers = ((64,), (1,)) if name == "llama" else ((64, 32), (1, 1))
    shape = quality.peers.Shape(dims=dims, num_layers=layers, patch_size=4, context=32, rotary=True)
    peer = quality.quietly(name, shape)
    peer.model.eval()
    ids = torch.randint(0, 256, (2, 32))
    ids[0, 3:6] = 0  # bytes as any other
    with torch.inference_mode():
        nats = quality.nats_of_peer(peer)(ids, [0, 0])
        assert nats.shape == (2, 31)
        loss = float(peer.loss(ids))
        changed = ids.clone()
        changed[:, 20:] = (changed[:, 20:] + 1) % 256
        others = quality.nats_of_peer(peer)(changed, [0, 0])
    assert torch.allclose(nats[:, :19], others[:, :19], atol=1e-5), "nats of bytes 1 to 19"
    assert not torch.allclose(nats[:, 19], others[:, 19], atol=1e-3)
    if name == "llama":
        assert loss == pytest.approx(float(nats.mean()), abs=1e-5)
    else:  # these learn the first byte too
        first = loss * 32 - float(nats.sum(1).mean())
        assert 3 < first < 10
    chosen = quality.matrices(peer.model)
    optimizers = Optimizers(peer.model, OptimConfig(), "fp32", chosen)
    muon = {name for name, weight in peer.model.named_parameters() if isinstance(optimizers.owners[weight], Muon)}
    assert muon == chosen, "what is named, and nothing else"
    assert not {"to_logits.weight", "lm_head.weight"} & chosen and not any(
        "embed_tokens" in weight for weight in chosen
    )


def test_ours_is_scored_by_what_forward_says(suite: Path) -> None:
    task = quality.open_task(suite, "text_x")
    torch.manual_seed(0)
    model = Multiscale(tiny(64).model).eval()
    found = quality.score(task, "test", 64, quality.nats_of_ours(model, task, "test"))
    ids = torch.from_numpy(task.payloads["test"].astype(np.int64))
    with torch.inference_mode():
        for start in (0, 63, 126):
            window = ids[None, start : start + 64]
            expected = F.cross_entropy(model(window)[0, 1:].float(), window[0, 1:], reduction="none")
            assert np.allclose(found[start : start + 63], expected.numpy(), atol=1e-5)


def test_who_diverged_is_not_chosen_and_the_test_split_has_no_say() -> None:
    rows = [
        {"way": "a", "valid": None, "test": None},
        {"way": "b", "valid": 2.5, "test": 1.0},
        {"way": "c", "valid": 2.0, "test": 3.0},
    ]
    assert quality.chosen(rows) == "c"
    assert quality.chosen(rows[:1]) is None


def test_a_summary_has_means_over_seeds_and_ratios_to_the_best_peer() -> None:
    def row(test: float, items: list[list[float]]) -> dict[str, Any]:
        same = {"way": "w", "mode": "fp32", "parameters": 1, "batch_size": 1, "context": 8}
        return {"test": test, "items": items, "bytes": 10, "steps": 1, "seconds": 1.0, **same}

    bits = math.log(2)
    rows = {
        "ours": [row(1.0, [[10 * bits, 10], [10 * bits, 10]]), row(2.0, [[10 * bits, 10], [30 * bits, 10]])],
        "llama": [row(2.0, [[20 * bits, 10], [20 * bits, 10]])],
        "mblm": [row(4.0, [[40 * bits, 10], [40 * bits, 10]])],
    }
    summary = quality.summarised(rows)
    assert (summary["ours"]["test"], summary["ours"]["smallest"], summary["ours"]["largest"]) == (1.5, 1.0, 2.0)
    assert summary["ours"]["ratio"] == 0.75 and summary["mblm"]["ratio"] == 2.0 and summary["llama"]["ratio"] == 1.0
    # Over seeds the two items need 1 and 2 bits a byte, 5 bits less and more than the mean: sqrt(2 * (25 + 25)) / 20.
    assert summary["ours"]["standard_error"] == pytest.approx(0.5)
    assert summary["ours"]["ratio_error"] == pytest.approx(0.25), "against 2 bits everywhere, which vary by nothing"
    assert summary["llama"]["standard_error"] == summary["llama"]["ratio_error"] == 0
    # Half of what the peer needs of each item: no error, though items differ.
    rows = {
        "ours": [row(1.0, [[5 * bits, 10], [15 * bits, 10]])],
        "llama": [row(2.0, [[10 * bits, 10], [30 * bits, 10]])],
    }
    assert quality.summarised(rows)["ours"]["ratio_error"] == pytest.approx(0, abs=1e-12)
    assert "ratio" not in quality.summarised({"ours": rows["ours"]})["ours"]


def test_all_is_run_written_and_gone_on_with(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "quality.json"
    about: dict[str, Any] = {
        "suite": suite, "sets": ("text_x",), "seconds": 0.3, "adamw_rates": (1e-3,), "valid_bytes": 512,
        "json": report, "runs": tmp_path / "runs",
    }  # fmt: skip
    monkeypatch.setitem(quality.MAKERS, "mblm", lambda shape: importlib.import_module("not_there"))
    quality.main(quality.Options(**about, seeds=(0,)))
    said = capfd.readouterr().out
    assert "mblm is left out: No module named 'not_there'" in said and "bits per byte of the test split" in said
    found = json.loads(report.read_text())
    ways = {model: ["AdamW 0.001", "Muon"] for model in ("paper", "megabyte-pytorch", "llama")} | {"ours": ["recipe"]}
    assert sorted(found["runs"]) == sorted(f"text_x / {model} / {way} / 0" for model in ways for way in ways[model])
    for row in found["runs"].values():
        assert 0 < row["test"] < 20 and 0 < row["valid"] < 20 and row["steps"] > 0 and row["seconds"] >= 0.3
        nats, sizes = np.array(row["items"]).T
        assert sizes.tolist() == [699, 700, 700, 700, 700], "all but the first byte"
        assert nats.sum() / math.log(2) / sizes.sum() == pytest.approx(row["test"], abs=1e-4)
        assert row["bytes"] == pytest.approx(row["steps"] * row["batch_size"] * row["context"], rel=0.05)
        assert ("documents" in row) == (row["model"] in ("ours", "paper"))
    assert set(found["modes"]) == {"text_x / megabyte-pytorch", "text_x / llama"}
    summary = found["summary"]["text_x"]
    best = min(summary[model]["test"] for model in ("megabyte-pytorch", "llama"))
    assert summary["ours"]["ratio"] == pytest.approx(summary["ours"]["test"] / best)
    for model in ("paper", "llama"):
        tried = [row for row in found["runs"].values() if row["model"] == model]
        assert summary[model]["way"] == min(tried, key=lambda row: row["valid"])["way"]
    assert (tmp_path / "runs/text_x/ours/recipe/0/model.safetensors").exists()

    with pytest.raises(DataError, match="holds results already; add --resume"):
        quality.main(quality.Options(**about, seeds=(0,)))
    with pytest.raises(DataError, match="--parts is 0"):
        quality.main(quality.Options(**about, parts=0))
    with pytest.raises(DataError, match="was begun with"):
        quality.main(quality.Options(**about | {"seconds": 9.0}, resume=True))
    quality.main(quality.Options(**about, seeds=(0, 1), models=("llama",), resume=True))
    more = json.loads(report.read_text())
    added = set(more["runs"]) - set(found["runs"])
    assert added == {f"text_x / llama / {summary['llama']['way']} / 1"}, "only the best way, with the new seed"
    assert {key: more["runs"][key] for key in found["runs"]} == found["runs"]
    assert more["summary"]["text_x"].keys() == summary.keys() and more["summary"]["text_x"]["llama"]["seeds"] == 2
    row = more["runs"]["text_x / ours / recipe / 0"]
    assert len(row["pace"]) == 10 and sum(row["pace"]) / 10 == pytest.approx(row["steps"] / row["seconds"], rel=0.05)
    monkeypatch.setitem(recipes.NAMES, "text-small", lambda: tiny(128))
    with pytest.raises(DataError, match="text_x was begun with another text-small"):
        quality.main(quality.Options(**about, resume=True))
    report.write_text("[]")
    with pytest.raises(DataError, match="is not a file of this program"):
        quality.main(quality.Options(**about, resume=True))


def test_a_run_that_diverges_is_noted_and_the_others_go_on(
    suite: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    quality.main(
        quality.Options(
            suite=suite, sets=("text_x",), seconds=2.0, seeds=(0,), models=("megabyte-pytorch",), adamw_rates=(1e30,),
            muon_factors=(1.0, 0.5), valid_bytes=512, json=tmp_path / "quality.json",
        )
    )  # fmt: skip
    found = json.loads((tmp_path / "quality.json").read_text())
    lost = found["runs"]["text_x / megabyte-pytorch / AdamW 1e+30 / 0"]
    assert lost["test"] is None and "not finite" in lost["problem"] and lost["problem"] in capfd.readouterr().out
    assert "text_x / megabyte-pytorch / Muon x 0.5 / 0" in found["runs"]
    assert found["summary"]["text_x"]["megabyte-pytorch"]["way"] in ("Muon", "Muon x 0.5")
    nothing = quality.Results(quality.Options(suite=suite, json=tmp_path / "other.json"))
    nothing.found["runs"]["lost"] = lost
    assert nothing.of("text_x") == {}


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("video_x", "a set begins with text, code, image, audio"),
        ("text_x:pcm16", "only audio can end with :pcm16"),
        ("text_y", "holds no meta.json"),
        ("image_wide", r"has tiles of \[64, 64, 3\]"),
        ("code_bare", "must hold one file train"),
        ("audio_bare", "must have the rate of its samples"),
        ("image_one", "has 3,072 bytes, and the first of them are not scored"),
    ],
)
def test_what_cannot_be_compared_gets_a_line(suite: Path, tmp_path: Path, name: str, problem: str) -> None:
    for other, meta in (("image_wide", {"shape": [64, 64, 3]}), ("code_bare", {}), ("audio_bare", {})):
        write_set(tmp_path / other, "bin", {}, **meta)
    one = {split: [("a@0", bytes(3072))] * count for split, count in (("train", 2), ("valid", 2), ("test", 1))}
    write_set(tmp_path / "image_one", "bin", one, shape=[32, 32, 3])
    folder = tmp_path if (tmp_path / name).exists() else suite
    with pytest.raises(DataError, match=problem):
        quality.open_task(folder, name)
