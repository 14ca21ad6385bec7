"""The files of one shard of prepared data: written, compared with their checksums, and opened.

In: documents; out: files, and what the manifest of `byteloom.shards` says about them. And back, as a `Corpus`.
"""

import hashlib
import json
import os
import zlib
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from byteloom.corpus import Corpus, header_rows
from byteloom.documents import MAX_HEADER_BYTES, DataError, Document, check_payload
from byteloom.files import sync
from byteloom.names import ENCODING, Names, NamesInFile
from byteloom.sources import CHECKED_BYTES, PayloadFile

CHUNK = 8 << 20
DTYPES = ("|u1", "<u2", "<u4")
ARRAYS = {"lengths": np.dtype(np.int64), "marks": np.dtype(np.uint16), "counts": np.dtype(np.int64)}


class ShardWriter:
    """One shard being written: payload goes to the disk at once, the small arrays at the end."""

    def __init__(self, folder: Path, stem: str, known_marks: Mapping[str, int]):
        self.known_marks = known_marks
        self.stem = folder / stem
        self.ids = open(f"{self.stem}.ids", "xb")  # noqa: SIM115 -- closed by close()
        self.dtype = np.dtype(DTYPES[0])
        self.lengths, self.marks, self.counts = array("q"), array("H"), array("q")
        self.headers: list[bytes] = []
        self.names, self.ends = bytearray(), array("q")

    def add(self, document: Document) -> None:
        """Writes a document's payload."""
        for segment in document.segments:
            check_payload(segment)
            if segment.modality not in self.known_marks:
                known = ", ".join(sorted(self.known_marks))
                raise ValueError(f"modality {segment.modality!r} is unknown; known: {known}")
            if segment.data.dtype.itemsize > self.dtype.itemsize:
                self._make_room(int(segment.data.max(initial=0)))
            for start in range(0, len(segment.data), CHUNK):
                part = segment.data[start : start + CHUNK]
                self.ids.write(part.astype(self.dtype).tobytes())
            self.lengths.append(len(segment.data))
            self.marks.append(self.known_marks[segment.modality])
            self.headers.append(segment.header)
        self.counts.append(len(document.segments))
        self.names += document.name.encode(*ENCODING)
        self.ends.append(len(self.names))

    def close(self) -> dict[str, Any]:
        """Writes the rest; returns the shard's entry in the manifest, and which marks occur in it."""
        self.ids.close()
        tables = {name: np.array(getattr(self, name), dtype) for name, dtype in ARRAYS.items()}
        tables |= {"ends": np.array(self.ends, np.int64), "checks": _block_checks(Path(f"{self.stem}.ids"))}
        if any(self.headers):
            tables["headers"] = header_rows(self.headers)
        for name, values in tables.items():
            np.save(f"{self.stem}.{name}.npy", values, allow_pickle=False)
        Path(f"{self.stem}.names").write_bytes(self.names)
        files = {path.name: _checked(path) for path in sorted(self.stem.parent.glob(f"{self.stem.name}.*"))}
        for name in files:
            sync(self.stem.parent / name)
        return {
            "stem": self.stem.name,
            "documents": len(self.counts),
            "segments": len(self.lengths),
            "bytes": sum(self.lengths),
            "dtype": self.dtype.str,
            "files": files,
            "marks": np.unique(tables["marks"]).tolist(),
        }

    def _make_room(self, largest: int) -> None:
        """Rewrites what is there with more bytes an id, where an id needs them."""
        wide = next(dtype for dtype in map(np.dtype, DTYPES) if largest <= np.iinfo(dtype).max)
        if wide.itemsize <= self.dtype.itemsize:
            return
        self.ids.close()
        narrow = self.stem.with_name(f"{self.stem.name}.narrow")
        Path(f"{self.stem}.ids").rename(narrow)
        self.ids = open(f"{self.stem}.ids", "xb")  # noqa: SIM115 -- closed by close()
        with open(narrow, "rb") as old:
            while chunk := old.read(CHUNK):
                self.ids.write(np.frombuffer(chunk, self.dtype).astype(wide).tobytes())
        narrow.unlink()
        self.dtype = wide


def check_files(folder: Path, stem: str, shard: Mapping[str, Any], version: int, verify: bool) -> None:
    """Compares the files of a shard with the manifest's entry: sizes, and checksums; of payload with `verify`.

    Raises:
        DataError: a file is missing, damaged, or a link that leads out of the folder.
        KeyError, TypeError, ValueError: the entry makes no sense.
    """
    files = shard["files"]
    suffixes = ["ids", *(f"{name}.npy" for name in ARRAYS)]
    suffixes += ["checks.npy", "names", "ends.npy"] if version >= 3 else ["names.json"]
    suffixes += ["headers.npy"] * (f"{stem}.headers.npy" in files)
    home = os.path.realpath(folder)
    for suffix in suffixes:
        # Names are made here and never taken from the manifest.
        path, entry = folder / f"{stem}.{suffix}", files[f"{stem}.{suffix}"]
        if path.is_symlink() and os.path.dirname(os.path.realpath(path)) != home:
            raise DataError(f"{path}: is a link that leads out of its folder; put the file itself there")
        try:
            size = path.stat().st_size
            if size != count(entry["size"]):
                raise damaged(path, f"it has {size} bytes and not {entry['size']}")
            if (verify or suffix != "ids") and _checked(path)["sha256"] != entry["sha256"]:
                raise damaged(path, "its checksum is wrong")
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); prepare the data anew") from error


def open_shard(folder: Path, stem: str, shard: Mapping[str, Any], version: int) -> Corpus:
    """One shard as a corpus, its files checked against each other. Raises as `check_files`."""
    arrays = {name: _read_array(folder / f"{stem}.{name}.npy", dtype) for name, dtype in ARRAYS.items()}
    lengths, counts = arrays["lengths"], arrays["counts"]
    dtype, size = shard["dtype"], shard["files"][f"{stem}.ids"]["size"]
    if dtype not in DTYPES:
        raise ValueError("dtype")
    total = size // np.dtype(dtype).itemsize
    ends = _ends(lengths, total)
    if ends is None or total * np.dtype(dtype).itemsize != size:
        raise damaged(folder / f"{stem}.lengths.npy", "its sum is not the size of the payload")
    document_ends = _ends(counts, len(lengths))
    if document_ends is None or len(arrays["marks"]) != len(lengths):
        raise damaged(folder / f"{stem}.counts.npy", "it does not fit the shard's other files")
    headers = np.zeros((len(lengths), 1), np.uint8)
    if f"{stem}.headers.npy" in shard["files"]:
        headers = _read_headers(folder / f"{stem}.headers.npy", len(lengths))
    checks = None
    if version >= 3:
        checks = _read_array(folder / f"{stem}.checks.npy", np.dtype(np.uint32))
        if len(checks) != -(-size // CHECKED_BYTES):
            raise damaged(folder / f"{stem}.checks.npy", "it does not fit the shard's payload")
    return Corpus(
        files=(PayloadFile(folder / f"{stem}.ids", dtype, total, checks),),
        names=Names([_read_names(folder, stem, len(counts), version)]),
        document_starts=np.concatenate([[0], document_ends]),
        segment_marks=arrays["marks"],
        segment_lengths=lengths,
        segment_files=np.zeros(len(lengths), np.int32),
        segment_offsets=ends - lengths,
        segment_headers=headers,
        modalities={},
    )


def _read_names(folder: Path, stem: str, num_documents: int, version: int) -> Sequence[str]:
    if version < 3:
        path = folder / f"{stem}.names.json"
        try:
            names = json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise damaged(path, "it is not JSON") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise damaged(path, "it is not a list of names")
        fits = len(names) == num_documents
    else:
        path = folder / f"{stem}.names"
        size = path.stat().st_size
        text = np.memmap(path, np.uint8, mode="r") if size else np.empty(0, np.uint8)
        ends = _read_array(folder / f"{stem}.ends.npy", np.dtype(np.int64))
        names = NamesInFile(text, ends)
        last = int(ends[-1]) if len(ends) else 0
        fits = len(ends) == num_documents and last == size and (np.diff(ends, prepend=0) >= 0).all()
    if not fits:
        raise damaged(path, "it does not fit the shard's other files")
    return names


def _ends(lengths: np.ndarray, total: int) -> np.ndarray | None:
    """Where each of these lengths ends (N,) int64; None where one is none, or they are not `total` together."""
    ends = np.cumsum(lengths)
    if len(lengths) and (lengths.min() < 0 or lengths.max() > total or (np.diff(ends) < 0).any()):  # or int64 overflows
        return None
    return ends if (int(ends[-1]) if len(ends) else 0) == total else None


def _read_array(path: Path, dtype: np.dtype[Any], ndim: int = 1) -> np.ndarray:
    """An array, mapped: what its header says cannot ask for more memory than the file has bytes."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise damaged(path, f"it is no array ({error})") from error
    if array.ndim != ndim or array.dtype != dtype:
        raise damaged(path, f"it is {array.dtype} {array.shape} and not {dtype} with {ndim} axes")
    return array.view(np.ndarray)


def _read_headers(path: Path, num_segments: int) -> np.ndarray:
    headers = _read_array(path, np.dtype(np.uint8), ndim=2)
    longest = headers.shape[1] - 1
    if len(headers) != num_segments or not 0 <= longest <= MAX_HEADER_BYTES or (headers[:, :1] > longest).any():
        raise damaged(path, "it does not fit the shard's other files")
    return headers


def count(value: object) -> int:
    """A number of things as a manifest has it. Raises ValueError where it is none."""
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError(f"{value!r:.40}")
    return number


def damaged(path: Path, reason: str) -> DataError:
    """The error of a file that is not what was written."""
    return DataError(f"{path}: is damaged: {reason}; prepare the data anew")


def _checked(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _block_checks(path: Path) -> np.ndarray:
    """The CRC-32 of every `CHECKED_BYTES` of a file (N,) uint32."""
    with open(path, "rb") as file:
        return np.array([zlib.crc32(block) for block in iter(lambda: file.read(CHECKED_BYTES), b"")], np.uint32)
