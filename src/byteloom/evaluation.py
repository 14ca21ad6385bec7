"""Bits per byte: a model and data in, summed nats over every byte, each scored once, out.

Cost: one forward pass over the data for "basic", two for "sliding" and "strided", four for both. Sums before ratios.
"""

import bz2
import lzma
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
import zstandard
from torch import Tensor

from byteloom import codecs
from byteloom.corpus import Corpus
from byteloom.documents import Document, Segment
from byteloom.losses import VOCABULARY, bits_per_byte, summed_loss
from byteloom.models.multiscale import Multiscale
from byteloom.packing import PackedStream
from byteloom.shards import open_data

Method = Literal["basic", "sliding", "strided", "sliding-strided"]
Data = PackedStream | Corpus | bytes | str | PathLike[str] | Sequence[str | PathLike[str]]

IDS_AT_ONCE = 16384
CHUNK = 1 << 20


class Window(NamedTuple):
    """Ids [start, stop) run together; [first, stop) are scored, or with `half` the early halves of patches there."""

    start: int
    stop: int
    first: int
    half: bool = False


def plan(
    length: int, context: int, patch_size: int, method: Method = "basic", stride: int | None = None
) -> list[Window]:
    """Windows over `length` ids that together score each position once.

    Args:
        length: ids in the stream.
        context: most ids in a window; rounded down to whole patches.
        patch_size: ids in a patch of the coarsest stage.
        method: "basic" windows side by side; "sliding" windows that advance by `stride` and score only their last
            `stride` positions (the first scores all); "strided" two passes offset by half a patch, of which each scores
            the first half of every patch (arXiv 2305.07185, section 2.3.3); "sliding-strided" both.
        stride: how far sliding windows advance; default: half the context. Rounded down to whole patches.

    Raises:
        ValueError: the context is below a patch, the stride not between a patch and the context, or half a patch is
            no whole number of ids.
    """
    context = context // patch_size * patch_size
    if context < 1:
        raise ValueError(f"the context must hold a patch of {patch_size} ids")
    halves = method in ("strided", "sliding-strided")
    if halves and patch_size % 2:
        raise ValueError(f"method {method!r} needs an even number of ids in a patch of stage 0, not {patch_size}")
    advance = context
    if method in ("sliding", "sliding-strided"):
        advance = (context // 2 if stride is None else stride) // patch_size * patch_size
        if not 0 < advance <= context:
            raise ValueError(f"the stride must lie between a patch of {patch_size} ids and the context of {context}")
    windows = []
    for offset in (0, patch_size // 2) if halves else (0,):
        start = first = offset
        while first < length:
            stop = min(start + context, length)
            windows.append(Window(start, stop, first, halves))
            start, first = start + advance, stop
    return windows


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model needs for some data."""

    nats: float
    """Summed cross-entropy of bytes, marks and ends."""
    bytes: int
    """Bytes that it is of."""
    method: str
    """How contexts were laid."""
    context: int
    """Most ids seen at once."""
    by_modality: dict[str, dict[str, float]]
    """For each modality its `nats`, `bytes` and `bits_per_byte`."""
    by_position_in_patch: list[float | None]
    """Bits per byte of bytes at each position in a patch of the coarsest stage; None where there was none."""
    by_position_in_context: list[dict[str, Any]]
    """Bits per byte of bytes with `start` up to `stop` ids before them in their window."""

    @property
    def bits_per_byte(self) -> float:
        """Nats / ln 2 / bytes."""
        return bits_per_byte(self.nats, self.bytes)

    def to_json(self) -> dict[str, Any]:
        """All of it as numbers, names and lists."""
        return {"bits_per_byte": self.bits_per_byte, **vars(self)}


def evaluate(
    model: Multiscale,
    data: Data,
    *,
    method: Method = "basic",
    context: int | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
    max_bytes: int | None = None,
    autocast: bool = False,
) -> Evaluation:
    """Measures a model over data.

    Args:
        model: the model; it is in the mode it was in when this returns.
        data: a stream, a corpus, bytes (as text where they are UTF-8), or files and folders.
        method: see `plan`.
        context: most ids in a window; default: the model's.
        stride: see `plan`.
        batch_size: windows at once; default: as many as make 16 Ki ids.
        max_bytes: measure on the first so many bytes alone.
        autocast: bf16 instead of fp32.

    Raises:
        ValueError: the context is longer than learned positions allow, or `plan` refuses.
        DataError: the data cannot be read.
    """
    corpus = data.corpus if isinstance(data, PackedStream) else to_corpus(data)
    if max_bytes is not None:
        corpus = corpus.head(max_bytes)
    span = model.config.span(0)
    stream = PackedStream(corpus, span)
    context = context or model.config.context
    if context > (model.config.max_length or context):
        raise ValueError(f"the context is {context}, but the learned positions end at {model.config.max_length}")
    if max([256, *corpus.segment_marks]) >= model.config.vocab_size:
        raise ValueError(
            f"the model has {model.config.vocab_size} ids and knows no documents, which begin with BOS and MARK"
        )
    windows = plan(len(stream), context, span, method, stride)
    edges = np.unique(np.geomspace(1, context, 33).astype(np.int64))
    table = np.zeros((VOCABULARY.end_of_marks - VOCABULARY.first_mark + 1, 3))
    patch, place = np.zeros((2, span)), np.zeros((2, context))
    device = model.starts[0].device
    training = model.training
    model.eval()
    try:
        for group in batches(windows, batch_size or max(1, IDS_AT_ONCE // context)):
            ids = torch.from_numpy(np.stack([stream.read(w.start, w.stop) for w in group]).astype(np.int64)).to(device)
            mark = torch.tensor([stream.mark_at(w.start) for w in group], device=device)
            places = np.arange(ids.shape[1])
            scored = np.stack([(places >= w.first - w.start) & (not w.half or places % span * 2 < span) for w in group])
            nats = nats_of_each(model, ids, autocast).double()
            table += summed_loss(nats, ids, mark, torch.from_numpy(scored).to(device)).table.cpu().numpy()
            is_byte = scored & (ids < VOCABULARY.num_bytes).cpu().numpy()
            weights = np.where(is_byte, nats.cpu().numpy(), 0.0)
            in_patch = (np.array([w.start for w in group])[:, None] + places) % span
            for sums, at in ((patch, in_patch), (place, np.broadcast_to(places, is_byte.shape))):
                sums[0] += np.bincount(at.ravel(), weights.ravel(), sums.shape[1])
                sums[1] += np.bincount(at.ravel(), is_byte.ravel(), sums.shape[1])
    finally:
        model.train(training)
    names = {mark: name for name, mark in codecs.MARKS.items()}
    return Evaluation(
        nats=float(table[:, 0].sum()),
        bytes=int(table[:, 2].sum()),
        method=method,
        context=context,
        by_modality={
            names.get(VOCABULARY.first_mark + row - 1, "none"): {
                "nats": float(nats),
                "bytes": int(size),
                "bits_per_byte": bits_per_byte(float(nats), int(size)),
            }
            for row, (nats, _, size) in enumerate(table)
            if size
        },
        by_position_in_patch=[bits_per_byte(float(nats), int(size)) if size else None for nats, size in patch.T],
        by_position_in_context=[
            {
                "start": int(low),
                "stop": int(high),
                "bits_per_byte": bits_per_byte(float(nats), int(size)) if size else None,
            }
            for low, high in zip(np.append(0, edges), np.append(edges, context), strict=False)
            if low < high
            for nats, size in [place[:, low:high].sum(1)]
        ],
    )


CHUNK = 1 << 16
"""Bytes of a batch that finer stages take at a time, so that a long window needs little memory."""


@torch.inference_mode()
def nats_of_each(model: Multiscale, ids: Tensor, autocast: bool = False) -> Tensor:
    """What each id costs given those before it: ids (B, T) -> nats (B, T) in fp32."""
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
        return model.nats(ids, CHUNK)


def batches(windows: Sequence[Window], size: int) -> Iterator[list[Window]]:
    """Groups of up to `size` windows that follow each other and are equally long."""
    group: list[Window] = []
    for window in windows:
        if group and (len(group) == size or window.stop - window.start != group[0].stop - group[0].start):
            yield group
            group = []
        group.append(window)
    if group:
        yield group


def to_corpus(data: "Corpus | bytes | str | PathLike[str] | Sequence[str | PathLike[str]]") -> Corpus:
    """Data of any kind as a corpus; bytes are text where they are UTF-8. Raises DataError."""
    if isinstance(data, Corpus):
        return data
    if not isinstance(data, bytes):
        return open_data(data)
    try:
        data.decode()
        modality = "text"
    except UnicodeDecodeError:
        modality = "bytes"
    segment = Segment(modality=modality, data=np.frombuffer(data, np.uint8))
    return Corpus.from_documents([Document(segments=(segment,))])


class Compressor(Protocol):
    """What the four compressors have in common."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def baselines(data: Corpus | bytes, max_bytes: int | None = None) -> dict[str, dict[str, float]]:
    """The same bytes, end to end, under gzip -9, bzip2 -9, xz -9e and zstd -19: `bytes` and `bits_per_byte` of each.

    Ids above 255 count as two bytes. Cost: some 700 MiB of memory for xz, whatever the size of the data.
    """
    corpus = to_corpus(data)
    corpus = corpus if max_bytes is None else corpus.head(max_bytes)
    compressors: dict[str, Compressor] = {
        "gzip": zlib.compressobj(9, zlib.DEFLATED, 31),
        "bzip2": bz2.BZ2Compressor(9),
        "xz": lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME),
        "zstd": zstandard.ZstdCompressor(level=19).compressobj(),
    }
    sizes, total = dict.fromkeys(compressors, 0), 0
    for segment in range(len(corpus.segment_lengths)):
        for start in range(0, int(corpus.segment_lengths[segment]), CHUNK):
            chunk = corpus.payload(segment, start, start + CHUNK).tobytes()
            total += len(chunk)
            for name, compressor in compressors.items():
                sizes[name] += len(compressor.compress(chunk))
    for name, compressor in compressors.items():
        sizes[name] += len(compressor.flush())
    return {
        name: {"bytes": size, "bits_per_byte": size * 8 / total if total else math.nan} for name, size in sizes.items()
    }
