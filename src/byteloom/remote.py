"""Data elsewhere: an address with "://" in it, such as s3://bucket/folder, through fsspec; it is only ever read.

In: an address. Out: its files by name and size, and each as a file on this disk while it is wanted, one at a time, in a
folder that only this user may enter. Cost: one file on the disk; fsspec is imported when an address is used.
"""

import atexit
import contextlib
import functools
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from byteloom.documents import DataError

CHUNK = 8 << 20


class RemoteFile(NamedTuple):
    """A file behind an address."""

    address: str
    """The address that was given."""
    path: str
    """The file, as its file system names it."""
    name: str
    """Its path in the folder behind the address; empty where the address is that of the file."""

    def __str__(self) -> str:
        return f"{self.address.rstrip('/')}/{self.name}" if self.name else self.address


def is_address(path: object) -> bool:
    """Whether a path is an address."""
    return isinstance(path, str) and "://" in path


def each_remote_file(address: str) -> Iterator[tuple[str, RemoteFile, int]]:
    """Path in the folder, file, and size in bytes of every file behind an address, in the order of the paths.

    Hidden files and folders are passed over. A file system that does not know a size says 1.

    Raises:
        DataError: there is nothing, or it cannot be listed.
    """
    with _reading(address):
        system, root = _open_system(address)
        found: dict[str, Any] = system.find(root, detail=True)
        if not found and not system.exists(root):
            raise DataError(f"{address}: cannot be found; check the address")
    files = []
    for path, about in found.items():
        name = path.removeprefix(root).strip("/")
        if about.get("type") == "file" and not any(part.startswith(".") for part in name.split("/")):
            size = about.get("size")
            file = RemoteFile(address, path, name)
            files.append((name or PurePosixPath(path).name, file, 1 if size is None else int(size)))
    yield from sorted(files, key=lambda file: file[0].encode("utf-8", "surrogateescape"))


@contextlib.contextmanager
def fetched(file: RemoteFile) -> Iterator[Path]:
    """A copy of a remote file, with its suffix, gone at the end; what was mapped of it stays readable.

    Errors that are raised inside name the remote file in place of the copy.

    Raises:
        DataError: the file cannot be read.
        OSError: the copy cannot be written.
    """
    suffix = PurePosixPath(file.path).suffix
    with tempfile.TemporaryDirectory(prefix="byteloom-") as folder:  # which nobody else may enter
        path = Path(folder, "file" + (suffix if re.fullmatch(r"\.\w{1,16}", suffix) else ""))
        _copy(file, path)
        try:
            yield path
        except DataError as error:
            raise DataError(str(error).replace(str(path), str(file))) from error


def exists(address: str, name: str) -> bool:
    """Whether a folder has a file of this name. Raises DataError where that cannot be found out."""
    with _reading(address):
        system, root = _open_system(address)
        return bool(system.exists(f"{root.rstrip('/')}/{name}"))


@functools.cache
def fetch_folder(address: str) -> Path:
    """A copy of the files that stand directly in a folder, until the process ends.

    Raises:
        DataError: they cannot be read.
        OSError: the copies cannot be written.
    """
    folder = Path(tempfile.mkdtemp(prefix="byteloom-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, file, _ in each_remote_file(address):
        if re.fullmatch(r"[\w-][\w.-]*", name):
            _copy(file, folder / name)
    return folder


def _copy(file: RemoteFile, path: Path) -> None:
    with open(path, "xb") as copy:
        with _reading(str(file)):
            system, _ = _open_system(file.address)
            source = system.open(file.path, "rb")
        with source:
            while True:
                with _reading(str(file)):
                    chunk = source.read(CHUNK)
                if not chunk:
                    break
                copy.write(chunk)


def _open_system(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    return url_to_fs(address)


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Whatever a file system raises as one error that names the address."""
    try:
        yield
    except (DataError, KeyboardInterrupt):
        raise
    except Exception as error:  # each file system has errors of its own
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{name}: cannot be read ({reason}); check the address, and that you may read it") from error
