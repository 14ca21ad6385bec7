"""The comparison's page: one file, nothing from outside, all entries and files in it."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from test_comparison import WORDS, measured, picture
from test_corpus import text

from byteloom.comparison import Comparison, compare
from byteloom.comparison_page import SHOWN_FILES, page
from byteloom.corpus import Corpus
from byteloom.documents import Document


class Balanced(HTMLParser):
    """Fails on an element that is closed where it was not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Opens nothing."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def mixed() -> Comparison:
    documents = [text(WORDS, name="a<b>.txt"), Document(segments=(picture(0), picture(1)), name="album.bin")]
    corpus = Corpus.from_documents(documents)
    return compare({"<first>": measured(corpus), "second": measured(corpus, 1)})


def test_a_page_is_whole_and_needs_nothing_else(mixed: Comparison) -> None:
    shown = page(mixed, "Mine & <theirs>")
    parser = Balanced()
    parser.feed(shown)
    assert parser.open == []
    assert "<h1>Mine &amp; &lt;theirs&gt;</h1>" in shown and "<first>" not in shown and "<b>" not in shown
    assert not re.findall(r'(?:src|href)="(?!#)[^"]+"', shown) and "url(http" not in shown
    for name in ("&lt;first&gt;", "second", "xz", "PNG", "a&lt;b&gt;.txt", "album.bin"):
        assert f"<td>{name}</td>" in shown or f"<th>{name}</th>" in shown, name


def test_plots_are_those_that_say_something(mixed: Comparison) -> None:
    assert page(mixed).count("<svg") == 5
    one = Corpus.from_documents([text(WORDS, name="a")])
    shown = page(compare({"m": measured(one)}, others=False))
    assert shown.count("<svg") == 3 and "By file" not in shown


def test_the_best_is_marked_and_many_files_are_cut() -> None:
    corpus = Corpus.from_documents([text(WORDS[: 9 + i % 50], name=f"file {i}") for i in range(SHOWN_FILES + 7)])
    found = compare({"m": measured(corpus)}, others=False)
    shown = page(found)
    assert '<tr class="model best"><td>m</td>' in shown
    assert f"<td>file {SHOWN_FILES - 1}</td>" in shown and f"<td>file {SHOWN_FILES}</td>" not in shown
    assert f"The first {SHOWN_FILES} of {SHOWN_FILES + 7}." in shown
    assert np.isfinite(found.entries[0].bits).all()
