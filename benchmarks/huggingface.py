"""Bytes written per second by `generate` of transformers, through our cache, beside byteloom's own loop.

    python benchmarks/huggingface.py [--threads 2] [--rounds 5] [--json FILE]

After a prompt of 256 bytes, 256 are written: greedy and sampled, one row and sixteen of different lengths, as it is and
with compiled steps (`cache_implementation="static"`, `byteloom.generate(compiled=True)`). Both are run in turn, so that
what else the machine does falls on both; the median ratio is reported. The model is text-small, untrained.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from json import dumps
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from byteloom import Multiscale, generate, recipes
from byteloom.hf import ByteloomForCausalLM, ByteloomTokenizer
from byteloom.sampling import SamplingConfig


def main(threads: int = 2, rounds: int = 5, json: Path | None = None):
    torch.set_num_threads(threads)
    config = replace(recipes.by_name("text-small").model, vocab_size=256)  # without EOS all rows go to the end
    native = Multiscale(config).eval()
    model = ByteloomForCausalLM.from_native(native)
    model.generation_config.suppress_tokens = [0]  # what models with ids of structure do at each byte, done here too
    tokenizer = ByteloomTokenizer.for_model(native.config)
    random = np.random.default_rng(0)
    prompts = [bytes(random.integers(32, 127, 256 - 7 * i).astype(np.uint8)) for i in range(16)]
    rows = []
    for count, sampled, compiled in [(1, False, False), (1, True, False), (16, True, False), (1, True, True)]:
        written = 256 if count == 1 else 64
        ours = [prompts[0]] if count == 1 else prompts
        inputs = tokenizer(ours, return_tensors="pt", padding=True)
        sampling = SamplingConfig(temperature=1.0 if sampled else 0.0)
        how = {"do_sample": sampled, "max_new_tokens": written}
        if compiled:
            how["cache_implementation"] = "static"

        def own(ours=ours, written=written, sampling=sampling, compiled=compiled) -> int:
            return sum(map(len, generate(native, ours, max_bytes=written, sampling=sampling, compiled=compiled)))

        def theirs(inputs=inputs, how=how) -> int:
            return model.generate(**inputs, **how).numel() - inputs["input_ids"].numel()

        own(), theirs()  # compiled, and warm
        pairs = [(rate(own), rate(theirs)) for _ in range(rounds)]
        ratio = statistics.median(b / a for a, b in pairs)
        rows.append(
            {
                "rows": count,
                "sampled": sampled,
                "compiled": compiled,
                "byteloom": max(a for a, _ in pairs),
                "transformers": max(b for _, b in pairs),
                "ratio": ratio,
            }
        )
    table = Table("rows", "sampled", "compiled", "byteloom B/s", "transformers B/s", "median ratio")
    for row in rows:
        table.add_row(*(f"{value:,.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    if json:
        json.write_text(dumps({"threads": threads, "rounds": rounds, "rows": rows}, indent=1) + "\n")


def rate(call: Callable[[], int]) -> float:
    """Bytes per second of a call that returns how many it wrote."""
    began = time.perf_counter()
    count = call()
    return count / (time.perf_counter() - began)


if __name__ == "__main__":
    tyro.cli(main)
