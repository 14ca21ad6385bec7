"""Models, compressors and codecs side by side on the same files: what each needs, in bits per byte, and where.

In: models that were measured, with the data as each read them. Out: a `Comparison` and its numbers as JSON. Cost: each
compressor takes the data twice, end to end and item by item, and every codec once.

An item is a document, or a segment of a file that holds many of one kind (see `Evaluation.items`). Models and
compressors take the items one after another and profit from what came before; codecs take each picture, sound or clip
by itself. Error bars are over items; those of compressors are of items that each were compressed alone.
"""

import bz2
import functools
import gzip
import hashlib
import importlib
import io
import lzma
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import zstandard

from byteloom.codecs import audio, image, video
from byteloom.corpus import Corpus
from byteloom.documents import DataError, Document, Segment
from byteloom.evaluation import Evaluation, baselines, predicted_part
from byteloom.items import item_counts, standard_error
from byteloom.models.config import ModelConfig

ALONE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 9),
    "bzip2": lambda data: bz2.compress(data, 9),
    "xz": lambda data: lzma.compress(data, filters=[xz_filter(len(data))]),
    "zstd": lambda data: zstandard.ZstdCompressor(level=19).compress(data),
}
"""The compressors of `evaluation.baselines`, for an item by itself."""


def xz_filter(size: int) -> dict[str, int]:
    """xz -9e with a dictionary no larger than the data: the same size, in less time and memory."""
    return {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": min(max(size, 4096), 64 << 20)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """What one model, compressor or codec needs."""

    name: str
    """As it is shown."""
    kind: Literal["model", "compressor", "codec"]
    """What it is."""
    bits: np.ndarray
    """(N,) float64: bits of each item; NaN where a codec does not take it."""
    bits_per_byte: float | None
    """Of all items; None where it does not take all."""
    by_modality: dict[str, float]
    """Bits per byte of each modality that it takes."""
    details: dict[str, Any] = field(default_factory=dict)
    """More about a model: `parameters`, `seconds`, and what `Evaluation.to_json` says of positions."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Entries on the same items, best first; those that take only some of the items come last."""

    entries: tuple[Entry, ...]
    """See above."""
    bytes: np.ndarray
    """(N,) int64: bytes of each item."""
    files: tuple[str, ...]
    """Name of each file, or other document."""
    file_of_item: np.ndarray
    """(N,) int64: which of them each item belongs to."""

    def error(self, entry: Entry, less: Entry | None = None) -> float | None:
        """The standard error of an entry's bits per byte, or of these `less` those of another, item by item."""
        bits = entry.bits if less is None else entry.bits - less.bits
        known = np.isfinite(bits)
        return standard_error(np.stack([bits[known] * math.log(2), self.bytes[known]], axis=1))

    def distance(self, entry: Entry) -> dict[str, float | None]:
        """How many more bits per byte an entry needs than the best, and the standard error of that over items.

        Items differ more from each other than entries do on the same item, so this error is the smaller one.
        """
        best = self.entries[0]
        if entry.bits_per_byte is None or best.bits_per_byte is None:
            return {"more_than_best": None, "standard_error_of_more": None}
        more = entry.bits_per_byte - best.bits_per_byte
        return {"more_than_best": more, "standard_error_of_more": self.error(entry, best)}

    def by_file(self, entry: Entry) -> list[float | None]:
        """Bits per byte of each file; None where it has no bytes or the entry does not take all of it."""
        bits = np.bincount(self.file_of_item, entry.bits, len(self.files))
        sizes = self.file_sizes
        return [float(b / s) if s and math.isfinite(b) else None for b, s in zip(bits, sizes, strict=True)]

    @property
    def file_sizes(self) -> np.ndarray:
        """(F,) int64: bytes of each file."""
        return np.bincount(self.file_of_item, self.bytes, len(self.files)).astype(np.int64)

    def to_json(self) -> dict[str, Any]:
        """All of it as numbers, names and lists."""
        return {
            "bytes": int(self.bytes.sum()),
            "items": len(self.bytes),
            "files": [
                {"name": name, "bytes": size} for name, size in zip(self.files, self.file_sizes.tolist(), strict=True)
            ],
            "entries": [
                {
                    "name": entry.name,
                    "kind": entry.kind,
                    "bits_per_byte": entry.bits_per_byte,
                    "standard_error": self.error(entry),
                    **self.distance(entry),
                    "by_modality": entry.by_modality,
                    "by_file": self.by_file(entry),
                    **entry.details,
                }
                for entry in self.entries
            ],
        }


# -- measuring ---------------------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """A model that `evaluate` has measured."""

    config: ModelConfig
    """The model's."""
    corpus: Corpus
    """The data as it read them."""
    found: Evaluation
    """What it needs for them."""
    details: Mapping[str, Any] = {}
    """More about it, to be kept with its numbers, such as `parameters`."""


def compare(models: Mapping[str, Measured], others: bool = True) -> Comparison:
    """Puts measured models, by name, beside each other and, with `others`, the compressors and codecs.

    Raises:
        DataError: two models were measured on different bytes, as where one reads sound as mu-law.
    """
    first, (config, corpus, found, _) = next(iter(models.items()))
    contents = {}
    if len(models) > 1:
        contents = {name: content_digest(predicted_part(one.corpus, one.config)) for name, one in models.items()}
    entries = []
    for name, (_, _, other, details) in models.items():
        same_sizes = np.array_equal(other.by_item[:, 1], found.by_item[:, 1])
        if not same_sizes or contents.get(name) != contents.get(first):
            raise DataError(
                f"{first} and {name} read the data as different bytes ({found.bytes:,} and {other.bytes:,}), and bits "
                "of these cannot be compared; have media read alike, as with --audio.coding, or leave one model out"
            )
        kept = ("method", "context", "dynamic", "by_position_in_patch", "by_position_in_context")
        entries.append(
            Entry(
                name=name,
                kind="model",
                bits=other.by_item[:, 0] / math.log(2),
                bits_per_byte=other.bits_per_byte,
                by_modality={modality: part["bits_per_byte"] for modality, part in other.by_modality.items()},
                details={**details, **{key: getattr(other, key) for key in kept}},
            )
        )
    items = item_counts(corpus, bool(config.embedder.streams))
    sizes = found.by_item[:, 1].astype(np.int64)
    if others:
        counted = predicted_part(corpus, config)
        entries += compressed(counted, items_of_segments(counted, items), sizes)
    return Comparison(
        entries=tuple(sorted(entries, key=_place)),
        bytes=sizes,
        files=tuple(corpus.names),
        file_of_item=np.repeat(np.arange(len(corpus)), items),
    )


def _place(entry: Entry) -> tuple[bool, float]:
    """Orders entries by bits per byte, those last that take only some of the items."""
    if entry.bits_per_byte is None:
        return True, min(entry.by_modality.values())
    return False, entry.bits_per_byte


def segment_at(corpus: Corpus, number: int) -> Segment:
    """A segment by its number in a corpus. Its data are a view that keeps the file open."""
    modality = corpus.modalities[int(corpus.segment_marks[number])]
    return Segment(modality=modality, data=corpus.payload(number), header=corpus.header(number))


def content_digest(corpus: Corpus) -> bytes:
    """SHA-256 of what the data of a corpus say, which is the same in whatever order a model reads pictures."""
    found = hashlib.sha256()
    for segment in map(functools.partial(segment_at, corpus), range(len(corpus.segment_lengths))):
        header: Any = segment.header
        if segment.modality == image.MODALITY:
            header = image.unpack_header(segment.header)[:3]
        elif segment.modality == video.MODALITY:
            header = video.unpack_header(segment.header)[:4]
        found.update(repr((segment.modality, header, len(segment.data))).encode())
        found.update(rows_first(segment).data.tobytes())
    return found.digest()


def items_of_segments(corpus: Corpus, items: np.ndarray) -> np.ndarray:
    """The item (N,) that each segment of a corpus belongs to, where document d is `items[d]` of them."""
    counts = np.diff(corpus.document_starts)
    document = np.repeat(np.arange(len(corpus)), counts)
    place = np.arange(len(document)) - corpus.document_starts[document]
    return (np.cumsum(items) - items)[document] + np.minimum(place, items[document] - 1)


def compressed(corpus: Corpus, item: np.ndarray, sizes: np.ndarray) -> list[Entry]:
    """The compressors, and every codec at hand that takes all segments of a modality.

    `item` is the item of each segment and `sizes` are the bytes of each item. Compressors get pictures and video rows
    first, as files of bare samples have them. Of a codec its whole file counts, header and all.
    """
    plain = []
    for number in range(len(corpus.segment_lengths)):
        segment = rows_first(segment_at(corpus, number))
        plain.append(replace(segment, data=segment.data.copy()))  # a view would keep its file open
    modality = np.array([segment.modality for segment in plain])
    lengths = corpus.segment_lengths
    names = list(dict.fromkeys(modality[lengths > 0].tolist()))
    marks = {name: mark for mark, name in corpus.modalities.items()}

    def end_to_end(chosen: np.ndarray) -> dict[str, float]:
        documents = [Document(segments=(plain[i],)) for i in np.flatnonzero(chosen)]
        found = baselines(Corpus.from_documents(documents, marks))
        return {name: sums["bits_per_byte"] for name, sums in found.items()}

    whole = end_to_end(np.ones(len(plain), bool))
    parts = {name: end_to_end(modality == name) if len(names) > 1 else whole for name in names}
    parts_of_item: list[list[Segment]] = [[] for _ in sizes]
    for i, segment in zip(item, plain, strict=True):
        parts_of_item[i].append(segment)
    alone = np.zeros((len(sizes), len(ALONE)))
    for i, segments in enumerate(parts_of_item):
        content = b"".join(segment.data.tobytes() for segment in segments)
        alone[i] = [8 * len(compress(content)) for compress in ALONE.values()]
    entries = [
        Entry(
            name=name,
            kind="compressor",
            bits=bits,
            bits_per_byte=whole[name],
            by_modality={part: found[name] for part, found in parts.items()},
        )
        for name, bits in zip(ALONE, alone.T, strict=True)
    ]
    for part in names:
        chosen = modality == part
        others = np.isin(np.arange(len(sizes)), item[~chosen])
        for name, write in CODECS.get(part, {}).items():
            sizes_or_none = [written_size(write, segment_at(corpus, i)) for i in np.flatnonzero(chosen).tolist()]
            written = [size for size in sizes_or_none if size is not None]
            if len(written) == len(sizes_or_none):
                bits = np.bincount(item[chosen], 8.0 * np.array(written), len(sizes))
                bits[others | ~np.isin(np.arange(len(sizes)), item[chosen])] = np.nan
                found = 8 * sum(written) / int(lengths[chosen].sum())
                entries.append(
                    Entry(
                        name=name,
                        kind="codec",
                        bits=bits,
                        bits_per_byte=found if len(names) == 1 else None,
                        by_modality={part: found},
                    )
                )
    return entries


# -- codecs ------------------------------------------------------------------------------------------------------------


def rows_first(segment: Segment) -> Segment:
    """A picture or video with its samples row by row, whatever the order in which a model reads them."""
    codec = {image.MODALITY: image, video.MODALITY: video}.get(segment.modality)
    return segment if codec is None else replace(segment, data=codec.to_array(segment).reshape(-1))


def written_size(write: Callable[[Segment], bytes], segment: Segment) -> int | None:
    """Bytes of the file that a codec makes of a segment; None where it cannot, or its package is not installed."""
    try:
        return len(write(segment))
    except (ImportError, KeyError, OSError, RuntimeError, ValueError):
        return None


def to_picture(segment: Segment, name: str, **options: Any) -> bytes:
    """A picture as a file in a format of Pillow."""
    from PIL import Image

    pixels = image.to_array(segment)
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, name, **options)
    return file.getvalue()


def to_jpeg_xl(segment: Segment) -> bytes:
    """A picture as JPEG XL, which Pillow writes where the package pillow-jxl-plugin is installed."""
    importlib.import_module("pillow_jxl")
    return to_picture(segment, "JXL", lossless=True, effort=9)


def to_flac(segment: Segment) -> bytes:
    """A sound as FLAC, mu-law as 8 bits in the order of what they stand for. Raises ValueError for floating point."""
    import soundfile

    rate, _, coding = audio.unpack_header(segment.header)
    if coding == "float32":
        raise ValueError("FLAC holds whole numbers only")
    samples: Any = audio.to_array(segment)
    subtype = {"pcm8": "PCM_S8", "mulaw": "PCM_S8", "pcm24": "PCM_24"}.get(coding, "PCM_16")
    if coding == "mulaw":  # both codes of zero keep their places
        codes = ~segment.data.reshape(samples.shape)
        samples = np.where(codes & 128, 127 - (codes & 127), 128 + codes).astype(np.uint8)
    if subtype == "PCM_S8":  # soundfile has no unsigned type
        samples = (samples.astype(np.int16) - 128) * 256
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="FLAC", subtype=subtype, compression_level=1.0)
    return file.getvalue()


def to_ffv1(segment: Segment) -> bytes:
    """A video as FFV1 in NUT, the container that adds least; its range coder goes on from frame to frame."""
    import av

    rate = video.unpack_header(segment.header)[3]
    frames = video.to_array(segment)
    grey = frames.shape[3] == 1
    file = io.BytesIO()
    with av.open(file, "w", format="nut") as output:
        # Later levels of FFV1 cut a frame into slices, which costs small frames dearly.
        stream: Any = output.add_stream("ffv1", rate=rate, options={"level": "1", "coder": "1", "g": "100000"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "gray" if grey else "bgr0"
        for frame in frames:
            pixels = np.ascontiguousarray(frame[:, :, 0] if grey else frame)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "gray" if grey else "rgb24")))
        output.mux(stream.encode())
    return file.getvalue()


CODECS: dict[str, dict[str, Callable[[Segment], bytes]]] = {
    image.MODALITY: {
        "PNG": lambda segment: to_picture(segment, "PNG", optimize=True),
        "WebP lossless": lambda segment: to_picture(segment, "WEBP", lossless=True, exact=True, quality=100, method=6),
        "JPEG XL": to_jpeg_xl,
    },
    audio.MODALITY: {"FLAC": to_flac},
    video.MODALITY: {"FFV1": to_ffv1},
}
"""What writes a segment of a modality as a file from which its samples come back, as small as it can."""


def valid_utf8(texts: Iterable[bytes]) -> float | None:
    """The share of bytes that belong to whole UTF-8 characters; None where there are no bytes.

    The beginning of a character that the end of a text cuts off does not count, for better or worse.
    """
    whole = total = 0
    for text in texts:
        rest = text
        while True:
            try:
                whole += len(rest.decode().encode())
                total += len(rest)
                break
            except UnicodeDecodeError as error:
                whole += error.start
                if error.reason == "unexpected end of data":
                    total += error.start
                    break
                total += error.end
                rest = rest[error.end :]
    return whole / total if total else None


# -- as a table --------------------------------------------------------------------------------------------------------


def columns(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The heads of a table of all entries, and a row of cells for each."""
    names = list(dict.fromkeys(name for entry in comparison.entries for name in entry.by_modality))
    modalities = names if len(names) > 1 else []
    extra: dict[str, Callable[[Any], str]] = {
        "parameters": lambda number: f"{number / 1e6:,.2f} M",
        "valid_utf8": lambda share: f"{share:.1%}",
    }
    details = [key for key in extra if any(entry.details.get(key) is not None for entry in comparison.entries)]
    heads = ["", "bits per byte", "more than the best", *modalities]
    heads += [key.replace("_utf8", " UTF-8") for key in details]
    rows = []
    for entry in comparison.entries:
        bits, distance = entry.bits_per_byte, comparison.distance(entry)
        more = distance["more_than_best"]
        rows.append(
            [
                entry.name,
                "" if bits is None else f"{bits:.4f}{_error(comparison.error(entry))}",
                f"{more:.4f}{_error(distance['standard_error_of_more'])}" if more else "",
                *(f"{entry.by_modality[name]:.4f}" if name in entry.by_modality else "" for name in modalities),
                *(extra[key](entry.details[key]) if entry.details.get(key) is not None else "" for key in details),
            ]
        )
    return heads, rows


def _error(value: float | None) -> str:
    return "" if value is None else f" ± {value:.3f}"
