"""Words: counted as str.split counts them, and what they cost."""

import math

import configs
import pytest
from test_corpus import text
from test_evaluation import shown
from test_multiscale import TWO

from byteloom.corpus import Corpus
from byteloom.documents import DataError, Document
from byteloom.evaluation import evaluate
from byteloom.words import count_words, per_word


def test_words_are_what_split_makes_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byteloom.words.READ_AT_ONCE", 4)
    texts = [b"one two  three\nfour\t", b" five", b"", b"   ", b"six"]
    corpus = Corpus.from_documents([text(part, name=f"{i}") for i, part in enumerate(texts)])
    assert count_words(corpus) == sum(len(part.split()) for part in texts) == 6
    found = evaluate(configs.build(TWO), corpus)
    words = per_word(found, corpus)
    assert words["words"] == 6 and words["bits_per_word"] == pytest.approx(found.nats / math.log(2) / 6, rel=0.2)
    text_bits = found.by_modality["text"]["bits_per_byte"] * found.by_modality["text"]["bytes"]
    assert words["bits_per_word"] == pytest.approx(text_bits / 6)
    assert words["perplexity_per_word"] == pytest.approx(2 ** words["bits_per_word"])


def test_without_words_there_is_no_perplexity() -> None:
    model, spaces = configs.build(TWO), Corpus.from_documents([text(b"   ", name="s")])
    assert per_word(evaluate(model, spaces), spaces)["perplexity_per_word"] is None
    long = Corpus.from_documents([text(b"x" * 3000, name="x")])
    assert per_word(evaluate(model, long), long)["perplexity_per_word"] is None, "beyond any float"
    pictures = Corpus.from_documents([Document(segments=(shown(0),), name="p")])
    with pytest.raises(DataError, match="words are counted in text, and the data hold image"):
        per_word(evaluate(model, pictures), pictures)
