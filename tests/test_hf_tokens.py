"""Names of ids, and texts cut at the tokens that stand in them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AddedToken

from byteloom.codecs import MARKS
from byteloom.documents import EOS, PAD
from byteloom.hf.tokens import BYTE_IDS, BYTE_TOKENS, cut, names_of, pattern_of, to_bytes

ADDED = {
    "<cut>": (400, AddedToken("<cut>", lstrip=True, rstrip=True)),
    "one": (401, AddedToken("one", single_word=True)),
}
NAMES = names_of(330, MARKS)
KNOWN = {**{name: (i, AddedToken(name)) for i, name in NAMES.items()}, **ADDED}
PATTERN = pattern_of(330, MARKS, [token for _, token in ADDED.values()])


def pieces(text: str | bytes) -> list[tuple[int, bytes, int | None]]:
    return [piece for piece in cut(text, PATTERN, KNOWN.get) if piece[1]]


@pytest.mark.parametrize(("size", "count"), [(256, 1), (319, 1), (320, 64), (330, 74)])
def test_every_id_has_a_name_of_its_own(size: int, count: int) -> None:
    names = names_of(size, MARKS)
    assert sorted(names) == list(range(PAD, PAD + count))
    assert len({*names.values(), *BYTE_TOKENS}) == 256 + count == count + len(BYTE_IDS)


@given(parts=st.lists(st.one_of(st.text("aé <|", max_size=5), st.sampled_from(sorted(KNOWN))), max_size=6))
def test_pieces_are_the_text_where_it_stands(parts: list[str]) -> None:
    text = "".join(parts)
    data, end = text.encode(), 0
    for place, piece, value in pieces(text):
        assert data[place : place + len(piece)] == piece
        assert data[end:place].isspace() or place == end  # which a token took that strips
        assert value is None or KNOWN[piece.decode()][0] == value
        end = place + len(piece)
    assert data[end:].isspace() or end == len(data)


def test_where_texts_are_cut() -> None:
    assert pieces("a<|eos|>") == [(0, b"a", None), (1, b"<|eos|>", EOS)]
    assert pieces("é <cut> b") == [(0, "é".encode(), None), (3, b"<cut>", 400), (9, b"b", None)]
    assert pieces("one none") == [(0, b"one", 401), (3, b" none", None)]
    assert pieces("<|code_329|><|code_330|>") == [(0, b"<|code_329|>", 329), (12, b"<|code_330|>", None)]
    assert pieces(b"<|eos|>") == [*cut("<|eos|>", None, KNOWN.get)] == [(0, b"<|eos|>", None)]


@given(data=st.binary(max_size=30))
def test_surrogates_stand_for_bytes(data: bytes) -> None:
    assert to_bytes(data.decode("utf-8", "surrogateescape")) == data
    assert to_bytes("\ud800" + data.decode("utf-8", "surrogateescape")) == b"\xed\xa0\x80" + data
