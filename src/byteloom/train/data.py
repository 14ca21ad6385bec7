"""What a run learns from and is measured on: paths in, corpora with their weights and held-out documents out.

Cost: that of opening the data; what is held out or sampled is named by number, no payload is copied.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from byteloom.codecs import DEFAULT_MEDIA, MediaConfig, media_from_dict
from byteloom.corpus import Corpus, concatenate, split
from byteloom.documents import PAD, VOCAB_SIZE, DataError
from byteloom.evaluation import first_bytes
from byteloom.models.config import ModelConfig
from byteloom.shards import is_prepared, media_of, open_data
from byteloom.sources import path_list

Paths = Sequence[str | PathLike[str]]


@dataclass(frozen=True, kw_only=True)
class RunData:
    """The data of a run, opened."""

    sources: tuple[tuple[Corpus, float], ...]
    """Corpora to learn from, each with its weight: a share of the windows."""
    held_out: Corpus
    """Documents to measure on, none of which is learned from."""
    media: MediaConfig
    """How media files became samples, and are to become them when the model is used."""

    @property
    def num_bytes(self) -> int:
        """Bytes to learn from."""
        return sum(corpus.num_bytes for corpus, _ in self.sources)

    @property
    def modalities(self) -> dict[int, str]:
        """Name of the modality of each MARK that occurs, also among what is held out."""
        corpora = [self.held_out, *(corpus for corpus, _ in self.sources)]
        return {mark: name for corpus in corpora for mark, name in corpus.modalities.items()}

    @property
    def headers(self) -> dict[str, str]:
        """The commonest header of each modality that has headers, in hexadecimal: what is written without a prompt."""
        counts: dict[str, Counter[bytes]] = {}
        for corpus, _ in self.sources:
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
    fused: bool = False,
) -> RunData:
    """Opens what to learn from and what to measure on; the same files are never in both.

    Args:
        data: files, folders and prepared data, or a corpus.
        valid: the same, held out; by default 5 % of each source, by file.
        mixture: a weight for each path of `data`, which makes it a source of its own; none: all are one source.
        media: how media files are read, save where prepared data say how they were made.
        fused: segments run side by side, so no document may be cut.

    Raises:
        DataError: data cannot be read, or were prepared in different ways.
        ValueError: `mixture` does not have a weight for each path.
    """
    paths = [] if isinstance(data, Corpus) else path_list(data)
    check_mixture(mixture, len(paths))
    held_out_paths = [] if valid is None or isinstance(valid, Corpus) else path_list(valid)
    media = settle_media([*paths, *held_out_paths], media, media)
    groups = [[path] for path in paths] if mixture else [paths]
    corpora = [data] if isinstance(data, Corpus) else [open_data(group, None, media) for group in groups]
    if valid is None:
        halves = [split(corpus, whole_documents=fused) for corpus in corpora]
        corpora, held_out = [learned for learned, _ in halves], joined([kept for _, kept in halves])
    else:
        held_out = valid if isinstance(valid, Corpus) else open_data(valid, None, media)
    return RunData(sources=tuple(zip(corpora, mixture or [1.0], strict=True)), held_out=held_out, media=media)


def check_mixture(mixture: Sequence[float], num_paths: int) -> None:
    """Raises ValueError where there are weights, but not one for each path of data."""
    if mixture and len(mixture) != num_paths:
        raise ValueError(f"mixture has {len(mixture)} weights for {num_paths} paths of data; give one for each")


def settle_media(paths: Sequence[Path], wanted: MediaConfig, default: MediaConfig) -> MediaConfig:
    """How the media of a run are read: as its prepared data were, and as `wanted` where these say nothing.

    Raises:
        DataError: the same modality was prepared in two ways, or otherwise than `wanted` asks where that is not
            just its `default`.
    """
    settled: dict[str, tuple[Path, object]] = {}
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
