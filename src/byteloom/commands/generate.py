"""Continue a prompt, byte by byte, to the terminal or a file."""

import sys
from pathlib import Path

import tyro

from byteloom.commands import UsageError, call
from byteloom.generation import stream
from byteloom.models.store import load, read_run, write_atomically
from byteloom.quantization import Weights, quantize
from byteloom.sampling import SamplingConfig
from byteloom.train.acceleration import can_compile


def main(argv: list[str]) -> None:
    """Runs the command."""
    call(run, argv, "generate")


def run(
    model: tyro.conf.Positional[Path],
    /,
    prompt: str | None = None,
    prompt_file: Path | None = None,
    max_bytes: int = 512,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop: tuple[str, ...] = (),
    valid_utf8: bool = False,
    echo: bool = True,
    modality: str | None = None,
    context: int | None = None,
    device: str = "auto",
    weights: Weights = "fp32",
    compile: bool = False,
    out: Path | None = None,
) -> None:
    """Continue a prompt, byte by byte, to the terminal or a file.

    Args:
        model: Run or model folder.
        prompt: Text to continue.
        prompt_file: File whose content to continue.
        max_bytes: Write at most so many bytes.
        temperature: Divide logits by it: below 1 safer, above 1 wilder, 0 always the likeliest byte.
        top_k: Draw among the so many likeliest bytes.
        top_p: Draw among the likeliest bytes that together have this probability.
        min_p: Draw among bytes at least this share as likely as the likeliest.
        repetition_penalty: Divide the logits of bytes that have occurred by it (1: off).
        seed: The same seed gives the same bytes.
        stop: End after any of these texts was written.
        valid_utf8: Write only whole UTF-8 characters.
        echo: Write the prompt before its continuation.
        modality: What the prompt is marked as; default: what the model learned, text first.
        context: Ids that the model sees at once; default: as trained.
        device: Where to run: "cpu", "cuda", or "auto" for CUDA where there is one.
        weights: Type of the weights: bf16 and int8 are smaller and faster, and cost a little (docs/performance.md).
        compile: Compile the model first: half a minute, then two to four times as fast on a CPU.
        out: Write to this file instead of stdout.
    """
    if prompt is not None and prompt_file is not None:
        raise UsageError("--prompt and --prompt-file are two prompts; give one")
    text = prompt_file.read_bytes() if prompt_file else (prompt or "").encode("utf-8", "surrogateescape")
    network = quantize(load(model, device), weights)
    if compile and not can_compile(network.starts[0].device):
        raise UsageError("--compile needs g++ and Python's headers, and torch.compile does not work here; leave it out")
    learned = read_run(model).get("modalities") or ["text"]
    modality = modality or ("text" if "text" in learned else learned[0])
    try:
        sampling = SamplingConfig(
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
        )
        steps = stream(
            network,
            [text],
            max_bytes=max_bytes,
            sampling=sampling,
            seed=seed,
            stop=[end.encode() for end in stop],
            valid_utf8=valid_utf8,
            modality=modality,
            max_context=context,
            compiled=compile,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    head = text if echo else b""
    if out is not None:
        write_atomically(out, head + bytes(value for step in steps for _, value in step))
        return
    sys.stdout.buffer.write(head)
    sys.stdout.buffer.flush()
    last = head[-1:]
    for step in steps:
        for _, value in step:
            last = bytes([value])
            sys.stdout.buffer.write(last)
        sys.stdout.buffer.flush()
    if sys.stdout.isatty() and last != b"\n":
        print()
