"""What a model needs for a word of text, as models of words report it.

In: an evaluation, and the data that it is of. Out: bits and perplexity of a word. Cost: reads the text once.
"""

import math
from collections.abc import Collection

import numpy as np

from byteloom.codecs import text
from byteloom.corpus import Corpus
from byteloom.documents import DataError
from byteloom.evaluation import Evaluation

READ_AT_ONCE = 1 << 20
"""Bytes read from the disk at a time."""


def per_word(found: Evaluation, corpus: Corpus) -> dict[str, float | None]:
    """What a measured model needs per word of its text: `words`, `bits_per_word` and `perplexity_per_word`.

    A word is a run of bytes without white space (as in str.split of ASCII); it pays for the space around it, for marks
    and ends. None where there are no words, or a perplexity is beyond any float.

    Raises:
        DataError: there is no text.
    """
    check_text(found.by_modality)
    words, nats = count_words(corpus), found.by_modality[text.MODALITY]["nats"]
    each = nats / words if words else math.inf
    return {
        "words": words,
        "bits_per_word": each / math.log(2) if words else None,
        "perplexity_per_word": math.exp(each) if each < 700 else None,
    }


def check_text(modalities: Collection[str]) -> None:
    """Raises DataError where text is not among the modalities of the data."""
    if text.MODALITY not in modalities:
        raise DataError(f"words are counted in text, and the data hold {', '.join(modalities) or 'none'}")


def count_words(corpus: Corpus) -> int:
    """Runs of bytes without white space in all texts of a corpus. Cost: reads them once."""
    is_space = np.isin(np.arange(256), np.frombuffer(b" \t\n\r\v\f", np.uint8))
    words = 0
    for segment in np.flatnonzero(corpus.segment_marks == text.MARK):
        after_space = True
        for start in range(0, int(corpus.segment_lengths[segment]), READ_AT_ONCE):
            spaces = is_space[corpus.payload(int(segment), start, start + READ_AT_ONCE)]
            words += int((~spaces & np.append(after_space, spaces[:-1])).sum())
            after_space = spaces[-1]
    return words
