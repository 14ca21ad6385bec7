"""Bits per byte: a model and data in, summed nats over every byte, each scored once, out.

Cost: one forward pass over the data for "basic", two for "sliding" and "strided", four for both; three times that where
the model keeps learning. Sums before ratios.
"""

import bz2
import contextlib
import itertools
import lzma
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import zstandard
from torch import Tensor

from byteloom.codecs import audio, image, video
from byteloom.corpus import Corpus, concatenate
from byteloom.documents import DataError, Document, Segment
from byteloom.dynamic import learning
from byteloom.items import item_starts, standard_error
from byteloom.losses import VOCABULARY, bits_per_byte, marks_in_force
from byteloom.models.config import ModelConfig
from byteloom.models.multiscale import Multiscale
from byteloom.noise import byte_frequencies, noise_at
from byteloom.packing import PackedStream
from byteloom.shards import open_data

Method = Literal["basic", "sliding", "strided", "sliding-strided"]
Data = PackedStream | Corpus | bytes | str | PathLike[str] | Sequence[str | PathLike[str]]

IDS_AT_ONCE = 16384
"""Ids in a batch of windows."""
CHUNK = 1 << 16
"""Bytes of a batch that finer stages take at a time, so that a long window needs little memory."""
READ_AT_ONCE = 1 << 20
"""Ids read from the disk at a time."""


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
    """Bytes, or tokens of a discrete vocabulary, that it is of."""
    method: str
    """How contexts were laid."""
    context: int
    """Most ids seen at once."""
    items: int
    """Documents; those that hold many segments of one modality, as a file of pictures does, count by segment."""
    standard_error: float | None
    """Of bits per byte, the items taken as drawn at random; None for fewer than two."""
    by_modality: dict[str, dict[str, float]]
    """For each modality, or stream of a fused model, its `nats`, `bytes` and `bits_per_byte`; `bits_per_sample` where
    its samples are all of the same number of bytes, more than one; `bits_per_dimension` of pictures and video, whose
    dimensions, a colour of a pixel, have a byte each: it is `bits_per_byte` under the name that papers give it."""
    by_position_in_patch: list[float | None]
    """Bits per byte of bytes at each position in a patch of the coarsest stage; None where there was none."""
    by_position_in_context: list[dict[str, Any]]
    """Bits per byte of bytes with `start` up to `stop` ids before them in their window."""
    dynamic: float | None = None
    """The rate at which the model kept learning; None: it did not."""
    noise: float = 0.0
    """The share of bytes that were replaced, which are not in the sums."""
    by_item: np.ndarray = field(compare=False, repr=False)
    """(N, 2): nats and bytes of each item, in the order of the data; not in the JSON."""

    @property
    def bits_per_byte(self) -> float:
        """Nats / ln 2 / bytes."""
        return bits_per_byte(self.nats, self.bytes)

    def to_json(self) -> dict[str, Any]:
        """All of it, items apart, as numbers, names and lists."""
        values = {name: value for name, value in vars(self).items() if name != "by_item"}
        return {"bits_per_byte": self.bits_per_byte, **values}


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
    dynamic: float | None = None,
    noise: float = 0.0,
    seed: int = 0,
    share: tuple[int, int] = (0, 1),
    total: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Evaluation:
    """Measures a model over data.

    Args:
        model: the model; it has the mode and the weights that it had when this returns.
        data: a stream, a corpus, bytes (as text where they are UTF-8), or files and folders. Of what a fused model
            only knows as context, nothing is counted.
        method: see `plan`.
        context: most ids in a window; default: the model's.
        stride: see `plan`.
        batch_size: windows at once; default: as many as make 16 Ki ids, and one where the model keeps learning.
        max_bytes: measure on the first so many bytes alone.
        autocast: bf16 instead of fp32.
        dynamic: the model keeps learning at this rate from what has been scored, batch after batch, see `learning`.
        noise: put bytes drawn as often as the data have them in this share of the places, and count the other places:
            what a model makes of a past that is damaged.
        seed: of the noise.
        share: of several processes that measure together, the number of this one and how many there are.
        total: sums an array over these processes.

    Raises:
        ValueError: a number is below 1, the context is longer than learned positions allow, `plan` refuses, a fused
            model's patches would be halved, a model that learns would learn what it has yet to score, or noise finds no
            bytes.
        DataError: the data cannot be read, or hold a modality that the model does not know.
    """
    for name, value in (("context", context), ("batch_size", batch_size), ("max_bytes", max_bytes)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    corpus = data.corpus if isinstance(data, PackedStream) else to_corpus(data)
    if max_bytes is not None:
        corpus = first_bytes(corpus, max_bytes, model.config)
    stream, span, fused = packed(corpus, model.config), model.config.span(0), bool(model.config.embedder.streams)
    context = context or model.config.context
    if context > (model.config.max_length or context):
        raise ValueError(f"the context is {context}, but the learned positions end at {model.config.max_length}")
    if max([256, *corpus.segment_marks]) >= model.config.vocab_size:
        raise ValueError(
            f"the model has {model.config.vocab_size} ids and knows no documents, which begin with BOS and MARK"
        )
    if fused and method in ("strided", "sliding-strided"):
        raise ValueError(f"method {method!r} begins in the middle of patches, where a fused model finds other streams")
    if dynamic is not None and method in ("strided", "sliding-strided"):
        raise ValueError(
            f"method {method!r} passes over the data twice, so a model that keeps learning would have seen what it is "
            "asked in the second pass; take basic or sliding"
        )
    if dynamic is not None and share[1] > 1:
        raise ValueError("a model that keeps learning is measured by one process")
    if not 0 <= noise < 1:
        raise ValueError(f"noise is {noise}; it is a share of the bytes, from 0 to below 1")
    check_known(model.config, corpus.modalities)
    frequencies = byte_frequencies(stream) if noise else None
    windows = plan(len(stream), context, span, method, stride)
    edges = np.unique(np.geomspace(1, context, 33).astype(np.int64))
    names, starts = row_names(model.config, corpus.modalities), item_starts(stream, fused)
    sizes = (max([*names, len(model.config.embedder.streams)]) + 1, span, context, len(starts))
    rows, patch, place, items = (np.zeros((size, 2)) for size in sizes)
    device = model.starts[0].device
    training = model.training
    model.eval()
    batch_size = batch_size or (max(1, IDS_AT_ONCE // context) if dynamic is None else 1)
    with contextlib.ExitStack() as stack:
        stack.callback(model.train, training)
        learn = None if dynamic is None else stack.enter_context(learning(model, dynamic, CHUNK))
        for group, ours in shared(list(batches(windows, batch_size)), *share):
            found = np.stack([stream.read(w.start, w.stop) for w in group]).astype(np.int64)
            replaced = np.zeros(found.shape, bool)
            if frequencies is not None:
                draws = [noise_at(w.start, w.stop, noise, seed, frequencies) for w in group]
                chosen, values = (np.stack(parts) for parts in zip(*draws, strict=True))
                replaced = chosen & (found < VOCABULARY.num_bytes)
                found = np.where(replaced, values, found)
            if share[1] > 1:  # then all take equal steps, for they may have to meet in each
                missing = ((0, 0), (0, context - found.shape[1]))
                found = np.pad(found, missing, constant_values=VOCABULARY.pad_id)
                replaced = np.pad(replaced, missing)
            ids = torch.from_numpy(found).to(device)
            mark = torch.tensor([stream.mark_at(w.start) for w in group], device=device)
            since = torch.tensor([stream.since_at(w.start) for w in group], device=device)
            row = rows_of(model.config, ids, mark)
            predicted = model.counted_places(ids.shape[1], torch.device("cpu"))
            places = np.arange(ids.shape[1])
            scored = np.stack([(places >= w.first - w.start) & (not w.half or places % span * 2 < span) for w in group])
            scored &= (ids != VOCABULARY.pad_id).cpu().numpy() & ~replaced & ours
            scored &= True if predicted is None else predicted.numpy()
            if learn is None:
                nats = nats_of_each(model, ids, autocast, mark, since).double().cpu().numpy()
            else:
                nats = learn(ids, torch.from_numpy(scored).to(device), autocast, mark, since).double().cpu().numpy()
            is_byte = scored & ((ids < VOCABULARY.num_bytes) | (ids >= VOCABULARY.end_of_reserved)).cpu().numpy()
            position = np.array([w.start for w in group])[:, None] + places
            item = starts.searchsorted(position, "right") - 1
            add(rows, row, nats, scored, is_byte)
            add(items, item, nats, scored, is_byte)
            add(patch, position % span, nats, is_byte, is_byte)
            add(place, np.broadcast_to(places, row.shape), nats, is_byte, is_byte)
    if total is not None:
        rows, patch, place, items = (total(sums) for sums in (rows, patch, place, items))
    return Evaluation(
        nats=float(rows[:, 0].sum()),
        bytes=int(rows[:, 1].sum()),
        method=method,
        context=context,
        items=len(items),
        standard_error=standard_error(items),
        by_modality=by_name(rows, names, sample_sizes(corpus)),
        by_position_in_patch=[bits_per_byte(float(nats), int(size)) if size else None for nats, size in patch],
        by_position_in_context=[
            {
                "start": int(low),
                "stop": int(high),
                "bits_per_byte": bits_per_byte(float(nats), int(size)) if size else None,
            }
            for low, high in zip(np.append(0, edges), np.append(edges, context), strict=False)
            if low < high
            for nats, size in [place[low:high].sum(0)]
        ],
        dynamic=dynamic,
        noise=noise,
        by_item=items,
    )


def packed(corpus: Corpus, config: ModelConfig) -> PackedStream:
    """A corpus as a model reads it: its segments one after the other, or side by side where the model fuses them."""
    return PackedStream(corpus, config.span(0), [stream.size for stream in config.embedder.streams])


def check_known(config: ModelConfig, modalities: Mapping[int, str]) -> None:
    """Raises DataError where a model that tells modalities apart meets one that it does not know, by mark and name."""
    known = {modality.mark: modality.name for modality in config.modalities}
    for mark, name in modalities.items() if known else ():
        if known.get(mark) != name:
            raise DataError(
                f"the data hold {name} (mark {mark}), which the model does not know; it tells apart "
                + ", ".join(f"{known[mark]} ({mark})" for mark in sorted(known))
                + "; add it to model.modalities, or leave it out of the data"
            )


def row_names(config: ModelConfig, modalities: Mapping[int, str]) -> dict[int, str]:
    """The names of the rows of `Loss.table`: those of a fused model's predicted streams, else of modalities by mark."""
    if config.embedder.streams:
        return {1 + i: s.name for i, s in enumerate(config.embedder.streams) if s.role == "predicted"}
    return {1 + mark - VOCABULARY.first_mark: name for mark, name in sorted(modalities.items())}


def by_name(
    rows: np.ndarray, names: Mapping[int, str], sizes: Mapping[str, int] | None = None
) -> dict[str, dict[str, float]]:
    """`nats`, `bytes` and `bits_per_byte` of each named row (R, 2: nats and bytes) that has bytes.

    `sizes` are the bytes of a sample where that is more than one, and add `bits_per_sample`.
    """
    found = {}
    for row, name in names.items():
        nats, size = float(rows[row, 0]), int(rows[row, 1])
        if size:
            bits = bits_per_byte(nats, size)
            found[name] = {"nats": nats, "bytes": size, "bits_per_byte": bits}
            if sizes and name in sizes:
                found[name]["bits_per_sample"] = bits * sizes[name]
            if name in (image.MODALITY, video.MODALITY):
                found[name]["bits_per_dimension"] = bits
    return found


def rows_of(config: ModelConfig, ids: Tensor, mark: Tensor) -> np.ndarray:
    """The row of `Loss.table` of each of ids (B, T), whose windows begin on patch borders where the model is fused."""
    if config.embedder.streams:
        owners = np.repeat(1 + np.arange(len(config.embedder.streams)), [s.size for s in config.embedder.streams])
        return np.broadcast_to(np.resize(owners, ids.shape[1]), tuple(ids.shape))
    return (marks_in_force(ids, mark) - VOCABULARY.first_mark + 1).clamp(min=0).cpu().numpy()


def sample_sizes(corpus: Corpus) -> dict[str, int]:
    """Bytes of a sample by modality, where that is more than one and the same in all segments: sound alone so far."""
    headers = np.unique(corpus.segment_headers[corpus.segment_marks == audio.MARK], axis=0)
    try:
        codings = {audio.unpack_header(row[1 : 1 + row[0]].tobytes())[2] for row in headers}
    except ValueError:  # sounds that no file gave
        return {}
    sizes = {audio.CODINGS[coding] for coding in codings}
    return {audio.MODALITY: max(sizes)} if len(sizes) == 1 and max(sizes) > 1 else {}


def add(sums: np.ndarray, at: np.ndarray, nats: np.ndarray, counted: np.ndarray, is_byte: np.ndarray) -> None:
    """Adds nats (B, T) where they are counted, and bytes, to the rows of sums (N, 2) that `at` (B, T) names."""
    low = at.min()
    at = (at - low).ravel()
    for column, weights in enumerate((np.where(counted, nats, 0.0), is_byte)):
        found = np.bincount(at, weights.ravel())
        sums[low : low + len(found), column] += found


@torch.inference_mode()
def nats_of_each(
    model: Multiscale, ids: Tensor, autocast: bool = False, mark: Tensor | None = None, since: Tensor | None = None
) -> Tensor:
    """What each id costs given those before it: ids (B, T) -> nats (B, T) in fp32.

    `mark` and `since` (B,) say what stands before the first id, see `Multiscale.forward`.
    """
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
        return model.nats(ids, CHUNK, mark=mark, since=since)


def shared(groups: Sequence[list[Window]], share: int, shares: int) -> Iterator[tuple[list[Window], bool]]:
    """The groups that are this share's, and whether they count: one that has fewer takes a last one that does not."""
    for first in range(0, len(groups), shares):
        yield groups[min(first + share, len(groups) - 1)], first + share < len(groups)


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


def predicted_part(corpus: Corpus, config: ModelConfig) -> Corpus:
    """Of a corpus what a model is measured on: all of it, or a fused model's predicted streams."""
    if not config.embedder.streams:
        return corpus
    kept = [stream.role == "predicted" for stream in config.embedder.streams]
    documents = (corpus[number] for number in range(len(corpus)))
    return Corpus.from_documents(
        [Document(segments=tuple(itertools.compress(document.segments, kept))) for document in documents],
        {name: mark for mark, name in corpus.modalities.items()},
    )


def first_bytes(corpus: Corpus, num_bytes: int, config: ModelConfig) -> Corpus:
    """The first documents up to about `num_bytes`; what a model fuses is cut at the same time in all streams."""
    sizes = [stream.size for stream in config.embedder.streams]
    lengths = corpus.document_lengths
    ends = np.cumsum(lengths)
    if not sizes or ends[-1] <= num_bytes:
        return corpus.head(num_bytes)
    last = int(ends.searchsorted(num_bytes))
    patches = -(-int(num_bytes - ends[last] + lengths[last]) // sum(sizes))
    cut = tuple(
        replace(segment, data=segment.data[: patches * size]) for segment, size in zip(corpus[last].segments, sizes)
    )
    marks = {name: mark for mark, name in corpus.modalities.items()}
    return concatenate([corpus.subset(np.arange(last)), Corpus.from_documents([Document(segments=cut)], marks)])


def baselines(data: Corpus | bytes, max_bytes: int | None = None) -> dict[str, dict[str, float]]:
    """The same bytes, end to end, under gzip -9, bzip2 -9, xz -9e and zstd -19: `bytes` and `bits_per_byte` of each.

    Bits are per id, as those of models are: tokens are compressed as the 2 or 4 bytes of each. Cost: some 700 MiB of
    memory for xz, whatever the size of the data.
    """
    corpus = to_corpus(data)
    corpus = corpus if max_bytes is None else corpus.head(max_bytes)
    compressors: dict[str, Any] = {
        "gzip": zlib.compressobj(9, zlib.DEFLATED, 31),
        "bzip2": bz2.BZ2Compressor(9),
        "xz": lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME),
        "zstd": zstandard.ZstdCompressor(level=19).compressobj(),
    }
    sizes, total = dict.fromkeys(compressors, 0), corpus.num_bytes
    for segment in range(len(corpus.segment_lengths)):
        for start in range(0, int(corpus.segment_lengths[segment]), READ_AT_ONCE):
            chunk = corpus.payload(segment, start, start + READ_AT_ONCE).tobytes()
            for name, compressor in compressors.items():
                sizes[name] += len(compressor.compress(chunk))
    for name, compressor in compressors.items():
        sizes[name] += len(compressor.flush())
    return {
        name: {"bytes": size, "bits_per_byte": size * 8 / total if total else math.nan} for name, size in sizes.items()
    }
