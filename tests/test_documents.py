"""Documents to ids and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byteloom.codecs import MARKS
from byteloom.documents import (
    BOS,
    EOS,
    FIRST_DIGIT,
    PAD,
    Document,
    Segment,
    from_fused_ids,
    from_ids,
    to_fused_ids,
    to_ids,
)

payloads = st.one_of(
    st.binary(max_size=20).map(lambda data: np.frombuffer(data, np.uint8)),
    st.lists(st.one_of(st.integers(0, 255), st.integers(320, 65535)), max_size=8).map(lambda x: np.array(x, np.uint16)),
    st.lists(st.one_of(st.integers(0, 255), st.integers(320, 2**32 - 1)), max_size=8).map(
        lambda x: np.array(x, np.uint32)
    ),
)
documents = st.lists(
    st.builds(
        lambda modality, data, header: Segment(modality=modality, data=data, header=header),
        st.sampled_from(sorted(MARKS)),
        payloads,
        st.one_of(st.just(b""), st.binary(max_size=16)),
    ),
    max_size=4,
).map(lambda segments: Document(segments=tuple(segments)))
stream_sizes = st.lists(st.integers(1, 5), min_size=4, max_size=5)

TEXT, BYTES = MARKS["text"], MARKS["bytes"]


@given(document=documents, patch_size=st.integers(1, 9))
def test_ids_give_the_document_back(document: Document, patch_size: int) -> None:
    ids = to_ids(document, MARKS, patch_size)
    assert from_ids(ids, MARKS) == document
    assert ids[0] == BOS and ids[-1] == EOS
    end = 1
    for segment in document.segments:  # a MARK directly after what stood before, data on a patch border
        assert ids[end] == MARKS[segment.modality]
        digits = end + 1 + 2 * len(segment.header)
        assert ((ids[end + 1 : digits] >= FIRST_DIGIT) & (ids[end + 1 : digits] < 320)).all()
        start = -(-digits // patch_size) * patch_size
        assert (ids[digits:start] == PAD).all()
        end = start + len(segment.data)
        assert np.array_equal(ids[start:end], segment.data)
    assert end == len(ids) - 1


@given(document=documents, patch_size=st.integers(1, 5), data=st.data())
def test_a_stream_cut_anywhere_still_reads(document: Document, patch_size: int, data: st.DataObject) -> None:
    ids = to_ids(document, MARKS, patch_size)
    cut = from_ids(ids[: data.draw(st.integers(0, len(ids)))], MARKS)
    for short, whole in zip(cut.segments, document.segments):
        assert short.modality == whole.modality
        assert np.array_equal(short.data, whole.data[: len(short.data)])
        assert whole.header.startswith(short.header)
        assert short.header == whole.header or not len(short.data)


@given(ids=st.lists(st.one_of(st.integers(0, 400), st.integers(256, 320)), max_size=60), sizes=stream_sizes)
def test_nothing_that_a_model_writes_is_an_error(ids: list[int], sizes: list[int]) -> None:
    row = np.array(ids, np.int64)
    for document in (from_ids(row, MARKS), from_fused_ids(row, MARKS, sizes)):
        for segment in document.segments:
            assert not ((segment.data >= 256) & (segment.data < 320)).any()


def test_a_stream_is_laid_out_as_the_page_says() -> None:
    picture = Segment(modality="bytes", data=np.array([7, 8], np.uint8), header=b"\xab\x01")
    page = Document(segments=(Segment(modality="text", data=np.frombuffer(b"Hi!", np.uint8)), picture))
    digits = [FIRST_DIGIT + 10, FIRST_DIGIT + 11, FIRST_DIGIT, FIRST_DIGIT + 1]
    assert to_ids(page, MARKS, 4).tolist() == [
        *(BOS, TEXT, PAD, PAD),
        *(72, 105, 33, BYTES),
        *digits,
        *(7, 8, EOS),
    ]
    assert to_ids(page, MARKS).tolist() == [BOS, TEXT, 72, 105, 33, BYTES, *digits, 7, 8, EOS]
    assert to_ids(Document(segments=()), MARKS, 4).tolist() == [BOS, EOS]


def test_ids_before_a_mark_are_bytes_and_nothing_counts_after_the_end() -> None:
    document = from_ids(np.array([65, 66, PAD, TEXT, 67, EOS, 68]), MARKS)
    assert [(s.modality, bytes(s.data)) for s in document.segments] == [("bytes", b"AB"), ("text", b"C")]
    document = from_ids(np.array([BOS, TEXT, 67, BOS, TEXT, 68]), MARKS)
    assert [(s.modality, bytes(s.data)) for s in document.segments] == [("text", b"C")]


def test_only_digits_right_after_a_mark_are_a_header() -> None:
    one, two = FIRST_DIGIT + 1, FIRST_DIGIT + 2
    for ids, header in (
        ([TEXT, one, two, one, 65], b"\x12"),  # an odd last digit
        ([TEXT, PAD, one, two, 65], b""),
        ([TEXT, 65, one, two], b""),
        ([TEXT, *([one] * 40), 65], b"\x11" * 16),  # more than any header
        ([TEXT, one, two], b"\x12"),
    ):
        (segment,) = from_ids(np.array(ids), MARKS).segments
        assert segment.header == header
        assert bytes(segment.data) == (b"A" if 65 in ids else b"")


@given(document=documents, sizes=stream_sizes, data=st.data())
def test_fused_ids_give_the_document_back(document: Document, sizes: list[int], data: st.DataObject) -> None:
    ids = to_fused_ids(document, MARKS, sizes)
    assert from_fused_ids(ids, MARKS, sizes) == document
    assert len(ids) % sum(sizes) == 0 and ids[-sum(sizes)] == EOS
    cut = from_fused_ids(ids[: data.draw(st.integers(0, len(ids)))], MARKS, sizes)
    for short, whole in zip(cut.segments, document.segments):
        assert short.modality == whole.modality
        assert np.array_equal(short.data, whole.data[: len(short.data)])


def test_streams_stand_side_by_side() -> None:
    film = Segment(modality="bytes", data=np.arange(5, dtype=np.uint8), header=b"\x0f")
    sound = Segment(modality="text", data=np.array([65, 66], np.uint8))
    head = [BOS, BYTES, FIRST_DIGIT, FIRST_DIGIT + 15, TEXT, PAD]
    assert to_fused_ids(Document(segments=(film, sound)), MARKS, (2, 1)).tolist() == [
        *head,
        *(0, 1, 65),
        *(2, 3, 66),
        *(4, PAD, PAD),
        *(EOS, PAD, PAD),
    ]
    assert to_fused_ids(Document(segments=(film,)), MARKS, (5, 1)).tolist() == [
        *(*head[:4], PAD, PAD),
        *(0, 1, 2, 3, 4, PAD),
        *(EOS, PAD, PAD, PAD, PAD, PAD),
    ]
    assert to_fused_ids(Document(segments=()), MARKS, (1, 1)).tolist() == [BOS, PAD, EOS, PAD]


def test_the_dtype_is_as_wide_as_the_ids() -> None:
    for largest, dtype in ((255, np.uint16), (65535, np.uint16), (65536, np.uint32)):
        document = Document(segments=(Segment(modality="text", data=np.array([largest], np.uint32)),))
        assert to_ids(document, MARKS).dtype == dtype
        assert to_fused_ids(document, MARKS, (2,)).dtype == dtype
        assert from_ids(np.array([TEXT, largest]), MARKS) == document


def test_bad_documents_are_refused() -> None:
    with pytest.raises(ValueError, match="one-dimensional"):
        Segment(modality="text", data=np.zeros(3))
    with pytest.raises(ValueError, match="header of a text segment has 17 bytes"):
        Segment(modality="text", data=np.zeros(1, np.uint8), header=bytes(17))
    one = Segment(modality="text", data=np.zeros(1, np.uint8))
    reserved = Document(segments=(Segment(modality="text", data=np.array([300], np.uint16)),))
    unknown = Document(segments=(Segment(modality="smell", data=np.zeros(1, np.uint8)),))
    for document, message in ((reserved, "reserved"), (unknown, "'smell' is unknown")):
        with pytest.raises(ValueError, match=message):
            to_ids(document, MARKS)
        with pytest.raises(ValueError, match=message):
            to_fused_ids(document, MARKS, (1,))
    with pytest.raises(ValueError, match="2 segments for 1 streams"):
        to_fused_ids(Document(segments=(one, one)), MARKS, (1,))


def test_bad_layouts_and_ids_are_refused() -> None:
    empty = Document(segments=())
    with pytest.raises(ValueError, match="patch_size"):
        to_ids(empty, MARKS, 0)
    for sizes in ((), (2, 0)):
        with pytest.raises(ValueError, match="sizes"):
            to_fused_ids(empty, MARKS, sizes)
        with pytest.raises(ValueError, match="sizes"):
            from_fused_ids(np.array([BOS]), MARKS, sizes)
    with pytest.raises(ValueError, match="between 0 and 4294967295"):
        from_ids(np.array([-1]), MARKS)
    with pytest.raises(ValueError, match="one row"):
        from_ids(np.zeros((2, 2), np.int64), MARKS)
