"""Bytes written per second beside other libraries, by context, in ragged batches and after a million bytes.

    python benchmarks/generation.py [--threads 2] [--rounds 3] [--shjwudp FOLDER] [--json FILE]

Four tables. The first: a prompt of 256 random bytes and 256 sampled ones, of everyone in turn. Llama runs with its
cache, in fp32, bf16 and int8 (its matrices replaced by ours); the others have no cache and write 16 bytes only. The
second: milliseconds per byte at a context of 256, 1024 and 2032. The third: 32 rows whose prompts have 64 to 256
bytes. The fourth: ours in three stages after prompts of 8,192 and of 1,048,576 bytes. Ours is compiled.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from json import dumps
from pathlib import Path
from typing import Any, get_args

import numpy as np
import peers
import torch
import tyro
from memory import million
from rich.console import Console
from rich.table import Table
from torch import nn

from byteloom import Multiscale, generate
from byteloom.benchmark import Measured
from byteloom.quantization import NarrowLinear, Weights, quantize
from byteloom.sampling import SamplingConfig

WRITTEN, PROMPT, FEW = 256, 256, 16


def prompt(length: int, seed: int = 0) -> bytes:
    """Random printable bytes."""
    return bytes(np.random.default_rng(seed).integers(32, 127, length).astype(np.uint8))


def timed(call: Callable[[], int]) -> float:
    """Bytes per second of a call that returns how many it wrote."""
    began = time.perf_counter()
    count = call()
    return count / (time.perf_counter() - began)


def writing(model: Multiscale, prompts: list[bytes], count: int) -> Callable[[], int]:
    """A call that writes `count` bytes after each prompt with ours, compiled."""
    return lambda: sum(map(len, generate(model, prompts, max_bytes=count, seed=1, compiled=True)))


def llama_writing(peer: peers.Peer, weights: str, length: int, count: int) -> Callable[[], int]:
    """The same with Llama's own `generate` and cache."""
    model = peer.model.eval()
    if weights == "bf16":
        model = model.to(torch.bfloat16)
    if weights == "int8":
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    setattr(module, name, NarrowLinear(child, "int8"))
    ids = torch.from_numpy(np.frombuffer(prompt(length), np.uint8).astype(np.int64))[None]

    def call() -> int:
        with torch.inference_mode():
            found = model.generate(  # type: ignore[operator]
                ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=count,
                min_new_tokens=count, pad_token_id=0,
            )  # fmt: skip
        return found.shape[1] - ids.shape[1]

    return call


def uncached_writing(peer: peers.Peer, bf16: bool, length: int, count: int) -> Callable[[], int]:
    """The same with a model that runs over everything for every byte, which is what these libraries do."""
    peer.model.eval()
    start = torch.from_numpy(np.frombuffer(prompt(length), np.uint8).astype(np.int64))[None]

    def call() -> int:
        ids = start
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            for _ in range(count):
                drawn = peer.next_logits(ids).float().softmax(-1).multinomial(1)  # type: ignore[misc]
                ids = torch.cat((ids, drawn.clamp(32, 126)), dim=1)
        return count

    return call


def in_turn(contestants: dict[tuple[str, str], Callable[[], int]], rounds: int) -> dict[tuple[str, str], Measured]:
    """Bytes per second of each, everyone once a round, after one call to warm up."""
    for call in contestants.values():
        call()
    found: dict[tuple[str, str], list[float]] = {key: [] for key in contestants}
    for _ in range(rounds):
        for key, call in contestants.items():
            found[key].append(timed(call))
    return {key: Measured.of(values) for key, values in found.items()}


def show(title: str, found: dict[tuple[str, str], Measured], own: float) -> list[dict[str, Any]]:
    """Prints a table and returns its rows."""
    table = Table(title=title)
    for column in ("", "", "bytes/s", "smallest", "largest", "ms/byte", "ours is"):
        table.add_column(column, justify="right")
    for (name, kind), speed in found.items():
        numbers = [f"{value:,.1f}" for value in (speed.median, speed.smallest, speed.largest, 1e3 / speed.median)]
        table.add_row(name, kind, *numbers, f"{own / speed.median:,.1f}x")
    Console(width=120).print(table)
    return [{"name": name, "kind": kind, **asdict(speed)} for (name, kind), speed in found.items()]


def ours(weights: Weights) -> Multiscale:
    """Our model, with all matrices filled, in these weights."""
    stages = tuple(replace(stage, zero_init=False) for stage in peers.OURS.stages)
    torch.manual_seed(0)
    # Bytes alone: untrained weights would draw the end of a document every 320 bytes.
    return quantize(Multiscale(replace(peers.OURS, stages=stages, vocab_size=256)), weights)


def main(
    threads: int = 2, rounds: int = 3, shjwudp: Path | None = None, long: bool = True, json: str | None = None
) -> None:
    """Bytes written per second beside other libraries.

    Args:
        threads: Threads, the same for all.
        rounds: Turns of everyone.
        shjwudp: A checkout of shjwudp/megabyte.
        long: Also after a million bytes.
        json: Write the numbers to this file.
    """
    torch.set_num_threads(threads)
    models = {weights: ours(weights) for weights in get_args(Weights)}
    report: dict[str, Any] = {"threads": threads}
    contestants: dict[tuple[str, str], Callable[[], int]] = {}
    for peer in peers.build(shjwudp):
        if peer.next_logits is None:
            for weights in models:
                contestants[peer.name, weights] = llama_writing(peers.llama(), weights, PROMPT, WRITTEN)
        else:
            for kind in ("fp32", "bf16"):
                contestants[peer.name, kind] = uncached_writing(peer, kind == "bf16", PROMPT + WRITTEN - FEW, FEW)
    for weights, model in models.items():
        contestants["byteloom", weights] = writing(model, [prompt(PROMPT)], WRITTEN)
    found = in_turn(contestants, rounds)
    own = max(speed.median for (name, _), speed in found.items() if name == "byteloom")
    report["256 + 256"] = show(f"256 + 256 bytes, {threads} threads", found, own)

    report["by context"] = {}
    for context in (256, 1024, 2032):
        contestants = {}
        for peer in peers.build(shjwudp):
            if peer.next_logits is not None:
                for kind in ("fp32", "bf16"):
                    contestants[peer.name, kind] = uncached_writing(peer, kind == "bf16", context - FEW, FEW)
        for weights, model in models.items():
            contestants["byteloom", weights] = stepping(model, context)
        found = in_turn(contestants, rounds)
        own = max(speed.median for (name, _), speed in found.items() if name == "byteloom")
        report["by context"][context] = show(f"at a context of {context} bytes", found, own)
    flat = {
        kind: next(r["median"] for r in report["by context"][256] if r["kind"] == kind and r["name"] == "byteloom")
        / next(r["median"] for r in report["by context"][2032] if r["kind"] == kind and r["name"] == "byteloom")
        for kind in models
    }
    print("ours, ms per byte at 2032 over that at 256:", {kind: f"{value:.2f}x" for kind, value in flat.items()})

    lengths = np.random.default_rng(0).integers(64, 257, 32)
    prompts = [prompt(int(length), i) for i, length in enumerate(lengths)]
    contestants = {}
    for weights, model in models.items():
        contestants["1 row", weights] = writing(model, prompts[:1], WRITTEN)
        contestants["32 ragged rows", weights] = writing(model, prompts, WRITTEN)
    found = in_turn(contestants, rounds)
    own = max(speed.median for speed in found.values())
    report["ragged"] = show("prompts of 64 to 256 bytes, 256 written each", found, own)
    for weights in models:
        factor = found["32 ragged rows", weights].median / found["1 row", weights].median
        print(f"{weights}: 32 rows write {factor:.1f} times as fast as one")

    if long:
        config = million()
        torch.manual_seed(0)
        network = Multiscale(config)
        contestants = {}
        for length in (8192, 1 << 20):
            contestants[f"after {length:,} bytes", "fp32"] = stepping(network, length)
        found = in_turn(contestants, rounds)
        report["long"] = show("three stages", found, max(speed.median for speed in found.values()))
        report["sampled"] = asdict(SamplingConfig())
    if json:
        Path(json).write_text(dumps(report, indent=1))


def stepping(model: Multiscale, context: int, times: int = 16) -> Callable[[], int]:
    """A call that writes FEW bytes from where a prompt of `context` bytes ended, so many times, the prompt not counted.

    Each time goes on from the same place: caches are overwritten with what they held.
    """
    ids = torch.from_numpy(np.frombuffer(prompt(context), np.uint8).astype(np.int64))[None]
    with torch.inference_mode():
        state = model.start(1, 1 << (context + FEW - 1).bit_length(), compiled=True)
        model.prefill(ids, [context], state)

    def call() -> int:
        chosen = torch.tensor([65])
        with torch.inference_mode():
            for _ in range(times):
                state.lengths[:] = context
                for _ in range(FEW):
                    model.step(chosen, state)
        return times * FEW

    return call


if __name__ == "__main__":
    tyro.cli(main)
