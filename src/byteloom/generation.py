"""What continues a prompt: a model and prompts in, bytes or documents out, one `step` of the model an id.

Cost: the finest stage's weights per byte, a coarser stage's once per patch (arXiv 2305.07185, section 2). Rows of a
batch have prompts of any length and stop by themselves; a row gives what it gives alone. `generate` and `stream` go on
with the bytes of the prompt's last segment, and look at them once a patch; `generate_documents` follows the layout of
documents (`grammar`), so that a model may end a segment and open another, and looks at every id.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from byteloom.documents import BOS, EOS, VOCAB_SIZE, Document
from byteloom.drafts import Draft, Prompt, begin, finish, known_modalities, marks_of, prompt_ids
from byteloom.grammar import Choices, only
from byteloom.losses import marks_in_force, places_in_segment
from byteloom.models.decoding import State, start
from byteloom.models.multiscale import Inputs, Multiscale
from byteloom.sampling import Noise, SamplingConfig, Utf8, choose

LARGEST_BURST = 16
"""Most bytes that a row writes before they are looked at; less where a patch is shorter."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C while documents were written."""

    def __init__(self, documents: list[Document]):
        super().__init__("stopped")
        self.documents = documents
        """The prompts with what was written till then."""


def generate(
    model: Multiscale,
    prompts: "Prompt | Sequence[Prompt]" = "",
    *,
    max_bytes: int = 256,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    stop: bytes | Sequence[bytes] = (),
    valid_utf8: bool = False,
    modality: str = "text",
    max_context: int | None = None,
    compiled: bool = False,
    inputs: Inputs = (),
) -> "bytes | list[bytes]":
    """Continues one prompt (bytes come back) or a list of them (a list comes back).

    All that is written is of the modality that the prompt ends with, and bytes; see `generate_documents`.

    Args:
        model: the model; it is put into evaluation mode.
        prompts: text, bytes, a document, or ids (T,) as they are.
        max_bytes: most bytes to write.
        sampling: temperature and filters; the default draws from the model's own distribution.
        seed: of row 0; row b draws with seed + b, so that it draws as it does alone.
        stop: end a row after one of these was written; it stays in what is returned.
        valid_utf8: write complete UTF-8 characters only.
        modality: how text and bytes are marked, such as "text" or "bytes".
        max_context: most ids a row sees at once; default: the model's context.
        compiled: compile each stage's step first: some 10 seconds, then two to four times as fast on a CPU.
        inputs: continuous inputs that the model reads before the prompts, a row for each; see `Multiscale.forward`.

    Raises:
        ValueError: a prompt is longer than the context, or an argument makes no sense.
    """
    single = isinstance(prompts, (str, bytes, Document, np.ndarray))
    rows = [prompts] if single else list(prompts)
    written = [bytearray() for _ in rows]
    for step in stream(
        model,
        rows,
        max_bytes=max_bytes,
        sampling=sampling,
        seed=seed,
        stop=stop,
        valid_utf8=valid_utf8,
        modality=modality,
        max_context=max_context,
        compiled=compiled,
        inputs=inputs,
    ):
        for row, value in step:
            written[row].append(value)
    results = [bytes(row) for row in written]
    return results[0] if single else results


def stream(
    model: Multiscale,
    prompts: Sequence[Prompt],
    *,
    max_bytes: int = 256,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    stop: bytes | Sequence[bytes] = (),
    valid_utf8: bool = False,
    modality: str = "text",
    max_context: int | None = None,
    compiled: bool = False,
    inputs: Inputs = (),
) -> Iterator[list[tuple[int, int]]]:
    """As `generate`, but gives bytes as they come: lists of (row, byte), at most one of each row that still runs."""
    if model.config.embedder.streams:
        raise ValueError("a fused model writes several streams side by side; use generate_documents")
    marks = marks_of(known_modalities(model.config))
    ids = [prompt_ids(prompt, model.config.span(0), modality, marks) for prompt in prompts]
    if model.config.vocab_size <= BOS:  # a model from elsewhere that knows bytes only
        ids = [row[row < model.config.vocab_size] for row in ids]
    limit = _context(model, max_context, [len(row) for row in ids], max_bytes)
    stops = [stop] if isinstance(stop, bytes) else list(stop)
    if any(not end for end in stops):
        raise ValueError("an empty stop sequence would stop before the first byte; leave it out")
    if not ids:
        return iter(())
    prefix = _prefix(model, inputs, len(ids))
    sampling = sampling or SamplingConfig()
    return _steps(model.eval(), ids, limit, max_bytes, sampling, seed, stops, valid_utf8, compiled, prefix)


@torch.inference_mode()
def _steps(
    model: Multiscale,
    prompts: list[np.ndarray],
    context: int,
    max_bytes: int,
    sampling: SamplingConfig,
    seed: int,
    stops: list[bytes],
    valid_utf8: bool,
    compiled: bool,
    prefix: Tensor | None,
) -> Iterator[list[tuple[int, int]]]:
    """Rows go through their patches in step, so that a coarse stage runs once a patch for all of them.

    What they write is looked at once a patch: the device is not asked in between, and what a row wrote after its end
    is dropped.
    """
    device = model.starts[0].device
    patch = model.config.siblings(len(model.stacks) - 1) or 1
    longest_stop = max(map(len, stops), default=0)
    allowed = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=device)
    allowed[:256] = True
    allowed[EOS : EOS + 1] = True
    rows = list(range(len(prompts)))
    left, tails = [max_bytes] * len(rows), [bytearray() for _ in rows]
    noise = Noise([seed + row for row in rows], model.config.vocab_size, device) if sampling.temperature else None
    utf8 = Utf8.after([_last_bytes(ids) for ids in prompts], device) if valid_utf8 else None
    occurred = _occurred(prompts, model.config.vocab_size, device) if sampling.repetition_penalty != 1.0 else None
    pick = _compiled_choose() if compiled else choose
    need = max(map(len, prompts)) + max_bytes  # no more room than can be filled
    # What is compiled is compiled for one size: so few sizes.
    context = min(context, 1 << (need - 1).bit_length() if compiled else need)
    read = [torch.from_numpy(ids.astype(np.int64)) for ids in prompts]
    state = _prefill(model, read, context, compiled, prefix=prefix)
    while rows and max(left) > 0:
        # Rows inside a patch go on alone until they stand where the others do.
        phases = [length % patch for length in state.lengths[: len(rows)].tolist()]
        together = min(phases) == max(phases)
        behind = [i for i, phase in enumerate(phases) if together or phase]
        burst = min(LARGEST_BURST if patch == 1 else patch - phases[0], LARGEST_BURST, max(left)) if together else 1
        some = None if together else behind
        index = slice(len(rows)) if some is None else torch.tensor(some, device=device)
        spare = state.ids.shape[0] - len(rows)
        draws = None if noise is None else noise.take([rows[i] for i in behind], burst)
        written = []
        for turn in range(burst):
            mask = allowed
            if utf8 is not None:
                room = torch.tensor([left[rows[i]] - turn for i in behind], device=device).unsqueeze(1)
                part = utf8 if some is None else utf8.select(some)
                mask = allowed.repeat(len(behind), 1)
                mask[:, :256] &= part.allowed(room)
                mask[:, EOS : EOS + 1] &= part.complete.unsqueeze(1)
            seen = None if occurred is None else occurred[index]
            chosen = pick(state.logits[index], mask, seen, None if draws is None else draws[turn], sampling)
            written.append(chosen)
            if utf8 is not None:
                utf8.state[index] = Utf8(utf8.state[index]).advance(chosen.clamp(max=255)).state
            if occurred is not None:
                occurred[torch.arange(len(rows), device=device)[index], chosen] = True
            # The last byte of a row that ends here is not read, but a burst's others are: it costs nothing to ask.
            if turn < burst - 1 or max(left) > burst:
                if int(state.lengths.max()) >= model.room(state):
                    state = _roll(model, state, context, compiled)
                model.step(F.pad(chosen, (0, spare)) if some is None and spare else chosen, state, some)
        kept = dict.fromkeys(range(len(rows)))
        for values in torch.stack(written).tolist():
            step = []
            for i, value in zip(behind, values, strict=True):
                if i not in kept:
                    continue
                row = rows[i]
                if value == EOS:
                    del kept[i]
                    continue
                step.append((row, value))
                left[row] -= 1
                tails[row] = (tails[row] + bytes([value]))[-longest_stop:] if longest_stop else tails[row]
                if left[row] == 0 or any(tails[row].endswith(end) for end in stops):
                    del kept[i]
            if step:
                yield step
        if not kept:
            return
        if len(kept) < len(rows):  # rows that have ended leave the batch
            alive = list(kept)
            # What is compiled is compiled for so many rows: there a row that lives takes the place of one that ended.
            spare = state.ids.shape[0] - len(alive) if compiled else 0
            state, rows = state.select(alive + alive[:1] * spare), [rows[i] for i in alive]
            utf8 = utf8.select(alive) if utf8 is not None else None
            occurred = occurred[alive] if occurred is not None else None


def generate_documents(
    model: Multiscale,
    prompts: "Prompt | Sequence[Prompt]" = "",
    *,
    max_bytes: int = 256,
    min_bytes: int = 0,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    valid_utf8: bool = False,
    modality: str = "text",
    modalities: Sequence[str] | None = None,
    max_context: int | None = None,
    compiled: bool = False,
    inputs: Inputs = (),
) -> "Document | list[Document]":
    """Continues one prompt (a document comes back) or a list of them (a list comes back), of any modality.

    What comes back is the prompt with what was written after it; of one that is longer than the context the model reads
    the end. A segment whose header says how long it is, such as a
    picture, ends exactly there; where the prompt's last segment is empty and has no header, the model writes that too.

    With a fused model a prompt's segments stand side by side, each in the stream of its name: those that are not
    predicted are taken from the prompt, and the predicted ones go on to the end of these.

    Args:
        model: the model; it is put into evaluation mode.
        prompts: text, bytes, a document, or ids (T,) as they are.
        max_bytes: most bytes (or tokens) of data to write; marks and headers do not count.
        min_bytes: no document ends before so many, if its headers let it go on; with `max_bytes` an exact length.
        sampling: temperature and filters; the default draws from the model's own distribution.
        seed: of row 0; row b draws with seed + b, so that it draws as it does alone.
        valid_utf8: write complete UTF-8 characters only, in segments of text.
        modality: how text and bytes are marked, such as "text" or "bytes".
        modalities: of which kinds segments may follow that the prompt does not hold; () for none. Default: all that the
            model tells apart, and none after text and bytes.
        max_context: most ids a row sees at once; default: the model's context.
        compiled: compile each stage's step first: some 10 seconds, then two to four times as fast on a CPU.
        inputs: continuous inputs that the model reads before the prompts, a row for each; see `Multiscale.forward`.

    Raises:
        ValueError: a modality is unknown, or an argument makes no sense.
        Stopped: Ctrl-C; it has what was written. KeyboardInterrupt where that ends inside a header.
    """
    if model.config.vocab_size < VOCAB_SIZE:
        raise ValueError(f"the model has {model.config.vocab_size} ids and knows no documents; use generate")
    if valid_utf8 and model.config.embedder.streams:
        raise ValueError("valid_utf8 is for text by itself; a fused model's streams stand side by side")
    single = isinstance(prompts, (str, bytes, Document, np.ndarray))
    drafts = [begin(model.config, prompt, modality, modalities) for prompt in ([prompts] if single else prompts)]
    limit = _context(model, max_context, [], max_bytes)
    room = min(limit, max([1, *(draft.grammar.room(max_bytes) for draft in drafts)]))
    prefix, sampling = _prefix(model, inputs, len(drafts)), sampling or SamplingConfig()
    try:
        _write(model.eval(), drafts, room, max_bytes, min_bytes, sampling, seed, valid_utf8, compiled, prefix)
    except KeyboardInterrupt as stop:
        with contextlib.suppress(ValueError):
            raise Stopped([finish(model.config, draft) for draft in drafts]) from stop
        raise
    documents = [finish(model.config, draft) for draft in drafts]
    return documents[0] if single else documents


@torch.inference_mode()
def _write(
    model: Multiscale,
    drafts: Sequence[Draft],
    context: int,
    max_bytes: int,
    min_bytes: int,
    sampling: SamplingConfig,
    seed: int,
    valid_utf8: bool,
    compiled: bool,
    prefix: Tensor | None,
) -> None:
    """Writes documents to their ends, an id of each in a turn: the one that must come, or what the model chooses."""
    rows = [i for i, draft in enumerate(drafts) if not draft.is_done(max_bytes)]
    if not rows:
        return
    device, vocab_size = model.starts[0].device, model.config.vocab_size
    prompts = [np.array(drafts[i].ids) for i in rows]
    texts = [_last_bytes(ids) if drafts[i].grammar.in_text else b"" for i, ids in zip(rows, prompts, strict=True)]
    utf8 = Utf8.after(texts, device) if valid_utf8 else None
    occurred = _occurred(prompts, vocab_size, device) if sampling.repetition_penalty != 1.0 else None
    noise = Noise([seed + i for i in range(len(drafts))], vocab_size, device) if sampling.temperature else None
    masks: dict[Choices, Tensor] = {}
    before = None if prefix is None else prefix[rows]
    # Of a prompt that is longer than the context, the newest half of a context is read.
    span = model.config.span(0)
    cuts = [len(ids) - context // 2 if len(ids) > context else 0 for ids in prompts]
    cuts = [-(-cut // span) * span for cut in cuts]
    read = [torch.from_numpy(ids) for ids in prompts]
    mark, since = _before(model, read, cuts) if model.config.kinds and any(cuts) else (None, None)
    read = [ids[cut:] for ids, cut in zip(read, cuts, strict=True)]
    state = _prefill(model, read, context, compiled, mark, since, before)
    while True:
        choices = [drafts[i].choices(min_bytes) for i in rows]
        values = torch.tensor([part[0].start for part in choices], device=device)
        free = [j for j, part in enumerate(choices) if only(part) is None]
        if free:
            index = torch.tensor(free, device=device)
            masks |= {part: _mask(part, vocab_size, device) for part in {choices[j] for j in free} - masks.keys()}
            mask = torch.stack([masks[choices[j]] for j in free])
            in_text = torch.tensor([drafts[rows[j]].grammar.in_text for j in free], device=device)
            part = None if utf8 is None else utf8.select(free)
            if part is not None:
                room = torch.tensor([[max_bytes - drafts[rows[j]].count] for j in free], device=device)
                mask[:, :256] &= part.allowed(room) | ~in_text.unsqueeze(1)
                mask[:, 256:] &= part.complete.unsqueeze(1)
            seen = None if occurred is None else occurred[index]
            draws = None if noise is None else noise.take([rows[j] for j in free], 1)[0]
            values[index] = chosen = choose(state.logits[index], mask, seen, draws, sampling)
            if utf8 is not None and part is not None:
                following = part.advance(chosen.clamp(max=255)).state
                utf8.state[index] = torch.where(in_text & (chosen < 256), following, part.state)
        if occurred is not None:
            occurred[torch.arange(len(rows), device=device), values] = True
        for j, value in enumerate(values.tolist()):
            drafts[rows[j]].take(value, chosen=only(choices[j]) is None)
        kept = [j for j, i in enumerate(rows) if not drafts[i].is_done(max_bytes)]
        if not kept:
            return
        if len(kept) < len(rows):
            spare = state.ids.shape[0] - len(kept) if compiled else 0  # as in `_steps`
            state, rows, values = state.select(kept + kept[:1] * spare), [rows[j] for j in kept], values[kept]
            utf8 = utf8.select(kept) if utf8 is not None else None
            occurred = occurred[kept] if occurred is not None else None
        if int(state.lengths.max()) >= model.room(state):
            state = _roll(model, state, context, compiled)
        model.step(F.pad(values, (0, state.ids.shape[0] - len(rows))), state)


def _mask(choices: Choices, vocab_size: int, device: torch.device) -> Tensor:
    """(V,) bool: the ids that may come next."""
    mask = torch.zeros(vocab_size, dtype=torch.bool)
    for part in choices:
        mask[part.start : part.stop] = True
    return mask.to(device)


@functools.cache
def _compiled_choose() -> Callable[..., Tensor]:
    return torch.compile(choose)


def _occurred(prompts: list[np.ndarray], vocab_size: int, device: torch.device) -> Tensor:
    """(B, V) bool: the ids that stand in each prompt."""
    occurred = torch.zeros(len(prompts), vocab_size, dtype=torch.bool)
    for row, ids in enumerate(prompts):
        occurred[row, torch.from_numpy(ids.astype(np.int64))] = True
    return occurred.to(device)


def _prefill(
    model: Multiscale,
    prompts: list[Tensor],
    context: int,
    compiled: bool,
    mark: Tensor | None = None,
    since: Tensor | None = None,
    prefix: Tensor | None = None,
) -> State:
    """A state that has read these ids, one tensor (T,) a row; `mark` and `since` (B,) are those before them, and
    `prefix` (B, K, D) is what the coarsest stage reads first.
    """
    device = model.starts[0].device
    lengths = torch.tensor([len(ids) for ids in prompts])
    state = start(model, len(prompts), context, compiled, mark, since, prefix)
    padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True) if int(lengths.max()) else None
    if padded is not None:
        model.prefill(padded.to(device), lengths, state)
    return state


def _roll(model: Multiscale, state: State, context: int, compiled: bool) -> State:
    """Forgets the older half of the rows that are full, up to a patch border, and reads the rest anew."""
    span, lengths = model.config.span(0), state.lengths.tolist()
    cuts = [-(-(length // 2) // span) * span if length >= model.room(state) else 0 for length in lengths]
    prompts = [ids[cut:length].cpu() for ids, cut, length in zip(state.ids, cuts, lengths, strict=True)]
    if state.since is None:  # the model tells nothing apart
        return _prefill(model, prompts, context, compiled, prefix=state.prefix)
    at = torch.tensor(cuts, device=state.ids.device).unsqueeze(1)
    marks = marks_in_force(F.pad(state.ids, (0, 1)), state.first_mark)
    mark, since = (tags.gather(1, at).squeeze(1) for tags in (marks, state.since))
    return _prefill(model, prompts, context, compiled, mark, since, state.prefix)


def _before(model: Multiscale, prompts: Sequence[Tensor], cuts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The mark in force and the place in the segment (B,) at these places of ids (T,)."""
    patch_size = model.config.span(0) if model.config.embedder.streams else None
    marks = [int(marks_in_force(ids[None, : cut + 1])[0, -1]) for ids, cut in zip(prompts, cuts, strict=True)]
    places = [
        int(places_in_segment(ids[None, : cut + 1], None, patch_size)[0, -1])
        for ids, cut in zip(prompts, cuts, strict=True)
    ]
    device = model.starts[0].device
    return torch.tensor(marks, device=device), torch.tensor(places, device=device)


@torch.no_grad()
def _prefix(model: Multiscale, inputs: Inputs, rows: int) -> Tensor | None:
    """Continuous inputs as vectors (B, K, D). Raises ValueError where they have not a row for each prompt."""
    prefix = model.prefix(inputs)
    if prefix is not None and prefix.shape[0] != rows:
        raise ValueError(f"continuous inputs have {prefix.shape[0]} rows for {rows} prompts; give one for each")
    return prefix


def _context(model: Multiscale, max_context: int | None, lengths: Sequence[int], max_bytes: int) -> int:
    """Most ids that a row sees at once. Raises ValueError where a prompt is longer, or `max_bytes` makes no sense."""
    limit = max_context or model.config.context
    limit = limit if model.config.max_length is None else min(limit, model.config.max_length - 1)
    for length in lengths:
        if length > limit:
            raise ValueError(
                f"the prompt takes {length} ids and the context is {limit}; shorten it"
                + ("" if model.config.max_length is not None else ", or ask for a longer context")
            )
    if max_bytes < 0:
        raise ValueError(f"max_bytes is {max_bytes}; it must be at least 0")
    return limit


def _last_bytes(ids: np.ndarray) -> bytes:
    return ids[-3:][ids[-3:] < 256].astype(np.uint8).tobytes()
