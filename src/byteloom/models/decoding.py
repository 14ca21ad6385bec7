"""A model one byte at a time: what is remembered between bytes, the prompt at once, then a step a byte.

`State` holds each stage's caches. `step` costs the finest stage's weights per byte and a coarser stage's once per patch
(arXiv 2305.07185, section 2); its slow twin is `Multiscale.forward`. These are the methods of `Multiscale`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from byteloom.layers.modalities import Tagged
from byteloom.layers.state import Past, StackState
from byteloom.layers.transformer import autocast_dtype
from byteloom.losses import VOCABULARY
from byteloom.models.guesses import no_filters, no_hashes, note_bytes, note_on_device, note_prompt, predictions

if TYPE_CHECKING:
    from byteloom.models.multiscale import Multiscale

PREFILL_CHUNK = 1 << 16
"""Bytes of a batch of prompts that finer stages take at a time."""
Run = Callable[["Multiscale", int, Tensor, "State"], None]
COMPILED: "WeakKeyDictionary[Multiscale, dict[tuple, Run]]" = WeakKeyDictionary()
"""What `compiled_run` made of each model."""


@dataclass
class State:
    """Where a batch of sequences stands, and what each stage remembers of it."""

    ids: Tensor
    """(B, max_length), the bytes so far."""
    lengths: Tensor
    """(B,) on the host: bytes so far in each row, so that no step has to ask the device."""
    stacks: list[StackState]
    """One for each stage."""
    parents: list[Tensor]
    """For each stage but the coarsest, (B, P, D): what the current parent gives to each of its children."""
    logits: Tensor
    """(B, V), of each row's next byte."""
    kinds: Tensor | None = None
    """(B, max_length + 1), the kind in force before each position up to the next one; None where there is one kind."""
    since: Tensor | None = None
    """(B, max_length + 1), how much of its segment's data stands before each of them."""
    distances: Tensor | None = None
    """(B, max_length), what the model reads where it guesses bytes; None: the bytes themselves."""
    predicted: Tensor | None = None
    """(B,), what is taken from each row's next byte, and what followed an earlier match."""
    filters: Tensor | None = None
    """(B, channels, ORDER), by which samples of sound are guessed in each row; None where none are."""
    hashes: Tensor | None = None
    """(B, lengths, max_length + 1), of the strings before each position; None where no matches are looked for."""
    first_mark: Tensor | None = None
    """(B,), the mark in force before the first byte; None: none."""
    prefix: Tensor | None = None
    """(B, K, D), what the coarsest stage read before the first byte."""
    compiled: bool = False
    """Whether a stage that all rows enter together runs as one compiled function."""
    runs: "list[Run]" = field(default_factory=list)
    """Of a compiled state, each stage's function."""

    def tensors(self) -> list[Tensor]:
        """All of them that are on the device."""
        known = (self.kinds, self.since, self.distances, self.predicted, self.filters, self.hashes)
        tags = [x for x in known if x is not None]
        return [self.ids, self.logits, *tags, *self.parents, *(x for stack in self.stacks for x in stack.tensors())]

    @property
    def offset(self) -> int:
        """Positions of the coarsest stage that stand before that of the first byte."""
        return 0 if self.prefix is None else self.prefix.shape[1]

    def tagged(self, change: Callable[[Tensor], Tensor]) -> Tagged:
        """What the model reads and tags, each as `change` picks from (B, max_length) and (B, max_length + 1)."""
        ids = self.ids if self.distances is None else self.distances
        return Tagged(ids, self.kinds, self.since).map(change)

    def next_kinds(self, positions: Tensor) -> Tensor | None:
        """(B,), the kind of what comes at these positions (B,), one for each row."""
        return None if self.kinds is None else self.kinds.gather(1, positions.unsqueeze(1)).squeeze(1)

    def select(self, rows: Tensor | Sequence[int]) -> "State":
        """The state of these rows alone, copied: (N,) indices, which may repeat."""
        rows = torch.as_tensor(rows, device=self.ids.device)
        return State(
            ids=self.ids[rows],
            lengths=self.lengths[rows.cpu()],
            stacks=[stack.select(rows) for stack in self.stacks],
            parents=[parent[rows] for parent in self.parents],
            logits=self.logits[rows],
            kinds=None if self.kinds is None else self.kinds[rows],
            since=None if self.since is None else self.since[rows],
            distances=None if self.distances is None else self.distances[rows],
            predicted=None if self.predicted is None else self.predicted[rows],
            filters=None if self.filters is None else self.filters[rows],
            hashes=None if self.hashes is None else self.hashes[rows],
            first_mark=None if self.first_mark is None else self.first_mark[rows],
            prefix=None if self.prefix is None else self.prefix[rows],
            compiled=self.compiled,
        )


@torch.no_grad()
def start(
    model: "Multiscale",
    batch: int,
    max_length: int | None = None,
    compiled: bool = False,
    mark: Tensor | None = None,
    since: Tensor | None = None,
    prefix: Tensor | None = None,
) -> State:
    """A state for `batch` empty rows that take up to `max_length` bytes (default: the config's context).

    Its `logits` (B, V) are those of the first byte; `mark` and `since` (B,) are those before it, and `prefix` (B, K, D)
    is what the coarsest stage reads first. Raises ValueError where learned positions end before.
    """
    max_length = model.config.context if max_length is None else max_length
    model.check_length(max_length, prefix)
    weight = model.starts[0]
    # On CPUs attention of one query is five times as fast in fp32 as in bf16, so caches stay in fp32 there.
    device, dtype = weight.device, weight.dtype
    if device.type != "cpu":
        dtype = autocast_dtype(device) or dtype
    stacks, parents = [], []
    for i, stack in enumerate(model.stacks):
        positions = max_length // model.spans[i] + 1
        positions += prefix.shape[1] if prefix is not None and i == 0 else 0
        if i:
            siblings = model.config.siblings(i)
            parents.append(torch.zeros(batch, siblings, model.config.stages[i].dim, dtype=dtype, device=device))
        stacks.append(stack.start(batch, positions, dtype, device))
    state = State(
        ids=torch.zeros(batch, max_length, dtype=torch.long, device=device),
        lengths=torch.zeros(batch, dtype=torch.long),
        stacks=stacks,
        parents=parents,
        logits=torch.empty(batch, model.config.vocab_size, device=device),
        first_mark=mark,
        prefix=prefix,
        compiled=compiled,
    )
    if model.config.kinds:
        tags = model.tag(state.ids.new_zeros(batch, max_length + 1), mark, since)
        state.kinds, state.since = (x.contiguous() for x in (tags.kinds, tags.since) if x is not None)
    if model.config.predictors:
        kinds, since = (cast(Tensor, tag)[:, :1] for tag in (state.kinds, state.since))
        state.distances = torch.zeros_like(state.ids)
        state.predicted = predictions(model.config, torch.zeros_like(since), kinds, since).squeeze(1)
        state.filters = no_filters(model.config, batch, device)
    if model.config.matches:
        state.hashes = no_hashes(model.config, batch, max_length + 1, device)
        state.predicted = state.ids.new_zeros(batch) if state.predicted is None else state.predicted
    if prefix is not None:
        last = torch.full((batch,), prefix.shape[1] - 1, device=device)
        model.stacks[0].extend(prefix.to(weight.dtype), None, state.stacks[0], last)
    advance(model, state, range(batch))
    return state


@torch.no_grad()
def step(model: "Multiscale", ids: Tensor, state: State, rows: Sequence[int] | None = None) -> Tensor:
    """Append ids (N,), one byte to each of `rows` (None: to all), and return the logits (B, V) of the next bytes.

    Changes `state`, whose rows stand where they stood if they are not named. Raises ValueError where a row is full.
    """
    lengths = state.lengths.tolist()
    chosen = range(len(lengths)) if rows is None else rows
    if max(lengths[row] for row in chosen) >= model.room(state):
        raise ValueError(f"the state is full: it has room for {model.room(state)} bytes a row")
    if rows is None and min(lengths) == max(lengths):
        state.ids[:, lengths[0]] = ids
    else:
        places = torch.tensor([[row, lengths[row]] for row in chosen], device=state.ids.device)
        state.ids[places[:, 0], places[:, 1]] = ids
    if state.kinds is not None and state.since is not None:
        note_tags(model, ids, state, chosen if rows is not None else None)
    if state.compiled and rows is None and state.hashes is not None and state.distances is None:
        state.runs = state.runs or compiled_runs(model, state)
        state.runs[-1](model, len(model.stacks), ids, state)
    elif state.predicted is not None:
        note_bytes(model.config, ids, state, None if rows is None else torch.tensor(chosen, device=ids.device))
    for row in chosen:
        lengths[row] += 1
    state.lengths = torch.tensor(lengths)
    if model.config.late_parent:
        finish_late(model, state, chosen)
    advance(model, state, chosen)
    return state.logits


def note_tags(model: "Multiscale", ids: Tensor, state: State, rows: Sequence[int] | None) -> None:
    """What ids (N,), appended to these rows (None: all), say of the positions after them; twin: `Multiscale.tag`."""
    kinds, since = cast(Tensor, state.kinds), cast(Tensor, state.since)
    device = ids.device
    every = torch.arange(kinds.shape[0], device=device) if rows is None else torch.tensor(rows, device=device)
    at = state.lengths.to(device)[every]
    structure = (ids >= VOCABULARY.num_bytes) & (ids < VOCABULARY.end_of_reserved)
    if model.config.embedder.streams:  # kinds follow from the position alone, and PAD may stand for data
        border = (torch.div(at, model.spans[0], rounding_mode="floor") + 1) * model.spans[0] - at - 1
        known = since[every, at]
        following = torch.where(structure & (ids != VOCABULARY.pad_id), -border, known + 1)
        since[every, at + 1] = following
        return
    is_mark = (ids >= VOCABULARY.first_mark) & (ids < VOCABULARY.end_of_marks)
    named = model.kind_of_mark(device)[torch.where(is_mark, ids, 0)]
    before = kinds[every, at].masked_fill(ids == VOCABULARY.bos_id, 0)
    kinds[every, at + 1] = torch.where(is_mark, named, before)
    since[every, at + 1] = (since[every, at] + 1).masked_fill(structure, 0)


def advance(model: "Multiscale", state: State, rows: Sequence[int]) -> None:
    """Run each stage in those of `rows` where its next position begins, coarsest first."""
    lengths = state.lengths.tolist()
    for i, span in enumerate(model.spans):
        due = [row for row in rows if lengths[row] % span == 0]
        if not due:
            continue
        positions = [lengths[row] // span for row in due]
        if state.compiled and len(due) == len(lengths) and not model.config.late_parent:
            state.runs = state.runs or compiled_runs(model, state)
            state.runs[i](model, i, torch.tensor(positions, device=state.ids.device), state)
        else:
            run(model, i, due, positions, state)


def run(model: "Multiscale", stage: int, rows: Sequence[int], positions: list[int], state: State) -> None:
    """Run `positions` (N) of a stage in these rows (N)."""
    stack, siblings, device = model.stacks[stage], model.config.siblings(stage), state.ids.device
    patch, late = siblings if stack.reach.patch_size is not None else 0, model.config.late_parent
    some = None if len(rows) == state.ids.shape[0] else torch.tensor(rows, device=device)
    where: Tensor | slice = slice(None) if some is None else some
    every = torch.arange(len(rows), device=device) if some is None else some
    first = [p % patch == 0 if patch else p == 0 for p in positions]
    child = [p % siblings for p in positions] if siblings else [0]
    x = model.starts[stage].expand(len(rows), -1)
    if not all(first):
        content = last_content(model, stage, some, positions, state)
        if siblings and late:
            content = content + state.parents[stage - 1][every, torch.tensor(child, device=device) - 1]
        mask = torch.tensor(first, device=device).unsqueeze(-1) if any(first) else None
        x = content if mask is None else torch.where(mask, x.to(content.dtype), content)
    if siblings and not late:
        parents = state.parents[stage - 1]
        if min(child) == max(child):
            x = x + parents[where, child[0]]
        else:
            x = x + parents[every, torch.tensor(child, device=device)]
    if model.is_late(stage):
        positions = [p + p // siblings for p in positions]  # a patch has one position more
    places = positions if stage else [p + state.offset for p in positions]
    predicted = None if state.predicted is None else state.predicted[where]
    if stage == len(model.expanders):
        x = model.tell(x, predicted)
    h = stack.step(x, places, state.stacks[stage], some)
    if stage < len(model.expanders):
        share = model.expanders[stage](h.unsqueeze(1))
        state.parents[stage][where] = share.to(state.parents[stage].dtype)
        return
    kinds = state.next_kinds(state.lengths.to(device))
    logits = model.logits(h, None if kinds is None else kinds[where], predicted).to(state.logits.dtype)
    if not late:
        state.logits[where] = logits
        return
    # With late parents a patch's first byte was predicted by the patch before, save in the first patch.
    kept = [i for i, p in enumerate(child) if p or not positions[i]]
    state.logits[torch.tensor(rows, device=device)[kept]] = logits[kept]


def compiled_runs(model: "Multiscale", state: State) -> "list[Run]":
    """For each stage `run_on_device`, and where matches are looked for `note_on_device`, compiled at first use."""
    return [compiled_run(model, stage, state) for stage in range(len(model.stacks) + (state.hashes is not None))]


def compiled_run(model: "Multiscale", stage: int, state: State) -> "Run":
    """The function of a stage compiled for this model and state, and for those that are alike; on CUDA a graph.

    torch.compile looks at every tensor before each call, whether it still is as it was: half as long as a small stage
    itself. Here one function is kept for each set of shapes and types, so that this need not be asked.
    """
    known = COMPILED.setdefault(model, {})
    tensors = (*model.parameters(), *model.buffers(), *state.tensors())
    key = (stage, state.ids.is_inference(), *((t.shape, t.dtype, t.device) for t in tensors))
    if key not in known:
        function = run_on_device if stage < len(model.stacks) else note_on_device
        code = function.__code__.replace()  # torch.compile keeps what it makes with the code object
        options: dict[str, Any] = {"guard_filter_fn": lambda guards: [not guard.name for guard in guards]}
        if state.ids.device.type == "cuda":
            options["triton.cudagraphs"] = True
            for tensor in state.tensors():  # a graph writes to them where they are
                torch._dynamo.mark_static_address(tensor)
        else:
            options["size_asserts"] = False
        fresh = FunctionType(code, function.__globals__)
        known[key] = torch.compile(fresh, dynamic=False, fullgraph=True, options=options)
    return known[key]


def run_on_device(model: "Multiscale", stage: int, positions: Tensor, state: State) -> None:
    """As `run` of all rows, with positions (B,) on the device: no shape and no branch depends on them."""
    stack, siblings, span = model.stacks[stage], model.config.siblings(stage), model.spans[stage]
    embedder, every = model.embedders[stage], torch.arange(positions.shape[0], device=positions.device)
    back = torch.arange(-embedder.halo - span, 0, device=positions.device)
    places = positions[:, None] * span + back
    read = state.tagged(lambda x: x.gather(1, places.clamp(min=0)))
    content = model.embed(stage, read, embedder.halo, places >= 0).squeeze(1)
    first = positions % siblings == 0 if stack.reach.patch_size is not None else positions == 0
    start = model.starts[stage]
    x = torch.where(first.unsqueeze(-1), start, content.to(start.dtype))
    if siblings:
        x = x + state.parents[stage - 1][every, positions % siblings]
    if stage == len(model.expanders):
        x = model.tell(x, state.predicted)
    h = stack.step_on_device(x, positions if stage else positions + state.offset, state.stacks[stage])
    if stage < len(model.expanders):
        state.parents[stage].copy_(model.expanders[stage](h.unsqueeze(1)).view_as(state.parents[stage]))
    else:
        state.logits.copy_(model.logits(h, state.next_kinds(positions), state.predicted))


def last_content(
    model: "Multiscale", stage: int, rows: Tensor | None, positions: Sequence[int], state: State
) -> Tensor:
    """What the position before each of `positions` (N) of the rows (N,) (None: all) stands for, (N, D)."""
    span, embedder = model.spans[stage], model.embedders[stage]
    begin, end = (positions[0] - 1) * span - embedder.halo, positions[0] * span
    if rows is None and begin >= 0 and min(positions) == max(positions):
        return model.embed(stage, state.tagged(lambda x: x[:, begin:end]), embedder.halo).squeeze(1)
    device = state.ids.device
    back = torch.arange(-embedder.halo - span, 0, device=device)
    places = torch.tensor(positions, device=device)[:, None] * span + back
    every = torch.arange(len(positions), device=device) if rows is None else rows
    read = state.tagged(lambda x: x[every[:, None], places.clamp(min=0)])
    return model.embed(stage, read, embedder.halo, places >= 0).squeeze(1)


def finish_late(model: "Multiscale", state: State, rows: Sequence[int]) -> None:
    """Where a patch is full, its extra position predicts the first byte of the next one."""
    stage, siblings = len(model.stacks) - 1, model.config.siblings(len(model.stacks) - 1)
    lengths = state.lengths.tolist()
    rows = [row for row in rows if lengths[row] % siblings == 0]
    if not rows:
        return
    some, positions = torch.tensor(rows, device=state.ids.device), [lengths[row] for row in rows]
    x = last_content(model, stage, some, positions, state) + state.parents[stage - 1][some, siblings - 1]
    index = [p + p // siblings - 1 for p in positions]
    h = model.stacks[stage].step(x, index, state.stacks[stage], some)
    state.logits[some] = model.logits(h).to(state.logits.dtype)


@torch.no_grad()
def prefill(
    model: "Multiscale", ids: Tensor, lengths: Tensor | Sequence[int], state: State, chunk: int = PREFILL_CHUNK
) -> Tensor:
    """Take the prompts ids (B, T), of which row b has lengths[b] bytes, at once; return logits (B, V) as `step`.

    `state` must be fresh from `start`. What stands right of a row's prompt is ignored. Finer stages run only over
    what can still be seen: their last patch, or the stretch that their windows reach through all layers, about
    `chunk` bytes of the batch at a time; so a long prompt costs little more than stage 0.
    Raises ValueError where a prompt does not fit or the state is not fresh.
    """
    lengths = torch.as_tensor(lengths, device="cpu")
    if bool((state.lengths != 0).any()):
        raise ValueError("prefill needs a state fresh from start()")
    if lengths.shape != (ids.shape[0],) or ids.shape[0] != state.ids.shape[0]:
        raise ValueError(f"{state.ids.shape[0]} rows need as many prompts and lengths, not {tuple(ids.shape)}")
    if bool((lengths < 0).any()) or bool((lengths > min(ids.shape[1], model.room(state))).any()):
        raise ValueError(f"a prompt is longer than its row of ids or than the {model.room(state)} bytes of the state")
    longest = int(lengths.max()) if lengths.numel() else 0
    if longest == 0:
        return state.logits
    ids = ids[:, :longest]
    state.ids[:, :longest] = ids
    state.lengths = lengths.clone()
    device, span = state.ids.device, model.spans[0]
    rows, ends = torch.arange(ids.shape[0], device=device), lengths.to(device)
    ids = F.pad(ids, (0, (longest // span + 1) * span - longest))
    # What an unread first position says, `start` has noted: the mark and the place before the prompt.
    read = model.tag(ids, state.first_mark, None if state.since is None else state.since[:, 0].clone())
    if state.kinds is not None and state.since is not None:
        for known, found in ((state.kinds, read.kinds), (state.since, read.since)):
            size = min(known.shape[1], longest + 1)
            known[:, :size] = cast(Tensor, found)[:, :size]
    if state.distances is not None:
        state.distances[:, :longest] = read.ids[:, :longest]
    if state.predicted is not None:
        note_prompt(model.config, ids, read, ends, state)
    x = model.inputs(0, read, None, 0, ids.shape[1] // span)
    x = x if state.prefix is None else torch.cat((state.prefix.to(x.dtype), x), dim=1)
    h, _ = model.stacks[0].extend(x, None, state.stacks[0], ends // span + state.offset)
    h = h[:, state.offset :]
    current = [h[rows, ends // span], *(None for _ in model.stacks[1:])]
    # From the stage after this one on, patches are isolated, so that the last patch is enough.
    connected = max(i for i, stack in enumerate(model.stacks) if i == 0 or not stack.reach.isolated)
    connected = len(model.stacks) - 1 if model.config.late_parent else connected
    need = int(lengths.min())  # bytes: what comes before need not be right
    for i in range(connected, 0, -1):
        need -= (model.stacks[i].field + 1) * model.spans[i]
    first = 0 if model.config.late_parent else max(0, need // span)
    each = h.shape[1] if model.config.late_parent else max(1, chunk // (len(rows) * span))
    pasts: list[Past | None] = [Past(first * span // s, ()) for s in model.spans[1:]] if first else []
    pasts = pasts or [None] * (len(model.stacks) - 1)
    for begin in range(first, h.shape[1], each) if connected else ():
        below = h[:, begin : begin + each]
        for i in range(1, connected + 1):
            below = model.expanders[i - 1](below)
            start = begin * span // model.spans[i]
            x = model.inputs(i, read, below, start, start + below.shape[1])
            place = ends // model.spans[i]
            last = place + place // model.config.siblings(i) if model.is_late(i) else place
            below, pasts[i - 1] = model.stacks[i].extend(x, pasts[i - 1], state.stacks[i], last)
            if model.is_late(i):
                below, place = model.merge_late(below), ends
            inside = ((place >= start) & (place < start + below.shape[1])).unsqueeze(-1)
            found = below[rows, (place - start).clamp(0, below.shape[1] - 1)]
            before = current[i]
            current[i] = found if before is None else torch.where(inside, found, before)
    for i in range(len(model.stacks)):
        h = current[i]
        if h is None:
            siblings, place = model.config.siblings(i), ends // model.spans[i]
            x = patch_inputs(model, i, read, place // siblings) + state.parents[i - 1]
            h, _ = model.stacks[i].extend(x, None, state.stacks[i], place % siblings)
            h = h[rows, place % siblings]
        if i < len(model.expanders):
            share = model.expanders[i](h.unsqueeze(1))
            state.parents[i][:] = share.to(state.parents[i].dtype)
        else:
            state.logits[:] = model.logits(h, state.next_kinds(ends), state.predicted).to(state.logits.dtype)
    return state.logits


def patch_inputs(model: "Multiscale", stage: int, read: Tagged, patches: Tensor) -> Tensor:
    """The inputs (B, P, D) of one patch (B,) a row of a stage with isolated patches, without the parent's share."""
    embedder, siblings = model.embedders[stage], model.config.siblings(stage)
    size = model.spans[stage] * siblings
    places = patches[:, None] * size + torch.arange(-embedder.halo, size, device=patches.device)
    part = read.map(lambda x: x.gather(1, places.clamp(min=0)))
    content = model.embed(stage, part, embedder.halo, places >= 0)
    start = model.starts[stage].to(content.dtype).expand(part.ids.shape[0], 1, -1)
    x = torch.cat((start, content[:, :-1]), dim=1)
    told = None if part.predictions is None or stage < len(model.expanders) else part.predictions[:, embedder.halo :]
    return model.tell(x, told)
