"""Open an archive that `byteloom compress` wrote, with the model that made it."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from byteloom.archives import ArchiveError, unpack
from byteloom.commands import UsageError, parse, write_report
from byteloom.commands.compress import check_free, read_input, shown, write_output
from byteloom.compression import decompress
from byteloom.models.store import load


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
    check_free(out, options.overwrite)
    archive = read_input(options.file)
    began = time.perf_counter()
    try:
        header, _ = unpack(archive)
        model = load(options.model, header.device)
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
    write_report(report, options.json)
    if options.json != "-" and str(out) != "-":
        print(f"{out}: {len(data):,} bytes from {len(archive):,}, {seconds:.1f} s")
