"""Documents laid end to end: a corpus in, one virtual stream of ids out, of which any range can be read.

Cost: 16 bytes of memory a document and a segment; a read costs the ids read.
"""

from collections.abc import Sequence

import numpy as np

from byteloom.corpus import Corpus
from byteloom.documents import BOS, EOS, PAD, check_sizes, check_streams, interleave, opening


class PackedStream:
    """All documents in order as one virtual stream of ids: nothing is laid out until a range is read.

    A document is what `documents.to_ids` makes of it, or `documents.to_fused_ids` where there are `streams`, filled up
    with PAD to a multiple of `patch_size`. Ids are uint16, or uint32 where the corpus holds such. A read is
    O(ids read + log documents).

    Args:
        corpus: the documents.
        patch_size: in ids; payload begins on its multiples.
        streams: for documents whose segments run side by side, the ids of each in a patch; they sum to `patch_size`.

    Raises:
        ValueError: `patch_size` is below 1 or not the sum of `streams`, or a document has more segments than these.
    """

    def __init__(self, corpus: Corpus, patch_size: int, streams: Sequence[int] = ()) -> None:
        if patch_size < 1:
            raise ValueError(f"patch_size is {patch_size}; it must be at least 1")
        if streams and check_sizes(streams) != patch_size:
            raise ValueError(f"patch_size is {patch_size}; the streams {tuple(streams)} need {sum(streams)}")
        self.corpus = corpus
        self.patch_size = patch_size
        self.streams = tuple(streams)
        dtypes = {file.dtype for file in corpus.files}
        self._dtype = np.uint32 if any(np.dtype(dtype).itemsize > 2 for dtype in dtypes) else np.uint16
        # Where each document begins and where its EOS stands, where each segment's MARK stands and its data begin. In a
        # fused stream the data of all segments of a document begin together.
        self._begins, self._ends, self._marks, self._data = self._places_of_fused() if streams else self._places()

    def __len__(self) -> int:
        return int(self._begins[-1])

    @property
    def num_bytes(self) -> int:
        """Payload in the stream, in ids: its length without BOS, MARK, digits, EOS and PAD."""
        return self.corpus.num_bytes

    def read(self, start: int, stop: int) -> np.ndarray:
        """Ids (stop - start,), for 0 <= start <= stop <= len; IndexError otherwise."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"range {start} to {stop} of a stream of {len(self)} ids")
        ids = np.full(stop - start, PAD, self._dtype)
        for places, value in ((self._begins, BOS), (self._ends, EOS)):
            low, high = places.searchsorted([start, stop])
            ids[places[low:high] - start] = value
        low, high = self._marks.searchsorted([start, stop])
        ids[self._marks[low:high] - start] = self.corpus.segment_marks[low:high]
        if (longest := self.corpus.segment_headers.shape[1] - 1) > 0:
            low = int(self._marks.searchsorted(start - 2 * longest))
            for segment in range(low, int(high)):
                head = opening(int(self.corpus.segment_marks[segment]), self.corpus.header(segment))
                _put(ids, head, int(self._marks[segment]) - start)
        if self.streams:
            self._read_fused(ids, start, stop)
        else:
            first = max(0, int(self._data.searchsorted(start, "right")) - 1)
            for segment in range(first, int(self._data.searchsorted(stop))):
                begin = int(self._data[segment])
                low, high = max(start - begin, 0), stop - begin
                payload = self.corpus.payload(segment, low, high)
                ids[begin + low - start : begin + low - start + len(payload)] = payload
        return ids

    def mark_at(self, position: int) -> int:
        """The last MARK before `position` in its document, so not one that stands at it; PAD where there is none yet.

        The BOS of the next document still belongs to the one before.
        """
        self._check(position)
        segment = int(self._marks.searchsorted(position)) - 1
        begun = int(self._begins[max(0, int(self._begins.searchsorted(position)) - 1)])
        return int(self.corpus.segment_marks[segment]) if segment >= 0 and self._marks[segment] >= begun else PAD

    def since_at(self, position: int) -> int:
        """The place of `position` in the data of its segment: how many of its ids stand directly before.

        In a fused stream, where PAD may stand for data, how far it is from the patch in which the data begin.
        """
        self._check(position)
        if self.streams:
            return self._since_fused(position)
        segment = int(self._data.searchsorted(position)) - 1
        place = position - int(self._data[segment]) if segment >= 0 else 0
        return place if segment >= 0 and place <= self.corpus.segment_lengths[segment] else 0

    def _since_fused(self, position: int) -> int:
        document = max(0, int(self._begins.searchsorted(position)) - 1)
        begin, end = int(self._begins[document]), int(self._ends[document])
        if position > end:
            return position - end - self.patch_size
        first, last = self.corpus.document_starts[document : document + 2]
        openings = 1 + 2 * self.corpus.segment_headers[first:last, 0].astype(np.int64)
        structure = min(position - begin, 1 + int(openings.sum()))
        return position - begin - -(-structure // self.patch_size) * self.patch_size

    def _places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Where things stand when segments follow each other.

        Cut behind the PADs before each segment's data, a document is a piece with BOS and a piece a segment. Each ends
        with the MARK and digits of the segment that follows, or with EOS, and is filled up to a patch border.
        """
        corpus = self.corpus
        first, stop = corpus.document_starts[:-1], corpus.document_starts[1:]
        lead = first + np.arange(len(corpus))  # the piece with BOS of each document
        last = stop + np.arange(len(corpus))  # the piece with EOS
        num_pieces = len(corpus) + len(corpus.segment_lengths)
        body = np.ones(num_pieces, np.int64)
        is_segment = np.ones(num_pieces, bool)
        is_segment[lead] = False
        body[is_segment] = corpus.segment_lengths
        tail = np.ones(num_pieces, np.int64)
        has_next = np.ones(num_pieces, bool)
        has_next[last] = False
        tail[has_next] += 2 * corpus.segment_headers[:, 0].astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(-(-(body + tail) // self.patch_size) * self.patch_size)])
        tails = starts[:-1] + body
        return np.append(starts[lead], starts[-1]), tails[last], tails[has_next], starts[:-1][is_segment]

    def _places_of_fused(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Where things stand when the segments of a document run side by side."""
        corpus = self.corpus
        first, counts = corpus.document_starts[:-1], np.diff(corpus.document_starts)
        for document in np.flatnonzero(counts > len(self.streams))[:1]:
            check_streams(int(counts[document]), self.streams, corpus.names[document])
        document_of = np.repeat(np.arange(len(corpus)), counts)
        sizes = np.array(self.streams)[np.arange(len(document_of)) - first[document_of]]
        num_patches = np.zeros(len(corpus), np.int64)
        np.maximum.at(num_patches, document_of, -(-corpus.segment_lengths // sizes))
        openings = 1 + 2 * corpus.segment_headers[:, 0].astype(np.int64)
        before = np.cumsum(openings) - openings
        heads = np.ones(len(corpus), np.int64)
        np.add.at(heads, document_of, openings)
        heads = -(-heads // self.patch_size) * self.patch_size
        lengths = heads + (num_patches + 1) * self.patch_size
        begins = np.concatenate([[0], np.cumsum(lengths)])
        marks = begins[document_of] + 1 + before - before[first[document_of]]
        return begins, begins[1:] - self.patch_size, marks, (begins[:-1] + heads)[document_of]

    def _read_fused(self, ids: np.ndarray, start: int, stop: int) -> None:
        """Puts the patches between two positions into ids (stop - start,)."""
        low = max(0, int(self._begins.searchsorted(start, "right")) - 1)
        for document in range(low, int(self._begins[:-1].searchsorted(stop))):
            first, last = self.corpus.document_starts[document : document + 2]
            if first == last:
                continue
            begin, end = int(self._data[first]), int(self._ends[document])
            low_patch = max(0, start - begin) // self.patch_size
            high_patch = -(-(min(stop, end) - begin) // self.patch_size)
            if low_patch >= high_patch:
                continue
            streams = [
                self.corpus.payload(segment, low_patch * size, high_patch * size)
                for segment, size in zip(range(first, last), self.streams, strict=False)
            ]
            patches = interleave(streams, self.streams, high_patch - low_patch, ids.dtype)
            _put(ids, patches.ravel(), begin + low_patch * self.patch_size - start)

    def _check(self, position: int) -> None:
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of a stream of {len(self)} ids")


def _put(ids: np.ndarray, values: np.ndarray, place: int) -> None:
    """Puts values into ids from `place` on, as far as they lie inside."""
    low, high = max(0, -place), min(len(values), len(ids) - place)
    if low < high:
        ids[place + low : place + high] = values[low:high]
