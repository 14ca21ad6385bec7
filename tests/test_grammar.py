"""The grammar against the layouts of `documents`: all that it allows is one, and all of one is allowed."""

import random
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byteloom import codecs
from byteloom.documents import BOS, EOS, PAD, Document, Segment, from_fused_ids, from_ids, to_fused_ids, to_ids
from byteloom.grammar import (
    DIGITS,
    END,
    PADDING,
    Choices,
    FlatGrammar,
    FusedGrammar,
    Modality,
    Stream,
    by_stream,
    modalities_of,
    only,
)


def codec_of(header_bytes: int, sized: bool) -> ModuleType:
    """A codec whose header says how many ids there are (two bytes: the product of their low digits), or not."""
    codec = ModuleType("codec")
    codec.HEADER_BYTES = header_bytes

    def payload_size(header: bytes) -> int | None:
        assert len(header) == header_bytes
        if header[:1] == b"\xff":
            raise ValueError("makes no sense")
        return (header[0] & 15) * (header[1] & 15) if sized else None

    codec.payload_size = payload_size
    return codec


TEXT = Modality(name="text", mark=260, codec=codec_of(0, False))
PICTURE = Modality(name="image", mark=261, codec=codec_of(2, True))
SOUND = Modality(name="audio", mark=262, codec=codec_of(1, False))
TOKENS = Modality(name="tokens", mark=280, ids=range(70000, 70009))
ALL = [TEXT, PICTURE, SOUND, TOKENS]
BY_MARK = {modality.mark: modality for modality in ALL}
MARKS = {modality.name: modality.mark for modality in ALL}
OPENS: Choices = tuple(range(mark, mark + 1) for mark in BY_MARK)


def allows(choices: Choices, value: int) -> bool:
    return any(value in part for part in choices)


def flat(ids: np.ndarray | list[int] = (), patch_size: int = 1, opens: Choices = OPENS) -> FlatGrammar:
    grammar = FlatGrammar(modalities=BY_MARK, opens=opens, patch_size=patch_size)
    for value in ids:
        grammar.read(int(value))
    return grammar


def walk(grammar: FlatGrammar | FusedGrammar, seed: int, ids: list[int], most: int = 400) -> np.ndarray:
    """Goes on with any of the ids allowed, and with an end as soon as there are `most` and it may."""
    draw = random.Random(seed)
    while not ids or ids[-1] != EOS:
        choices = grammar.choices()
        ends = len(ids) >= most and allows(choices, EOS)
        ids.append(EOS if ends else draw.choice(draw.choice(choices)))
        grammar.read(ids[-1])
        assert len(ids) < 3000
    return np.array(ids)


@st.composite
def segments(draw: st.DrawFn, modality: Modality, smallest: int = 1) -> Segment:
    if modality is PICTURE:
        header = bytes(draw(st.tuples(st.integers(1, 4), st.integers(1, 4))))
        size = header[0] * header[1]
    else:
        header = draw(st.binary(min_size=modality.num_digits // 2, max_size=modality.num_digits // 2))
        size = draw(st.integers(smallest, 9))
    data = [draw(st.sampled_from(modality.ids)) for _ in range(size)]
    return Segment(modality=modality.name, data=np.array(data, np.uint32), header=header)


@given(parts=st.lists(st.sampled_from(ALL).flatmap(segments), max_size=5), patch_size=st.integers(1, 7))
def test_every_document_is_allowed(parts: list[Segment], patch_size: int) -> None:
    grammar = flat(patch_size=patch_size, opens=OPENS if parts else ())
    for value in to_ids(Document(segments=tuple(parts)), MARKS, patch_size).tolist():
        assert allows(grammar.choices(), value)
        grammar.read(value)


@given(seed=st.integers(0, 2**31), patch_size=st.integers(1, 7))
def test_all_that_is_allowed_is_a_document(seed: int, patch_size: int) -> None:
    ids = walk(flat(patch_size=patch_size), seed, [])
    document = from_ids(ids, MARKS)
    assert to_ids(document, MARKS, patch_size).tolist() == ids.tolist()
    for segment in document.segments:
        if segment.modality == "image" and segment.header[0] != 255:
            assert len(segment.data) == (segment.header[0] & 15) * (segment.header[1] & 15)


@given(parts=st.lists(st.sampled_from(ALL).flatmap(segments), min_size=1, max_size=3), cut=st.integers(0, 99))
def test_a_document_cut_anywhere_is_gone_on_with(parts: list[Segment], cut: int) -> None:
    ids = to_ids(Document(segments=tuple(parts)), MARKS, 4).tolist()[:-1][:cut]
    whole = walk(flat(ids, patch_size=4), 1, list(ids))
    assert whole[: len(ids)].tolist() == ids
    assert to_ids(from_ids(whole, MARKS), MARKS, 4).tolist() == whole.tolist()


def test_a_picture_ends_exactly_where_its_header_says() -> None:
    grammar = flat([BOS, 261, 304, 306, 304, 305], patch_size=4)
    assert [only(grammar.choices()) for _ in range(2) if grammar.read(PAD) is None] == [PAD, None]
    grammar.read(5)
    assert grammar.choices() == (range(256),)
    grammar.read(5)
    assert grammar.choices() == (*END, *OPENS)
    assert only(flat([BOS, 261, 304, 306, 304, 305, 5, 5], opens=()).choices()) == EOS


def test_a_header_is_as_long_as_its_modality_says() -> None:
    assert flat([BOS]).choices() == OPENS
    assert flat([BOS, 260]).choices() == (range(256), *END)
    assert [flat([BOS, 261, *[305] * n]).choices() for n in range(4)] == [DIGITS] * 4
    assert flat([BOS, 261, *[305] * 4]).choices() == (range(256),)
    assert flat([BOS, 280]).choices() == (range(70000, 70009), *END)
    assert flat([BOS, 260], patch_size=4).choices() == PADDING


def test_senseless_and_missing_headers_let_data_run_until_it_ends() -> None:
    assert flat([BOS, 261, 319, 319, 304, 304, 7]).choices() == (range(256), *END, *OPENS)
    assert flat([BOS, 261, PAD, PAD, 7], patch_size=4).choices() == (range(256), *END, *OPENS)


def test_an_empty_segment_is_followed_by_no_other() -> None:
    assert flat([BOS, 260, 7]).choices() == (range(256), *END, *OPENS)
    assert flat([BOS, 260]).choices() == (range(256), *END)
    assert flat([BOS, 261, 304, 304, 304, 307]).choices() == END


def test_whatever_a_prompt_is_it_can_be_gone_on_with() -> None:
    assert only(flat([]).choices()) == BOS
    assert flat([7, 300]).choices() == (range(256), *END)  # an unknown mark opens bytes
    assert flat([7]).choices() == (range(256), *END, *OPENS)
    assert flat([BOS, 261, 305, EOS, PAD, BOS]).choices() == OPENS
    assert flat([BOS, 305, 305]).choices() == OPENS
    assert only(flat([BOS], opens=()).choices()) == EOS


def test_text_is_known() -> None:
    assert flat([BOS, 260]).in_text and not flat([BOS]).in_text and not flat([BOS, 261]).in_text


STREAMS = [
    Stream(modality=PICTURE, size=3, predicted=False),
    Stream(modality=SOUND, size=2, predicted=True),
    Stream(modality=TOKENS, size=1, predicted=True),
]


@given(data=st.data(), predicted=st.lists(st.booleans(), min_size=3, max_size=3), cuts=st.lists(st.integers(0, 9)))
def test_every_fused_document_is_allowed_after_each_of_its_beginnings(
    data: st.DataObject, predicted: list[bool], cuts: list[int]
) -> None:
    streams = [
        Stream(modality=stream.modality, size=stream.size, predicted=flag) for stream, flag in zip(STREAMS, predicted)
    ]
    parts = [data.draw(segments(stream.modality)) for stream in streams]
    sizes = [stream.size for stream in streams]
    prompt = []
    for part, stream, cut in zip(parts, streams, [*cuts, 0, 0, 0]):
        kept = part.data[:cut] if stream.predicted else part.data
        prompt.append(Segment(modality=part.modality, data=kept, header=part.header))
    grammar = FusedGrammar(streams, Document(segments=tuple(prompt)))
    ids = to_fused_ids(Document(segments=tuple(parts)), MARKS, sizes).tolist()
    bound = max([-(-len(p.data) // s.size) for p, s in zip(parts, streams) if not s.predicted], default=None)
    given = max(-(-len(p.data) // s.size) for p, s in zip(prompt, streams))
    for value in ids[: ids.index(EOS) + 1]:
        choices = grammar.choices()
        if bound is not None and given < len(ids) // sum(sizes) and only(choices) == EOS:
            return  # as long as what is given
        place = grammar.places[(grammar.position - len(grammar.head)) % sum(sizes)][0]
        assert allows(choices, value) or (value == PAD and streams[place].predicted)  # one that has ended before
        grammar.read(value if allows(choices, value) else choices[0].start)


@given(seed=st.integers(0, 2**31), patches=st.integers(1, 4), header=st.sampled_from([b"", b"\x07"]))
def test_what_is_given_stands_in_its_places(seed: int, patches: int, header: bytes) -> None:
    picture = Segment(modality="image", data=np.arange(3 * patches, dtype=np.uint8), header=b"\x01\x02")
    sound = Segment(modality="audio", data=np.array([1, 2, 3], np.uint8), header=header)
    whole = walk(FusedGrammar(STREAMS, Document(segments=(picture, sound))), seed, [])
    document = from_fused_ids(whole, MARKS, [3, 2, 1])
    patches = max(patches, 2)  # as the sound needs
    assert document.segments[0] == picture
    assert document.segments[1].data[:3].tolist() == [1, 2, 3] and document.segments[1].header[: len(header)] == header
    assert [len(segment.data) for segment in document.segments[1:]] == [2 * patches, patches]
    assert to_fused_ids(document, MARKS, [3, 2, 1]).tolist() == [*whole.tolist(), *[PAD] * 5]


def test_without_what_is_given_nothing_says_where_the_end_is() -> None:
    grammar, ids = FusedGrammar(STREAMS, Document(segments=())), []
    while len(ids) < 100:
        ids.append(grammar.choices()[0].start)
        grammar.read(ids[-1])
    document = from_fused_ids(np.array(ids), MARKS, [3, 2, 1])
    assert EOS not in ids and [len(segment.data) for segment in document.segments] == [0, 31, 15]


@given(seed=st.integers(0, 2**31))
def test_predicted_streams_end_at_a_patch_border(seed: int) -> None:
    streams = [Stream(modality=modality, size=2, predicted=True) for modality in (SOUND, TOKENS)]
    whole = walk(FusedGrammar(streams, Document(segments=())), seed, [], most=40)
    assert (len(whole) - 1) % 4 == 0
    document = from_fused_ids(whole, MARKS, [2, 2])
    assert to_fused_ids(document, MARKS, [2, 2]).tolist() == [*whole.tolist(), PAD, PAD, PAD]


def test_predicted_streams_end_where_their_headers_say() -> None:
    streams = [Stream(modality=PICTURE, size=2, predicted=True), Stream(modality=PICTURE, size=4, predicted=True)]
    empty = np.empty(0, np.uint8)
    parts = [Segment(modality="image", data=empty, header=bytes(sides)) for sides in ((1, 5), (3, 1))]
    grammar, choices = FusedGrammar(streams, Document(segments=tuple(parts))), []
    while only(choices[-1] if choices else PADDING) != EOS:
        choices.append(grammar.choices())
        grammar.read(choices[-1][0].start)
    found = ["-" if part == PADDING else "x" for part in choices[12:-1]]
    assert "".join(found) == "xxxxx-" + "xx----" + "x-----"


def test_segments_find_their_streams() -> None:
    sound = Segment(modality="audio", data=np.array([1], np.uint8))
    found = by_stream(Document(segments=(sound,)), STREAMS).segments
    assert [(segment.modality, len(segment.data)) for segment in found] == [("image", 0), ("audio", 1), ("tokens", 0)]
    for wrong in ((sound, sound), (Segment(modality="text", data=sound.data),)):
        with pytest.raises(ValueError, match="image, audio, tokens"):
            by_stream(Document(segments=wrong), STREAMS)


def test_modalities_come_from_what_is_declared_or_from_all_codecs() -> None:
    assert {name: m.mark for name, m in modalities_of().items()} == codecs.MARKS
    found = modalities_of([("text", 260, range(256), 0), ("codes", 290, range(320, 330), 2)])
    assert found["codes"].num_digits == 4 and found["text"].num_digits == 0
    assert found["text"].codec is codecs.by_modality("text") and found["codes"].codec is None
    assert found["codes"].ids == range(320, 330)
