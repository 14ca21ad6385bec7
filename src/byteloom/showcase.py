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

from byteloom import gallery
from byteloom.codecs import audio, image, video
from byteloom.corpus import Corpus
from byteloom.documents import PAD, VOCAB_SIZE, Document, Segment
from byteloom.drafts import known_modalities, marks_of, unit_of
from byteloom.evaluation import Evaluation, nats_of_each, packed, plan
from byteloom.excerpts import begin_with, excerpts
from byteloom.gallery import Entry
from byteloom.generation import generate_documents
from byteloom.models.multiscale import Multiscale
from byteloom.pictures import Row, clip, contact_sheet, spectrogram
from byteloom.surprise import surprise_map


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
    items = completed(model, excerpts(corpus, model.config, count, most_bytes), marks, most_bytes)
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
        versions = {
            what: document
            for what, document in (("original", item.original), ("completion", item.written))
            if document is not None
        }
        bits = {what: bits_of(model, document, marks) for what, document in versions.items()}
        files = {}
        for what, document in versions.items():
            for part, segment in enumerate(document.segments):
                given = len(item.begun.segments[part].data) if what == "completion" else 0
                if item.original is not None and given == len(segment.data) > 0:
                    continue  # nothing was written there, and the original is shown
                place = f", part {part + 1}" if len(document.segments) > 1 else ""
                for view, (suffix, content) in views(segment, bits[what][part], given).items():
                    name = f"{number}-{part + 1}-{segment.modality}-{what}-{view}{suffix}"
                    (folder / name).write_bytes(content)
                    files[f"{what}{place}: {view}"] = name
        document = versions.get("completion", item.begun)
        kinds = ", ".join(dict.fromkeys(segment.modality for segment in document.segments))
        numbers = numbers_of(item, bits)
        title = f"{number}. {kinds}" + (f" · {item.begun.name}" if item.begun.name else "")
        shown.append(Entry(title=title, numbers=numbers, files=files))
        found = picture_rows(item)
        rows += found
        prices = (f"{name} {value:.3f}" for name, value in numbers.items() if isinstance(value, float))
        captions += [f"{number}. " + ", ".join(prices)] * len(found)
    sheets = []
    if rows:
        (folder / "pictures.png").write_bytes(contact_sheet(rows, captions=captions))
        sheets.append(Entry(title="Pictures", files={"prompt, completion and original": "pictures.png"}))
    lead = "Each item stands by itself: the model saw nothing before it. Its bits per byte are those of its data alone."
    return gallery.gallery(folder, [*entries, *sheets, *shown], "What the model makes of it", lead)


def numbers_of(item: Item, bits: Mapping[str, Sequence[np.ndarray]]) -> dict[str, float | str]:
    """Bits per byte of an item: of the original, of what was left out of it, and of what was written there."""
    starts = [len(segment.data) for segment in item.begun.segments]
    stops = [len(segment.data) for segment in (item.written or item.begun).segments]
    there = {
        what: [part[start:stop] for part, start, stop in zip(parts, starts, stops, strict=True)]
        for what, parts in bits.items()
    }
    numbers: dict[str, float | str] = {"bytes given": sum(starts)} if item.written else {}
    for name, parts in (
        ("bits per byte", bits.get("original", ())),
        ("left out", there.get("original", ())),
        ("written", there.get("completion", ())),
    ):
        costs = np.concatenate([np.empty(0), *parts])
        if np.isfinite(costs).any():
            numbers[name] = float(np.nanmean(costs))
    return numbers


def picture_rows(item: Item) -> list[Row]:
    """The rows of the contact sheet for the pictures of which the model wrote something."""
    rows: list[Row] = []
    for part, segment in enumerate(item.written.segments if item.written else ()):
        given = item.begun.segments[part]
        if segment.modality == image.MODALITY and len(given.data) < len(segment.data):
            _, width, channels, side = image.unpack_header(segment.header)
            lines = max(side, 1)
            begun = image.to_array(given)[: -(-len(given.data) // (width * channels * lines)) * lines]
            original = item.original.segments[part] if item.original else segment
            whole = image.to_array(original) if item.original and len(original.data) else None
            rows.append((begun, image.to_array(segment), whole))
    return rows


def views(segment: Segment, bits: np.ndarray, given: int) -> dict[str, tuple[str, bytes]]:
    """What shows a segment, by name, each with its suffix: a map of surprise, and what can be heard or moves."""
    if len(segment.data) < (unit_of(segment) if segment.modality == audio.MODALITY else 1):
        return {}
    found = {"surprise": surprise_map(segment, bits, given)}
    if segment.modality == audio.MODALITY:
        rate = audio.unpack_header(segment.header)[0]
        found["spectrogram"] = ".png", spectrogram(audio.to_array(segment), rate, given // unit_of(segment))
        found["sound"] = ".wav", audio.decode(segment, ".wav")
    elif segment.modality == video.MODALITY:
        rate = video.unpack_header(segment.header)[3]
        found["clip"] = ".gif", clip(video.to_array(segment), float(rate))
    return found
