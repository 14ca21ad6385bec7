"""Documents laid end to end: a corpus in, one virtual stream of ids out, of which any range can be read.

Cost: 8 bytes of memory a document and a segment; a read costs the ids read.
"""

import numpy as np

from byteloom.corpus import Corpus
from byteloom.documents import BOS, EOS, PAD


class PackedStream:
    """All documents in order as one virtual stream of ids: nothing is laid out until a range is read.

    It is made of units: the BOS of a document, and each segment with its MARK (and EOS after the document's last).
    Every unit is filled up with PAD to a multiple of `patch_size`, so that all units start on patch borders. A
    document is what `documents.to_ids` makes of it, up to the PADs at its end. Cost: 8 bytes a unit; a read is
    O(ids read + log units).
    """

    def __init__(self, corpus: Corpus, patch_size: int) -> None:
        if patch_size < 1:
            raise ValueError(f"patch_size is {patch_size}; it must be at least 1")
        self.corpus = corpus
        self.patch_size = patch_size
        first, stop = corpus.document_starts[:-1], corpus.document_starts[1:]
        self._bos_units = first + np.arange(len(corpus))
        document_of = np.repeat(np.arange(len(corpus)), stop - first)
        lengths = np.ones(len(corpus) + len(document_of), np.int64)  # BOS or MARK
        lengths[np.arange(len(document_of)) + document_of + 1] += corpus.segment_lengths
        lengths[stop + np.arange(len(corpus))] += 1  # EOS, in the last unit of each document
        self._starts = np.concatenate([[0], np.cumsum(-(-lengths // patch_size) * patch_size)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def num_bytes(self) -> int:
        """Payload in the stream, in ids: its length without BOS, MARK, EOS and PAD."""
        return self.corpus.num_bytes

    def read(self, start: int, stop: int) -> np.ndarray:
        """Ids (stop - start,) uint16, for 0 <= start <= stop <= len; IndexError otherwise."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"range {start} to {stop} of a stream of {len(self)} ids")
        ids = np.full(stop - start, PAD, np.uint16)
        unit = int(self._starts.searchsorted(start, "right")) - 1
        while (begin := int(self._starts[unit])) < stop:
            document, segment = self._locate(unit)
            mark = BOS if segment < 0 else self.corpus.segment_marks[segment]
            end = begin + 1 + (int(self.corpus.segment_lengths[segment]) if segment >= 0 else 0)
            if begin >= start:
                ids[begin - start] = mark
            low, high = max(begin + 1, start), min(end, stop)
            if low < high:
                ids[low - start : high - start] = self.corpus.payload(segment, low - begin - 1, high - begin - 1)
            is_last = unit == document + self.corpus.document_starts[document + 1]
            if is_last and start <= end < stop:
                ids[end - start] = EOS
            unit += 1
        return ids

    def mark_at(self, position: int) -> int:
        """The MARK in force before `position`, so not one that stands at it; PAD where the document had none yet."""
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of a stream of {len(self)} ids")
        unit = int(self._starts.searchsorted(position, "right")) - 1
        document, segment = self._locate(unit)
        if segment >= 0 and position == self._starts[unit]:
            segment -= 1
        if segment < self.corpus.document_starts[document]:
            return PAD
        return int(self.corpus.segment_marks[segment])

    def _locate(self, unit: int) -> tuple[int, int]:
        """The document of a unit and its segment, -1 for the BOS."""
        document = int(self._bos_units.searchsorted(unit, "right")) - 1
        return document, -1 if unit == self._bos_units[document] else unit - document - 1
