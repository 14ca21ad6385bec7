"""Prepared data: documents in memory-mapped shards, written once and read many times.

In: documents. Out: a folder that opens as a `Corpus` in a moment, whatever its size:

    manifest.json         format, counts, modalities, how media were read, size and sha256 of every other file, and of
                          the manifest itself without that
    00000.ids             payload of the shard's segments end to end: uint8, or as wide as its ids need, little-endian
    00000.checks.npy      (blocks,) uint32    CRC-32 of every 64 KiB of it
    00000.lengths.npy     (segments,) int64   ids of each segment
    00000.marks.npy       (segments,) uint16  its MARK
    00000.headers.npy     (segments, 1 + W) uint8  length of its header and the header; only where one is not empty
    00000.counts.npy      (documents,) int64  segments of each document
    00000.names           names of the documents end to end
    00000.ends.npy        (documents,) int64  where each name ends, in bytes

BOS, MARK, EOS and PAD are structure: they are not stored but put in on reading. A folder is written whole or not at
all. Damage is found before it is used: sizes and the checksums of everything but payload when a corpus is opened, those
of payload when it is first read, and all at once where that is asked for. Cost: that of the tables; 100 GB of payload
open as fast as 100 MB.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from byteloom.codecs import DEFAULT_MEDIA, MediaConfig
from byteloom.corpus import Corpus, concatenate, known_marks
from byteloom.documents import DataError, Document
from byteloom.files import sync, write_json
from byteloom.remote import exists, fetch_folder
from byteloom.shard_files import ShardWriter, check_files, count, damaged, open_shard
from byteloom.sources import AnyPath, located, path_list

FORMAT = "byteloom-corpus"
VERSION = 3  # 1 had no headers and says nothing of media; 1 and 2 have names as JSON and no checks; all are read
MAX_MANIFEST_BYTES = 256 << 20
STEM = re.compile(r"[0-9]{5,9}(-[0-9]{1,9})?")


def is_prepared(path: AnyPath) -> bool:
    """Whether a path is a folder that `write` made, damaged or not; or the address of one.

    Raises:
        DataError: what is behind an address cannot be looked at.
    """
    folder = located(path)
    if isinstance(folder, str):
        return exists(folder, "manifest.json")
    try:
        with open(folder / "manifest.json", "rb") as file:
            head = file.read(4096)
    except OSError:
        head = b""
    return f'"{FORMAT}"'.encode() in head or (folder / "00000.lengths.npy").exists()


def local_folder(folder: AnyPath) -> Path:
    """The folder itself, or where it is an address a copy of it, fetched once, that lasts as long as the process.

    Raises:
        DataError: it cannot be fetched.
    """
    place = located(folder)
    return fetch_folder(place) if isinstance(place, str) else place


def open_prepared(folder: AnyPath, verify: bool = False) -> "Corpus":
    """A prepared corpus. With `verify`, all payload is read and compared with its checksum now and not when it is used.

    Raises:
        DataError: the folder is no corpus, or it is damaged; the message names the file.
    """
    folder = local_folder(folder)
    manifest = read_manifest(folder)
    path, version = folder / "manifest.json", manifest["version"]
    try:
        modalities = {count(mark): str(name) for name, mark in manifest["modalities"].items()}
        entries = [(_stem(number, shard), shard) for number, shard in enumerate(manifest["shards"])]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing and reading leave Python free
            list(pool.map(lambda entry: check_files(folder, entry[0], entry[1], version, verify), entries))
        shards = [open_shard(folder, stem, shard, version) for stem, shard in entries]
        totals = [count(manifest[key]) for key in ("documents", "segments", "bytes")]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path, f"its field {error} is missing or wrong") from error
    try:
        known_marks({name: mark for mark, name in modalities.items()})
    except ValueError as error:
        raise damaged(path, str(error)) from error
    corpus = dataclasses.replace(shards[0] if len(shards) == 1 else concatenate(shards), modalities=modalities)
    if [len(corpus), len(corpus.segment_lengths), corpus.num_bytes] != totals:
        raise damaged(path, "its totals are not the sum of its shards")
    if not np.isin(corpus.segment_marks, list(modalities)).all():
        raise damaged(path, "a segment has a modality that it does not list")
    return corpus


def media_of(folder: AnyPath) -> dict[str, Any] | None:
    """How the media in a prepared corpus were read: the options of each modality in it that has some.

    None where it holds no media, or does not say. `codecs.media_from_dict` makes a config of it.

    Raises:
        DataError: the folder is no corpus, or it is damaged.
    """
    folder = local_folder(folder)
    media = read_manifest(folder).get("media")
    if media is not None and not (isinstance(media, dict) and all(isinstance(part, dict) for part in media.values())):
        raise damaged(folder / "manifest.json", "its field media is wrong")
    return media


def open_data(
    paths: AnyPath | Sequence[AnyPath], modality: str | None = None, media: MediaConfig = DEFAULT_MEDIA
) -> Corpus:
    """Files, folders, manifests and prepared corpora, in the order given, as one corpus.

    Args:
        paths: a folder that `prepare` wrote is opened as such, anything else as in `Corpus.from_paths`.
        modality: read every raw file as this one.
        media: how media files become samples.

    Raises:
        DataError: as `Corpus.from_paths` and `open_prepared`.
    """
    corpora = []
    for prepared, group in itertools.groupby(path_list(paths), is_prepared):
        members = list(group)
        corpora += map(open_prepared, members) if prepared else [Corpus.from_paths(members, modality, media)]
    if not corpora:
        raise DataError("no data given; name a file or a folder")
    return corpora[0] if len(corpora) == 1 else concatenate(corpora)


def write(
    documents: Iterable[Document],
    out: AnyPath,
    *,
    marks: Mapping[str, int] | None = None,
    media: Mapping[str, Any] | None = None,
    shard_bytes: int = 256 << 20,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes documents as a prepared corpus, whole or not at all, and returns its manifest.

    Args:
        documents: read once; each goes whole into one shard.
        out: the folder to make; its parent folders are made too.
        marks: the MARK of each modality that no codec has, such as tokens of a model, 280-303.
        media: the options of each modality with which the documents were read, for `media_of`. It is looked at when the
            documents are written; only what belongs to modalities that occur is kept.
        shard_bytes: a shard is closed when it has reached this size.
        overwrite: replace a corpus that is there. Nothing but a corpus is ever replaced.

    Raises:
        DataError: `out` is taken.
        ValueError: a modality is unknown, its mark is taken, or payload holds reserved ids.
    """
    known = known_marks(marks)
    out = free_folder(out, overwrite)
    partial = make_partial(out, ".writing")
    try:
        stems = (f"{number:05d}" for number in itertools.count())
        shards = write_shards(documents, partial / "data", stems, known, shard_bytes)
        return publish(partial, out, shards, known, media or {})
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def free_folder(out: AnyPath, overwrite: bool) -> Path:
    """The whole path of a folder that may be written, or overwritten. Raises DataError where it is taken."""
    out = Path(out).absolute()
    if out.exists() and not (is_prepared(out) and overwrite) and not (out.is_dir() and not any(out.iterdir())):
        cure = "name another folder, or ask to overwrite it" if is_prepared(out) else "name a folder that does not"
        raise DataError(f"{out}: exists already; {cure}")
    return out


def make_partial(out: Path, suffix: str) -> Path:
    """A folder beside `out` that only this user may enter, under a name that none can foretell; in it `data/`.

    What is in `data/` has the permissions of any file of this user, and `publish` makes it `out`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=suffix, dir=out.parent))
    (partial / "data").mkdir()
    return partial


def write_shards(
    documents: Iterable[Document], folder: Path, stems: Iterator[str], known: Mapping[str, int], shard_bytes: int
) -> list[dict[str, Any]]:
    """Writes documents as shards under the next names of `stems`; returns their entries in the manifest.

    Raises:
        ValueError: as `write`.
    """
    shards: list[dict[str, Any]] = []
    shard = None
    for document in documents:
        shard = shard or ShardWriter(folder, next(stems), known)
        shard.add(document)
        if shard.ids.tell() >= shard_bytes:
            shards.append(shard.close())
            shard = None
    return [*shards, shard.close()] if shard else shards


def publish(
    partial: Path, out: Path, shards: Sequence[Mapping[str, Any]], known: Mapping[str, int], media: Mapping[str, Any]
) -> dict[str, Any]:
    """Makes the shards in `partial/data` the corpus `out`, in place of one that is there, and returns its manifest."""
    used = {mark for entry in shards for mark in entry["marks"]}
    modalities = {name: mark for name, mark in known.items() if mark in used}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **{key: sum(entry[key] for entry in shards) for key in ("documents", "segments", "bytes")},
        "modalities": modalities,
        "media": {name: options for name, options in media.items() if name in modalities} or None,
        "shards": [{key: value for key, value in entry.items() if key != "marks"} for entry in shards],
    }
    manifest = json.loads(json.dumps(manifest))  # as it is read: lists for tuples
    manifest["sha256"] = checksum(manifest)
    write_json(partial / "data" / "manifest.json", manifest)
    if is_prepared(out):
        out.rename(partial / "replaced")
    (partial / "data").rename(out)
    sync(out.parent)
    shutil.rmtree(partial)
    return manifest


def checksum(manifest: Mapping[str, Any]) -> str:
    """The sha256 of what a manifest says, but for itself, in hexadecimal."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode("ascii")).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared corpus. Raises DataError where there is none, or it is damaged."""
    path = folder / "manifest.json"
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise damaged(path, "it is too large")
        manifest = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name a folder that `prepare` wrote") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, "it is not JSON") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path}: is not a byteloom manifest; name a folder that `prepare` wrote")
    version = manifest.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise DataError(f"{path}: has version {version}, this byteloom reads {VERSION}; prepare anew")
    if version >= 3 and manifest.get("sha256") != checksum(manifest):
        raise damaged(path, "its checksum is wrong")
    return manifest


def _stem(number: int, shard: Mapping[str, Any]) -> str:
    """What the names of a shard's files begin with: digits, so that none can lead out of the folder."""
    stem = shard.get("stem", f"{number:05d}")
    if not isinstance(stem, str) or not STEM.fullmatch(stem):
        raise ValueError("stem")
    return stem
