"""Bytes that continue a prompt: a model and prompts in, bytes out, one `step` of the model a byte.

Cost: the finest stage's weights per byte, a coarser stage's once per patch (arXiv 2305.07185, section 2). Rows of a
batch have prompts of any length and stop by themselves; a row gives what it gives alone.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from byteloom import codecs
from byteloom.documents import BOS, EOS, Document, Segment, to_ids
from byteloom.models.multiscale import Multiscale, State
from byteloom.sampling import SamplingConfig, Utf8, filter_logits, penalize, sample

Prompt = str | bytes | Document | np.ndarray


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
) -> Iterator[list[tuple[int, int]]]:
    """As `generate`, but gives each step's bytes as they come: a list of (row, byte) for the rows still running."""
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
    return _steps(model.eval(), ids, limit, max_bytes, sampling or SamplingConfig(), seed, stops, valid_utf8)


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
) -> Iterator[list[tuple[int, int]]]:
    device = model.starts[0].device
    rows = list(range(len(prompts)))
    generators = [torch.Generator(device).manual_seed(seed + row) for row in rows]
    tails = [bytearray() for _ in rows]
    longest_stop = max(map(len, stops), default=0)
    allowed = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=device)
    allowed[:256] = True
    allowed[EOS : EOS + 1] = True
    utf8 = Utf8.after([_last_bytes(ids) for ids in prompts], device) if valid_utf8 else None
    context = min(context, max(map(len, prompts)) + max_bytes)  # no more room than can be filled
    state = _prefill(model, [torch.from_numpy(ids.astype(np.int64)) for ids in prompts], context)
    for left in range(max_bytes, 0, -1):
        if not rows:
            return
        logits = state.logits.float()
        mask = allowed.expand_as(logits)
        if utf8 is not None:
            mask = mask.clone()
            mask[:, :256] &= utf8.allowed(left)
            mask[:, EOS : EOS + 1] &= utf8.complete.unsqueeze(1)
        if sampling.repetition_penalty != 1.0:
            logits = penalize(logits, state.ids, state.lengths.to(device), sampling.repetition_penalty)
        logits = filter_logits(logits.masked_fill(~mask, -torch.inf), sampling)
        chosen = sample(logits, sampling, generators)
        values = chosen.tolist()
        step, kept = [], []
        for i, (row, value) in enumerate(zip(rows, values, strict=True)):
            if value == EOS:
                continue
            step.append((row, value))
            tails[row] = (tails[row] + bytes([value]))[-longest_stop:] if longest_stop else tails[row]
            if not any(tails[row].endswith(end) for end in stops):
                kept.append(i)
        if step:
            yield step
        if left == 1 or not kept:
            return
        if len(kept) < len(rows):  # rows that have ended leave the batch
            state = state.select(kept)
            chosen = chosen[kept]
            rows, generators = [rows[i] for i in kept], [generators[i] for i in kept]
            utf8 = utf8.select(kept) if utf8 is not None else None
        if utf8 is not None:
            utf8 = utf8.advance(chosen)
        if int(state.lengths.max()) >= model.room(state):
            state = _roll(model, state, context)
        model.step(chosen, state)


def _prefill(model: Multiscale, prompts: list[Tensor], context: int) -> State:
    """A state that has read these ids, one tensor (T,) a row."""
    device = model.starts[0].device
    lengths = torch.tensor([len(ids) for ids in prompts])
    state = model.start(len(prompts), context)
    padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True) if int(lengths.max()) else None
    if padded is not None:
        model.prefill(padded.to(device), lengths, state)
    return state


def _roll(model: Multiscale, state: State, context: int) -> State:
    """Forgets the older half of the rows that are full, up to a patch border, and reads the rest anew."""
    span = model.config.span(0)
    prompts = []
    for ids, length in zip(state.ids, state.lengths.tolist(), strict=True):
        start = -(-(length // 2) // span) * span if length >= model.room(state) else 0
        prompts.append(ids[start:length].cpu())
    return _prefill(model, prompts, context)


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
