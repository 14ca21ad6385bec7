"""Continue a prompt of any modality: text to the terminal, anything to a file."""

import glob
import io
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import tyro

from byteloom import codecs
from byteloom.codecs import MediaConfig, audio, image, media_from_dict, video
from byteloom.commands import UsageError, check_output, note, parse, prepare_pictures, write_output
from byteloom.corpus import Corpus
from byteloom.documents import DataError, Document, Segment
from byteloom.drafts import cut, predicted_streams, size_of, unit_of
from byteloom.generation import Stopped, generate_documents, stream
from byteloom.manifests import each_line, is_manifest
from byteloom.models.config import ModelConfig
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import load, read_run
from byteloom.quantization import Weights, quantize
from byteloom.sampling import SamplingConfig
from byteloom.train.acceleration import can_compile

USUAL_BYTES = 512
"""What is written where nothing says how much; of sound and video it is a second."""
MOST_USUAL_BYTES = 1 << 17
"""A second that takes more is cut, at a whole sample or frame: a minute or two of work on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Continue a prompt of any modality: text to the terminal, anything to a file.

    A picture of which half is given, a sound that goes on: --prompt-file FILE --out FILE. A picture without a prompt:
    --modality image --size 32x32 --out FILE. Media files are read as those that the model learned from, unless an
    option says otherwise.
    """

    model: tyro.conf.Positional[Path]
    """Run or model folder."""
    prompt: str | None = None
    """Text to continue."""
    prompt_file: Path | None = None
    """File to continue, of any modality that the model learned; or a manifest, whose first document is continued."""
    prompt_share: float | None = None
    """Keep this share of the prompt's last part (0 to 1) and write the rest; default: half of what is whole already,
    such as a picture, and all of the rest."""
    max_bytes: int | None = None
    """Write at most so many bytes; default: what a picture lacks or --prompt-share leaves out, else a second of sound
    or video (no more than 131,072 bytes or a frame), else 512."""
    seconds: float | None = None
    """Write exactly so many seconds of sound or video."""
    size: str | None = None
    """WIDTHxHEIGHT of a picture or video that has no prompt; default: as most of those that the model learned."""
    temperature: float = 1.0
    """Divide logits by it: below 1 safer, above 1 wilder, 0 always the likeliest byte."""
    top_k: int | None = None
    """Draw among the so many likeliest bytes."""
    top_p: float | None = None
    """Draw among the likeliest bytes that together have this probability."""
    min_p: float | None = None
    """Draw among bytes at least this share as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Divide the logits of bytes that have occurred by it (1: off)."""
    seed: int = 0
    """The same seed gives the same bytes."""
    stop: tuple[str, ...] = ()
    """End after any of these texts was written; for text by itself."""
    valid_utf8: bool = False
    """Write only whole UTF-8 characters."""
    echo: bool = True
    """Write the prompt before its continuation; what is not text by itself always has it."""
    modality: str | None = None
    """What the prompt is marked as, or what is written without one; default: what the file is, else what the model
    learned, text first."""
    follow: tuple[str, ...] | None = None
    """Modalities that may follow the prompt's last part; default: all that the model learned after a manifest, else
    none."""
    context: int | None = None
    """Ids that the model sees at once; default: as trained."""
    device: str = "auto"
    """Where to run: "cpu", "cuda", or "auto" for CUDA where there is one."""
    weights: Weights = "fp32"
    """Type of the weights: bf16 and int8 are smaller and faster, and cost a little (docs/performance.md)."""
    compile: bool = False
    """Compile the model first: half a minute, then two to four times as fast on a CPU."""
    out: Path | None = None
    """Write to this file, in the format of its suffix, instead of stdout; several parts get a file each."""
    overwrite: bool = False
    """Replace the file if it is there."""
    pictures: Path | None = None
    """Show what was written in this folder, as index.html: beside its original, and what each place cost in bits."""
    media: Annotated[MediaConfig, tyro.conf.arg(name="")] = field(default_factory=MediaConfig)


def main(argv: list[str]) -> None:
    """Runs the command. The run itself says how media are read by default: the options are parsed again with that."""
    options = parse(Options, argv, "generate")
    run = read_run(options.model)
    options = parse(Options, argv, "generate", replace(options, media=media_from_dict(run.get("media") or {})))
    check_output(options.out, *inputs_of(options), overwrite=options.overwrite)
    if options.pictures is not None:
        prepare_pictures(options.pictures)
    network = quantize(load(options.model, options.device), options.weights)
    if options.compile and not can_compile(network.starts[0].device):
        raise UsageError("--compile needs g++ and Python's headers, and torch.compile does not work here; leave it out")
    try:
        sampling = SamplingConfig(
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            repetition_penalty=options.repetition_penalty,
        )
        learned = learned_modalities(network.config, run)
        prompt = read_prompt(options, learned, network.config, run.get("headers") or {})
        beginning, left_out = cut(prompt, options.prompt_share, network.config)
        shared = {
            "sampling": sampling,
            "seed": options.seed,
            "valid_utf8": options.valid_utf8,
            "max_context": options.context,
            "compiled": options.compile,
        }
        if options.follow is None and not network.config.embedder.streams and is_text(prompt):
            written = continue_text(network, beginning.segments[0], left_out, options, shared)
        else:
            follow = options.follow if options.follow is not None else learned if len(prompt.segments) > 1 else ()
            written = continue_document(network, beginning, left_out, follow, options, shared)
        if options.pictures is not None:
            from byteloom.showcase import show_written

            path = show_written(options.pictures, network, beginning, written, prompt if left_out else None)
            note(f"shown in {path}")
    except ValueError as error:
        raise UsageError(str(error)) from error


def learned_modalities(config: ModelConfig, run: Mapping[str, Any]) -> list[str]:
    """What a model knows: the modalities or streams that it tells apart, else those that its run names, else text."""
    apart = [modality.name for modality in config.modalities] or [stream.name for stream in config.embedder.streams]
    return apart or run.get("modalities") or ["text"]


def is_plain(modality: str) -> bool:
    """Whether the data of a modality are the file itself: text and bytes."""
    return modality in codecs.MARKS and hasattr(codecs.by_modality(modality), "FILE_IS_PAYLOAD")


def is_text(document: Document) -> bool:
    """Whether a document is one part, of text or bytes."""
    return len(document.segments) == 1 and is_plain(document.segments[0].modality)


def inputs_of(options: Options) -> list[Path]:
    """The files that are read, and so not to be written: the prompt's, and those that a manifest names."""
    path = options.prompt_file
    if path is None:
        return []
    parts = next(each_line(path, path.name, options.media, []), ("", []))[1] if is_manifest(path) else []
    return [path, *(part.source for part in parts if isinstance(part.source, Path))]


# -- the prompt --------------------------------------------------------------------------------------------------------


def read_prompt(options: Options, learned: Sequence[str], config: ModelConfig, headers: Mapping[str, str]) -> Document:
    """The prompt as a document; where there is none, what opens the modality that is wanted.

    `headers` are those that a run learned most, in hexadecimal: a model that saw one sound only never learned to write
    a header, and what it is to write has to have one.

    Raises:
        UsageError: there are two, or the model learned nothing like the file.
        DataError: the file cannot be read.
        ValueError: a modality or a size makes no sense.
    """
    usual = options.modality or ("text" if "text" in learned else learned[0])
    if options.prompt is not None and options.prompt_file is not None:
        raise UsageError("--prompt and --prompt-file are two prompts; give one")
    if options.size is not None and (options.prompt is not None or options.prompt_file is not None):
        raise UsageError("--size is for what has no prompt; a prompt has its own size")
    if options.prompt_share is not None and not 0 <= options.prompt_share <= 1:
        raise UsageError(f"--prompt-share is {options.prompt_share}; it must be from 0 to 1")
    if options.prompt_file is not None:
        return read_file(options.prompt_file, options, learned, usual)
    if options.prompt is None and config.embedder.streams:
        return Document(segments=())
    data = (options.prompt or "").encode("utf-8", "surrogateescape")
    header = bytes.fromhex(headers.get(usual, ""))
    if options.size is not None:
        header = sized_header(usual, options.size, options.media)
    return Document(segments=(Segment(modality=usual, data=np.frombuffer(data, np.uint8), header=header),))


def read_file(path: Path, options: Options, learned: Sequence[str], usual: str) -> Document:
    """A file as a prompt: as what it is, if the model learned that, else as text or bytes."""
    if options.modality is None and is_manifest(path):
        return Corpus.from_paths(path, media=options.media)[0]
    modality = options.modality or codecs.for_path(path, options.media).MODALITY
    if options.modality is None and modality not in learned:
        instead = usual if is_plain(modality) else "bytes"
        if instead not in learned or not is_plain(instead):
            raise UsageError(
                f"{path} is of modality {modality} and the model learned {', '.join(learned)}; give a file of that, "
                f"or say --modality to have it taken as something else"
            )
        modality = instead
    if not is_plain(modality):
        return codecs.read(path, modality, options.media)
    return Document(segments=(Segment(modality=modality, data=np.frombuffer(path.read_bytes(), np.uint8)),))


def sized_header(modality: str, size: str, media: MediaConfig) -> bytes:
    """The header of a picture or video of a size such as "32x24", with the channels and scan of the run's."""
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    if found is None or modality not in ("image", "video"):
        raise UsageError(f"--size is {size!r} for modality {modality}; say WIDTHxHEIGHT, and --modality image or video")
    width, height = map(int, found.groups())
    config = getattr(media, modality)
    channels = config.shape[2] if config.shape else 1 if config.channels == "grey" else 3
    if modality == "image":
        return image.pack_header(height, width, channels, config.side)
    return video.pack_header(height, width, channels, config.rate or config.raw_rate or video.USUAL_RATE, config.side)


# -- what is written ---------------------------------------------------------------------------------------------------


def continue_text(
    network: Multiscale, prompt: Segment, left_out: int, options: Options, shared: Mapping[str, Any]
) -> Document:
    """Goes on with text or bytes, as they come; returns the prompt with what was written."""
    if options.seconds is not None:
        raise UsageError(f"--seconds is for sound and video, and the prompt is {prompt.modality}; say --max-bytes")
    steps = stream(
        network,
        [Document(segments=(prompt,))],
        max_bytes=options.max_bytes if options.max_bytes is not None else left_out or USUAL_BYTES,
        stop=[end.encode() for end in options.stop],
        **shared,
    )
    head, written = prompt.data.tobytes() if options.echo else b"", bytearray()
    if options.out is None:
        sys.stdout.buffer.write(head)
        sys.stdout.buffer.flush()
    try:
        for step in steps:
            values = bytes(value for _, value in step)
            written += values
            if options.out is None:
                sys.stdout.buffer.write(values)
                sys.stdout.buffer.flush()
    except KeyboardInterrupt as error:
        if options.out is None or not written:
            raise
        write_output(options.out, head + written)
        raise KeyboardInterrupt(f"stopped; {options.out} has the {len(written):,} bytes written so far") from error
    if options.out is not None:
        write_output(options.out, head + written)
    elif sys.stdout.isatty() and (head + written)[-1:] != b"\n":
        print()
    data = np.concatenate([prompt.data, np.frombuffer(written, np.uint8)])
    return Document(segments=(replace(prompt, data=data),))


def continue_document(
    network: Multiscale,
    prompt: Document,
    left_out: int,
    follow: Sequence[str],
    options: Options,
    shared: Mapping[str, Any],
) -> Document:
    """Goes on with a document of any modality, and writes it to a file, or to several; returns it."""
    if options.stop:
        raise UsageError("--stop is for text by itself; leave it out")
    streams = [stream.name for stream in network.config.embedder.streams]
    names = [segment.modality for segment in prompt.segments] + list(streams or follow)
    if options.out is None and not all(map(is_plain, names)):
        raise UsageError(f"--out is needed: {', '.join(sorted(set(names)))} cannot be shown in a terminal")
    if options.out is not None and len(names) == 1 and prompt.segments[0].header:
        content_of(prompt.segments[0], options.out.suffix)  # refuses a suffix now and not after the work
    if options.out is not None and (len(names) > 1 or follow):
        for path in sorted(options.out.parent.glob(f"{glob.escape(options.out.name)}.[0-9]*")):
            check_output(path, *inputs_of(options), overwrite=options.overwrite)
    prompt = prompt if streams else with_header(network, prompt, shared)
    most, least = how_much(prompt, left_out, follow, options, network.config)
    try:
        found = generate_documents(network, prompt, max_bytes=most, min_bytes=least, modalities=follow, **shared)
    except Stopped as stop:
        (document,) = stop.documents
        count = sum(len(s.data) for s in document.segments) - sum(len(s.data) for s in prompt.segments)
        if options.out is None or count <= 0:
            raise
        paths = write_document(document, options)
        raise KeyboardInterrupt(f"stopped; {', '.join(map(str, paths))} has the {count:,} bytes so far") from stop
    document = cast(Document, found)
    paths = write_document(document, options)
    if len(paths) > 1:
        note(f"{len(paths)} parts: {', '.join(map(str, paths))}")
    return document


def write_document(document: Document, options: Options) -> list[Path]:
    """Writes a document to a file, to several, or to the terminal; what is missing of a picture or frame is black.

    Raises DataError where a header that the model wrote makes no sense.
    """
    suffix = options.out.suffix if options.out is not None and len(document.segments) == 1 else ""
    try:
        contents = [content_of(segment, suffix) for segment in document.segments]
    except ValueError as error:
        raise DataError(f"what the model wrote is no file: {error}; try another --seed, or a prompt") from error
    if options.out is None:
        sys.stdout.buffer.write(b"".join(contents))
        return []
    paths = [options.out]
    if len(contents) > 1:
        of = [segment.modality for segment in document.segments]
        suffixes = [codecs.by_modality(name).FILE_SUFFIX if name in codecs.MARKS else ".npy" for name in of]
        paths = [options.out.with_name(f"{options.out.name}.{i}{suffix}") for i, suffix in enumerate(suffixes)]
    for path, content in zip(paths, contents, strict=True):
        write_output(path, content)
    return paths


def with_header(network: Multiscale, prompt: Document, shared: Mapping[str, Any]) -> Document:
    """The prompt, whose last part gets a header of the model's own if it lacks one. Raises DataError if senseless."""
    prompt = cast(Document, generate_documents(network, prompt, max_bytes=0, modalities=(), **shared))
    try:
        size_of(prompt.segments[-1])
        unit_of(prompt.segments[-1])
    except ValueError as error:
        raise DataError(f"the model wrote no header: {error}; try another --seed, or --size or a prompt") from error
    return prompt


def how_much(
    prompt: Document, left_out: int, follow: Sequence[str], options: Options, config: ModelConfig
) -> tuple[int, int]:
    """The most and the least to write: what is asked for, else what is lacking, else as much as is usual."""
    last = prompt.segments[-1] if prompt.segments else None
    alone = last is not None and last.modality in ("audio", "video") and not config.embedder.streams
    timed = last if alone else None
    if options.seconds is not None:
        if timed is None:
            raise UsageError("--seconds is for sound and video by themselves; say --max-bytes")
        size = round(options.seconds * rate_of(timed)) * unit_of(timed)
        return size, size
    if options.max_bytes is not None:
        return options.max_bytes, 0
    if config.embedder.streams:  # what is given says where the end is, if anything is
        given = [len(part.data) for part in prompt.segments if part.modality not in predicted_streams(config)]
        return config.span(0) * max(given) if any(given) else left_out or config.context, 0
    if left_out or last is None:
        return left_out or USUAL_BYTES, 0
    if timed is not None:
        unit, rate = unit_of(timed), rate_of(timed)
        units = max(1, min(round(rate), MOST_USUAL_BYTES // unit))
        size, seconds = units * unit, float(units / rate)
        note(f"writes {seconds:.3g} s of {timed.modality}, {size:,} bytes; --seconds says otherwise")
        return size, 0 if follow else size
    lacking = (size_of(last) or 0) - len(last.data)
    return max(lacking, 0) + (USUAL_BYTES if follow or lacking <= 0 else 0), 0


def rate_of(segment: Segment) -> int | Fraction:
    """Samples or frames a second."""
    if segment.modality == "audio":
        return audio.unpack_header(segment.header)[0]
    return video.unpack_header(segment.header)[3]


def content_of(segment: Segment, suffix: str) -> bytes:
    """A part as the content of a file; tokens, which have no codec here, as a numpy array."""
    if segment.modality in codecs.MARKS:
        return codecs.by_modality(segment.modality).decode(segment, suffix)
    file = io.BytesIO()
    np.save(file, segment.data, allow_pickle=False)
    return file.getvalue()
