"""The items that data fall into, over which a standard error is taken: documents, or the segments of a file of many.

In: a corpus, or the stream that it is read as. Out: where items begin, how many a document is, and the error of a mean
over them. Cost: reads the stream once.
"""

import math

import numpy as np

from byteloom.corpus import Corpus
from byteloom.documents import BOS, FIRST_DIGIT, FIRST_MARK
from byteloom.packing import PackedStream

READ_AT_ONCE = 1 << 20
"""Ids read from the disk at a time."""


def item_counts(corpus: Corpus, fused: bool) -> np.ndarray:
    """How many items each document is (D,) int64: see `Evaluation.items`."""
    segments = np.diff(corpus.document_starts)
    if fused:  # there segments run side by side
        return np.ones(len(corpus), np.int64)
    document = np.repeat(np.arange(len(corpus)), segments)
    changes = (np.diff(corpus.segment_marks.astype(np.int64)) != 0) & (np.diff(document) == 0)
    mixed = np.zeros(len(corpus), bool)
    mixed[document[1:][changes]] = True
    return np.where(mixed, 1, np.maximum(segments, 1))


def item_starts(stream: PackedStream, fused: bool) -> np.ndarray:
    """Where the items of a stream begin (N,) int64: see `Evaluation.items`. Cost: reads the stream once."""
    corpus = stream.corpus
    segments = np.diff(corpus.document_starts)
    alone = np.repeat(item_counts(corpus, fused) > 1, segments)
    alone[corpus.document_starts[:-1][segments > 0]] = False  # there the document itself begins
    bos, marks = [], []
    for start in range(0, len(stream), READ_AT_ONCE):
        ids = stream.read(start, min(start + READ_AT_ONCE, len(stream)))
        bos.append(start + np.flatnonzero(ids == BOS))
        marks.append(start + np.flatnonzero((ids >= FIRST_MARK) & (ids < FIRST_DIGIT)))
    return np.sort(np.concatenate([*bos, np.concatenate([np.empty(0, np.int64), *marks])[alone]]))


def standard_error(items: np.ndarray) -> float | None:
    """The standard error of bits per byte over items (N, 2: nats and bytes); None for fewer than two.

    Of a ratio of sums: from how far each item's nats lie from what its bytes would need at the bits per byte of all.
    """
    nats, size = items[:, 0], items[:, 1]
    if len(items) < 2 or not size.sum():
        return None
    distances = nats - nats.sum() / size.sum() * size
    return math.sqrt(len(items) / (len(items) - 1) * (distances**2).sum()) / size.sum() / math.log(2)
