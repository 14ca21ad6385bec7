"""The commands, one file each: `main(argv)` parses its own options, imports its own part, and runs.

A new command is a new file here. The first line of its docstring is what `byteloom --help` says about it.
"""

import contextlib
import functools
import importlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from byteloom.documents import DataError
from byteloom.files import write_atomically

T = TypeVar("T")


class UsageError(Exception):
    """The command line makes no sense; exit code 2."""


def call(function: Callable[..., T], argv: Sequence[str], command: str) -> T:
    """Calls a function with what the command line says about its arguments. Raises UsageError as `parse`."""

    @functools.wraps(function)
    def later(*args: Any, **kwargs: Any) -> Any:
        return functools.partial(function, *args, **kwargs)

    return parse(later, argv, command)()


def parse(kind: Callable[..., T], argv: Sequence[str], command: str, default: T | None = None) -> T:
    """What `kind`, such as a dataclass, makes of the command line.

    Raises:
        UsageError: the command line was refused; tyro's boxed message as one line.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                kind,
                args=list(argv),
                prog=f"byteloom {command}",
                default=tyro.MISSING_NONPROP if default is None else default,
            )
    except ValueError as error:  # a config refused what it was given
        raise UsageError(str(error)) from error
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(one_line(errors.getvalue()) + f" (see byteloom {command} --help)") from None


def one_line(text: str) -> str:
    """A boxed message without its box, colours, rules and footer."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [re.sub(r"[\u2500-\u257f]+", " ", line).strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("For full helptext")]
    if len(lines) > 1 and lines[1].startswith(lines[0]):  # the box's title, said again below it
        del lines[0]
    return " ".join(" ".join(lines).split())


def check_output(path: Path | str | None, *inputs: Path, overwrite: bool = True, made: Path | None = None) -> None:
    """Refuses a file that could not be written after the work, before it. None and "-", which is stdout, may be.

    `inputs` are what the command reads, or writes besides; `made` is a folder that it makes before it writes the file.
    Raises UsageError; DataError where there is a file and `overwrite` is False.
    """
    if path is None or str(path) == "-":
        return
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file")
    if not path.parent.is_dir() and path.parent != made:
        raise UsageError(f"{path}: there is no folder {path.parent}; make it, or name a file elsewhere")
    if any(path.resolve() == place.resolve() for place in inputs):
        raise UsageError(f"{path}: is what this command reads, or writes already; name another file")
    if path.is_file() and not overwrite:
        raise DataError(f"{path}: is there already; name another file, or add --overwrite")
    place = path if path.exists() and not path.is_file() else path.parent
    if place.exists() and not os.access(place, os.W_OK):
        raise UsageError(f"{path}: {place} may not be written; name a file elsewhere")


def write_output(path: Path | str, content: bytes) -> None:
    """Writes a file, whole or not at all, or all of it to stdout where the path is "-". Raises OSError.

    That a reader of stdout stops early is an error here, for what it has is cut off. The error has a name, by which
    `cli` tells it from that of text of which the reader has seen enough.
    """
    if str(path) != "-":
        write_atomically(Path(path), content)
        return
    try:
        with open(sys.stdout.fileno(), "wb", closefd=False) as file:  # sys.stdout may be unbuffered: it cuts in silence
            file.write(content)
    except BrokenPipeError as error:
        raise BrokenPipeError(error.errno, "the reader stopped before all was written", "stdout") from error


def write_report(values: Mapping[str, Any], target: str | None) -> None:
    """Writes numbers as JSON to a file, or to stdout where `target` is "-"."""
    if target == "-":
        print(json.dumps(values, indent=1))
    elif target is not None:
        write_output(target, (json.dumps(values, indent=1) + "\n").encode())


def note(line: str) -> None:
    """Says something on stderr, so that stdout stays clean for results."""
    print(line, file=sys.stderr)


def prepare_pictures(folder: Path) -> None:
    """Makes the folder, and imports what will draw: what is missing is said before the work and not after it."""
    importlib.import_module("byteloom.showcase")
    folder.mkdir(parents=True, exist_ok=True)
