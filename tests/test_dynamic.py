"""Dynamic evaluation: scored before it is learned from, equal to a loop by hand, and forgotten at the end."""

import dataclasses
import math

import configs
import numpy as np
import pytest
import torch
from test_corpus import text
from test_evaluation import TELLING, shown
from test_multiscale import TWO

from byteloom.corpus import Corpus
from byteloom.documents import DataError, Document
from byteloom.dynamic import TABLES, learning
from byteloom.evaluation import evaluate, plan
from byteloom.packing import PackedStream

REPEATED = b"the quick brown fox jumps over the lazy dog. " * 40


@pytest.mark.parametrize("method", ["basic", "sliding"])
def test_a_model_that_keeps_learning_needs_less_and_is_put_back(method: str) -> None:
    model = configs.build(TWO).train()
    model.starts[0].requires_grad_(False)
    gradient = torch.ones_like(model.starts[1])
    model.starts[1].grad = gradient
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    still = evaluate(model, REPEATED, method=method, context=64)
    learned = evaluate(model, REPEATED, method=method, context=64, dynamic=0.003)
    assert learned.bits_per_byte < 0.9 * still.bits_per_byte and learned.bytes == still.bytes
    assert learned.dynamic == 0.003 and still.dynamic is None
    assert model.training and model.starts[1].grad is gradient
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert sum(weight.grad is not None for weight in model.parameters()) == 1
    barely = evaluate(model, REPEATED, method=method, context=64, dynamic=1e-12)
    assert barely.nats == pytest.approx(still.nats, rel=1e-5)


@pytest.mark.parametrize("method", ["basic", "sliding"])
def test_dynamic_evaluation_equals_windows_scored_and_learned_by_hand(method: str) -> None:
    model, twin = configs.build(TELLING), configs.build(TELLING)
    corpus = Corpus.from_documents([Document(segments=(shown(0, 90), *text(b"words about it", name="").segments))])
    stream = PackedStream(corpus, 4)
    optimizer, total = torch.optim.Adam(twin.parameters(), lr=0.01, betas=(0.9, 0.98)), 0.0
    for window in plan(len(stream), 16, 4, method):
        ids = torch.from_numpy(stream.read(window.start, window.stop).astype(np.int64)).unsqueeze(0)
        counted = torch.arange(window.start, window.stop) >= window.first
        before = {
            "mark": torch.tensor([stream.mark_at(window.start)]),
            "since": torch.tensor([stream.since_at(window.start)]),
        }
        loss = twin.loss(ids, counted=counted, **before)
        total += float(loss.nats.detach())
        optimizer.zero_grad()
        (loss.nats / loss.count.clamp(min=1)).backward()
        optimizer.step()
    found = evaluate(model, corpus, method=method, context=16, dynamic=0.01)
    assert found.nats == pytest.approx(total, rel=1e-5)
    assert found.nats != pytest.approx(evaluate(model, corpus, method=method, context=16).nats, rel=1e-2)


def test_tables_of_strings_learn_by_adagrad_and_are_put_back() -> None:
    finest = dataclasses.replace(TWO.stages[-1], ngrams=(2, 3), ngram_rows=50)
    config = dataclasses.replace(TWO, stages=(*TWO.stages[:-1], finest))
    model, twin = configs.build(config), configs.build(config)
    (table,), total, rate = twin.string_tables, 0.0, 0.003
    rest = [weight for weight in twin.parameters() if weight is not table.weight]
    optimizers = [
        torch.optim.Adam(rest, lr=rate, betas=(0.9, 0.98)),
        torch.optim.Adagrad([table.weight], lr=TABLES * rate),
    ]
    for begin in range(0, len(REPEATED), 64):
        loss = twin.loss(torch.tensor([list(REPEATED[begin : begin + 64])]))
        total += float(loss.nats.detach())
        (loss.nats / loss.count).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    before = model.string_tables[0].weight.detach().clone()
    with learning(model, rate) as learn:
        found = 0.0
        for begin in range(0, len(REPEATED), 64):
            ids = torch.tensor([list(REPEATED[begin : begin + 64])])
            found += float(learn(ids, torch.ones_like(ids, dtype=torch.bool), False).sum())
    assert found == pytest.approx(total, rel=1e-5)
    assert torch.equal(model.string_tables[0].weight, before) and not model.string_tables[0].sparse
    assert not torch.equal(table.weight, before)


def test_what_comes_later_changes_nothing_that_a_learning_model_scored_before() -> None:
    model = configs.build(TWO)
    first = [text(REPEATED[i : i + 61], name=f"{i}") for i in range(0, 610, 61)]
    other = text(bytes(range(33, 94)), name="other")

    def scores(documents: list[Document], batch_size: int) -> np.ndarray:
        corpus = Corpus.from_documents(documents)
        return evaluate(model, corpus, context=32, method="sliding", dynamic=0.01, batch_size=batch_size).by_item

    for batch_size in (1, 3):
        whole = scores(first, batch_size)
        for changed in (2, 7):
            found = scores([*first[:changed], other, *first[changed + 1 :]], batch_size)
            assert np.array_equal(found[:changed], whole[:changed])
            assert (found[changed:, 0] != whole[changed:, 0]).all(), "and everything later knows of it"


def test_weights_are_put_back_when_data_fail_halfway(monkeypatch: pytest.MonkeyPatch) -> None:
    model = configs.build(TWO)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    read, calls = PackedStream.read, []

    def failing(stream: PackedStream, start: int, stop: int) -> np.ndarray:
        calls.append(start)
        if len(calls) == 6:
            raise DataError("gone")
        return read(stream, start, stop)

    monkeypatch.setattr(PackedStream, "read", failing)
    with pytest.raises(DataError, match="gone"):
        evaluate(model, REPEATED, context=64, dynamic=0.01)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_dynamic_evaluation_that_would_cheat_is_refused() -> None:
    model = configs.build(TWO)
    for method in ("strided", "sliding-strided"):
        with pytest.raises(ValueError, match="take basic or sliding"):
            evaluate(model, REPEATED, method=method, dynamic=0.01)
    with pytest.raises(ValueError, match="by one process"):
        evaluate(model, REPEATED, dynamic=0.01, share=(0, 2))
    for rate in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="must be above 0"):
            evaluate(model, REPEATED, dynamic=rate)
    with pytest.raises(ValueError, match="some weights must learn"):
        evaluate(model.requires_grad_(False), REPEATED, dynamic=0.01)
