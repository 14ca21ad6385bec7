"""`past_key_values` for transformers: the native state, and where each row of a compact stream stands in it.

The coarsest stage runs once a patch and the finest once a byte, as in `byteloom.generate`. All that was read is kept as
ids, so that a cache can be cropped, grown and reordered; what stands behind a crop is read again.
"""

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import Cache

from byteloom.documents import PAD
from byteloom.hf.layout import Cursor, native_prompts
from byteloom.models.decoding import State
from byteloom.models.multiscale import Multiscale

if TYPE_CHECKING:
    from byteloom.hf.modeling import ByteloomForCausalLM

FEW_COLUMNS = 32
"""Up to so many new columns are taken step by step; of more, if only what comes last is asked for, all is read anew."""


class ByteloomCache(Cache):
    """What a model remembers of a batch of compact streams; `model(ids, past_key_values=ByteloomCache())` fills it."""

    def __init__(self, max_length: int | None = None, compiled: bool = False):
        """Room for `max_length` ids a row at first (default: the model's context); it grows where more come.

        `compiled` runs each stage's step as one compiled function, as `byteloom.generate` does: some seconds at first.
        """
        super().__init__(layers=[])
        self.max_length, self.compiled = max_length, compiled
        self.reset()

    def reset(self) -> None:
        """Forgets all that was read."""
        self.state: State | None = None
        self.cursors: list[Cursor] = []
        self.columns: list[Tensor] = []  # (B, n) each, PAD where there is no id
        self.num_columns = 0  # in all of them
        self.num_taken = 0  # columns that the state has taken; after a crop some may be left to take
        self.mark: Tensor | None = None
        self.before: tuple[int, State, list[Cursor]] | None = None  # what stood before the last few columns

    # -- reading -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def read(self, model: "ByteloomForCausalLM", ids: Tensor, mark: Tensor | None, keep: int) -> Tensor:
        """Takes compact ids (B, N), PAD where there is none; returns logits (B, keep, V) of what follows the last ones.

        `mark` (B,) is the MARK in force before the first id of all. Raises ValueError where another batch was read
        before, or where learned positions end.
        """
        if self.columns and ids.shape[0] != self.batch_size:
            raise ValueError(f"the cache holds {self.batch_size} rows and was given {ids.shape[0]}; use a new cache")
        self.mark = self.mark if self.columns else mark
        self.columns.append(ids)
        self.num_columns += ids.shape[1]
        due = self.num_columns - self.num_taken
        if self.state is None or (due > FEW_COLUMNS and keep == 1):
            self._take_all(model.model)
            return self._logits() if keep == 1 else model.all_logits(torch.cat(self.columns, dim=1), self.mark, keep)
        self.before = None
        if due > 1:
            self.before = self.num_taken, self.state.select(range(self.batch_size)), list(map(copy.copy, self.cursors))
        found = []
        for column in torch.cat(self.columns, dim=1)[:, -due:].unbind(1) if due > 1 else ids.unbind(1):
            self._take(model.model, column)
            due -= 1
            if due < keep:
                found.append(self._logits())
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def _logits(self) -> Tensor:
        assert self.state is not None
        return self.state.logits.unsqueeze(1).clone()  # the next step writes over them

    @torch.inference_mode()
    def _take_all(self, model: Multiscale) -> None:
        """A fresh state that has taken all columns, with room for as many ids as are asked for."""
        ids = torch.cat(self.columns, dim=1)
        native, lengths, cursors = native_prompts(model.config, ids)
        # PADs may fill the patch of BOS, MARK and header, and the one behind an end.
        room = (self.max_length or model.config.context) + 2 * model.config.span(0)
        while room <= max(lengths):
            room *= 2
        room = room if model.config.max_length is None else min(room, model.config.max_length)
        self.state = model.start(len(lengths), room, self.compiled, mark=self.mark)
        model.prefill(native, lengths, self.state)
        self.cursors, self.num_taken, self.before = cursors, ids.shape[1], None

    @torch.inference_mode()
    def _take(self, model: Multiscale, ids: Tensor) -> None:
        """One column (B,): an id of each row, none where it is PAD, and the PADs that the layout has around it."""
        assert self.state is not None
        queues: list[list[int]] = []
        for cursor, value in zip(self.cursors, ids.tolist(), strict=True):
            if value == PAD:
                queues.append([])
                continue
            reached = cursor.next_place
            before = cursor.push(value) - reached
            queues.append([PAD] * before + [value] + [PAD] * (cursor.next_place - cursor.place))
        self.num_taken += 1
        longest = max(map(len, queues))
        if int(self.state.lengths.max()) + longest > model.room(self.state):
            self.max_length = 2 * self.state.ids.shape[1]
            taken = torch.cat(self.columns, dim=1)[:, : self.num_taken]
            later, self.columns = self.columns, [taken]
            self._take_all(model)
            self.columns = later
            return
        for turn in range(longest):
            rows = [row for row, queue in enumerate(queues) if len(queue) > turn]
            every = len(rows) == len(queues)
            alone = every and longest == 1  # then these are the ids themselves
            values = ids if alone else torch.tensor([queues[row][turn] for row in rows], device=ids.device)
            model.step(values, self.state, None if every else rows)

    # -- what transformers asks of a cache ---------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"ByteloomCache({max(self.batch_size, 0)} rows of {self.num_columns} ids)"

    def __len__(self) -> int:
        return 0  # layers in transformers' sense

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns read so far, those of padding too."""
        return self.num_columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: there is no limit but that of the model."""
        return -1

    @property
    def batch_size(self) -> int:
        """Rows; -1 before the first read."""
        return self.columns[0].shape[0] if self.columns else -1

    @property
    def is_compileable(self) -> bool:
        """False: what transformers would compile around it is the loop, which asks the host for places."""
        return False

    @property
    def is_initialized(self) -> bool:
        """Whether anything was read."""
        return self.state is not None

    @property
    def is_croppable(self) -> bool:
        """Whether `crop` puts it back as it was."""
        return True

    def activate_past_recording(self) -> None:
        """Nothing to do: what was read is always known."""

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last columns; their number may have a minus, as transformers passes it.

        The last few are undone by what stood before them; more are by reading what is left anew, at the next read.
        """
        left = self.num_columns - abs(tokens_to_remove)
        if left == self.num_columns:
            return
        if left <= 0:
            self.reset()
            return
        self.columns, self.num_columns = [torch.cat(self.columns, dim=1)[:, :left]], left
        if self.before is not None and self.before[0] <= left:
            self.num_taken, self.state, self.cursors = self.before
        elif self.num_taken > left:
            self.state, self.num_taken = None, 0
        self.before = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row beam_idx[i] is."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row becomes so many."""
        self.batch_select_indices(torch.arange(max(self.batch_size, 0)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Rows become those of these indices (N,)."""
        rows = indices.tolist()
        if rows == list(range(self.batch_size)):
            return
        self.columns = [part[indices.to(part.device)] for part in self.columns]
        self.mark = None if self.mark is None else self.mark[indices.to(self.mark.device)]
        self.before = None
        if self.state is not None:
            self.state = self.state.select(rows)
            self.cursors = [copy.copy(self.cursors[row]) for row in rows]
