"""One step of generation as programs of torch.export, for runtimes that have no Python.

A state's tensors go in and come out, so that a program keeps nothing. A stage runs only where its next position
begins, and a program has no branch: so there is one for each stage, which runs it and all finer ones. Cost: a copy of
the state a step, unless the runtime takes it away; the slow twin is `Multiscale.step`.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from byteloom.layers.state import StackState
from byteloom.models.decoding import State, note_tags, run_on_device
from byteloom.models.guesses import note_bytes
from byteloom.models.multiscale import Multiscale


class Step(nn.Module):
    """ids (B,), position () and a state's tensors -> logits (B, V) of what follows, and the tensors after it."""

    def __init__(self, model: Multiscale, first: int, state: State):
        super().__init__()
        self.model, self.first, self.template = model, first, state

    def forward(self, ids: Tensor, position: Tensor, tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Appends ids (B,) at `position` (), where all rows stand; runs stage `first` and the finer ones."""
        state = with_tensors(self.template, [tensor.clone() for tensor in tensors])
        batch = ids.shape[0]
        state.lengths = position.expand(batch)
        state.ids.index_copy_(1, position.view(1), ids.view(batch, 1))
        if state.kinds is not None:
            note_tags(self.model, ids, state, None)
        if state.predicted is not None:
            note_bytes(self.model.config, ids, state, None)
        for stage in range(self.first, len(self.model.stacks)):
            span = self.model.spans[stage]
            run_on_device(self.model, stage, torch.div(position + 1, span, rounding_mode="floor").expand(batch), state)
        return state.logits, state.tensors()


def export_step(model: Multiscale, batch: int = 1, max_length: int | None = None) -> list[ExportedProgram]:
    """The step of a model for `batch` rows of at most `max_length` bytes, one program for each stage.

    `begin_stage(model, position + 1)` says which of them takes the id at `position`: (ids (B,), position (), tensors)
    -> (logits (B, V), tensors). The first tensors are those of `model.start(batch, max_length)`, after `model.prefill`
    if there is a prompt of one length: `state.tensors()`. Rows stay in step, and the state holds `max_length` ids.

    Raises ValueError for an imported model with late parents, whose patches have one position more.
    """
    if model.config.late_parent:
        raise ValueError("a model with late parents, as imported from megabyte-pytorch, has no exported step")
    model = model.eval()
    state = model.start(batch, max_length)
    ids = torch.zeros(batch, dtype=torch.long, device=state.ids.device)
    position = torch.zeros((), dtype=torch.long, device=state.ids.device)
    with torch.no_grad():
        return [
            torch.export.export(Step(model, stage, state), (ids, position, state.tensors()), strict=False)
            for stage in range(len(model.stacks))
        ]


def begin_stage(model: Multiscale, length: int) -> int:
    """The coarsest stage of which a position begins after `length` ids."""
    return next(stage for stage, span in enumerate(model.spans) if length % span == 0)


def with_tensors(state: State, tensors: list[Tensor]) -> State:
    """A state like this one, made of other tensors in the order of `State.tensors`."""
    rest = iter(tensors)
    ids, logits = next(rest), next(rest)
    kinds = None if state.kinds is None else next(rest)
    since = None if state.since is None else next(rest)
    kept = None if state.distances is None else next(rest)
    predicted = None if state.predicted is None else next(rest)
    filters = None if state.filters is None else next(rest)
    hashes = None if state.hashes is None else next(rest)
    parents = [next(rest) for _ in state.parents]
    stacks = []
    for stack in state.stacks:
        keys, values = [next(rest) for _ in stack.keys], [next(rest) for _ in stack.values]
        shifted = [(next(rest), next(rest)) for _ in stack.shifted]
        rope = None if stack.rope is None else cast(tuple[Tensor, Tensor], (next(rest), next(rest)))
        stacks.append(StackState(keys, values, shifted, rope))
    tags = (kinds, since, kept, predicted, filters, hashes)
    return State(ids, state.lengths, stacks, parents, logits, *tags, state.first_mark, state.prefix)
