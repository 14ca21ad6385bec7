"""What data cost before a model sees them: memory by the million documents, and the time to prepare files.

    python benchmarks/corpora.py [--documents N] [--pictures N] [--json-file FILE]

First, prepared data of `--documents` documents of 100 bytes are opened, split and laid end to end in a process of its
own, and batches are read: time and memory after each. Then a folder of `--pictures`, JPEG of 1024 x 1024, is prepared
with one process, two, and as many as there are cores; every file that comes out must be the same.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

from byteloom.documents import Document, Segment
from byteloom.preparation import prepare
from byteloom.shards import write

STEPS = """
import json, sys, time
from byteloom.corpus import split
from byteloom.loader import Loader, LoaderConfig
from byteloom.packing import PackedStream
from byteloom.shards import open_data

def note(step):
    memory = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in open("/proc/self/status") if "kB" in line}
    seconds = time.perf_counter() - begun
    rows.append({"step": step, "seconds": seconds, "MiB": memory["RssAnon"], "peak": memory["VmHWM"]})

rows, begun = [], time.perf_counter()
note("imports")
corpus = open_data(sys.argv[1])
note("open")
learned, held_out = split(corpus)
del corpus
note("split")
stream = PackedStream(learned, 8)
note("lay end to end")
loader = Loader(LoaderConfig(context=1024, batch_size=8), [(stream, 1.0)])
for _ in range(50):
    next(loader)
note("50 batches")
print(json.dumps(rows))
"""


def documents(number: int) -> Iterator[Document]:
    """Documents of 100 bytes with names of 19."""
    data = np.arange(100, dtype=np.uint8)
    for i in range(number):
        yield Document(segments=(Segment(modality="bytes", data=data),), name=f"folder/{i:08d}.bin")


def measure_memory(number: int, folder: Path, console: Console) -> list[dict[str, Any]]:
    """Seconds of each step, and memory after it."""
    write(documents(number), folder)
    done = subprocess.run([sys.executable, "-c", STEPS, str(folder)], check=True, capture_output=True, text=True)
    rows = json.loads(done.stdout)
    table = Table("step", "seconds", "memory, MiB", "bytes a document", "peak, MiB", title=f"{number:,} documents")
    for before, row in pairwise([{"seconds": 0.0}, *rows]):
        each = (row["MiB"] - rows[0]["MiB"]) * 2**20 / number
        seconds = row["seconds"] - before["seconds"]
        table.add_row(row["step"], f"{seconds:.2f}", f"{row['MiB']:,.0f}", f"{each:.0f}", f"{row['peak']:,.0f}")
    console.print(table)
    return rows


def measure_preparing(pictures: int, folder: Path, console: Console) -> list[dict[str, Any]]:
    """Seconds to prepare pictures, by processes."""
    rng = np.random.default_rng(0)
    source = folder / "files"
    source.mkdir()
    for i in range(pictures):
        small = Image.fromarray(rng.integers(0, 256, (128, 128, 3), dtype=np.uint8))
        small.resize((1024, 1024), Image.Resampling.BICUBIC).save(source / f"{i:06d}.jpg")
    rows, first = [], None
    table = Table("processes", "seconds", "MiB/s", title=f"prepare {pictures:,} pictures, {3 * pictures:,} MiB")
    for workers in sorted({1, 2, os.cpu_count() or 1}):
        begun = time.perf_counter()
        prepare(source, folder / f"by{workers}", workers=workers, shard_bytes=8 << 20)
        seconds = time.perf_counter() - begun
        made = {path.name: path.read_bytes() for path in (folder / f"by{workers}").iterdir()}
        assert first in (None, made), "other files came out"
        first = made
        rows.append({"workers": workers, "seconds": seconds})
        table.add_row(str(workers), f"{seconds:.2f}", f"{3 * pictures / seconds:,.0f}")
    console.print(table)
    return rows


def main(documents: int = 1_000_000, pictures: int = 300, json_file: Path | None = None) -> None:
    """Measures both and prints two tables.

    Args:
        documents: How many documents are opened.
        pictures: How many pictures are prepared.
        json_file: Write the numbers here, too.
    """
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        memory = measure_memory(documents, Path(folder, "data"), console)
        preparing = measure_preparing(pictures, Path(folder), console)
    if json_file:
        json_file.write_text(json.dumps({"documents": documents, "memory": memory, "preparing": preparing}, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
