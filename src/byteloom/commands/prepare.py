"""Read files, folders and manifests with their codecs into memory-mapped shards."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from byteloom.codecs import DEFAULT_MEDIA, MediaConfig
from byteloom.commands import call, note, write_report
from byteloom.shards import prepare


def main(argv: list[str]) -> None:
    """Runs the command."""
    call(run, argv, "prepare")


def run(
    paths: tyro.conf.Positional[tuple[Path, ...]],
    /,
    out: Path,
    modality: str | None = None,
    media: Annotated[MediaConfig, tyro.conf.arg(name="")] = DEFAULT_MEDIA,
    shard_bytes: int = 256 << 20,
    overwrite: bool = False,
    json: str | None = None,
) -> None:
    """Read files, folders and manifests with their codecs into memory-mapped shards.

    A file that cannot be read is skipped, named and counted, and so is a bad line of a manifest.

    Args:
        paths: Files, folders, and manifests: .jsonl files, each line of which lists the files of one document.
        out: Folder to make.
        modality: Read every file as this one; by default each by its name and content.
        media: How media files become samples.
        shard_bytes: Begin a new shard after so many bytes.
        overwrite: Replace prepared data that is there.
        json: Write the counts as JSON to this file, or to stdout with "-".
    """
    counts = prepare(list(paths), out, modality=modality, media=media, shard_bytes=shard_bytes, overwrite=overwrite)
    for entry in counts["skipped"]:
        note(f"skipped {entry['file']}: {entry['reason']}")
    write_report(counts, json)
    if json != "-":
        sizes = ", ".join(f"{size:,} bytes of {name}" for name, size in counts["modalities"].items())
        print(f"{out}: {counts['documents']:,} documents, {sizes}; {len(counts['skipped'])} skipped")
        sys.stdout.flush()
