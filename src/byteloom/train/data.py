"""What a run learns from and is measured on: paths in, corpora with their weights and held-out documents out.

Cost: that of opening the data; what is held out or sampled is named by number, no payload is copied.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from byteloom.codecs import DEFAULT_MEDIA, HEADERS, MediaConfig, audio, by_modality, media_from_dict
from byteloom.corpus import Corpus, concatenate, split
from byteloom.documents import PAD, VOCAB_SIZE, DataError
from byteloom.evaluation import first_bytes, packed
from byteloom.hub import HubDataset, Rows, open_rows, read_corpus
from byteloom.loader import Loader, LoaderConfig
from byteloom.models.config import ModelConfig
from byteloom.shards import is_prepared, media_of, open_data
from byteloom.sources import AnyPath
from byteloom.streaming import StreamLoader

Paths = Sequence[AnyPath | HubDataset]
SHOWN = 5
"""So many of the files that are skipped are named."""


@dataclass(frozen=True, kw_only=True)
class RunData:
    """The data of a run, opened."""

    sources: tuple[tuple[Corpus, float], ...]
    """Corpora to learn from, each with its weight: a share of the windows."""
    streams: tuple[tuple[Rows, float], ...] = ()
    """Datasets to learn from while they are read, each with its weight; then there are no `sources`."""
    held_out: Corpus
    """Documents to measure on, none of which is learned from."""
    media: MediaConfig
    """How media files became samples, and are to become them when the model is used."""
    names: tuple[str, ...] = ()
    """What was given to learn from, by the last part of each path or address; none where it was a corpus."""

    @property
    def num_bytes(self) -> int:
        """Bytes to learn from; 0 for streams, which nobody has counted."""
        return sum(corpus.num_bytes for corpus, _ in self.sources)

    @property
    def size(self) -> str:
        """How much there is to learn from, to be read by people."""
        streamed = ", ".join(str(rows.spec) for rows, _ in self.streams)
        return f"{streamed}, streamed," if streamed else f"{self.num_bytes / 1e6:.2f} MB"

    @property
    def modalities(self) -> dict[int, str]:
        """Name of the modality of each MARK that occurs, also among what is held out."""
        parts = [self.held_out, *(corpus for corpus, _ in self.sources), *(rows for rows, _ in self.streams)]
        return {mark: name for part in parts for mark, name in part.modalities.items()}

    @property
    def skipped(self) -> list[str]:
        """What is said of files that gave nothing: the first few by name and reason, and how many there are."""
        parts = [*(corpus for corpus, _ in self.sources), self.held_out]  # halves of a split say the same
        found = list(dict.fromkeys(entry for corpus in parts for entry in corpus.skipped))
        said = [f"skipped {name}: {reason}" for name, reason in found[:SHOWN]]
        return said + [f"skipped {len(found):,} in all"] * (len(found) > SHOWN)

    @property
    def headers(self) -> dict[str, str]:
        """The commonest header of each modality that has headers, in hexadecimal: what is written without a prompt.

        Of streams, the commonest among what is held out.
        """
        counts: dict[str, Counter[bytes]] = {}
        for corpus in [self.held_out] if self.streams else [corpus for corpus, _ in self.sources]:
            for mark, name in corpus.modalities.items():
                rows = corpus.segment_headers[corpus.segment_marks == mark]
                for row, times in zip(*np.unique(rows, axis=0, return_counts=True), strict=True):
                    counts.setdefault(name, Counter())[row[1 : 1 + row[0]].tobytes()] += int(times)
        commonest = {name: found.most_common(1)[0][0] for name, found in counts.items()}
        return {name: header.hex() for name, header in commonest.items() if header}


def open_run_data(
    data: Paths | Corpus,
    valid: Paths | Corpus | None = None,
    *,
    mixture: Sequence[float] = (),
    media: MediaConfig = DEFAULT_MEDIA,
    modality: str | None = None,
    fused: bool = False,
    valid_bytes: int = 65536,
) -> RunData:
    """Opens what to learn from and what to measure on; the same files are never in both.

    Args:
        data: files, folders, prepared data and datasets of Hugging Face, or a corpus.
        valid: the same, held out; by default 5 % of each source, by file, or the first documents of each stream.
        mixture: a weight for each path of `data`, which makes it a source of its own; none: all are one source.
            Streams are always sources of their own, of equal weight where none is given.
        media: how media files are read, save where prepared data say how they were made.
        modality: what every file is read as, save prepared data and datasets; by default each by name and content.
        fused: segments run side by side, so no document may be cut.
        valid_bytes: how many bytes of each stream are held out where `valid` is not given.

    Raises:
        DataError: data cannot be read, or were prepared in different ways.
        ValueError: `mixture` does not have a weight for each path, or streams are mixed with other data.
    """
    items = [] if isinstance(data, Corpus) else as_list(data)
    held_out_items = [] if valid is None or isinstance(valid, Corpus) else as_list(valid)
    check_mixture(mixture, len(items))
    media = settle_media(paths_among([*items, *held_out_items]), media, media)
    names = tuple(map(named, items))
    streamed = [item for item in items if isinstance(item, HubDataset) and item.streaming]
    if streamed:
        if len(streamed) < len(items):
            raise ValueError("streamed datasets cannot be mixed with other data; stream all, or none")
        streams = [open_rows(spec, media) for spec in streamed]
        held_out = (
            joined([rows.hold_out(valid_bytes) for rows in streams])
            if valid is None
            else open_corpus(valid, media, modality)
        )
        weights = mixture or [1.0] * len(streams)
        pairs = tuple(zip(streams, weights, strict=True))
        return RunData(sources=(), streams=pairs, held_out=held_out, media=media, names=names)
    groups = [[item] for item in items] if mixture else [data]
    corpora = [open_corpus(group, media, modality) for group in groups]
    if valid is None:
        halves = [split(corpus, whole_documents=fused) for corpus in corpora]
        corpora, held_out = [learned for learned, _ in halves], joined([kept for _, kept in halves])
    else:
        held_out = open_corpus(valid, media, modality)
    pairs = tuple(zip(corpora, mixture or [1.0], strict=True))
    return RunData(sources=pairs, held_out=held_out, media=media, names=names)


def named(item: str | PathLike[str] | HubDataset) -> str:
    """What data are called in a run, which may be given away: the last part of a path, the name on the hub."""
    is_remote = isinstance(item, HubDataset) and item.path is None
    return str(item) if is_remote else Path(item.name if isinstance(item, HubDataset) else item).name


def open_corpus(data: Paths | Corpus, media: MediaConfig, modality: str | None = None) -> Corpus:
    """Files, folders and prepared data as one corpus, followed by datasets. Raises DataError."""
    if isinstance(data, Corpus):
        return data
    items = as_list(data)
    paths, datasets = paths_among(items), [item for item in items if isinstance(item, HubDataset)]
    corpora = [open_data(paths, modality, media)] if paths or not datasets else []
    return joined([*corpora, *(read_corpus(spec, media) for spec in datasets)])


def as_list(items: Paths | AnyPath) -> list[AnyPath | HubDataset]:
    """One path or several, as a list."""
    return [items] if isinstance(items, (str, PathLike)) else list(items)


def paths_among(items: Paths) -> list[AnyPath]:
    """Those that are not datasets of Hugging Face."""
    return [item for item in items if not isinstance(item, HubDataset)]


def make_loader(data: RunData, model: ModelConfig, config: LoaderConfig) -> Loader | StreamLoader:
    """Batches for a model, of corpora or of streams."""
    if data.streams:
        return StreamLoader(config, data.streams, model.span(0), [stream.size for stream in model.embedder.streams])
    return Loader(config, [(packed(corpus, model), weight) for corpus, weight in data.sources])


def check_mixture(mixture: Sequence[float], num_paths: int) -> None:
    """Raises ValueError where there are weights, but not one for each path of data."""
    if mixture and len(mixture) != num_paths:
        raise ValueError(f"mixture has {len(mixture)} weights for {num_paths} paths of data; give one for each")


def settle_media(paths: Sequence[AnyPath], wanted: MediaConfig, default: MediaConfig) -> MediaConfig:
    """How the media of a run are read: as its prepared data were, and as `wanted` where these say nothing.

    Raises:
        DataError: the same modality was prepared in two ways, or otherwise than `wanted` asks where that is not
            just its `default`.
    """
    settled: dict[str, tuple[AnyPath, object]] = {}
    for path in filter(is_prepared, paths):
        options = media_of(path) or {}
        made = media_from_dict(options)
        for modality in options:
            found, ours, usual = (getattr(config, modality) for config in (made, wanted, default))
            first, same = settled.setdefault(modality, (path, found))
            if found != same:
                raise DataError(f"{path}: has {modality} prepared otherwise than {first}; prepare both alike")
            for name in (field.name for field in dataclasses.fields(ours)):
                asked, is_so = getattr(ours, name), getattr(found, name)
                if asked not in (getattr(usual, name), is_so):
                    raise DataError(
                        f"{path}: was prepared with {modality}.{name} {is_so}, and this run asks for {asked}; "
                        "prepare it anew with that, or ask for the same"
                    )
    return dataclasses.replace(wanted, **{modality: found for modality, (_, found) in settled.items()})


def check_guesses(data: RunData, model: ModelConfig) -> None:
    """Raises DataError where media are in another coding, or have other channels, than those that a model guesses.

    No byte would be lost, but guesses would be worse than none. Streams are known by what is held out of them.
    """
    for number, known in enumerate(model.modalities):
        guess, wanted = known.predictor.guess, known.predictor.channels
        if guess == "none" or not HEADERS.get(known.name):
            continue
        for corpus in (data.held_out, *(corpus for corpus, _ in data.sources)):
            segments = np.flatnonzero(corpus.segment_marks == known.mark)
            _, firsts = np.unique(corpus.segment_headers[segments], axis=0, return_index=True)
            for segment in segments[firsts].tolist():
                document = int(corpus.document_starts.searchsorted(segment, side="right")) - 1
                try:
                    header = by_modality(known.name).unpack_header(corpus.header(segment))
                except ValueError as error:
                    raise DataError(f"{corpus.names[document]}: {error}; prepare the data anew") from error
                is_sound = known.name == audio.MODALITY
                channels, coding = (header[1], header[2]) if is_sound else (header[2], "picture")
                if (coding, channels) == (guess, wanted):
                    continue
                options = f"channels {'grey' if wanted == 1 else 'rgb'}"
                if is_sound:
                    options = f"coding {guess}" + " --audio.mono" * (wanted == 1)
                cure = f"prepare it with --{known.name}.{options}"
                if coding == guess:
                    cure += f", or train with --model.modalities.{number}.predictor.channels {channels}"
                elif (coding, channels) == ("pcm16", 1):
                    cure += ", or take audio16-small"
                raise DataError(
                    f"{corpus.names[document]}: is {known.name} in {coding} with {channels} channels, and the model "
                    f"guesses {guess} with {wanted}; {cure}"
                )


def row_weights(weights: Mapping[str, float], names: Mapping[int, str]) -> dict[int, float]:
    """The weight of each row of `Loss.table` that has one other than 1. Raises ValueError for an unknown name."""
    for name in weights:
        if name not in names.values():
            there = ", ".join(sorted(names.values()))
            raise ValueError(f"loss_weights names {name!r}, which is not learned from; there are {there}")
    return {row: weights[name] for row, name in names.items() if weights.get(name, 1.0) != 1.0}


def sample(corpus: Corpus, num_bytes: int, model: ModelConfig) -> Corpus:
    """The first documents of a corpus up to about `num_bytes`, as many bytes of each kind of document.

    A kind is the set of modalities that a document holds: none is left out because it comes last.
    """
    if len(corpus.modalities) < 2:
        return first_bytes(corpus, num_bytes, model)
    kinds: dict[frozenset[int], list[int]] = {}
    for number, (first, stop) in enumerate(itertools.pairwise(corpus.document_starts.tolist())):
        kinds.setdefault(frozenset(corpus.segment_marks[first:stop].tolist()), []).append(number)
    each = -(-num_bytes // len(kinds))
    return joined([first_bytes(corpus.subset(numbers), each, model) for numbers in kinds.values()])


def joined(corpora: Sequence[Corpus]) -> Corpus:
    """Corpora as one."""
    return corpora[0] if len(corpora) == 1 else concatenate(corpora)


def count(ids: np.ndarray, predicted: np.ndarray | None = None) -> tuple[int, int]:
    """Of a batch's ids (B, T) how many the loss is a sum over, and how many of these are payload.

    `predicted` (T,) is False at places that are only context.
    """
    counted = ids if predicted is None else ids[:, predicted]
    return int((counted != PAD).sum()), int(((counted < PAD) | (counted >= VOCAB_SIZE)).sum())
