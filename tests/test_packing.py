"""The stream: any range equals the slice of what documents lay out."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_documents import documents as random_documents
from test_documents import stream_sizes

from byteloom.codecs import MARKS
from byteloom.corpus import Corpus
from byteloom.documents import BOS, PAD, Document, Segment, to_fused_ids, to_ids
from byteloom.losses import VOCABULARY, marks_in_force, places_in_segment
from byteloom.packing import PackedStream


def assert_reads(stream: PackedStream, laid: list[int], data: st.DataObject) -> None:
    assert len(stream) == len(laid) and len(stream) % stream.patch_size == 0
    start = data.draw(st.integers(0, len(laid)))
    stop = data.draw(st.integers(start, len(laid)))
    assert stream.read(start, stop).tolist() == laid[start:stop]
    mark, since = PAD, 0
    ids = torch.tensor([laid])
    assert marks_in_force(ids)[0].tolist() == [stream.mark_at(position) for position in range(len(laid))]
    places = places_in_segment(ids, None, stream.patch_size if stream.streams else None)[0].tolist()
    assert places == [stream.since_at(position) for position in range(len(laid))]
    for position, value in enumerate(laid):
        assert stream.mark_at(position) == mark
        assert stream.streams or stream.since_at(position) == since
        mark = PAD if value == BOS else mark
        if VOCABULARY.first_mark <= value < VOCABULARY.end_of_marks:
            mark = value
        since = since + 1 if value < 256 or value >= VOCABULARY.end_of_reserved else 0


@given(documents=st.lists(random_documents, min_size=1, max_size=4), patch_size=st.integers(1, 7), data=st.data())
def test_any_range_is_a_slice_of_the_documents(documents: list[Document], patch_size: int, data: st.DataObject) -> None:
    stream = PackedStream(Corpus.from_documents(documents), patch_size)
    laid = []
    for document in documents:
        ids = to_ids(document, MARKS, patch_size)
        laid += ids.tolist() + [PAD] * (-len(ids) % patch_size)
    assert_reads(stream, laid, data)


@given(documents=st.lists(random_documents, min_size=1, max_size=4), sizes=stream_sizes, data=st.data())
def test_any_range_is_a_slice_of_fused_documents(
    documents: list[Document], sizes: list[int], data: st.DataObject
) -> None:
    stream = PackedStream(Corpus.from_documents(documents), sum(sizes), sizes)
    laid = [to_fused_ids(document, MARKS, sizes).tolist() for document in documents]
    assert_reads(stream, list(itertools.chain(*laid)), data)


def test_streams_of_equal_length_are_one_run_of_payload() -> None:
    parts = (np.arange(40, dtype=np.uint8), np.arange(20, dtype=np.uint8))
    both = Document(segments=tuple(Segment(modality="bytes", data=part) for part in parts))
    stream = PackedStream(Corpus.from_documents([both]), 6, (4, 2))
    assert [stream.since_at(position) for position in (6, 7, 42, 66, 67)] == [0, 1, 36, 60, -5]


def test_wide_ids_are_read_as_they_are() -> None:
    for largest, dtype in ((65535, np.uint16), (2**32 - 1, np.uint32)):
        data = np.array([5, largest], dtype)
        stream = PackedStream(
            Corpus.from_documents([Document(segments=(Segment(modality="codes", data=data),))], {"codes": 280}), 2
        )
        ids = stream.read(0, len(stream))
        assert ids.dtype == dtype and ids.tolist() == [BOS, 280, 5, largest, 258, PAD]


def test_bad_ranges_are_refused() -> None:
    stream = PackedStream(Corpus.from_documents([Document(segments=())]), 4)
    assert np.array_equal(stream.read(0, 4), [BOS, 258, PAD, PAD])
    for start, stop in ((-1, 2), (3, 2), (0, 5)):
        with pytest.raises(IndexError):
            stream.read(start, stop)
    for ask in (stream.mark_at, stream.since_at):
        with pytest.raises(IndexError):
            ask(4)


def test_bad_layouts_are_refused() -> None:
    one = Segment(modality="text", data=np.zeros(1, np.uint8))
    corpus = Corpus.from_documents([Document(segments=(one, one), name="twins")])
    with pytest.raises(ValueError, match="patch_size"):
        PackedStream(corpus, 0)
    with pytest.raises(ValueError, match="patch_size is 4; the streams"):
        PackedStream(corpus, 4, (1, 2))
    with pytest.raises(ValueError, match="twins: has 2 segments for 1 streams"):
        PackedStream(corpus, 3, (3,))
