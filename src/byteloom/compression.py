"""A model as a compressor: a file and a model in, an archive out, and back byte for byte.

The model's probabilities of each byte go through the range coder of `constriction`. The file is cut into lanes, which
the model reads side by side, a byte of each in a step; a lane that outgrows the context goes on with the newest half
of it. Encoder and decoder run one and the same function (`run`), with the same shapes, types, number of threads and
kernels, for the coder needs the same numbers to the last bit. Cost: a step of the model for a byte of each lane; the
coder's own share is below 0.1 % of it, in time and in size.
"""

import contextlib
import hashlib
import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends.cpu import get_cpu_capability

from byteloom import __version__, codecs
from byteloom.archives import (
    GRAIN,
    MAX_BYTES,
    MAX_PLACES,
    ArchiveError,
    Header,
    Lanes,
    Precision,
    bare,
    check_segments,
    checked,
    lay_out,
    layout_of,
    other_content,
    pack,
    segments_in,
    unpack,
)
from byteloom.documents import Segment
from byteloom.drafts import known_modalities, marks_of
from byteloom.losses import marks_in_force
from byteloom.models.decoding import State, start
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import digest, digest_of_tensors

Progress = Callable[[int], None]
"""Is told how many bytes were coded since it was called last."""

USUAL_LANES = 64
"""More bytes in a step are hardly faster on a CPU, and each lane begins without knowing what came before."""
LANE_BYTES = 4096
"""A lane is about so long at least, or as long as the context: then what it loses at its beginning is small."""
SCALE = 1 << 24
PROBE_STEPS = 32
SAMPLE_BYTES = 4096
"""What is looked at to find how a file is best marked."""
CLEARLY = 0.02
"""Another mark than the usual one must save so much of that: few bytes say it no more exactly."""


def compress(
    model: Multiscale,
    data: bytes,
    *,
    segments: Sequence[Segment] = (),
    lanes: int | None = None,
    precision: Precision = "fp32",
    compiled: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
) -> bytes:
    """Bytes as an archive, which `decompress` with the same model turns back into the same bytes.

    Args:
        model: the model; it is put into evaluation mode. It needs `pip install "byteloom[compress]"`.
        data: any bytes. They are marked as what costs least, such as text.
        segments: the same bytes as samples of media, from `segments_of`; used where the model knows those better.
        lanes: streams side by side; default: up to 64, each about as long as the context, or 4096 bytes, at least.
            More are faster, fewer are smaller.
        precision: bf16 is faster on processors that multiply it, and a little larger.
        compiled: compile the model's steps first: half a minute, here and when it is opened, then twice as fast.
        threads: of each operation; it is opened with as many. One gives the same numbers on any number of cores.
        progress: told how many bytes were coded since the last call.

    Raises:
        ValueError: an argument makes no sense, the model fuses streams or is broken, or the data are too large.
    """
    check_options(lanes, threads)
    if model.config.vocab_size < 256:
        raise ValueError(f"the model has {model.config.vocab_size} ids, and a file has 256 bytes; take another model")
    if model.config.embedder.streams:
        raise ValueError("this model predicts streams side by side, and a file is one stream; take another model")
    if len(data) > MAX_BYTES:
        raise ValueError(f"{len(data):,} bytes are more than an archive takes, {MAX_BYTES:,}; cut the file in parts")
    if segments:
        check_segments(segments, data, marks_known(model))
    kind = device_of(model)
    context = coded_context(model)
    if lanes is None:
        lanes = min(USUAL_LANES, round(len(data) / min(context, LANE_BYTES)), max(1, MAX_PLACES // context))
    size = sum(len(segment.data) for segment in segments) or len(data)  # mu-law has fewer bytes than its file
    header = Header(
        model=model_digest(model)[:16],
        content=hashlib.sha256(data).digest()[:16],
        probe=bytes(8),
        lanes=max(1, min(lanes, len(data), size)),
        context=context,
        threads=threads,
        precision=precision,
        compiled=compiled,
        device=kind,
        stored=True,
        environment=environment(kind),
        layout=(),
    )
    if not data:
        return pack(header, data)
    model.eval()
    queue, family = _coder()
    coder = queue.RangeEncoder()
    with as_recorded(header):
        chosen = cheapest(model, data, segments)
        laid = lanes_of(model, chosen, header.lanes)
        sign = probe(model, header, laid.length)
        whole = np.concatenate([segment.data for segment in chosen])  # in the order in which the model reads

        def encode(places: np.ndarray, counts: np.ndarray) -> np.ndarray:
            coder.encode(whole[places].astype(np.int32), family, counts)
            return whole[places]

        run(model, header, laid, encode, progress)
    words = coder.get_compressed().astype("<u4").tobytes()
    if not pays(words, data):
        return pack(header, data)
    return pack(replace(header, stored=False, probe=sign, layout=layout_of(chosen, marks_known(model))), words)


def check_options(lanes: int | None, threads: int) -> None:
    """Raises ValueError where an archive cannot say so many lanes or threads."""
    if not 1 <= threads <= 0xFF:
        raise ValueError(f"threads is {threads}; it must be from 1 to 255")
    if lanes is not None and not 1 <= lanes <= 0xFFFF:
        raise ValueError(f"lanes is {lanes}; it must be from 1 to 65535")


def decompress(model: Multiscale, archive: bytes, *, progress: Progress | None = None) -> bytes:
    """The bytes that an archive was made of.

    Nothing comes back that is not what went in: the archive's checksum, the model's hash and the logits of a probe are
    compared before, the content's hash after.

    Args:
        model: the model that made the archive; it is put into evaluation mode.
        archive: what `compress` returned.
        progress: told how many bytes were decoded since the last call.

    Raises:
        ArchiveError: it is damaged, foreign, of another model, or of a machine whose numbers differ.
    """
    header, content = unpack(archive)
    if (ours := model_digest(model)[:16]) != header.model:
        raise ArchiveError(
            f"this archive was made by model {header.model.hex()}, and this one is {ours.hex()}; "
            "name the folder of the model that made it"
        )
    if header.stored:
        return checked(content, header)
    if (kind := device_of(model)) != header.device:
        raise ArchiveError(f"this archive was made on {header.device}, and the model is on {kind}; load it there")
    if header.context != coded_context(model):
        raise ArchiveError(
            f"this archive asks for a context of {header.context}, which its model has not; it is forged"
        )
    segments = segments_in(header, marks_known(model))
    try:
        laid = lanes_of(model, segments, header.lanes)
    except ValueError as error:
        raise ArchiveError(f"this archive cannot be opened: {error}") from error
    model.eval()
    queue, family = _coder()
    decoder = queue.RangeDecoder(np.frombuffer(content, "<u4").astype(np.uint32))
    whole = np.zeros(header.size, np.uint8)  # the system gives memory to what is written alone
    with as_recorded(header):
        if probe(model, header, laid.length) != header.probe:
            raise ArchiveError(
                f"the model computes other numbers here ({environment(kind)}) than where this archive was made "
                f"({header.environment}); open it on a machine and with versions like those"
            )

        def decode(places: np.ndarray, counts: np.ndarray) -> np.ndarray:
            try:
                whole[places] = decoder.decode(family, counts)
            except AssertionError:  # so constriction says that no byte has this code
                raise other_content(header) from None
            return whole[places]

        run(model, header, laid, decode, progress)
    parts = np.split(whole, np.cumsum([len(segment.data) for segment in segments])[:-1])
    try:
        data = b"".join(bare(replace(segment, data=part)) for segment, part in zip(segments, parts, strict=True))
    except ValueError as error:
        raise ArchiveError(f"this archive's segments are no samples ({error}); take another copy of it") from error
    return checked(data, header)


def pays(words: bytes, data: bytes) -> bool:
    """Whether what the coder wrote is shorter than the file."""
    return len(words) < len(data)


# -- the lanes -------------------------------------------------------------------------------------------------------


def lanes_of(model: Multiscale, segments: Sequence[Segment], lanes: int) -> Lanes:
    """Segments as lanes of a model. Raises ValueError as `archives.lay_out`."""
    context, span, size = coded_context(model), model.config.span(0), model.config.vocab_size
    return lay_out(segments, marks_known(model), lanes, context, span, size)


def coded_context(model: Multiscale) -> int:
    """Most ids that a lane sees at once: the model's context, and at least two patches."""
    wanted, limit = max(model.config.context, 2 * model.config.span(0)), model.config.max_length
    return wanted if limit is None else min(wanted, limit)


@torch.inference_mode()
def run(
    model: Multiscale,
    header: Header,
    lanes: Lanes,
    exchange: Callable[[np.ndarray, np.ndarray], np.ndarray],
    progress: Progress | None = None,
) -> None:
    """Goes through lanes a step at a time, and puts in them, where there are data, what `exchange` says of their
    places there: (places (n,), counts (n, 256)) -> bytes (n,).

    Encoder and decoder differ in `exchange` alone.
    """
    device, length, places = model.starts[0].device, lanes.length, lanes.borders[:-1].copy()
    state = start(model, len(places), min(header.context, length), header.compiled)
    at_once = max(1, MAX_PLACES // len(places))
    ids, coded = lanes.stretch(0, min(at_once, length))
    for step in range(length):
        column = step % at_once
        if column == 0 and step:
            ids, coded = lanes.stretch(step, min(step + at_once, length))
        rows = np.flatnonzero(coded[:, column])
        if len(rows):
            ids[rows, column] = exchange(places[rows], counts_of(state.logits)[rows])
            places[rows] += 1
            if progress is not None:
                progress(len(rows))
        if step < length - 1:
            if int(state.lengths[0]) >= model.room(state):
                state = roll(model, state)
            model.step(torch.from_numpy(ids[:, column].astype(np.int64)).to(device), state)


def counts_of(logits: Tensor) -> np.ndarray:
    """Logits (N, V) -> (N, 256) float64: how often each byte comes in 2^24 times, whole numbers and at least 1.

    Whole numbers, so that no sum of the coder's depends on the order in which it adds. Raises ValueError.
    """
    probabilities = logits[:, :256].double().softmax(dim=1)
    if not bool(probabilities.isfinite().all()):
        raise ValueError("the model gives logits that are no numbers; take another checkpoint of it")
    return (probabilities * SCALE).round().clamp(min=1).cpu().numpy()


def roll(model: Multiscale, state: State) -> State:
    """Forgets the older half of all rows, which are in step, up to a patch border, and reads the rest anew."""
    length, span = int(state.lengths[0]), model.config.span(0)
    cut = min(math.ceil(length / 2 / span) * span, length)
    mark = since = None
    if state.since is not None:
        mark = marks_in_force(F.pad(state.ids[:, :length], (0, 1)), state.first_mark)[:, cut]
        since = state.since[:, cut]
    rows, room = state.ids.shape
    fresh = start(model, rows, room, state.compiled, mark, since)
    if cut < length:
        model.prefill(state.ids[:, cut:length], [length - cut] * rows, fresh)
    return fresh


def cheapest(model: Multiscale, data: bytes, segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Data as text if they are UTF-8, or as bytes; or marked otherwise, or as these segments, where that is clearly
    cheaper by what the model makes of some of them.
    """
    known = [m.name for m in model.config.modalities if (m.first_id, m.num_ids) == (0, 256)] or list(codecs.MARKS)
    usual = "text" if is_text(data) else "bytes"
    known.sort(key=lambda name: name != usual)
    values = np.frombuffer(data, np.uint8)
    whole = [Segment(modality=name, data=values) for name in known]
    # The same place for all: what stands in the middle, whole where it is short.
    parts = tuple(segments) or (whole[0],)
    starts = np.cumsum([0, *(len(part.data) for part in parts)])
    middle = int(starts.searchsorted(len(data) // 2, "right")) - 1
    spare = max(0, len(parts[middle].data) - SAMPLE_BYTES)
    first = spare // 2 // GRAIN * GRAIN
    place = slice(int(starts[middle]) + first, int(starts[middle + 1]) - (spare - first))
    samples = [replace(segment, data=values[place]) for segment in whole]
    if segments:
        samples.append(replace(parts[middle], data=parts[middle].data[first : first + place.stop - place.start]))
    nats = [sampled_nats(model, sample) for sample in samples]
    best = min(range(len(samples)), key=nats.__getitem__)
    best = best if nats[best] < nats[0] * (1 - CLEARLY) else 0
    return (whole[best],) if best < len(whole) else tuple(segments)


def is_text(data: bytes) -> bool:
    """Whether bytes are UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@torch.inference_mode()
def sampled_nats(model: Multiscale, segment: Segment) -> float:
    """What a byte of a segment costs in nats, as far as the context reaches."""
    lanes = lanes_of(model, (segment,), 1)
    ids, coded = lanes.stretch(0, min(coded_context(model), lanes.length))
    if not coded.any():  # the context is shorter than a header
        return math.inf
    ids[coded] = segment.data[: coded.sum()]
    nats = model.nats(torch.from_numpy(ids.astype(np.int64)).to(model.starts[0].device)).cpu().numpy()
    return float(nats[coded].mean())


# -- the same numbers again ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def as_recorded(header: Header) -> Iterator[None]:
    """Inside, torch computes as an archive's header says; after, as before."""
    threads, products = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(header.threads)
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(header.device, torch.bfloat16, enabled=header.precision == "bf16"):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(products)


@torch.inference_mode()
def probe(model: Multiscale, header: Header, length: int) -> bytes:
    """A digest (8) of the logits of fixed bytes, in lanes and rolls like those of `length` ids that will be coded."""
    found = hashlib.sha256()
    room = min(header.context, length)
    state = start(model, header.lanes, room, header.compiled)
    values = (np.arange(room, dtype=np.int64)[None] * 167 + np.arange(header.lanes)[:, None] * 89) * 31 % 251
    ids = torch.from_numpy(values).to(state.ids.device)
    half = room // 2 if length > room else 0
    if half:
        found.update(model.prefill(ids, [half] * header.lanes, state).cpu().numpy().tobytes())
    for step in range(half, min(half + PROBE_STEPS, room, model.room(state))):
        found.update(counts_of(model.step(ids[:, step], state)).tobytes())
    return found.digest()[:8]


def model_digest(model: Multiscale) -> bytes:
    """SHA-256 of a model's config and weights."""
    both = digest(asdict(model.config)) + digest_of_tensors(model.state_dict())
    return hashlib.sha256(both.encode()).digest()


def environment(device: str) -> str:
    """Versions of byteloom and torch and the kind of processor, at most 28 characters."""
    kind = torch.cuda.get_device_name().removeprefix("NVIDIA ") if device == "cuda" else get_cpu_capability()
    return f"{__version__} {torch.__version__.removesuffix('+cpu')} {kind}"[:28]


def device_of(model: Multiscale) -> Literal["cpu", "cuda"]:
    """The kind of device that a model is on."""
    return "cuda" if model.starts[0].device.type == "cuda" else "cpu"


def _coder() -> tuple[Any, Any]:
    """The range coder's module, and the family of the distributions of its symbols."""
    constriction: Any = importlib.import_module("constriction")  # its parts are unknown to type checkers
    return constriction.stream.queue, constriction.stream.model.Categorical(perfect=False)


def marks_known(model: Multiscale) -> dict[str, int]:
    """The mark of each modality of a model, and of those that have a codec."""
    return codecs.MARKS | marks_of(known_modalities(model.config))
