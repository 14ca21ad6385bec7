"""Evaluation: every position scored once, each in the window that the method says; a brute-force twin."""

import dataclasses
import gzip
import itertools
import json
import math
from pathlib import Path

import configs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_corpus import text
from test_multiscale import BY_STAGES, THREE, TWO

from byteloom import cli
from byteloom.codecs import MARKS
from byteloom.corpus import Corpus
from byteloom.documents import DataError, Document, Segment, to_fused_ids
from byteloom.evaluation import (
    baselines,
    evaluate,
    first_bytes,
    plan,
    predicted_part,
)
from byteloom.layers.modalities import EmbedderConfig, StreamConfig
from byteloom.models.config import ModalityConfig, ModelConfig, StageConfig
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import save
from byteloom.packing import PackedStream

METHODS = ["basic", "sliding", "strided", "sliding-strided"]


@settings(max_examples=300)
@given(
    length=st.integers(0, 200),
    half=st.integers(1, 4),
    patches=st.integers(2, 9),
    method=st.sampled_from(METHODS),
    data=st.data(),
)
def test_every_position_is_scored_once(length: int, half: int, patches: int, method: str, data: st.DataObject) -> None:
    patch, context = 2 * half, 2 * half * patches
    stride = data.draw(st.sampled_from([None, patch, context]))
    scored = np.zeros(length, int)
    for window in plan(length, context, patch, method, stride):
        assert 0 <= window.start <= window.first < window.stop <= length and window.stop - window.start <= context
        for t in range(window.first, window.stop):
            scored[t] += not window.half or (t - window.start) % patch < half
    assert (scored == 1).all()


def test_sliding_windows_score_what_has_the_longest_past() -> None:
    assert plan(16, 8, 2, "sliding") == [(0, 8, 0, False), (4, 12, 8, False), (8, 16, 12, False)]
    assert plan(6, 4, 4, "strided") == [(0, 4, 0, True), (4, 6, 4, True), (2, 6, 2, True)]


def test_bad_plans_are_refused() -> None:
    with pytest.raises(ValueError, match="hold a patch"):
        plan(10, 3, 4)
    with pytest.raises(ValueError, match="even number"):
        plan(10, 9, 3, "strided")
    with pytest.raises(ValueError, match="stride"):
        plan(10, 8, 4, "sliding", 3)


def brute_force(model: Multiscale, ids: np.ndarray, context: int, method: str) -> np.ndarray:
    """Nats of each position: for each, find its window from the definition, run plain forward on it, look it up."""
    patch = model.config.span(0)
    step = context if method in ("basic", "strided") else context // 2 // patch * patch
    nats = np.zeros(len(ids))
    for t in range(len(ids)):
        late_half = "strided" in method and t % patch >= patch // 2
        begin = patch // 2 if late_half else 0
        start = begin
        while start + context <= t:  # the first window in which t lies has the longest past
            start += step
        window = torch.from_numpy(ids[start : min(start + context, len(ids))].astype(np.int64)).unsqueeze(0)
        with torch.no_grad():
            nats[t] = F.cross_entropy(model(window)[0], window[0], reduction="none")[t - start]
    return nats


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_stages", [2, 3])
def test_each_method_equals_a_brute_force_one(method: str, num_stages: int) -> None:
    model = configs.build(BY_STAGES[num_stages])
    corpus = Corpus.from_documents([text(b"some words", b"more", name="a"), text(b"and another text", name="b")])
    stream = PackedStream(corpus, model.config.span(0))
    ids = stream.read(0, len(stream))
    context = 4 * model.config.span(0)
    nats = brute_force(model, ids, context, method)
    found = evaluate(model, corpus, method=method, context=context, batch_size=3)
    counted = ids != 256
    assert found.bytes == 30
    assert found.nats == pytest.approx(nats[counted].sum(), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats[counted].sum() / math.log(2) / 30, rel=1e-5)
    is_byte = ids < 256
    for place, bits in enumerate(found.by_position_in_patch):
        here = is_byte & (np.arange(len(ids)) % model.config.span(0) == place)
        assert bits == pytest.approx(nats[here].mean() / math.log(2), rel=1e-5)
    assert found.by_modality["text"]["bytes"] == 30


def test_parts_sum_to_the_whole_and_all_is_json() -> None:
    model = configs.build(TWO)
    report = evaluate(model, bytes(range(256)) * 2, context=32).to_json()
    assert {"bits_per_byte", "bytes", "nats", "method", "by_modality", "by_position_in_patch"} <= set(report)
    assert list(report["by_modality"]) == ["bytes"]
    bins = report["by_position_in_context"]
    assert bins[0]["start"] == 0 and bins[-1]["stop"] == 32
    assert all(a["stop"] == b["start"] for a, b in itertools.pairwise(bins))
    weight = [sum((t % 32) in range(e["start"], e["stop"]) for t in range(5, 517)) for e in bins]
    mean = sum(w * (e["bits_per_byte"] or 0) for w, e in zip(weight, bins)) / 512
    per_patch = sum(report["by_position_in_patch"]) / 4
    assert mean == pytest.approx(per_patch, rel=1e-6)


def test_a_uniform_model_needs_the_logarithm_of_its_vocabulary() -> None:
    model = configs.build(TWO)
    with torch.no_grad():
        model.embedders[-1].table.weight.zero_()
    found = evaluate(model, b"x" * 1000)
    assert found.nats / math.log(2) == pytest.approx(1003 * math.log2(320), rel=1e-5)


def test_evaluation_agrees_with_the_loss_and_leaves_the_model_as_it_was() -> None:
    model = configs.build(THREE).train()
    corpus = Corpus.from_documents([text(b"abcdefghijk", name="a")])
    stream = PackedStream(corpus, 6)
    loss = model.loss(torch.from_numpy(stream.read(0, len(stream)).astype(np.int64)).unsqueeze(0))
    found = evaluate(model, stream)
    assert found.nats == pytest.approx(float(loss.nats), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(loss.bits_per_byte, rel=1e-5)
    assert model.training
    assert evaluate(model, corpus, max_bytes=5).bytes == 5


@pytest.mark.parametrize("shares", [2, 3])
def test_shares_together_measure_what_one_does(shares: int) -> None:
    model = configs.build(TWO)
    corpus = Corpus.from_documents([text(bytes(range(60)), name=f"{i}") for i in range(4)])
    whole, sums = evaluate(model, corpus, context=32, batch_size=2), []

    def note(part: np.ndarray) -> np.ndarray:
        sums.append(part)
        return part

    parts = [evaluate(model, corpus, context=32, batch_size=2, share=(i, shares), total=note) for i in range(shares)]
    assert sum(part.bytes for part in parts) == whole.bytes and all(part.bytes < whole.bytes for part in parts)
    assert sum(part.nats for part in parts) == pytest.approx(whole.nats, rel=1e-6)
    assert len(sums) == 4 * shares


# -- items, modalities, streams --------------------------------------------------------------------------------------


def shown(number: int, size: int = 6) -> Segment:
    """A picture of one row of grey."""
    data = np.random.default_rng(number).integers(0, 256, size, np.uint8)
    return Segment(modality="image", data=data, header=bytes([0, size, 0, 1, 16]))


def sound(data: bytes, coding: int) -> Segment:
    """A mono sound of 8 kHz in that coding."""
    return Segment(modality="audio", data=np.frombuffer(data, np.uint8), header=bytes([0, 0x1F, 0x40, coding]))


def per_item(model: Multiscale, corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """Nats and bytes of each document, as all of the corpus in one window costs."""
    stream = PackedStream(corpus, model.config.span(0))
    ids = torch.from_numpy(stream.read(0, len(stream)).astype(np.int64)).unsqueeze(0)
    with torch.no_grad():
        nats = model.nats(ids)[0].double().numpy()
    ids = ids[0].numpy()
    document = np.cumsum(ids == 257) - 1
    return np.bincount(document, nats * (ids != 256)), np.bincount(document, ids < 256)


def test_the_standard_error_is_that_of_a_ratio_over_documents() -> None:
    model = configs.build(TWO)
    random = np.random.default_rng(0)
    documents = [text(random.integers(32, 127, 20 + 3 * i).astype(np.uint8).tobytes(), name=f"{i}") for i in range(30)]
    corpus = Corpus.from_documents(documents)
    nats, size = per_item(model, corpus)
    whole = evaluate(model, corpus, context=len(PackedStream(corpus, 4)))
    assert whole.items == 30 and whole.nats == pytest.approx(nats.sum(), rel=1e-5)
    ratio = nats.sum() / size.sum()
    expected = math.sqrt(30 / 29 * sum((n - ratio * s) ** 2 for n, s in zip(nats, size))) / size.sum() / math.log(2)
    assert whole.standard_error == pytest.approx(expected, rel=1e-4)
    drawn = random.integers(0, 30, (4000, 30))
    bootstrap = (nats[drawn].sum(1) / size[drawn].sum(1) / math.log(2)).std()
    assert whole.standard_error == pytest.approx(bootstrap, rel=0.1)
    for method in METHODS:
        assert evaluate(model, corpus, method=method, context=64).items == 30
    assert evaluate(model, corpus.head(10)).standard_error is None


TELLING = dataclasses.replace(
    TWO,
    modalities=(ModalityConfig(name="image", mark=261), ModalityConfig(name="text", mark=260)),
    embedder=EmbedderConfig(kind="specific", positions=8),
    heads="by_modality",
)


def by_windows(model: Multiscale, stream: PackedStream, method: str, context: int) -> tuple[float, float]:
    """Nats of all windows, each told what came before it, and where none is told."""
    ids = torch.from_numpy(stream.read(0, len(stream)).astype(np.int64))
    total, untold = 0.0, 0.0
    for window in plan(len(stream), context, 4, method):
        part = ids[window.start : window.stop].unsqueeze(0)
        places = torch.arange(window.start, window.stop)
        counted = (places >= window.first) & (not window.half or (places - window.start) % 4 < 2)
        before = {
            "mark": torch.tensor([stream.mark_at(window.start)]),
            "since": torch.tensor([stream.since_at(window.start)]),
        }
        with torch.no_grad():
            total += float(model.loss(part, counted=counted, **before).nats)
            untold += float(model.loss(part, counted=counted).nats)
    return total, untold


@pytest.mark.parametrize("method", METHODS)
def test_windows_know_what_came_before_them(method: str) -> None:
    model = configs.build(TELLING)
    corpus = Corpus.from_documents(
        [Document(segments=(shown(0, 30), *text(b"and some words about it", name="").segments, shown(1, 21)))]
    )
    total, untold = by_windows(model, PackedStream(corpus, 4), method, 12)
    found = evaluate(model, corpus, method=method, context=12, batch_size=2)
    assert found.nats == pytest.approx(total, rel=1e-5) and total != pytest.approx(untold, rel=1e-3)
    assert {name: part["bytes"] for name, part in found.by_modality.items()} == {"text": 23, "image": 51}
    assert found.bytes == 74 and "none" not in found.by_modality


def test_a_modality_that_the_model_does_not_know_is_refused() -> None:
    with pytest.raises(DataError, match=r"hold bytes \(mark 259\), .* tells apart text \(260\), image \(261\)"):
        evaluate(configs.build(TELLING), b"\xff\xfe")


def test_samples_wider_than_a_byte_have_bits_of_their_own() -> None:
    model = configs.build(TWO)
    wide, narrow = sound(b"abcdefgh", 1), sound(b"abcdefgh", 4)
    both = [Document(segments=(wide,), name="w"), Document(segments=(shown(0),), name="p")]
    found = evaluate(model, Corpus.from_documents(both)).by_modality
    assert found["audio"]["bits_per_sample"] == 2 * found["audio"]["bits_per_byte"]
    assert "bits_per_sample" not in found["image"] and "bits_per_dimension" not in found["audio"]
    assert found["image"]["bits_per_dimension"] == found["image"]["bits_per_byte"]
    for segments in ((narrow,), (wide, narrow), (Segment(modality="audio", data=wide.data, header=b"?"),)):
        found = evaluate(model, Corpus.from_documents([Document(segments=segments, name="x")])).by_modality
        assert "bits_per_sample" not in found["audio"]


FUSED = dataclasses.replace(
    TWO,
    embedder=EmbedderConfig(
        kind="fusion",
        positions=16,
        streams=(
            StreamConfig(name="picture", size=1, role="given"),
            StreamConfig(name="words", size=2),
            StreamConfig(name="sound", size=1),
        ),
    ),
    heads="by_modality",
)


def side_by_side(length: int, name: str) -> Document:
    words = text(b"w" * 2 * length, name="").segments
    return Document(segments=(shown(0, length), *words, sound(b"s" * length, 4)), name=name)


def test_of_a_fused_model_the_predicted_streams_are_measured() -> None:
    model = configs.build(FUSED)
    corpus = Corpus.from_documents([side_by_side(9, "a"), side_by_side(5, "b"), side_by_side(7, "c")])
    stream = PackedStream(corpus, 4, [1, 2, 1])
    ids = torch.from_numpy(stream.read(0, len(stream)).astype(np.int64)).unsqueeze(0)
    with torch.no_grad():
        loss = model.loss(ids)
    found = evaluate(model, corpus, context=len(stream))
    assert found.nats == pytest.approx(float(loss.nats), rel=1e-5) and found.bytes == int(loss.bytes) == 63
    for name, row in (("words", 2), ("sound", 3)):
        assert found.by_modality[name]["nats"] == pytest.approx(float(loss.table[row, 0]), rel=1e-5)
        assert found.by_modality[name]["bytes"] == loss.table[row, 2]
    assert set(found.by_modality) == {"words", "sound"} and found.items == 3 and found.standard_error is not None
    assert found.by_position_in_patch[0] is None and None not in found.by_position_in_patch[1:]
    for method in ("basic", "sliding"):
        total, untold = by_windows(model, stream, method, 8)
        found = evaluate(model, corpus, method=method, context=8, batch_size=2)
        assert found.bytes == 63 and found.nats == pytest.approx(total, rel=1e-5) and total != pytest.approx(untold)
    with pytest.raises(ValueError, match="fused model"):
        evaluate(model, corpus, method="strided")
    assert predicted_part(corpus, FUSED).num_bytes == 63 and predicted_part(corpus, TWO) is corpus


def test_fused_documents_are_cut_in_all_streams_at_the_same_time() -> None:
    corpus = Corpus.from_documents([side_by_side(9, "a"), side_by_side(20, "b"), side_by_side(7, "c")])
    found = first_bytes(corpus, 36 + 17, FUSED)
    assert [[len(segment.data) for segment in found[i].segments] for i in range(2)] == [[9, 18, 9], [5, 10, 5]]
    assert found[1].segments[0].header == corpus[1].segments[0].header
    assert first_bytes(corpus, 10**6, FUSED).num_bytes == corpus.num_bytes
    assert first_bytes(corpus, 50, TWO).num_bytes == 50


def test_learned_positions_limit_the_context() -> None:
    stage = StageConfig(dim=16, num_layers=1, num_heads=2, position="learned", max_positions=16)
    with pytest.raises(ValueError, match="end at 16"):
        evaluate(configs.build(ModelConfig(stages=(stage,), context=16)), b"x", context=17)


@pytest.mark.parametrize("name", ["context", "batch_size", "max_bytes"])
def test_numbers_below_one_are_refused(name: str) -> None:
    for value in (0, -1):
        with pytest.raises(ValueError, match=f"{name} is {value}; it must be at least 1"):
            evaluate(configs.build(TWO), b"some text", **{name: value})


def test_baselines_are_the_compressors_own_sizes() -> None:
    data = b"the same words again and again, " * 200 + bytes(range(256))
    found = baselines(data)
    assert set(found) == {"gzip", "bzip2", "xz", "zstd"}
    assert found["gzip"]["bytes"] == len(gzip.compress(data, 9))
    assert found["gzip"]["bits_per_byte"] == found["gzip"]["bytes"] * 8 / len(data)
    parts = Corpus.from_documents([text(data[:1000], name="a"), text(data[1000:], name="b")])
    assert baselines(parts)["gzip"] == found["gzip"]
    assert baselines(data, max_bytes=100) == baselines(data[:100])
    tokens = Segment(modality="tokens", data=np.resize([400, 500, 600], 900).astype(np.uint16))
    of_tokens = baselines(Corpus.from_documents([Document(segments=(tokens,))], {"tokens": 280}))["gzip"]
    assert of_tokens["bytes"] == len(gzip.compress(tokens.data.tobytes(), 9))
    assert of_tokens["bits_per_byte"] == 8 * of_tokens["bytes"] / 900, "by id, as a model's"


REPEATED = b"the quick brown fox jumps over the lazy dog. " * 40


def test_the_command_says_all_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(configs.build(TWO), tmp_path / "run", {"modalities": ["text"]})
    save(configs.build(TWO), tmp_path / "[/run]", {"modalities": ["text"]})
    broken = configs.build(TWO)
    torch.nn.init.constant_(broken.starts[0], float("nan"))
    save(broken, tmp_path / "broken")
    (tmp_path / "a.txt").write_bytes(REPEATED)
    command = ["evaluate", str(tmp_path / "run"), str(tmp_path / "a.txt"), "--no-baseline", "--batch-size", "1"]
    cli.main([*command, "--dynamic", "--dynamic-rate", "0.003", "--noise", "0.1", "--words", "--json", "-"])
    report = json.loads(capsys.readouterr().out)
    assert report["dynamic"] == 0.003 and report["words"] == len(REPEATED.split())
    assert report["noisy"]["noise"] == 0.1 and 0 < report["noisy"]["bytes"] < report["bytes"] == len(REPEATED)
    assert report["noisy"]["bits_per_byte"] != report["bits_per_byte"] and report["noise"] == 0
    monkeypatch.chdir(tmp_path)  # for a name that is not broken into lines
    cli.main(["evaluate", "[/run]", *command[2:], "--noise", "0.1", "--words"])
    said = capsys.readouterr().out
    assert "with 10.0% of the bytes replaced:" in said and "by word:" in said
    assert "[/run]" in said, "no markup of rich"
    (tmp_path / "p.ppm").write_bytes(b"P6 2 1 255\n" + bytes(6))
    pictures = ["evaluate", command[1], str(tmp_path / "p.ppm"), "--no-baseline"]
    for code, arguments, expected in (
        (2, [*command, "--dynamic", "--method", "strided"], "take basic or sliding"),
        (2, [*command, "--dynamic", "--weights", "int8"], "int8 ones do not learn"),
        (2, [*command, "--max-bytes", "0"], "--max-bytes is 0; give at least 1"),
        (2, [*command, "--batch-size", "-1"], "--batch-size is -1"),
        (2, [*command, "--context", "0"], "--context is 0"),
        (1, ["evaluate", str(tmp_path / "broken"), *command[2:]], "broken: the model gives logits that are no numbers"),
        (2, [*command, "--noise", "2"], "--noise is 2.0"),
        (2, [*command, "--json", str(tmp_path / "a.txt")], "is what this command reads"),
        (1, [*pictures, "--words"], "the data hold image"),
    ):
        if "broken" not in expected and "strided" not in arguments:  # what can be seen before the work is
            monkeypatch.setattr("byteloom.commands.evaluate.evaluate", lambda *_, **__: pytest.fail("it was measured"))
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == code and expected in capsys.readouterr().err
        monkeypatch.undo()


@pytest.mark.parametrize("roles", [("predicted", "past"), ("given", "predicted"), ("given", "predicted", "past")])
def test_streams_that_are_context_may_stand_anywhere(roles: tuple[str, ...]) -> None:
    streams = tuple(StreamConfig(name=role, size=2, role=role) for role in roles)
    first = dataclasses.replace(TWO.stages[0], patch_size=2 * len(roles))
    config = dataclasses.replace(
        TWO,
        stages=(first, TWO.stages[1]),
        embedder=EmbedderConfig(kind="fusion", streams=streams),
        heads="by_modality",
        context=10 * 2 * len(roles),
    )
    model = configs.build(config)
    part = Segment(modality="bytes", data=np.arange(14, dtype=np.uint8))
    found = evaluate(model, Corpus.from_documents([Document(segments=(part,) * len(roles))]))
    ids = to_fused_ids(Document(segments=(part,) * len(roles)), MARKS, [2] * len(roles)).astype(np.int64)
    loss = model.loss(torch.from_numpy(ids).unsqueeze(0))
    assert found.bytes == 14 and list(found.by_modality) == ["predicted"]
    assert found.nats == pytest.approx(float(loss.nats.detach()), rel=1e-5)
