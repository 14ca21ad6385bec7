"""Prompts of any kind as ids, and documents that a model is writing.

In: text, bytes, documents or ids, and what the model tells apart. Out: a `Draft`, which says what may come next and
takes it, and in the end a `Document`. Cost: a copy of the prompt, and a few operations of the host an id.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from byteloom import codecs
from byteloom.documents import BOS, EOS, PAD, Document, Segment, from_fused_ids, from_ids, to_ids
from byteloom.grammar import (
    DIGITS,
    END,
    Choices,
    FlatGrammar,
    FusedGrammar,
    Modality,
    Stream,
    exactly,
    is_data,
    modalities_of,
    only,
)
from byteloom.models.config import ModelConfig

Prompt = str | bytes | Document | np.ndarray


@dataclass
class Draft:
    """A document that is being written."""

    grammar: FlatGrammar | FusedGrammar
    """What may come next."""
    ids: list[int]
    """What stands so far, without an end."""
    count: int = 0
    """Ids of data that the model wrote of it."""
    ended: bool = False
    """Whether the end was written."""

    def take(self, value: int, chosen: bool = False) -> None:
        """Puts an id at its end; `chosen` where the model did choose it."""
        self.grammar.read(value)
        self.count += chosen and is_data(value)
        self.ended = value == EOS
        self.ids += [] if self.ended else [value]

    def choices(self, min_bytes: int = 0) -> Choices:
        """What may come next; not the end where it comes too early and there is something else."""
        choices = self.grammar.choices()
        return choices if self.count >= min_bytes else tuple(part for part in choices if part not in END) or choices

    def is_done(self, max_bytes: int) -> bool:
        """Whether nothing more is to be written; a header that is begun is finished first."""
        return self.ended or (self.count >= max_bytes and self.grammar.choices() != DIGITS)


def begin(
    config: ModelConfig, prompt: Prompt, modality: str = "text", modalities: Sequence[str] | None = None
) -> Draft:
    """A prompt and all that must follow it; arguments as those of `generate_documents`.

    Raises:
        ValueError: a modality is unknown to the model, or the prompt fits none of its layouts.
    """
    known, ids = known_modalities(config), np.empty(0, np.int64)
    grammar: FlatGrammar | FusedGrammar
    if config.embedder.streams:
        document = _fused_document(config, prompt, modality, marks_of(known))
        grammar = FusedGrammar(_streams(config, document, known), document)
    else:
        if modalities is None:
            modalities = () if isinstance(prompt, (str, bytes)) else tuple(known)
        for name in modalities:
            if name not in known:
                raise ValueError(f"modality {name!r} is unknown to this model; it knows {', '.join(sorted(known))}")
        grammar = FlatGrammar(
            modalities={modality.mark: modality for modality in known.values()},
            opens=tuple(part for name in modalities for part in exactly(known[name].mark)),
            patch_size=config.span(0),
        )
        ids = prompt_ids(prompt, config.span(0), modality, marks_of(known))
        if not isinstance(prompt, np.ndarray):  # what PADs stand for comes from the grammar, perhaps after a header
            ids = ids[: int(np.flatnonzero(ids != PAD)[-1]) + 1]
    draft = Draft(grammar, [])
    for value in ids.tolist():
        draft.take(value)
    while not draft.ended and (value := only(draft.choices())) is not None:
        draft.take(value)
    return draft


def finish(config: ModelConfig, draft: Draft) -> Document:
    """The document that was written; where ids hold several, the last."""
    ids, marks = np.array(draft.ids, np.int64), marks_of(known_modalities(config))
    if config.embedder.streams:
        return from_fused_ids(ids, marks, [stream.size for stream in config.embedder.streams])
    begins = np.flatnonzero(ids == BOS)
    return from_ids(ids[begins[-1] :] if len(begins) else ids, marks)


def known_modalities(config: ModelConfig) -> dict[str, Modality]:
    """The modalities that a model tells apart, by name; those of all codecs where it tells none apart."""
    return modalities_of(
        (m.name, m.mark, range(m.first_id, m.first_id + m.num_ids), m.header_bytes) for m in config.modalities
    )


def marks_of(modalities: Mapping[str, Modality]) -> dict[str, int]:
    """The mark of each."""
    return {name: modality.mark for name, modality in modalities.items()}


def prompt_ids(prompt: Prompt, patch_size: int, modality: str, marks: Mapping[str, int] = codecs.MARKS) -> np.ndarray:
    """A prompt as ids (T,) int64: a document that has not ended; BOS alone where it is empty. Ids are as they are.

    Raises:
        ValueError: a modality is unknown, or ids are not one-dimensional integers.
    """
    if not isinstance(prompt, np.ndarray):
        return to_ids(_document(prompt, modality), marks, patch_size)[:-1].astype(np.int64)
    if prompt.ndim != 1 or prompt.dtype.kind not in "iu":
        raise ValueError(f"ids of a prompt have shape {prompt.shape} and dtype {prompt.dtype}; one row is wanted")
    return prompt.astype(np.int64)


def cut(prompt: Document, share: float | None, config: ModelConfig) -> tuple[Document, int]:
    """A prompt with a share (0 to 1) of its last part, or of each stream that a fused model predicts; what is left out.

    By default half of what is whole already: of a picture, and of streams.

    Raises:
        ValueError: a header makes no sense.
    """
    predicted, last = predicted_streams(config), len(prompt.segments) - 1
    segments, left_out = [], 0
    for i, segment in enumerate(prompt.segments):
        size = len(segment.data)
        if size and (segment.modality in predicted if predicted else i == last):
            whole = bool(predicted) or size == size_of(segment)
            kept = int(size * (share if share is not None else 0.5 if whole else 1.0))
            segment = replace(segment, data=segment.data[: kept - kept % unit_of(segment)])
        segments.append(segment)
        left_out += size - len(segment.data)
    return replace(prompt, segments=tuple(segments)), left_out


def predicted_streams(config: ModelConfig) -> list[str]:
    """The streams that a fused model writes; none of another model."""
    return [stream.name for stream in config.embedder.streams if stream.role == "predicted"]


def size_of(segment: Segment) -> int | None:
    """How many ids of data the header of a segment asks for, if it says that."""
    return codecs.payload_size(segment.modality, segment.header) if segment.modality in codecs.MARKS else None


def unit_of(segment: Segment) -> int:
    """Ids of data that belong together: a frame, or a sample of all channels."""
    codec = codecs.by_modality(segment.modality) if segment.modality in codecs.MARKS else None
    return codec.unit_size(segment.header) if hasattr(codec, "unit_size") else 1


def _document(prompt: str | bytes | Document, modality: str) -> Document:
    """A prompt as a document; text and bytes as one segment."""
    if isinstance(prompt, Document):
        return prompt
    data = prompt.encode() if isinstance(prompt, str) else prompt
    return Document(segments=(Segment(modality=modality, data=np.frombuffer(data, np.uint8)),))


def _fused_document(config: ModelConfig, prompt: Prompt, modality: str, marks: Mapping[str, int]) -> Document:
    """A fused model's prompt; nothing has no segment."""
    if isinstance(prompt, np.ndarray):
        return from_fused_ids(prompt, marks, [stream.size for stream in config.embedder.streams])
    return _document(prompt, modality) if prompt else Document(segments=())


def _streams(config: ModelConfig, prompt: Document, known: Mapping[str, Modality]) -> list[Stream]:
    """A fused model's streams; one whose name is no modality's is of that which the prompt has at its place."""
    streams = []
    for i, stream in enumerate(config.embedder.streams):
        name = stream.name if stream.name in known or i >= len(prompt.segments) else prompt.segments[i].modality
        if name not in known:
            raise ValueError(
                f"stream {name!r} names no modality; the prompt must hold a segment for it, if an empty one"
            )
        streams.append(Stream(modality=known[name], size=stream.size, predicted=stream.role == "predicted"))
    return streams
