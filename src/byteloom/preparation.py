"""Preparing data: paths in, prepared data out, in several processes, and on from where a stop cut it off.

The documents are dealt out in tasks, in order, each about a shard of files. A task's shards are named after its number
and are its own, so however many processes do the tasks and however often they are stopped, the same files come out.
Until all is done, everything lies in a folder beside the one that is made:

    .OUT.RANDOM.partial/00012.json    what task 12 made; only where it is finished
    .OUT.RANDOM.partial/data/         shards

Cost: the files of the tasks in work, twice as many tasks as processes; one document at a time in each process.
"""

import contextlib
import dataclasses
import functools
import glob
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from byteloom import codecs
from byteloom.codecs import DEFAULT_MEDIA, MediaConfig
from byteloom.corpus import Corpus, known_marks, no_bytes
from byteloom.documents import DataError, Document, Segment
from byteloom.files import held, write_json
from byteloom.manifests import Part
from byteloom.shards import (
    VERSION,
    free_folder,
    is_prepared,
    local_folder,
    make_partial,
    media_of,
    open_prepared,
    publish,
    read_manifest,
    write_shards,
)
from byteloom.sources import AnyPath, each_entry, map_payload, path_list, sources_of

SUFFIX = ".partial"


class Interrupted(DataError):
    """The work was cut off, and what is finished is kept."""


class Stored(NamedTuple):
    """Documents `first` to `stop` of prepared data."""

    folder: Path
    first: int
    stop: int


Piece = tuple[str, list[Part]] | Stored


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one process does at a time."""

    number: int
    """Its place among all; its shards are named after it."""
    pieces: tuple[Piece, ...]
    """Documents of files, by name, and of prepared data."""
    size: int
    """Bytes of all of them as they lie in their files."""
    skipped: tuple[tuple[str, str], ...]
    """Files that were passed over while these were listed: name and reason."""
    origin: str
    """The path that they come from, or the first of several."""
    media: Mapping[str, Any]
    """The options with which media in them are read, by modality."""


def prepare(
    paths: AnyPath | Sequence[AnyPath],
    out: AnyPath,
    *,
    modality: str | None = None,
    media: MediaConfig = DEFAULT_MEDIA,
    shard_bytes: int = 256 << 20,
    workers: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Reads files, folders, manifests and prepared data with their codecs and writes one folder of prepared data.

    A file that cannot be read or decoded is skipped and counted, as is a bad line of a manifest; none ends the run.

    Args:
        paths: what to read; text with "://" in it is an address for fsspec, such as s3://bucket/folder.
        out: the folder to make.
        modality: read every raw file as this one.
        media: how media files become samples.
        shard_bytes: a shard is closed when it has reached this size.
        workers: processes. With more than one, a script needs its `if __name__ == "__main__":`.
        resume: go on from where a stop cut off the same work; what has changed since is done again.
        overwrite: replace prepared data that are there, or unfinished. Nothing else is ever replaced.
        progress: told after each task how many bytes of files are done and how many there are.

    Returns:
        `documents`, `segments`, `bytes`, `modalities` (bytes of each) and `skipped` (a list of `file` and `reason`).

    Raises:
        DataError: a path is missing, `out` is taken, no file gave any bytes, or media were read in two ways.
        Interrupted: a process died, or the disk is full; `resume` goes on.
        ValueError: `modality` is unknown, or `workers` or `shard_bytes` is below 1.
    """
    if modality is not None:
        codecs.by_modality(modality)
    for name, value in (("workers", workers), ("shard_bytes", shard_bytes)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    out = free_folder(out, overwrite)
    roots = [local_folder(path) if is_prepared(path) else path for path in path_list(paths)]
    if any(str(root).startswith("memory://") for root in roots):
        workers = 1  # what is in the memory of this process no other one can read
    stored: dict[Path | str, Corpus] = {
        root: _opened(root) for root in roots if isinstance(root, Path) and is_prepared(root)
    }
    known = known_marks({name: mark for corpus in stored.values() for mark, name in corpus.modalities.items()})
    deal = functools.partial(_each_task, roots, stored, modality, media, shard_bytes)
    total = sum(task.size for task in deal()) if progress else 0
    sizes: Counter[str] = Counter()
    options: dict[str, Any] = {}
    shards: list[dict[str, Any]] = []
    skipped: list[tuple[str, str]] = []
    done = 0
    with _work_folder(out, resume, overwrite) as partial, contextlib.ExitStack() as processes:
        make = functools.partial(_make, partial, known, shard_bytes)
        each = processes.enter_context(contextlib.closing(_each_made(deal(), partial, make, workers)))
        for task, made in each:
            for name in made["sizes"]:
                if name in task.media and options.setdefault(name, task.media[name]) != task.media[name]:
                    raise DataError(
                        f"{task.origin}: has {name} read otherwise than what comes before it; prepare both alike"
                    )
            sizes.update(made["sizes"])
            shards += made["shards"]
            skipped += [*task.skipped, *((name, reason) for name, reason in made["skipped"])]
            done += task.size
            if progress:
                progress(done, total)
        if not any(sizes.values()):
            raise no_bytes(paths, skipped)
        manifest = publish(partial, out, shards, known, options)
    return {
        **{key: manifest[key] for key in ("documents", "segments", "bytes")},
        "modalities": dict(sizes),
        "skipped": [{"file": name, "reason": reason} for name, reason in skipped],
    }


def _each_task(
    roots: Sequence[Path | str],
    stored: Mapping[Path | str, Corpus],
    modality: str | None,
    media: MediaConfig,
    shard_bytes: int,
) -> Iterator[Task]:
    """The tasks, in order; listed as they are asked for, and the same ones for the same files."""
    numbers = itertools.count()
    skipped: list[tuple[str, str]] = []
    ours = json.loads(json.dumps(dataclasses.asdict(media)))  # as a manifest has it: lists for tuples

    def task(pieces: Sequence[Piece], size: int, origin: Path | str, options: Mapping[str, Any]) -> Task:
        passed, skipped[:] = tuple(skipped), []
        return Task(
            number=next(numbers),
            pieces=tuple(pieces),
            size=size,
            skipped=passed,
            origin=str(origin),
            media=options,
        )

    for is_stored, group in itertools.groupby(roots, lambda root: root in stored):
        members = list(group)
        if is_stored:
            for root in members:
                ends = stored[root].document_lengths.cumsum()
                first = begin = 0
                while first < len(ends):
                    stop = min(int(ends.searchsorted(begin + shard_bytes)) + 1, len(ends))
                    size = int(ends[stop - 1]) - begin
                    yield task([Stored(Path(root), first, stop)], size, root, media_of(root) or {})
                    first, begin = stop, begin + size
            continue
        pieces: list[Piece] = []
        size = 0
        for name, parts in each_entry(members, modality, media, skipped):
            pieces.append((name, parts))
            size += sum(part.size for part in parts)
            if size >= shard_bytes:
                yield task(pieces, size, members[0], ours)
                pieces, size = [], 0
        if pieces or skipped:
            yield task(pieces, size, members[0], ours)


def _each_made(
    tasks: Iterator[Task], partial: Path, make: Callable[[Task, str], dict[str, Any]], workers: int
) -> Generator[tuple[Task, dict[str, Any]], None, None]:
    """Every task with what came of it, in their order; those that are finished already are not done again."""
    few = list(itertools.islice(tasks, 2))
    tasks = itertools.chain(few, tasks)
    if workers == 1 or len(few) < 2:
        for task in tasks:
            name = _fingerprint(task)
            yield task, _read_made(partial, task, name) or make(task, name)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        waiting: deque[tuple[Task, Future[dict[str, Any]]]] = deque()
        for task in tasks:
            name = _fingerprint(task)
            if (made := _read_made(partial, task, name)) is not None:
                result: Future[dict[str, Any]] = Future()
                result.set_result(made)
            else:
                result = pool.submit(make, task, name)
            waiting.append((task, result))
            if len(waiting) >= 2 * workers:
                first, result = waiting.popleft()
                yield first, result.result()
        for task, result in waiting:
            yield task, result.result()
    except BrokenProcessPool as error:
        raise Interrupted("a process died, perhaps for want of memory; fewer --workers need less") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """Of a worker: ends with the process that started it, however that ends, and at once with Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _make(partial: Path, known: Mapping[str, int], shard_bytes: int, task: Task, fingerprint: str) -> dict[str, Any]:
    """Does a task: writes its shards, then what came of it as JSON, and returns that."""
    data = partial / "data"
    stem = f"{task.number:05d}"
    for pattern in (f"{stem}.*", f"{stem}-*"):
        for left in data.glob(pattern):
            left.unlink()
    skipped: list[tuple[str, str]] = []
    sizes: Counter[str] = Counter()
    stems = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(1)))
    shards = write_shards(_each_counted(task, skipped, sizes), data, stems, known, shard_bytes)
    made = {"fingerprint": fingerprint, "shards": shards, "sizes": sizes, "skipped": skipped}
    write_json(partial / f"{stem}.json", made)
    return made


def _each_counted(task: Task, skipped: list[tuple[str, str]], sizes: Counter[str]) -> Iterator[Document]:
    for piece in task.pieces:
        if isinstance(piece, Stored):
            corpus = _opened(piece.folder)
            documents = map(corpus.__getitem__, range(piece.first, piece.stop))
        else:
            documents = _read(*piece, skipped)
        for document in documents:
            for segment in document.segments:
                sizes[segment.modality] += len(segment.data)
            yield document


def _read(name: str, parts: Sequence[Part], skipped: list[tuple[str, str]]) -> Iterator[Document]:
    try:
        sources = sources_of(parts)
        data = [map_payload(source.payload) for source in sources]
    except DataError as error:
        skipped.append((name, str(error)))
        return
    segments = (
        Segment(modality=source.modality, data=part, header=source.header) for source, part in zip(sources, data)
    )
    yield Document(segments=tuple(segments), name=name)


@functools.cache
def _opened(folder: Path) -> Corpus:
    return open_prepared(folder)


def _fingerprint(task: Task) -> str:
    """What tells a task from every other one that would make other shards: names, sizes and times of its files."""
    digest = hashlib.sha256(repr((VERSION, task.number, sorted(task.media.items()))).encode())
    for piece in task.pieces:
        if isinstance(piece, Stored):
            said: Any = (*piece, read_manifest(piece.folder).get("sha256"))
        else:
            name, parts = piece
            said = (name, [(part.modality, part.source, part.size, _time(part), part.media) for part in parts])
        digest.update(repr(said).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _time(part: Part) -> int:
    """When a file was changed last, in nanoseconds; 0 where nothing says it."""
    try:
        return os.stat(part.source).st_mtime_ns if isinstance(part.source, Path) else 0
    except OSError:
        return 0


def _read_made(partial: Path, task: Task, fingerprint: str) -> dict[str, Any] | None:
    """What a task made before a stop, where it is the same task and its files are as they were written."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        made = json.loads((partial / f"{task.number:05d}.json").read_text("ascii"))
        files = {name: about["size"] for shard in made["shards"] for name, about in shard["files"].items()}
        whole = all((partial / "data" / name).stat().st_size == size for name, size in files.items())
        return made if whole and made["fingerprint"] == fingerprint else None
    return None


@contextlib.contextmanager
def _work_folder(out: Path, resume: bool, overwrite: bool) -> Iterator[Path]:
    """The unfinished folder of `out`, found or made, which no other process uses meanwhile.

    It is kept where something in it is finished and whatever ended the work may end otherwise another time.
    """
    left = [path for path in out.parent.glob(f".{glob.escape(out.name)}.*{SUFFIX}") if _is_ours(path)]
    if left and not (resume or overwrite):
        raise DataError(f"{out}: is unfinished; ask to resume it, or to overwrite it")
    partial = None
    taken = DataError(f"{out}: is being prepared by another process; wait until it has ended")
    with contextlib.ExitStack() as locks:
        for path in left:
            locks.enter_context(held(path, taken))
            if partial is not None or not resume:
                shutil.rmtree(path)
            else:
                partial = path
                (partial / "data").mkdir(exist_ok=True)
        if partial is None:
            partial = make_partial(out, SUFFIX)
            locks.enter_context(held(partial, taken))
        try:
            yield partial
        except BaseException as error:
            hopeless = isinstance(error, DataError) and not isinstance(error, Interrupted)
            if hopeless or not any(partial.glob("[0-9]*.json")):
                shutil.rmtree(partial, ignore_errors=True)
                raise
            reason = getattr(error, "strerror", None) or str(error) or "stopped"
            kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else Interrupted
            raise kind(f"{out}: is unfinished ({reason}); --resume goes on with it") from error


def _is_ours(path: Path) -> bool:
    """Whether this user made a folder; a link is none."""
    status = path.lstat()
    return path.is_dir() and not path.is_symlink() and status.st_uid == os.getuid()
