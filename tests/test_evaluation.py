"""Evaluation: every position scored once, each in the window that the method says; a brute-force twin."""

import gzip
import itertools
import math

import configs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_corpus import text
from test_multiscale import BY_STAGES, THREE, TWO

from byteloom.corpus import Corpus
from byteloom.evaluation import baselines, evaluate, plan
from byteloom.models.config import ModelConfig, StageConfig
from byteloom.models.multiscale import Multiscale
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


def test_learned_positions_limit_the_context() -> None:
    stage = StageConfig(dim=16, num_layers=1, num_heads=2, position="learned", max_positions=16)
    with pytest.raises(ValueError, match="end at 16"):
        evaluate(configs.build(ModelConfig(stages=(stage,), context=16)), b"x", context=17)


def test_baselines_are_the_compressors_own_sizes() -> None:
    data = b"the same words again and again, " * 200 + bytes(range(256))
    found = baselines(data)
    assert set(found) == {"gzip", "bzip2", "xz", "zstd"}
    assert found["gzip"]["bytes"] == len(gzip.compress(data, 9))
    assert found["gzip"]["bits_per_byte"] == found["gzip"]["bytes"] * 8 / len(data)
    parts = Corpus.from_documents([text(data[:1000], name="a"), text(data[1000:], name="b")])
    assert baselines(parts)["gzip"] == found["gzip"]
    assert baselines(data, max_bytes=100) == baselines(data[:100])
