"""Items: documents, or the segments of a file of many, counted alike everywhere."""

import configs
import pytest
from test_corpus import text
from test_evaluation import shown
from test_multiscale import TWO

from byteloom.corpus import Corpus
from byteloom.documents import Document
from byteloom.evaluation import evaluate
from byteloom.items import item_counts, item_starts
from byteloom.packing import PackedStream


def test_items_are_documents_or_the_segments_of_a_file_of_many() -> None:
    page = Document(segments=(*text(b"a page with", name="").segments, shown(0), shown(1)), name="page")
    album = Document(segments=tuple(shown(i) for i in range(5)), name="album")
    corpus = Corpus.from_documents([page, album, text(b"words", name="w"), Document(segments=(), name="empty")])
    stream = PackedStream(corpus, 4)
    starts = item_starts(stream, fused=False)
    ids = stream.read(0, len(stream))
    assert ids[starts].tolist() == [257, 257, 261, 261, 261, 261, 257, 257]
    assert item_counts(corpus, fused=False).tolist() == [1, 5, 1, 1]
    assert item_counts(corpus, fused=True).tolist() == [1, 1, 1, 1]
    found = evaluate(configs.build(TWO), corpus)
    assert found.items == 8 and found.by_item[:, 1].tolist() == [23, 6, 6, 6, 6, 6, 5, 0]
    assert found.by_item.sum(0).tolist() == pytest.approx([found.nats, found.bytes])
    assert "by_item" not in found.to_json()
    assert len(item_starts(stream, fused=True)) == 4
