"""Files made to break decoders: what the codecs make of them, how long it takes, and how much memory.

    python benchmarks/hostile.py [--files N] [--json FILE]

Seeds of every kind (pictures, sounds, videos) are made here, then cut, mutated, spliced, given monstrous sizes and
wrong names. A process of its own reads them one by one; it may only read a file or refuse it with a `DataError`, and
must print nothing. Where it crashes, or takes longer than `--limit`, that is counted and another goes on with the next
file. At the end `byteloom.preparation.prepare` reads them all as a folder, and must count each one.
"""

import io
import os
import resource
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from itertools import pairwise
from json import dumps, loads
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

from byteloom import codecs
from byteloom.codecs import video
from byteloom.documents import DataError
from byteloom.preparation import prepare

KINDS = ("whole", "cut", "changed", "head changed", "zeroed", "monstrous", "doubled", "spliced", "wrong name", "noise")


def pictures(rng: np.random.Generator) -> dict[str, bytes]:
    """A small picture in every mode and format that matters, by file name."""
    noise = rng.integers(0, 256, (40, 56, 4), dtype=np.uint8)
    smooth = Image.fromarray(noise, "RGBA").resize((200, 120), Image.Resampling.BICUBIC)
    shapes = {"rgb": smooth.convert("RGB"), "grey": smooth.convert("L"), "alpha": smooth, "bit": smooth.convert("1")}
    shapes["palette"] = shapes["rgb"].quantize(64)
    shapes["deep"] = Image.fromarray(rng.integers(0, 65536, (40, 56)).astype(np.uint16))
    wanted = {
        "JPEG": ("jpg", ("rgb", "grey", "cmyk"), {"quality": 80}),
        "PNG": ("png", ("rgb", "grey", "alpha", "bit", "palette", "deep"), {}),
        "GIF": ("gif", ("palette",), {"save_all": True, "append_images": [shapes["palette"].rotate(90)] * 3}),
        "WEBP": ("webp", ("rgb", "alpha"), {}),
        "TIFF": ("tif", ("rgb", "bit", "cmyk", "deep"), {"compression": "tiff_lzw"}),
        "BMP": ("bmp", ("rgb", "palette"), {}),
        "JPEG2000": ("jp2", ("rgb",), {}),
        "AVIF": ("avif", ("alpha",), {}),
        "ICO": ("ico", ("alpha",), {}),
        "TGA": ("tga", ("rgb",), {"compression": "tga_rle"}),
        "PPM": ("ppm", ("rgb", "grey"), {}),
        "QOI": ("qoi", ("rgb",), {}),
        "DDS": ("dds", ("alpha",), {}),
        "PCX": ("pcx", ("palette",), {}),
    }
    shapes["cmyk"] = shapes["rgb"].convert("CMYK")
    found = {}
    for name, (suffix, kinds, options) in wanted.items():
        for kind in kinds:
            file = io.BytesIO()
            shapes[kind].save(file, name, **options)
            found[f"{kind}.{suffix}"] = file.getvalue()
    return found


def sounds(rng: np.random.Generator) -> dict[str, bytes]:
    """A fifth of a second of sound in every width and format that matters, by file name."""
    samples = np.cumsum(rng.standard_normal((4800, 2)), axis=0) / 400
    wanted = [
        ("WAV", kind) for kind in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM")
    ]
    wanted += [("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]
    wanted += [("AIFF", "PCM_16"), ("AU", "ALAW"), ("CAF", "ALAC_16"), ("W64", "PCM_16"), ("VOC", "PCM_16")]
    found = {}
    for name, kind in wanted:
        file = io.BytesIO()
        soundfile.write(file, samples, 24000, format=name, subtype=kind)
        found[f"{kind.lower()}.{name.lower()}"] = file.getvalue()
    found["aac.m4a"] = muxed("mp4", "aac", samples)
    found["opus.mka"] = muxed("matroska", "libopus", samples)
    return found


def muxed(container: str, codec: str, samples: np.ndarray) -> bytes:
    """Stereo samples (N, 2) as a sound in a container."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=24000, layout="stereo")
        packed = np.ascontiguousarray(samples, np.float32).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout="stereo")
        frame.sample_rate = 24000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def videos(rng: np.random.Generator) -> dict[str, bytes]:
    """Twelve frames in every container that can be written, and an animation, by file name."""
    frames = np.cumsum(rng.integers(-2, 3, (12, 48, 64, 3)), axis=0) + rng.integers(20, 200, (1, 48, 64, 3))
    segment = video.from_array(np.clip(frames, 0, 255).astype(np.uint8), 24)
    return {f"frames{suffix}": video.decode(segment, suffix) for suffix in (*video.WRITERS, ".gif")}


def monsters() -> dict[str, bytes]:
    """Small files that ask for gigabytes, start programs or lead to other files."""

    def png(width: int, height: int) -> bytes:
        def chunk(name: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

        rows = zlib.compress(bytes(1 << 20), 9)
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")

    silence = io.BytesIO()
    with soundfile.SoundFile(silence, "w", 8000, 1, "PCM_16", format="FLAC") as file:
        for _ in range(140):
            file.write(np.zeros(1 << 20, np.int16))
    wav = b"RIFF\xff\xff\xff\x7fWAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1024, 0xFFFFFFFF, 0xFFFFFFFF, 2048, 16)
    frame = video.from_array(np.zeros((1, 16, 16, 3), np.uint8), 1)
    ffv1 = video.decode(frame).replace(b"\xb0\x81\x10\xba\x81\x10", b"\xb0\x82\xff\xf0\xba\x82\xff\xf0")
    white = io.BytesIO()
    Image.new("1", (9000, 9000)).save(white, "TIFF", compression="group4")
    return {
        "wide.png": png(60000, 60000),
        "tall.png": png(1, 0x7FFFFFFF),
        "large.png": png(9000, 9000),
        "fax.tif": white.getvalue(),
        "bomb.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(200),
        "bomb.bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 1 << 30, 1 << 30, 1, 24, 0, 0, 0, 0, 0, 0),
        "bomb.ppm": b"P6 999999 999999 255\n" + bytes(99),
        "hours.flac": silence.getvalue(),
        "channels.wav": wav + b"data\xff\xff\xff\x7f" + bytes(4096),
        "sides.mkv": ffv1,
        "program.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9999 9999\n{} loop\n",
        "program.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9999 9999\n{} loop\n",
        "list.mp4": b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "list.mkv": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        "nothing.png": b"",
        "nothing.wav": b"",
        "nothing.mp4": b"",
    }


def mutated(data: bytes, kind: str, rng: np.random.Generator, other: bytes) -> bytes:
    """A file made worse: cut, with bytes changed, zeroed, doubled, sizes made monstrous, or the head of another one."""
    whole = np.frombuffer(data, np.uint8).copy()
    place = int(rng.integers(len(whole)))
    near_head = int(rng.integers(min(len(whole), 256)))
    if kind == "cut":
        return data[:place]
    if kind == "changed":
        places = rng.integers(0, len(whole), int(rng.integers(1, 40)))
        whole[places] = rng.integers(0, 256, len(places))
    if kind == "head changed":
        whole[near_head : near_head + 4] = rng.integers(0, 256, len(whole[near_head : near_head + 4]))
    if kind == "zeroed":
        whole[place : place + int(rng.integers(1, 2000))] = 0
    if kind == "monstrous":
        whole[near_head : near_head + 4] = rng.choice([0xFF, 0x7F, 0x80], 4)[: len(whole[near_head : near_head + 4])]
    if kind == "doubled":
        return data[:place] + data[max(0, place - 500) :]
    if kind == "spliced":
        return other[: int(rng.integers(len(other)))] + data[place:]
    return whole.tobytes()


def write_files(folder: Path, count: int, seed: int) -> Counter[str]:
    """Writes the files, each named by its number, what was done to it and its seed; returns how many of each kind."""
    rng = np.random.default_rng(seed)
    seeds = {**pictures(rng), **sounds(rng), **videos(rng)}
    names, suffixes = list(seeds), sorted({Path(name).suffix for name in seeds})
    files = [("monster", name, data) for name, data in monsters().items()]
    while len(files) < count:
        name = names[len(files) % len(names)]
        kind = KINDS[(len(files) // len(names)) % len(KINDS)]
        data = seeds[name]
        if kind == "noise":
            data = data[:16] + rng.bytes(int(rng.integers(1, 5000)))
        elif kind == "wrong name":
            name = f"{name}{rng.choice(suffixes)}"
        elif kind != "whole":
            data = mutated(data, kind, rng, seeds[names[int(rng.integers(len(names)))]])
        files.append((kind, name, data))
    for number, (kind, name, data) in enumerate(files[:count]):
        (folder / f"{number:05d} {kind} {name}").write_bytes(data)
    return Counter(kind for kind, _, _ in files[:count])


def read_each(folder: Path, first: int) -> None:
    """Reads the files from a number on; says on stdout which one begins and how it went."""
    for name in sorted(os.listdir(folder))[first:]:
        print(dumps({"begins": name}), flush=True)
        begin = time.perf_counter()
        try:
            codecs.read(folder / name)
            outcome = "read"
        except DataError:
            outcome = "refused"
        except Exception as error:
            outcome = f"raised {error!r}"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(dumps({"outcome": outcome, "seconds": time.perf_counter() - begin, "MiB": peak}), flush=True)


def prepare_all(folder: Path) -> None:
    """Reads the folder as `byteloom prepare` does, and says the counts and the peak of this process."""
    with tempfile.TemporaryDirectory() as out:
        begin = time.perf_counter()
        counts = prepare(folder, Path(out) / "prepared")
        found = {
            "documents": counts["documents"],
            "skipped": len(counts["skipped"]),
            "bytes": counts["modalities"],
            "seconds": time.perf_counter() - begin,
            "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    print(dumps(found))


def read_on(folder: Path, first: int, limit: float) -> tuple[list[dict[str, Any]], str, str]:
    """What a process says of the files from a number on; how it ended where it did not get through; what it printed."""
    command = [sys.executable, __file__, "--folder", str(folder), "--first", str(first)]
    said: list[dict[str, Any]] = []
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        hung = threading.Event()

        def stop() -> None:
            hung.set()
            process.kill()

        timer = threading.Timer(limit, stop)
        for line in process.stdout or ():
            timer.cancel()
            said.append(loads(line))
            timer = threading.Timer(limit, stop)
            timer.start()
        timer.cancel()
        process.wait()
        errors.seek(0)
        printed = errors.read()
    return said, "hung" if hung.is_set() else f"crashed with {process.returncode}", printed


def watch(folder: Path, limit: float) -> tuple[list[dict[str, Any]], str]:
    """What happened to each file, and all that was printed to stderr; another process goes on after a crash."""
    results: list[dict[str, Any]] = []
    printed = ""
    names = sorted(os.listdir(folder))
    while len(results) < len(names):
        said, end, errors = read_on(folder, len(results), limit)
        printed += errors
        if not said:
            raise SystemExit(f"the reading process cannot start: {printed}")
        results += [outcome for outcome in said if "outcome" in outcome]
        if "begins" in said[-1]:
            results.append({"outcome": end, "seconds": limit, "MiB": 0.0})
    return [{"name": name, **result} for name, result in zip(names, results, strict=True)], printed


def main(
    files: int = 2000,
    seed: int = 0,
    limit: float = 60.0,
    json: str | None = None,
    folder: Path | None = None,
    first: int | None = None,
) -> None:
    """Files made to break decoders: what the codecs make of them, how long it takes, and how much memory.

    Args:
        files: How many files to make.
        seed: Seed of what is done to them.
        limit: Seconds after which a file counts as hung.
        json: Write the numbers to this file.
        folder: Only read the files of this folder, in this process, as the reading process does.
        first: The number of the file to begin with; without it the folder is prepared.
    """
    if folder is not None:
        prepare_all(folder) if first is None else read_each(folder, first)
        return
    with tempfile.TemporaryDirectory() as made:
        kinds = write_files(Path(made), files, seed)
        results, printed = watch(Path(made), limit)
        command = [sys.executable, __file__, "--folder", made]
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit * 10)
        prepared = loads(done.stdout) if done.returncode == 0 else {}
    outcomes = Counter(result["outcome"] for result in results)
    bad = [result for result in results if result["outcome"] not in ("read", "refused")]
    slowest = sorted(results, key=lambda result: -result["seconds"])[:5]
    rises = sorted(((b["MiB"] - a["MiB"], b["name"]) for a, b in pairwise(results)), reverse=True)[:5]
    numbers = {
        "files": files,
        "seed": seed,
        "read": outcomes["read"],
        "refused": outcomes["refused"],
        "bad": bad,
        "printed": (printed + done.stderr)[-2000:],
        "seconds": sum(result["seconds"] for result in results),
        "first_MiB": results[0]["MiB"],
        "peak_MiB": max(result["MiB"] for result in results),
        "slowest": [{"name": result["name"], "seconds": result["seconds"]} for result in slowest],
        "rises_MiB": [{"name": name, "MiB": rise} for rise, name in rises],
        "prepare": prepared,
        "by_kind": {
            kind: {
                "files": number,
                **Counter(result["outcome"] for result in results if result["name"][6:].startswith(f"{kind} ")),
            }
            for kind, number in kinds.items()
        },
    }
    table = Table(title=f"{files:,} files, {numbers['seconds']:.1f} seconds, peak {numbers['peak_MiB']:,.0f} MiB")
    for column in ("what was done", "files", "read", "refused"):
        table.add_column(column, justify="right")
    for kind, row in numbers["by_kind"].items():
        table.add_row(kind, *(f"{row.get(key, 0):,}" for key in ("files", "read", "refused")))
    Console(width=120).print(table)
    print(f"slowest {slowest[0]['name']}: {slowest[0]['seconds']:.2f} s; not read or refused: {len(bad)}")
    for result in bad:
        print(f"{result['name']}: {result['outcome']}")
    if json:
        Path(json).write_text(dumps(numbers, indent=1))
    counted = prepared.get("documents", 0) + prepared.get("skipped", 0)
    if bad or numbers["printed"] or counted != files:
        raise SystemExit(f"{len(bad)} broke their reader, prepare counted {counted}; {numbers['printed']}")


if __name__ == "__main__":
    tyro.cli(main)
