"""Noise: the same wherever a window begins, like the data, and never scored."""

import configs
import numpy as np
import pytest
import torch
from test_corpus import text
from test_multiscale import TWO

from byteloom.corpus import Corpus
from byteloom.documents import Document
from byteloom.evaluation import evaluate
from byteloom.noise import byte_frequencies, noise_at
from byteloom.packing import PackedStream


def test_noise_is_a_function_of_the_place_and_looks_like_the_data() -> None:
    frequencies = np.zeros(256, np.int64)
    frequencies[[65, 66]] = 1, 3
    chosen, values = noise_at(0, 20000, 0.1, 7, frequencies)
    assert chosen.mean() == pytest.approx(0.1, abs=0.01)
    assert set(values.tolist()) == {65, 66} and (values == 66).mean() == pytest.approx(0.75, abs=0.02)
    for start, stop in ((0, 1), (4095, 4097), (5000, 13000)):
        for part, whole in zip(noise_at(start, stop, 0.1, 7, frequencies), (chosen, values)):
            assert np.array_equal(part, whole[start:stop])
    assert not np.array_equal(noise_at(0, 20000, 0.1, 8, frequencies)[0], chosen)


def test_of_noisy_data_what_is_left_is_scored_after_the_noise() -> None:
    model = configs.build(TWO)
    data = np.random.default_rng(0).integers(32, 127, 300, np.uint8).tobytes()
    corpus = Corpus.from_documents([text(data, name="a")])
    stream = PackedStream(corpus, 4)
    ids = stream.read(0, len(stream)).astype(np.int64)
    chosen, values = noise_at(0, len(ids), 0.2, 3, byte_frequencies(stream))
    chosen &= ids < 256
    noisy = torch.from_numpy(np.where(chosen, values, ids)).unsqueeze(0)
    with torch.no_grad():
        nats = model.nats(noisy)[0].double().numpy()
    found = evaluate(model, corpus, context=len(ids), noise=0.2, seed=3)
    assert found.bytes == 300 - chosen.sum() < 300 and found.noise == 0.2
    assert found.nats == pytest.approx(nats[~chosen & (ids != 256)].sum(), rel=1e-5)
    assert evaluate(model, corpus, noise=0.2, seed=4).bytes != 300
    assert evaluate(model, corpus, method="sliding", context=32, noise=0.2, seed=3).bytes == found.bytes
    with pytest.raises(ValueError, match=r"noise is 1.0; it is a share"):
        evaluate(model, corpus, noise=1.0)
    with pytest.raises(ValueError, match="the data hold none"):
        evaluate(model, Corpus.from_documents([Document(segments=(), name="empty")]), noise=0.1)
