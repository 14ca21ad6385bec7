"""The compact id stream of Hugging Face, and the native one with PADs.

Compact is a document without the PADs that put data on patch borders: BOS MARK digits.. data.. MARK digits.. data..
EOS. `Cursor` says where each of these ids stands in the native stream (`documents.to_ids`), one row at a time; PADs
in a compact stream are the padding of a batch and stand for nothing. The place of the next id follows from those before
it alone, so that nothing looks ahead. Cost: a few operations of the host for each id of structure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from byteloom.documents import BOS, EOS, FIRST_DIGIT, FIRST_MARK, PAD, VOCAB_SIZE, round_up
from byteloom.drafts import known_modalities
from byteloom.models.config import ModelConfig


@dataclass
class Cursor:
    """Where one row of a native stream ends, and where its next id comes."""

    span: int
    """Ids in a patch of the coarsest stage: its borders are the multiples."""
    num_digits: Mapping[int, int] = field(default_factory=dict)
    """How many digits the header of a modality has, by its MARK; none where it is not named."""
    place: int = 0
    """Ids so far, PADs too."""
    is_open: bool = False
    """Whether a MARK came and no data since."""
    digits_left: int = 0
    """Digits of its header that have not come."""
    has_ended: bool = False
    """Whether the last id was EOS."""
    is_new: bool = False
    """Whether the last id was BOS."""

    @property
    def next_place(self) -> int:
        """Where the next id is predicted."""
        to_border = self.has_ended or (self.is_open and not self.digits_left)
        return round_up(self.place, self.span) if to_border else self.place

    def push(self, value: int) -> int:
        """Puts an id behind those so far, PAD excepted; returns its place."""
        is_digit = FIRST_DIGIT <= value < VOCAB_SIZE
        is_data = value < PAD or value >= VOCAB_SIZE
        # A header that ends early, and data without a MARK, still begin on a border.
        to_border = (self.is_open and not is_digit) or (self.is_new and is_data) or value == BOS
        place = round_up(self.place, self.span) if to_border else self.next_place
        if FIRST_MARK <= value < FIRST_DIGIT:
            self.is_open, self.digits_left = True, self.num_digits.get(value, 0)
        elif is_digit:
            self.digits_left = max(0, self.digits_left - 1)
        else:
            self.is_open = False
        self.has_ended, self.is_new = value == EOS, value == BOS
        self.place = place + 1
        return place

    def extend(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Puts ids (N,) without PADs behind those so far; returns the place of each and of what comes after it, (N,).

        The slow twin is `push`, an id at a time.
        """
        places, following = np.empty(len(ids), np.int64), np.empty(len(ids), np.int64)
        structure = (ids >= PAD) & (ids < VOCAB_SIZE)
        alone = np.flatnonzero(structure | np.concatenate(([True], structure[:-1]))[: len(ids)])
        for i, start in enumerate(alone.tolist()):
            places[start], following[start] = self.push(int(ids[start])), self.next_place
            stop = int(alone[i + 1]) if i + 1 < len(alone) else len(ids)
            count = stop - start - 1  # what follows here is data, one after the other
            places[start + 1 : stop] = np.arange(self.place, self.place + count)
            following[start + 1 : stop] = places[start + 1 : stop] + 1
            self.place += count
        return places, following


def cursor_of(config: ModelConfig) -> Cursor:
    """A cursor at the beginning of a stream of this model. Raises ValueError for a fused model."""
    if config.embedder.streams:
        raise ValueError(
            "this model's streams stand side by side in each patch, which has no compact form; "
            "use byteloom.load, generate_documents and evaluate"
        )
    known = known_modalities(config).values()
    return Cursor(config.span(0), {modality.mark: modality.num_digits for modality in known if modality.num_digits})


@torch.compiler.disable
def native_prompts(config: ModelConfig, ids: Tensor) -> tuple[Tensor, list[int], list[Cursor]]:
    """Compact ids (B, T), PAD where there is none, as native ones (B, L): each row up to where its next id comes.

    Returns them, the length of each row, and a cursor at the end of each. Raises ValueError for an id that the model
    does not have.
    """
    rows, cursors = compact_rows(config, ids), []
    places = []
    for row in rows:
        cursors.append(cursor_of(config))
        places.append(cursors[-1].extend(row)[0])
    lengths = [cursor.next_place for cursor in cursors]
    return fill(config, rows, places, max(lengths), ids.device), lengths, cursors


@torch.compiler.disable
def native_sequences(config: ModelConfig, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Compact ids (B, T), PAD where there is none, as native ones (B, L), and where what follows each comes, (B, T).

    What follows a PAD is what follows the ids before it. Raises ValueError as `native_prompts`.
    """
    rows, places = compact_rows(config, ids), []
    following = np.zeros(ids.shape, np.int64)
    for i, row in enumerate(rows):
        cursor = cursor_of(config)
        first = cursor.next_place
        here, after = cursor.extend(row)
        places.append(here)
        counts = (ids[i] != PAD).cumsum(0).cpu().numpy()
        following[i] = np.concatenate(([first], after))[counts]
    length = int(following.max(initial=0)) + 1
    return fill(config, rows, places, length, ids.device), torch.from_numpy(following).to(ids.device)


def compact_rows(config: ModelConfig, ids: Tensor) -> list[np.ndarray]:
    """The ids of each row (N,) without PADs. Raises ValueError for one that the model does not have."""
    host = ids.cpu().numpy()
    rows = [row[row != PAD] for row in host]
    for value in (int(edge) for row in rows if len(row) for edge in (row.min(), row.max())):
        if not 0 <= value < config.vocab_size:
            raise ValueError(
                f"input_ids hold {value}; this model has the ids 0 to {config.vocab_size - 1}, and 256 pads"
            )
    return rows


def fill(
    config: ModelConfig, rows: list[np.ndarray], places: list[np.ndarray], length: int, device: torch.device
) -> Tensor:
    """Ids at their places in (B, length), and PAD elsewhere; a model that has no PAD never sees what it stands for."""
    native = np.full((len(rows), length), min(PAD, config.vocab_size - 1), np.int64)
    for row, (values, here) in enumerate(zip(rows, places, strict=True)):
        native[row, here] = values
    return torch.from_numpy(native).to(device)
