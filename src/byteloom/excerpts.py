"""What to show of data: a few parts of a corpus, and of each the beginning that a model is to go on with.

In: a corpus, and the config of a model. Out: short documents. Cost: the ids of these, and a few numbers a segment.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from byteloom.codecs import audio, video
from byteloom.corpus import Corpus
from byteloom.documents import PAD, Document, Segment, opening
from byteloom.drafts import cut, predicted_streams, prompt_ids, size_of, unit_of
from byteloom.models.config import ModelConfig

SECONDS, FRAMES, USUAL_IDS = 4, 8, 4096
"""Shown of a sound, of a video, and of what has neither; but for a video no more than a context and what follows."""
MAX_IDS = 1 << 17
"""Of a video no more than this, but a frame."""


def excerpts(corpus: Corpus, config: ModelConfig, count: int, most_bytes: int) -> list[Document]:
    """Up to `count` segments of each modality, and documents of several or fused ones, chosen evenly over the data."""
    document_of = np.repeat(np.arange(len(corpus)), np.diff(corpus.document_starts))
    whole = np.full(len(corpus), bool(config.embedder.streams))
    whole[document_of[corpus.segment_marks != corpus.segment_marks[corpus.document_starts[document_of]]]] = True
    items: dict[tuple[int, int], Document] = {}
    for mark, name in sorted(corpus.modalities.items()):
        segments = np.flatnonzero((corpus.segment_marks == mark) & ~whole[document_of])
        for nth, offset in evenly(corpus.segment_lengths[segments], count):
            number = int(segments[nth])
            segment = Segment(modality=name, data=corpus.payload(number), header=corpus.header(number))
            size = shown_size(segment, config.context - opening_size(segment, config) + most_bytes)
            start = min(offset, len(segment.data) - size)
            start -= start % unit_of(segment)
            if name == "text":  # not in the middle of a character
                start += int(((segment.data[start : start + 4] & 0xC0) != 0x80).argmax())
            part = replace(segment, data=segment.data[start : start + size])
            items[number, start] = Document(segments=(part,), name=corpus.names[document_of[number]])
    documents = np.flatnonzero(whole & (corpus.document_lengths > 0))
    for nth, _ in evenly(np.ones(len(documents), np.int64), count):
        document = corpus[int(documents[nth])]
        items[-1, int(documents[nth])] = beginning(document, config, most_bytes)
    return list(items.values())


def evenly(lengths: np.ndarray, count: int) -> list[tuple[int, int]]:
    """The middles of `count` equal shares of things laid end to end: which of them, and where in it."""
    ends = np.cumsum(lengths)
    if not len(ends) or not ends[-1]:
        return []
    places = (2 * np.arange(count) + 1) * ends[-1] // (2 * count)
    found = ends.searchsorted(places, "right")
    return list(zip(found.tolist(), (places - ends[found] + lengths[found]).tolist(), strict=True))


def shown_size(segment: Segment, most: int) -> int:
    """How many ids of a segment are shown, whole samples or frames: a picture whole, of others up to `most`.

    A video is shown beyond what the context holds, a frame of which may be longer.
    """
    if size_of(segment) is not None:
        return len(segment.data)
    unit, usual = unit_of(segment), USUAL_IDS
    if segment.modality == audio.MODALITY:
        usual = SECONDS * unit * audio.unpack_header(segment.header)[0]
    elif segment.modality == video.MODALITY:
        usual, most = FRAMES * unit, MAX_IDS
    return min(max(min(usual, most) // unit, 1) * unit, len(segment.data))


def opening_size(segment: Segment, config: ModelConfig) -> int:
    """Most ids that stand before the data of a segment."""
    return len(opening(PAD, segment.header)) + config.span(0)


def beginning(document: Document, config: ModelConfig, most_bytes: int) -> Document:
    """As many of a document's segments as the context holds, the last cut; or all streams, cut at the same time."""
    room, segments = config.context, []
    if config.embedder.streams:
        sizes = [stream.size for stream in config.embedder.streams]
        heads = sum(opening_size(segment, config) for segment in document.segments)
        patches = max((room - heads) // config.span(0), 1)
        parts = zip(document.segments, sizes, strict=False)
        return replace(document, segments=tuple(replace(s, data=s.data[: patches * size]) for s, size in parts))
    for segment in document.segments:
        room -= opening_size(segment, config)
        if segments and room <= 0:
            break
        segments.append(replace(segment, data=segment.data[: shown_size(segment, room + most_bytes)]))
        room -= len(segments[-1].data)
    return replace(document, segments=tuple(segments))


def begin_with(
    document: Document, config: ModelConfig, marks: Mapping[str, int], most_bytes: int
) -> tuple[Document, int]:
    """The first half of a document's last segment with all before it, or of a fused model's streams, and what is left.

    More than half where less is to be written, and less where the context does not hold that; nothing is left where it
    does not hold what stands before.
    """
    predicted, last = predicted_streams(config), document.segments[-1]
    size = sum(len(s.data) for s in document.segments if s.modality in predicted) if predicted else len(last.data)
    kept = max(size // 2, size - most_bytes)
    if not predicted:
        empty = replace(document, segments=(*document.segments[:-1], replace(last, data=last.data[:0])))
        room = config.context - 1 - len(prompt_ids(empty, config.span(0), "", marks))
        if room < 0:
            return document, 0
        kept = min(kept, room)
    return cut(document, min((kept + 0.5) / max(size, 1), 1.0), config)
