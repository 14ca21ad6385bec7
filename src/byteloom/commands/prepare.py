"""Read files, folders and manifests with their codecs into memory-mapped shards."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from byteloom import hub
from byteloom.codecs import DEFAULT_MEDIA, MediaConfig
from byteloom.commands import UsageError, call, check_output, note, write_report
from byteloom.preparation import prepare
from byteloom.shards import open_prepared


def main(argv: list[str]) -> None:
    """Runs the command."""
    call(run, argv, "prepare")


def run(
    paths: tyro.conf.Positional[tuple[str, ...]],
    /,
    out: Path | None = None,
    hf_dataset: tuple[str, ...] = (),
    modality: str | None = None,
    media: Annotated[MediaConfig, tyro.conf.arg(name="")] = DEFAULT_MEDIA,
    shard_bytes: int = 256 << 20,
    workers: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    verify: bool = False,
    json: str | None = None,
) -> None:
    """Read files, folders and manifests with their codecs into memory-mapped shards.

    A file that cannot be read is skipped, named and counted, and so is a bad line of a manifest. What comes out does
    not depend on the number of workers, nor on stops: a stopped run keeps the shards that are finished, for --resume.

    Args:
        paths: Files, folders, and manifests: .jsonl files, each line of which lists the files of one document. Also
            addresses of files and folders elsewhere, such as s3://bucket/folder, which fsspec reads.
        out: Folder to make.
        hf_dataset: Instead of paths, datasets of Hugging Face, each as NAME_OR_PATH[:split[:column]]; several columns
            joined with "+" make one document of each row.
        modality: Read every file as this one; by default each by its name and content.
        media: How media files become samples.
        shard_bytes: Begin a new shard after so many bytes.
        workers: Processes; 0 is one for each core.
        resume: Go on with what a stop cut off, or begin where there is nothing.
        overwrite: Replace prepared data that is there, or unfinished.
        verify: Make nothing; read the prepared data in PATHS whole and compare every file with its checksum.
        json: Write the counts as JSON to this file, or to stdout with "-".
    """
    check_output(json, *map(Path, paths), made=out)
    if verify:
        check(paths, json)
        return
    if out is None:
        raise UsageError("name the folder to make: --out FOLDER")
    if hf_dataset:
        if paths or modality is not None or resume:
            raise UsageError("--hf-dataset stands alone; leave out the paths, --modality and --resume")
        specs = [hub.parse(text) for text in hf_dataset]
        counts = hub.prepare(specs, out, media=media, shard_bytes=shard_bytes, overwrite=overwrite)
    else:
        counts = prepare_shown(
            list(paths),
            out,
            modality=modality,
            media=media,
            shard_bytes=shard_bytes,
            workers=workers or num_cores(),
            resume=resume,
            overwrite=overwrite,
        )
    for entry in counts["skipped"]:
        note(f"skipped {entry['file']}: {entry['reason']}")
    write_report(counts, json)
    if json != "-":
        sizes = ", ".join(f"{size:,} bytes of {name}" for name, size in counts["modalities"].items())
        print(f"{out}: {counts['documents']:,} documents, {sizes}; {len(counts['skipped'])} skipped")
        sys.stdout.flush()


def num_cores() -> int:
    """How many cores this process may use; all of them where the system, such as macOS, does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare_shown(paths: list[str], out: Path, **options: Any) -> dict[str, Any]:
    """`preparation.prepare` with a bar in the terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return prepare(paths, out, **options)
    columns = (DownloadColumn(), TransferSpeedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(TextColumn("[bold]prepare"), BarColumn(), *columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        return prepare(
            paths, out, progress=lambda done, total: bar.update(task, completed=done, total=total), **options
        )


def check(folders: tuple[str, ...], json: str | None) -> None:
    """Reads prepared data whole, compares every file with its checksum, and says what there is."""
    if not folders:
        raise UsageError("name the prepared data to verify")
    found = {}
    for folder in folders:
        corpus = open_prepared(folder, verify=True)
        found[folder] = {"documents": len(corpus), "bytes": corpus.num_bytes, "shards": len(corpus.files)}
        if json != "-":
            sizes = ", ".join(f"{size:,} {name}" for name, size in found[folder].items())
            print(f"{folder}: {sizes}; every file is as it was written")
    write_report(found, json)
