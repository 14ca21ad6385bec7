"""Bytes that continue a prompt: a model and prompts in, bytes out, one `step` of the model a byte.

Cost: the finest stage's weights per byte, a coarser stage's once per patch (arXiv 2305.07185, section 2). Rows of a
batch have prompts of any length and stop by themselves; a row gives what it gives alone.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from byteloom import codecs
from byteloom.documents import BOS, EOS, Document, Segment, to_ids
from byteloom.models.multiscale import Multiscale, State
from byteloom.sampling import Noise, SamplingConfig, Utf8, choose

Prompt = str | bytes | Document | np.ndarray
LARGEST_BURST = 16
"""Most bytes that a row writes before they are looked at; less where a patch is shorter."""


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
) -> "bytes | list[bytes]":
    """Continues one prompt (bytes come back) or a list of them (a list comes back).

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
) -> Iterator[list[tuple[int, int]]]:
    """As `generate`, but gives bytes as they come: lists of (row, byte), at most one of each row that still runs."""
    context = max_context or model.config.context
    ids = [prompt_ids(prompt, model.config.span(0), modality) for prompt in prompts]
    if model.config.vocab_size <= BOS:  # a model from elsewhere that knows bytes only
        ids = [row[row < model.config.vocab_size] for row in ids]
    limit = context if model.config.max_length is None else min(context, model.config.max_length - 1)
    for row in ids:
        if len(row) > limit:
            raise ValueError(
                f"the prompt takes {len(row)} ids and the context is {limit}; shorten it"
                + ("" if model.config.max_length is not None else ", or ask for a longer context")
            )
    if max_bytes < 0:
        raise ValueError(f"max_bytes is {max_bytes}; it must be at least 0")
    stops = [stop] if isinstance(stop, bytes) else list(stop)
    if any(not end for end in stops):
        raise ValueError("an empty stop sequence would stop before the first byte; leave it out")
    if not ids:
        return iter(())
    return _steps(model.eval(), ids, limit, max_bytes, sampling or SamplingConfig(), seed, stops, valid_utf8, compiled)


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
    state = _prefill(model, [torch.from_numpy(ids.astype(np.int64)) for ids in prompts], context, compiled)
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


@functools.cache
def _compiled_choose() -> Callable[..., Tensor]:
    return torch.compile(choose)


def _occurred(prompts: list[np.ndarray], vocab_size: int, device: torch.device) -> Tensor:
    """(B, V) bool: the ids that stand in each prompt."""
    occurred = torch.zeros(len(prompts), vocab_size, dtype=torch.bool)
    for row, ids in enumerate(prompts):
        occurred[row, torch.from_numpy(ids.astype(np.int64))] = True
    return occurred.to(device)


def _prefill(model: Multiscale, prompts: list[Tensor], context: int, compiled: bool) -> State:
    """A state that has read these ids, one tensor (T,) a row."""
    device = model.starts[0].device
    lengths = torch.tensor([len(ids) for ids in prompts])
    state = model.start(len(prompts), context, compiled)
    padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True) if int(lengths.max()) else None
    if padded is not None:
        model.prefill(padded.to(device), lengths, state)
    return state


def _roll(model: Multiscale, state: State, context: int, compiled: bool) -> State:
    """Forgets the older half of the rows that are full, up to a patch border, and reads the rest anew."""
    span = model.config.span(0)
    prompts = []
    for ids, length in zip(state.ids, state.lengths.tolist(), strict=True):
        start = -(-(length // 2) // span) * span if length >= model.room(state) else 0
        prompts.append(ids[start:length].cpu())
    return _prefill(model, prompts, context, compiled)


def prompt_ids(prompt: Prompt, patch_size: int, modality: str) -> np.ndarray:
    """A prompt as ids (T,) uint16: a document that has not ended. Ids are taken as they are; nothing gives BOS alone.

    Raises:
        ValueError: `modality` is unknown, or ids are not one-dimensional integers.
    """
    if isinstance(prompt, np.ndarray):
        if prompt.ndim != 1 or prompt.dtype.kind not in "iu":
            raise ValueError(f"ids of a prompt have shape {prompt.shape} and dtype {prompt.dtype}; one row is wanted")
        return prompt.astype(np.uint16)
    if isinstance(prompt, (str, bytes)):
        data = prompt.encode() if isinstance(prompt, str) else prompt
        prompt = Document(segments=(Segment(modality=modality, data=np.frombuffer(data, np.uint8)),))
    ids = to_ids(prompt, codecs.MARKS, patch_size)[:-1]
    return ids if len(ids) else np.array([BOS], np.uint16)


def _last_bytes(ids: np.ndarray) -> bytes:
    return ids[-3:][ids[-3:] < 256].astype(np.uint8).tobytes()
