"""What a model makes of data, as a page to look at: pictures, clips, sounds and texts with the bits that they cost.

In: a model, and a corpus or a document that it wrote. Out: a folder with index.html: a contact sheet of pictures, a
spectrogram and a WAV of each sound, a GIF of each video, and a map of surprise of everything. Cost: one forward pass
over what is shown, two over what is longer than the context, and generation, one batch for each modality.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from byteloom import codecs, gallery
from byteloom.codecs import audio, image, video
from byteloom.corpus import Corpus
from byteloom.documents import PAD, VOCAB_SIZE, Document, Segment, opening
from byteloom.drafts import cut, known_modalities, marks_of, predicted_streams, prompt_ids, size_of, unit_of
from byteloom.evaluation import Evaluation, nats_of_each, packed, plan
from byteloom.gallery import Entry
from byteloom.generation import generate_documents
from byteloom.models.config import ModelConfig
from byteloom.models.multiscale import Multiscale
from byteloom.pictures import Row, clip, contact_sheet, spectrogram
from byteloom.surprise import surprise_map

SECONDS, FRAMES, USUAL_IDS = 4, 8, 4096
"""Shown of a sound, of a video, and of what has neither; less where the context is short."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A document to show, in up to three versions with the same segments."""

    begun: Document
    """What was given of it."""
    written: Document | None
    """What the model made of that."""
    original: Document | None
    """What it was cut from."""


def show_evaluation(
    folder: Path, model: Multiscale, corpus: Corpus, found: Evaluation, *, count: int = 4, most_bytes: int = 4096
) -> Path:
    """Shows a few items of a corpus and what the model makes of their beginnings; returns the path of the page.

    Items are segments, or documents where these hold several modalities or are fused. Long ones are cut.

    Args:
        folder: where to write; it is there.
        model: the model; it is put into evaluation mode.
        corpus: what it was measured on.
        found: the result of that.
        count: items of each modality, chosen evenly over the data.
        most_bytes: most bytes to write after the beginning of each, which is half of the item or more; 0: none.

    Raises:
        ValueError: a segment's header makes no sense, or the model knows no documents.
    """
    marks = marks_of(known_modalities(model.config)) | {name: mark for mark, name in corpus.modalities.items()}
    items = completed(model, items_of(corpus, model.config, count, most_bytes), marks, most_bytes)
    numbers: dict[str, float | str] = {"bits per byte": found.bits_per_byte, "bytes": found.bytes, "items": found.items}
    if len(found.by_modality) > 1:
        numbers |= {f"{name}, bits per byte": part["bits_per_byte"] for name, part in found.by_modality.items()}
    return show(folder, model, items, marks, [Entry(title="All data", numbers=numbers)])


def show_written(
    folder: Path, model: Multiscale, begun: Document, written: Document, original: Document | None
) -> Path:
    """Shows a document that the model wrote, from its beginning and what this was cut from; returns the page's path.

    Raises:
        ValueError: a segment's header makes no sense, or the model knows no documents.
    """
    whole = None if original is None else beside(original, written)
    item = Item(begun=beside(begun, written), written=written, original=whole)
    return show(folder, model, [item], marks_of(known_modalities(model.config)))


# -- what is shown -----------------------------------------------------------------------------------------------------


def items_of(corpus: Corpus, config: ModelConfig, count: int, most_bytes: int) -> list[Document]:
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
            part = replace(segment, data=segment.data[start : start + size])
            items[number, start] = Document(segments=(part,), name=corpus.names[document_of[number]])
    documents = np.flatnonzero(whole)
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
    """How much of a segment is shown: a picture whole, of others whole frames or samples up to `most` ids, or one."""
    if size_of(segment) is not None:
        return len(segment.data)
    unit, usual = unit_of(segment), USUAL_IDS
    if segment.modality == audio.MODALITY:
        usual = SECONDS * unit * audio.unpack_header(segment.header)[0]
    elif segment.modality == video.MODALITY:
        usual = FRAMES * unit
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


# -- what the model makes of it ----------------------------------------------------------------------------------------


def completed(
    model: Multiscale, documents: Sequence[Document], marks: Mapping[str, int], most_bytes: int
) -> list[Item]:
    """Gives the model the beginning of each document; it writes the rest, rows of the same modality in one batch."""
    known = known_modalities(model.config)
    items, kinds = [], {}
    for number, document in enumerate(documents):
        begun, left_out = begin_with(document, model.config, marks, most_bytes)
        items.append(Item(begun=begun, written=None, original=document))
        if left_out and all(segment.modality in known for segment in document.segments):
            kinds.setdefault(document.segments[-1].modality, []).append((number, left_out))
    for rows in kinds.values():
        most = min(max(left_out for _, left_out in rows), most_bytes)
        prompts = [items[number].begun for number, _ in rows]
        found = generate_documents(model, prompts, max_bytes=most, min_bytes=most, modalities=())
        for (number, _), begun, written in zip(rows, prompts, cast(list[Document], found), strict=True):
            original = beside(documents[number], written)
            pairs = zip(written.segments, original.segments, strict=True)
            parts = tuple(replace(part, data=part.data[: len(whole.data) or None]) for part, whole in pairs)
            written = replace(written, segments=parts)
            items[number] = Item(begun=beside(begun, written), written=written, original=original)
    return items


def begin_with(
    document: Document, config: ModelConfig, marks: Mapping[str, int], most_bytes: int
) -> tuple[Document, int]:
    """The first half of a document's last segment with all before it, or of a fused model's streams, and what is left.

    More than half where less is to be written, and less where the context does not hold that.
    """
    predicted, last = predicted_streams(config), document.segments[-1]
    size = sum(len(s.data) for s in document.segments if s.modality in predicted) if predicted else len(last.data)
    share = max(0.5, 1 - most_bytes / max(size, 1))
    if not predicted:
        empty = replace(document, segments=(*document.segments[:-1], replace(last, data=last.data[:0])))
        room = config.context - len(prompt_ids(empty, config.span(0), "", marks))
        share = min(share, max(room, 0) / max(size, 1))
    return cut(document, share, config)


def beside(document: Document, other: Document) -> Document:
    """The segments of a document that belong to those of another, which has more; empty ones for the rest."""
    rest, found = list(document.segments), []
    for part in other.segments:
        same = bool(rest) and rest[0].modality == part.modality
        found.append(rest.pop(0) if same else replace(part, data=part.data[:0]))
    return replace(document, segments=tuple(found))


def bits_of(model: Multiscale, document: Document, marks: Mapping[str, int]) -> list[np.ndarray]:
    """What each id of data costs a model, for each segment; NaN in streams that a fused model is only given.

    The document stands by itself, in windows that advance by half a context.

    Raises:
        ValueError: the model knows no documents.
    """
    config, streams = model.eval().config, model.config.embedder.streams
    stream = packed(Corpus.from_documents([document], marks), config)
    ids = stream.read(0, len(stream)).astype(np.int64)
    if ids.max() >= config.vocab_size:
        raise ValueError(f"the model has {config.vocab_size} ids and knows no documents, which is what pictures show")
    context = min(config.context, config.max_length or config.context)
    nats, device = np.full(len(ids), np.nan), model.starts[0].device
    for window in plan(len(ids), context, config.span(0), "sliding", max(context // 2, config.span(0))):
        part = torch.from_numpy(ids[window.start : window.stop]).to(device)
        tags = (torch.tensor([at(window.start)], device=device) for at in (stream.mark_at, stream.since_at))
        found = nats_of_each(model, part.unsqueeze(0), False, *tags)[0].double().cpu().numpy()
        nats[window.first : window.stop] = found[window.first - window.start :]
    bits, is_data = nats / math.log(2), (ids < PAD) | (ids >= VOCAB_SIZE)
    if not streams:
        ends = itertools.accumulate(len(segment.data) for segment in document.segments[:-1])
        return np.split(bits[is_data], list(ends))
    owner = np.resize(np.repeat(np.arange(len(streams)), [s.size for s in streams]), len(ids))
    bits[~np.isin(owner, [i for i, s in enumerate(streams) if s.role == "predicted"])] = np.nan
    return [bits[is_data & (owner == i)] for i in range(len(document.segments))]


# -- the page ----------------------------------------------------------------------------------------------------------


def show(
    folder: Path, model: Multiscale, items: Sequence[Item], marks: Mapping[str, int], entries: Sequence[Entry] = ()
) -> Path:
    """Writes what shows the items, and the page of it; the contact sheet comes after the first `entries`."""
    shown, rows, captions = [], [], []
    for number, item in enumerate(items, 1):
        versions = {"original": item.original, "completion": item.written}
        bits = {what: bits_of(model, document, marks) for what, document in versions.items() if document is not None}
        numbers, files = numbers_of(item, bits), {}
        for what, costs in bits.items():
            for part, segment in enumerate(cast(Document, versions[what]).segments):
                given = len(item.begun.segments[part].data) if what == "completion" else 0
                if given == len(segment.data) and (given == 0 or item.original is not None):
                    continue  # nothing was written there, and the original is shown
                place = f", part {part + 1}" if len(costs) > 1 else ""
                for view, (suffix, content) in views(segment, costs[part], given).items():
                    name = f"{number}-{part + 1}-{segment.modality}-{what}-{view}{suffix}".replace(" ", "-")
                    (folder / name).write_bytes(content)
                    files[f"{what}{place}: {view}"] = name
        document = cast(Document, item.written or item.original)
        kinds = ", ".join(dict.fromkeys(segment.modality for segment in document.segments))
        shown.append(Entry(title=f"{number}. {kinds}", numbers=numbers, files=files))
        for row in picture_rows(item):
            rows.append(row)
            captions.append(f"{number}.")
    sheet = []
    if rows:
        (folder / "pictures.png").write_bytes(contact_sheet(rows, captions=captions))
        sheet = [Entry(title="Pictures", files={"prompt, completion and original": "pictures.png"})]
    lead = "Each item stands by itself: the model saw nothing before it. Bits per byte are those of its data alone."
    return gallery.gallery(folder, [*entries, *sheet, *shown], "What the model makes of it", lead)


def numbers_of(item: Item, bits: Mapping[str, Sequence[np.ndarray]]) -> dict[str, float | str]:
    """Bits per byte of an item: all of the original, what was written, and what the original has there."""
    numbers: dict[str, float | str] = {"bytes given": sum(len(segment.data) for segment in item.begun.segments)}
    starts = [len(segment.data) for segment in item.begun.segments]
    tails = {what: [part[start:] for part, start in zip(parts, starts, strict=True)] for what, parts in bits.items()}
    for name, parts in (
        ("original, bits per byte", bits.get("original", ())),
        ("of that the part left out", tails.get("original", ()) if item.written else ()),
        ("written in its place", tails.get("completion", ())),
    ):
        known = np.concatenate([np.empty(0), *parts])
        known = known[np.isfinite(known)]
        if len(known):
            numbers[name] = float(known.mean())
    return numbers


def picture_rows(item: Item) -> list[Row]:
    """The rows of the contact sheet for the pictures of which the model wrote something."""
    rows: list[Row] = []
    for part, segment in enumerate(item.written.segments if item.written else ()):
        given = item.begun.segments[part]
        if segment.modality == image.MODALITY and len(given.data) < len(segment.data):
            height, width, channels, side = image.unpack_header(segment.header)
            lines = max(side, 1)
            begun = image.to_array(given)[: -(-len(given.data) // (width * channels * lines)) * lines]
            rows.append(
                (
                    begun,
                    image.to_array(segment),
                    image.to_array(item.original.segments[part]) if item.original else None,
                )
            )
    return rows


def views(segment: Segment, bits: np.ndarray, given: int) -> dict[str, tuple[str, bytes]]:
    """What shows a segment, by name, each with its suffix: a map of surprise, and what can be heard or moves."""
    if len(segment.data) < (unit_of(segment) if segment.modality == audio.MODALITY else 1):
        return {}
    found = {"surprise": surprise_map(segment, bits, given)}
    if segment.modality == audio.MODALITY:
        rate, samples = audio.unpack_header(segment.header)[0], audio.to_array(segment)
        found["spectrogram"] = ".png", spectrogram(samples, rate, given // unit_of(segment))
        found["sound"] = ".wav", audio.decode(segment, ".wav")
    elif segment.modality == video.MODALITY:
        rate = video.unpack_header(segment.header)[3]
        found["clip"] = ".gif", clip(video.to_array(segment), float(rate))
    return found
