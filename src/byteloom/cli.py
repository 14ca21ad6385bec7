"""The `byteloom` command: finds the command's own file in commands/, runs it, and turns errors into one line.

Exit code 0 on success, 2 on bad usage, 1 on failure, 130 after Ctrl-C. `--debug` anywhere shows the traceback.
"""

import ast
import importlib
import os
import pkgutil
import sys
import traceback
from pathlib import Path

from byteloom import __version__, commands


def main(argv: list[str] | None = None) -> None:
    """Runs one command and exits."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [arg for arg in argv if arg != "--debug"]
    names = command_names()
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview(names))
        sys.exit(0)
    if argv[0] in ("-V", "--version"):
        print(f"byteloom {__version__}")
        sys.exit(0)
    if argv[0] not in names:
        fail(f"{argv[0]!r} is not a command; there are {', '.join(names)}", 2)
    try:
        importlib.import_module(f"byteloom.commands.{argv[0]}").main(argv[1:])
        sys.stdout.flush()
    except commands.UsageError as error:
        fail(str(error), 2, debug)
    except KeyboardInterrupt as error:
        fail(str(error) or "stopped", 130, debug)
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.filename is not None:  # what was cut off is a file
            fail(describe(error), 1, debug)
        sys.exit(0)  # the reader of our text has seen enough
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        fail(f'this needs the package {error.name}; install it with: pip install "byteloom[{extra}]"', 1, debug)
    except Exception as error:
        fail(describe(error), 1, debug)


EXTRA_OF = {
    "grain": "train",
    "matplotlib": "train",
    "tensorboard": "train",
    "PIL": "media",
    "soundfile": "media",
    "av": "media",
    "transformers": "hf",
    "datasets": "hf",
    "constriction": "compress",
}
"""Which extra brings a package that the core does without."""


def describe(error: Exception) -> str:
    """One line for an error of any kind."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}"
    if isinstance(error, MemoryError):
        return "out of memory; take a smaller batch, context or model"
    text = " ".join(str(error).split())
    known = type(error).__module__.startswith("byteloom.") or isinstance(error, ValueError)
    return text if known and text else f"{type(error).__name__}: {text} (--debug shows where)"


def fail(message: str, code: int, debug: bool = False) -> None:
    """Prints one line on stderr and exits; with `debug` the traceback first."""
    if debug and (error := sys.exception()):
        traceback.print_exception(error)
    sys.stderr.write(f"byteloom: {message}\n")  # at once, for several processes may speak together
    sys.exit(code)


def command_names() -> list[str]:
    """The commands: one for each file in commands/."""
    return [entry.name for entry in pkgutil.iter_modules(commands.__path__)]


def overview(names: list[str]) -> str:
    """What `byteloom --help` prints: each command with the first line of its file, which is not imported for it."""
    lines = ["usage: byteloom COMMAND ...", "", "Multiscale models over raw bytes.", ""]
    for name in names:
        source = (Path(commands.__path__[0]) / f"{name}.py").read_text("utf-8")
        summary = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
        lines.append(f"  {name:<12}{summary}")
    return "\n".join([*lines, "", "`byteloom COMMAND --help` explains a command's options."])
