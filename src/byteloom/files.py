"""Files that are there whole or not at all, and folders that one process holds at a time."""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file by new content. What a link leads to is replaced and not the link; what is there and no file,
    such as a device, is written to. Raises OSError, which names `path`."""
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        path = path.resolve()
        partial = path.with_name(f".byteloom.{secrets.token_hex(8)}.partial")
        try:
            with open(partial, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON file, whole or not at all."""
    write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())


def sync(path: Path) -> None:
    """Waits until a file or folder has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held(folder: Path, taken: Exception) -> Iterator[None]:
    """Holds a folder until the end, or that of the process, however it ends. Raises `taken` where another one holds it.

    Where the system or the disk knows no such locks, nothing is held.
    """
    try:
        import fcntl  # which Windows does not have
    except ModuleNotFoundError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise taken from None
        except OSError:  # some network file systems
            pass
        yield
    finally:
        os.close(descriptor)
