"""Prompts as ids, and drafts from their beginning to the document that they become."""

import dataclasses

import numpy as np
import pytest
from configs import MODALITIES
from test_multiscale import TWO

from byteloom import codecs
from byteloom.codecs import audio
from byteloom.documents import EOS, PAD, Document, Segment
from byteloom.drafts import begin, finish, prompt_ids
from byteloom.layers.modalities import EmbedderConfig, StreamConfig

MODAL = dataclasses.replace(TWO, vocab_size=330, modalities=MODALITIES)


def fused(*streams: tuple[str, str]) -> object:
    embedder = EmbedderConfig(kind="fusion", streams=tuple(StreamConfig(name=n, size=2, role=r) for n, r in streams))
    return dataclasses.replace(TWO, embedder=embedder, tied_head=False)


def test_a_prompt_is_a_document_that_has_not_ended() -> None:
    assert prompt_ids("hé", 4, "text").tolist() == [257, 260, 256, 256, *"hé".encode()]
    document = Document(segments=(Segment(modality="bytes", data=np.array([1, 2], np.uint8)),))
    assert prompt_ids(document, 1, "text").tolist() == [257, 259, 1, 2]
    assert prompt_ids(np.array([5, 300, 70000]), 4, "text").tolist() == [5, 300, 70000]
    assert prompt_ids(Document(segments=()), 4, "text").tolist() == [257]
    assert codecs.MARKS["text"] == 260
    with pytest.raises(ValueError, match="one row"):
        prompt_ids(np.zeros((1, 2), np.int64), 4, "text")


def test_a_draft_begins_with_all_that_must_come() -> None:
    assert begin(MODAL, "").ids == [257, 260, PAD, PAD]
    assert begin(MODAL, np.array([257, 260])).ids == [257, 260, PAD, PAD]
    assert begin(MODAL, Document(segments=()), modalities=["image"]).ids == [257, 261]
    picture = Segment(modality="image", data=np.empty(0, np.uint8))
    assert begin(MODAL, Document(segments=(picture,))).ids == [257, 261]  # the header is the model's
    assert begin(MODAL, Document(segments=(picture,)), modalities=()).choices()[0].start == 304
    assert begin(MODAL, Document(segments=()), modalities=()).ended


def test_what_may_follow_is_the_models_or_the_callers() -> None:
    text = Document(segments=(Segment(modality="text", data=np.array([65], np.uint8)),))
    assert {c.start for c in begin(MODAL, text).choices()} == {0, EOS, 260, 261, 280}
    assert {c.start for c in begin(MODAL, "A").choices()} == {0, EOS}
    assert {c.start for c in begin(MODAL, "A", modalities=["codes"]).choices()} == {0, EOS, 280}
    assert {c.start for c in begin(TWO, text).choices()} == {0, EOS, *codecs.MARKS.values()}
    for wrong in ({"prompt": "A", "modalities": ["smell"]}, {"prompt": "A", "modality": "smell"}):
        with pytest.raises(ValueError, match="'smell' is unknown"):
            begin(MODAL, **wrong)
    with pytest.raises(ValueError, match="'audio' is unknown"):
        begin(MODAL, Document(segments=(Segment(modality="audio", data=np.array([1], np.uint8)),)))


def test_an_end_that_comes_too_early_is_not_chosen() -> None:
    draft = begin(MODAL, "A")
    assert {c.start for c in draft.choices(min_bytes=1)} == {0}
    draft.take(66, chosen=True)
    assert draft.count == 1 and {c.start for c in draft.choices(min_bytes=1)} == {0, EOS}
    empty = Segment(modality="image", data=np.zeros(3, np.uint8), header=bytes([0, 1, 0, 1, 0x30]))
    assert begin(MODAL, Document(segments=(empty,)), modalities=()).ended  # nothing else may come


def test_the_last_of_several_documents_is_finished() -> None:
    draft = begin(MODAL, np.array([257, 260, PAD, PAD, 65, EOS, PAD, PAD, 257, 280, PAD, PAD, 321]))
    (segment,) = finish(MODAL, draft).segments
    assert segment.modality == "codes" and segment.data.tolist() == [321]
    assert finish(MODAL, begin(TWO, np.array([65]))).segments[0].data.tolist() == [65]


def test_fused_prompts_are_documents_too() -> None:
    config = fused(("audio", "given"), ("text", "predicted"))
    sound = Segment(modality="audio", data=np.arange(6, dtype=np.uint8), header=audio.pack_header(8000, 1, "pcm8"))
    draft = begin(config, Document(segments=(sound,)))
    assert draft.ids[:2] == [257, 262] and draft.ids[10:] == [260, PAD, 0, 1]
    assert finish(config, draft) == Document(segments=(sound_of(sound, 2), text_of(b"")))
    again = begin(config, np.array([*draft.ids, 66, 67, 2, 3, 68]))
    assert again.ids == [*draft.ids, 66, 67, 2, 3, 68]
    assert begin(config, b"hi").ids[-6:] == [PAD, PAD, 104, 105, PAD, PAD]
    assert begin(config, "").ids == [257, 262, 260, PAD, PAD, PAD]


def test_a_stream_of_any_name_is_what_the_prompt_says() -> None:
    config = fused(("left", "given"), ("right", "predicted"))
    sounds = [Segment(modality="audio", data=np.array([i], np.uint8)) for i in range(2)]
    assert begin(config, Document(segments=tuple(sounds))).ids == [257, 262, 262]  # the second's header is the model's
    with pytest.raises(ValueError, match="'right' names no modality"):
        begin(config, Document(segments=(sounds[0],)))


def sound_of(sound: Segment, count: int) -> Segment:
    return dataclasses.replace(sound, data=sound.data[:count])


def text_of(data: bytes) -> Segment:
    return Segment(modality="text", data=np.frombuffer(data, np.uint8))
