"""Open an archive that `byteloom compress` wrote, with the model that made it."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from byteloom.archives import ArchiveError, unpack
from byteloom.commands import UsageError, check_output, parse, write_output, write_report
from byteloom.commands.compress import NO_COMPILER, read_input, shown
from byteloom.compression import decompress
from byteloom.models.store import load
from byteloom.train.acceleration import can_compile


@dataclass(frozen=True, kw_only=True)
class Options:
    """Open an archive that `byteloom compress` wrote, with the model that made it.

    The archive says how it was made: precision, threads, and where the model ran. What comes out is the file that went
    in, byte for byte, or nothing.
    """

    model: tyro.conf.Positional[Path]
    """Run or model folder."""
    file: tyro.conf.Positional[Path]
    """Archive to open; "-" for stdin."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """File to write; "-" for stdout. Default: the archive's name without .bloom."""
    overwrite: bool = False
    """Replace the file if it is there."""
    json: str | None = None
    """Write all numbers as JSON to this file, or to stdout with "-"."""


def main(argv: list[str]) -> None:
    """Runs the command."""
    options = parse(Options, argv, "decompress")
    if options.out is None and options.file.suffix != ".bloom":
        raise UsageError(f"{options.file} does not end in .bloom; say where the file goes, as in: -o FILE")
    out = options.out or options.file.with_suffix("")
    if str(out) == options.json == "-":
        raise UsageError("the file and --json cannot both go to stdout; give one of them a file")
    check_output(out, options.file, overwrite=options.overwrite)
    check_output(options.json, options.file, out)
    archive = read_input(options.file)
    began = time.perf_counter()
    try:
        header, _ = unpack(archive)
        model = load(options.model, "cpu" if header.stored else header.device)
        if header.compiled and not header.stored and not can_compile(model.starts[0].device):
            raise ArchiveError(f"it was made with --compile: {NO_COMPILER}; open it where it does")
        with shown("decompressing", header.size) as progress:
            data = decompress(model, archive, progress=progress)
    except ArchiveError as error:
        raise ArchiveError(f"{options.file}: {error}") from error
    seconds = time.perf_counter() - began
    write_output(out, data)
    report = {
        "archive": str(options.file),
        "file": str(out),
        "model": header.model.hex(),
        "archive_bytes": len(archive),
        "bytes": len(data),
        "seconds": seconds,
    }
    if options.json != "-" and str(out) != "-":
        print(f"{out}: {len(data):,} bytes from {len(archive):,}, {seconds:.1f} s")
    write_report(report, options.json)
