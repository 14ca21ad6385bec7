"""The stream: any range equals the slice of what documents lay out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_documents import documents as random_documents

from byteloom.codecs import MARKS
from byteloom.corpus import Corpus
from byteloom.documents import BOS, PAD, Document, to_ids
from byteloom.losses import VOCABULARY
from byteloom.packing import PackedStream


@given(documents=st.lists(random_documents, min_size=1, max_size=4), patch_size=st.integers(1, 7), data=st.data())
def test_any_range_is_a_slice_of_the_documents(documents: list[Document], patch_size: int, data: st.DataObject) -> None:
    stream = PackedStream(Corpus.from_documents(documents), patch_size)
    laid = []
    for document in documents:
        ids = to_ids(document, MARKS, patch_size)
        laid += ids.tolist() + [PAD] * (-len(ids) % patch_size)
    assert len(stream) == len(laid) and len(stream) % patch_size == 0
    start = data.draw(st.integers(0, len(laid)))
    stop = data.draw(st.integers(start, len(laid)))
    assert stream.read(start, stop).tolist() == laid[start:stop]
    position = data.draw(st.integers(0, len(laid) - 1))
    mark = PAD
    for value in laid[:position]:
        if value == BOS:
            mark = PAD
        elif VOCABULARY.first_mark <= value < VOCABULARY.end_of_marks:
            mark = value
    if laid[position] != BOS:
        assert stream.mark_at(position) == mark


def test_bad_ranges_are_refused() -> None:
    stream = PackedStream(Corpus.from_documents([Document(segments=())]), 4)
    assert np.array_equal(stream.read(0, 4), [BOS, 258, PAD, PAD])
    for start, stop in ((-1, 2), (3, 2), (0, 5)):
        with pytest.raises(IndexError):
            stream.read(start, stop)
    with pytest.raises(IndexError):
        stream.mark_at(4)
    with pytest.raises(ValueError, match="patch_size"):
        PackedStream(stream.corpus, 0)
