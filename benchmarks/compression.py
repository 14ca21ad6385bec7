"""Archives of real files: their sizes beside what `evaluate` says and the usual compressors, and how long they take.

    python benchmarks/compression.py RUN FILE [FILE ...] [--max-bytes N] [--precision bf16] [--json FILE]

Each file, or its first `--max-bytes`, is compressed by one process and opened by another, which is told of another
number of threads; every byte must come back. "archive" is the whole archive, "evaluated" what `byteloom.evaluate`
gives for the same bytes by sliding windows, which lanes are nearest to, and by windows side by side ("basic").
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from byteloom.codecs import media_from_dict
from byteloom.commands import write_report
from byteloom.evaluation import baselines, evaluate
from byteloom.models.store import load, read_run
from byteloom.shards import open_data


def byteloom(threads: int, *arguments: object) -> dict[str, Any]:
    """What a command reports as JSON, run in a process of its own with so many threads as the default."""
    command = [sys.executable, "-m", "byteloom", *map(str, arguments), "--json", "-"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def measured(run: Path, file: Path, max_bytes: int | None, options: list[str]) -> dict[str, Any]:
    """One file there and back. Raises AssertionError where a byte differs."""
    data = file.read_bytes()[:max_bytes]
    with tempfile.TemporaryDirectory() as folder:
        plain, archive, back = (Path(folder) / name for name in (file.name, "archive.bloom", "back"))
        plain.write_bytes(data)
        there = byteloom(1, "compress", run, plain, "-o", archive, "--no-baseline", *options)
        again = byteloom(2, "decompress", run, archive, "-o", back)
        assert back.read_bytes() == data, f"{file}: another file came out"
        corpus = open_data([plain], None, media_from_dict(read_run(run).get("media") or {}))
        model = load(run)
        said = {method: evaluate(model, corpus, method=method) for method in ("sliding", "basic")}
    return {
        "file": str(file),
        "bytes": len(data),
        "archive": there["bits_per_byte"],
        "header_bytes": there["header_bytes"],
        "lanes": there["lanes"],
        # Of samples that were changed when they were read, such as mu-law, there are fewer bytes than in the file.
        "evaluated": {name: found.bits_per_byte * found.bytes / len(data) for name, found in said.items()},
        "compress_bytes_per_second": len(data) / there["seconds"],
        "decompress_bytes_per_second": len(data) / again["seconds"],
        "baselines": {name: entry["bits_per_byte"] for name, entry in baselines(data).items()},
    }


def main(
    run: tyro.conf.Positional[Path],
    files: tyro.conf.Positional[tuple[Path, ...]],
    /,
    max_bytes: int | None = None,
    precision: str = "fp32",
    compile: bool = False,
    lanes: int | None = None,
    json: str | None = None,
) -> None:
    """Compress files with a model, open the archives, compare.

    Args:
        run: Run or model folder.
        files: Files of any kind.
        max_bytes: Take only the first so many bytes of each.
        precision: fp32 or bf16.
        compile: Compile the model's steps.
        lanes: Parts that are coded side by side; default: by size.
        json: Write all numbers as JSON to this file, or to stdout with "-".
    """
    options = ["--precision", precision, *(["--compile"] if compile else [])]
    options += ["--lanes", str(lanes)] if lanes else []
    rows = [measured(run, file, max_bytes, options) for file in files]
    write_report({"run": str(run), "options": options, "files": rows}, json)
    if json == "-":
        return
    table = Table("file", "bytes", "archive", "sliding", "basic", "xz", "zstd", "lanes", "header", "B/s in", "B/s out")
    for row in rows:
        bits = (row["archive"], *row["evaluated"].values(), row["baselines"]["xz"], row["baselines"]["zstd"])
        speeds = (row["compress_bytes_per_second"], row["decompress_bytes_per_second"])
        table.add_row(
            Path(row["file"]).name,
            f"{row['bytes']:,}",
            *(f"{value:.4f}" for value in bits),
            str(row["lanes"]),
            str(row["header_bytes"]),
            *(f"{value:,.0f}" for value in speeds),
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    tyro.cli(main)
