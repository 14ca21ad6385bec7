"""Documents to ids and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byteloom.codecs import MARKS
from byteloom.documents import BOS, EOS, PAD, Document, Segment, from_ids, to_ids

payloads = st.one_of(
    st.binary(max_size=20).map(lambda data: np.frombuffer(data, np.uint8)),
    st.lists(st.one_of(st.integers(0, 255), st.integers(320, 65535)), max_size=8).map(lambda x: np.array(x, np.uint16)),
)
documents = st.lists(
    st.builds(lambda modality, data: Segment(modality=modality, data=data), st.sampled_from(sorted(MARKS)), payloads),
    max_size=4,
).map(lambda segments: Document(segments=tuple(segments)))


@given(document=documents, patch_size=st.integers(1, 9))
def test_ids_give_the_document_back(document: Document, patch_size: int) -> None:
    ids = to_ids(document, MARKS, patch_size)
    assert from_ids(ids, MARKS) == document
    assert ids[0] == BOS and ids[-1] == EOS
    marks = np.flatnonzero(np.isin(ids, list(MARKS.values())))
    assert len(marks) == len(document.segments)
    assert not (marks % patch_size).any()
    assert (ids == PAD).sum() == len(ids) - 2 - len(marks) - sum(len(s.data) for s in document.segments)


@given(document=documents, patch_size=st.integers(1, 5), data=st.data())
def test_a_stream_cut_anywhere_still_reads(document: Document, patch_size: int, data: st.DataObject) -> None:
    ids = to_ids(document, MARKS, patch_size)
    cut = from_ids(ids[: data.draw(st.integers(0, len(ids)))], MARKS)
    for short, whole in zip(cut.segments, document.segments):
        assert short.modality == whole.modality
        assert np.array_equal(short.data, whole.data[: len(short.data)])


@given(ids=st.lists(st.integers(0, 400), max_size=30))
def test_nothing_that_a_model_writes_is_an_error(ids: list[int]) -> None:
    for segment in from_ids(np.array(ids, np.int64), MARKS).segments:
        assert not ((segment.data >= 256) & (segment.data < 320)).any()


def test_ids_before_a_mark_are_bytes_and_nothing_counts_after_the_end() -> None:
    document = from_ids(np.array([65, 66, PAD, MARKS["text"], 67, EOS, 68]), MARKS)
    assert [(s.modality, bytes(s.data)) for s in document.segments] == [("bytes", b"AB"), ("text", b"C")]


def test_bad_payload_is_refused() -> None:
    with pytest.raises(ValueError, match="one-dimensional"):
        Segment(modality="text", data=np.zeros(3))
    reserved = Document(segments=(Segment(modality="text", data=np.array([300], np.uint16)),))
    with pytest.raises(ValueError, match="reserved"):
        to_ids(reserved, MARKS)
    unknown = Document(segments=(Segment(modality="smell", data=np.zeros(1, np.uint8)),))
    with pytest.raises(ValueError, match="'smell' is unknown"):
        to_ids(unknown, MARKS)
    with pytest.raises(ValueError, match="patch_size"):
        to_ids(Document(segments=()), MARKS, 0)
    with pytest.raises(ValueError, match="between 0 and 65535"):
        from_ids(np.array([-1]), MARKS)
    with pytest.raises(ValueError, match="one row"):
        from_ids(np.zeros((2, 2), np.int64), MARKS)
