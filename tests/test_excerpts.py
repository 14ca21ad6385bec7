"""What is shown of a corpus: parts of all of it, which fit what the model can see and write."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_multiscale import TWO

from byteloom import codecs
from byteloom.codecs import audio, image, video
from byteloom.corpus import Corpus
from byteloom.documents import Document, Segment
from byteloom.drafts import prompt_ids
from byteloom.excerpts import FRAMES, SECONDS, begin_with, evenly, excerpts
from byteloom.layers.modalities import EmbedderConfig, StreamConfig

WIDE = dataclasses.replace(TWO, context=1 << 20)


def one(*segments: Segment) -> Document:
    return Document(segments=segments, name="x")


def text(data: str | bytes, modality: str = "text") -> Segment:
    data = data.encode() if isinstance(data, str) else data
    return Segment(modality=modality, data=np.frombuffer(data, np.uint8))


def picture(height: int = 4, width: int = 4) -> Segment:
    return image.from_array(np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3))


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(1, 8))
def test_places_lie_evenly_over_all(lengths: list[int], count: int) -> None:
    places = evenly(np.array(lengths, np.int64), count)
    assert all(0 <= offset < lengths[nth] for nth, offset in places)
    at = [sum(lengths[:nth]) + offset for nth, offset in places]
    assert at == [int((i + 0.5) * sum(lengths) / count) for i in range(count if any(lengths) else 0)]


def test_each_modality_is_shown_from_all_over_its_data() -> None:
    long = text("".join(f"{i:06}\n" for i in range(10000)))
    corpus = Corpus.from_documents([one(*[picture()] * 10), one(long), one(text("short"))])
    found = excerpts(corpus, WIDE, 4, 50)
    kinds = [document.segments[0].modality for document in found]
    assert kinds == ["text"] * 4 + ["image"] * 4, "a segment each of what holds many of a kind"
    starts = [document.segments[0].data.tobytes() for document in found[:4]]
    lines = [int(start[start.index(b"\n") :].split()[0]) for start in starts]
    np.testing.assert_allclose(lines, [1250, 3750, 6250, 8750], atol=2)
    assert {len(start) for start in starts} == {4096}
    assert len(excerpts(Corpus.from_documents([one(text("short"))]), WIDE, 4, 50)) == 1, "nothing twice"
    accents = excerpts(Corpus.from_documents([one(text("漢" * 9999))]), WIDE, 7, 50)
    assert all(document.segments[0].data[0] == "漢".encode()[0] for document in accents)


def test_sounds_and_videos_are_cut_to_whole_samples_and_frames() -> None:
    sound = audio.from_array(np.zeros((60000, 2), np.int16), 4000)
    clip = video.from_array(np.zeros((30, 6, 4, 3), np.uint8), 5)
    for config in (WIDE, TWO):
        heard, seen = excerpts(Corpus.from_documents([one(sound), one(clip)]), config, 1, 61)
        size = len(heard.segments[0].data)
        assert size == (SECONDS * 4000 * 4 if config is WIDE else size // 4 * 4) <= config.context + 61
        assert len(seen.segments[0].data) == FRAMES * 72
        begun, left_out = begin_with(heard, config, codecs.MARKS, 61)
        assert len(begun.segments[0].data) % 4 == 0 and 0 < left_out <= 61 + 4 + 4


@given(st.integers(0, 300), st.integers(0, 200), st.sampled_from([0, 5]), st.integers(16, 300))
def test_a_beginning_fits_the_context(size: int, most: int, before: int, context: int) -> None:
    """... with what stands before, and leaves no more than is to be written, where it can."""
    config = dataclasses.replace(TWO, context=context)
    segments = [text(b"a" * before)] * bool(before) + [text(bytes(size), "bytes")]
    begun, left_out = begin_with(one(*segments), config, codecs.MARKS, most)
    kept = len(begun.segments[-1].data)
    assert kept + left_out == size and len(begun.segments) == len(segments)
    wanted, ids = max(size // 2, size - most), len(prompt_ids(begun, config.span(0), "text"))
    if left_out:
        assert ids < context and (kept == wanted or ids == context - 1)
    else:
        assert wanted == size or ids - kept >= context, "nothing is to be written, or there is no room"


def test_a_document_of_several_modalities_is_shown_as_far_as_the_context_goes() -> None:
    page = one(text("a" * 20), picture(), text("b" * 50), picture(8, 8))
    config = dataclasses.replace(TWO, context=150)
    (found,) = excerpts(Corpus.from_documents([page, page]), config, 1, 16)
    assert [segment.modality for segment in found.segments] == ["text", "image", "text"]
    assert len(found.segments[1].data) == 48, "a picture is whole"
    begun, left_out = begin_with(found, config, codecs.MARKS, 16)
    assert 0 < left_out <= 25 and len(prompt_ids(begun, 4, "text")) < 150
    (found,) = excerpts(Corpus.from_documents([page]), WIDE, 3, 16)
    assert len(found.segments) == 4


def test_streams_are_cut_at_the_same_time() -> None:
    streams = (StreamConfig(name="bytes", size=3, role="given"), StreamConfig(name="text", size=1))
    config = dataclasses.replace(
        TWO, embedder=EmbedderConfig(kind="fusion", streams=streams), tied_head=False, context=64
    )
    page = one(text(bytes(300), "bytes"), text("a" * 100))
    (found,) = excerpts(Corpus.from_documents([page]), config, 1, 4)
    sizes = [len(segment.data) for segment in found.segments]
    assert sizes[0] == 3 * sizes[1] and sum(sizes) <= 64
    begun, left_out = begin_with(found, config, codecs.MARKS, 4)
    assert len(begun.segments[0].data) == sizes[0] and left_out == pytest.approx(4, abs=1)
