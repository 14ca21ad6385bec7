"""See it all in about four minutes: train, measure, generate, report; no download."""

import sys
from pathlib import Path

from byteloom.commands import call, check_output, write_report
from byteloom.demo import demo


def main(argv: list[str]) -> None:
    """Runs the command."""
    call(run, argv, "demo")


def run(out: Path = Path("runs/demo"), seconds: float = 180.0, seed: int = 0, json: str | None = None) -> None:
    """See it all in about four minutes: train, measure, generate, report; no download.

    A small two-stage model learns from the source of this Python's standard library, is measured on files that it has
    not seen against gzip, bzip2, xz and zstd, and continues a function.

    Args:
        out: Folder for the model and the report.
        seconds: How long to train.
        seed: Of weights, order of data, and sampling.
        json: Also write the report's numbers as JSON to this file, or to stdout with "-".
    """
    check_output(json, made=out)
    write_report(demo(out, seconds, seed, shown=sys.stderr if json == "-" else sys.stdout), json)
