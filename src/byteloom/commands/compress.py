"""Compress a file of any kind with a model, to be opened with the same model."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from byteloom.archives import Precision, segments_of, unpack
from byteloom.codecs import media_from_dict
from byteloom.commands import UsageError, check_output, parse, write_output, write_report
from byteloom.compression import check_options, compress
from byteloom.documents import DataError
from byteloom.evaluation import baselines
from byteloom.models.store import load, read_run
from byteloom.train.acceleration import can_compile

NO_COMPILER = "--compile needs g++ and Python's headers, and torch.compile does not work here"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compress a file of any kind with a model, to be opened with the same model.

    What comes out of `byteloom decompress` is the file byte for byte, or nothing.
    """

    model: tyro.conf.Positional[Path]
    """Run or model folder."""
    file: tyro.conf.Positional[Path]
    """File to compress; "-" for stdin."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Archive to write; "-" for stdout. Default: FILE.bloom."""
    overwrite: bool = False
    """Replace the archive if it is there."""
    lanes: int | None = None
    """Parts of the file that are coded side by side; default: up to 64, by the file's size. More are faster, fewer are
    smaller."""
    precision: Precision = "fp32"
    """bf16 is faster on processors that multiply it, and a little larger."""
    compile: bool = False
    """Compile the model first: half a minute, here and when it is opened, then twice as fast."""
    threads: int = 1
    """Threads of each operation; the archive is opened with as many. More than one helps large models on idle cores."""
    device: str = "cpu"
    """Where to run: "cpu", "cuda", or "auto" for CUDA where there is one; the archive is opened on the same kind."""
    baseline: bool = True
    """Also compress the file with gzip, bzip2, xz and zstd, to compare sizes."""
    json: str | None = None
    """Write all numbers as JSON to this file, or to stdout with "-"."""


def main(argv: list[str]) -> None:
    """Runs the command."""
    options = parse(Options, argv, "compress")
    out = options.out or Path(f"{options.file}.bloom")
    if str(options.file) == "-" and options.out is None:
        raise UsageError("stdin has no name; say where the archive goes, as in: -o FILE.bloom")
    if str(out) == options.json == "-":
        raise UsageError("the archive and --json cannot both go to stdout; give one of them a file")
    try:
        check_options(options.lanes, options.threads)
    except ValueError as error:
        raise UsageError(str(error)) from error
    data = read_input(options.file)
    check_output(out, options.file, overwrite=options.overwrite)
    check_output(options.json, options.file, out)
    model = load(options.model, options.device)
    if options.compile and not can_compile(model.starts[0].device):
        raise UsageError(f"{NO_COMPILER}; leave it out")
    media = media_from_dict(read_run(options.model).get("media") or {})
    segments = segments_of(options.file, data, media) if str(options.file) != "-" else ()
    began = time.perf_counter()
    with shown("compressing", len(data)) as progress:
        archive = compress(
            model,
            data,
            segments=segments,
            lanes=options.lanes,
            precision=options.precision,
            compiled=options.compile,
            threads=options.threads,
            progress=progress,
        )
    seconds = time.perf_counter() - began
    write_output(out, archive)
    header, content = unpack(archive)
    report = {
        "file": str(options.file),
        "archive": str(out),
        "model": header.model.hex(),
        "bytes": len(data),
        "archive_bytes": len(archive),
        "header_bytes": len(archive) - len(content),
        "bits_per_byte": 8 * len(archive) / len(data) if data else None,
        "seconds": seconds,
        "lanes": header.lanes,
        "stored": header.stored,
        "baselines": baselines(data) if options.baseline and data else {},
    }
    if options.json != "-" and str(out) != "-":
        title = f"{escape(str(options.file))}: {len(data):,} bytes, {seconds:.1f} s"
        table = Table("", "bytes", "bits per byte", title=title)
        table.columns[1].justify = table.columns[2].justify = "right"
        ours = f"{report['bits_per_byte']:.4f}" if data else ""
        table.add_row(f"[bold]{escape(str(out))}", f"[bold]{len(archive):,}", f"[bold]{ours}")
        for name, entry in report["baselines"].items():
            table.add_row(name, f"{entry['bytes']:,}", f"{entry['bits_per_byte']:.4f}")
        Console(highlight=False).print(table)
    write_report(report, options.json)


def read_input(path: Path) -> bytes:
    """The content of a file, or of stdin where it is "-". Raises OSError, or DataError for a folder."""
    if str(path) == "-":
        return sys.stdin.buffer.read()
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give a file, such as an archive that tar made of it")
    return path.read_bytes()


@contextlib.contextmanager
def shown(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Inside, a bar in the terminal; what it gives is told how many more of `total` bytes are done."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda count: None
        return
    columns = (DownloadColumn(), TransferSpeedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(TextColumn(f"[bold]{what}"), BarColumn(), *columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)
