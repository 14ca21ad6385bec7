"""Names of documents: end to end, picked, and read from a file."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byteloom import names
from byteloom.documents import DataError
from byteloom.names import ENCODING, Names, NamesInFile

any_names = st.lists(st.text(st.characters(), max_size=6), max_size=5)  # lone surrogates too, as in names of files


def in_file(strings: list[str]) -> NamesInFile:
    parts = [string.encode(*ENCODING) for string in strings]
    return NamesInFile(np.frombuffer(b"".join(parts), np.uint8), np.cumsum([0, *map(len, parts)])[1:])


@given(parts=st.lists(any_names, max_size=4), data=st.data())
def test_names_are_as_a_list_of_them(parts: list[list[str]], data: st.DataObject) -> None:
    flat = [name for part in parts for name in part]
    found = Names([in_file(part) if number % 2 else part for number, part in enumerate(parts)])
    assert found == flat and list(found) == flat and len(found) == len(flat)
    assert [found[i] for i in range(-len(flat), len(flat))] == flat * 2
    rows = data.draw(st.lists(st.integers(0, len(flat) - 1), max_size=6) if flat else st.just([]))
    some = found.take(np.array(rows, np.int64))
    assert list(some) == [flat[row] for row in rows] and list(some[1:]) == list(some)[1:]
    assert Names([some, found]) == list(some) + flat
    for index in (len(flat), -len(flat) - 1):
        with pytest.raises(IndexError):
            found[index]


def test_names_differ_from_others() -> None:
    found = Names([("a", "b")])
    assert found != ("a",) and found != ("a", "c") and found != 3 and found == Names([["a"], ["b"]])
    assert repr(Names(["abcd"])) == "Names('a', 'b', 'c', ...)"


def test_a_file_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "READ_AT_ONCE", 3)
    strings = ["", "a", "é", "", "\udcff", "bc", "x"]
    assert list(in_file(strings)) == strings == [in_file(strings)[i] for i in range(7)]


def test_what_is_no_name_is_said() -> None:
    found = NamesInFile(np.array([255], np.uint8), np.array([1]))
    for read in (lambda: found[0], lambda: list(found)):
        with pytest.raises(DataError, match="no UTF-8"):
            read()
