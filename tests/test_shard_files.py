"""The files of a shard: every damage is found before it is used, and payload larger than memory costs none."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from test_corpus import contents, picture, text
from test_shards import accept, rewrite

from byteloom.documents import DataError, Document, Segment
from byteloom.packing import PackedStream
from byteloom.shard_files import _ends
from byteloom.shards import open_prepared, read_manifest, write
from byteloom.sources import CHECKED_BYTES


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two shards, the second of wide ids."""
    page = Document(segments=(picture(90_000), picture(4)), name="page")
    codes = Document(segments=(Segment(modality="codes", data=np.arange(320, 50_320, dtype=np.uint16)),), name="codes")
    write([text(b"hello", name="a"), page, codes], tmp_path / "data", marks={"codes": 280}, shard_bytes=90_000)
    return tmp_path / "data"


def test_any_damage_is_found_before_it_is_used(data: Path) -> None:
    """Bits flipped, ends cut off, files gone, and files of one shard in the place of another's."""
    rng = np.random.default_rng(0)
    whole = contents(open_prepared(data))
    files = sorted(path for path in data.iterdir())
    assert len(files) == 16
    for number in range(112):
        path = files[number % len(files)]
        kept = path.read_bytes()
        kind = ("flipped", "cut", "gone", "swapped", "flipped", "zeroed", "longer")[number // len(files)]
        place = int(rng.integers(len(kept)))
        other = path.with_name(f"0000{1 - int(path.name[4])}{path.name[5:]}") if path.name[0] == "0" else path
        if kind == "flipped":
            flipped = bytes([kept[place] ^ 1 << int(rng.integers(8))])
            path.write_bytes(kept[:place] + flipped + kept[place + 1 :])
        elif kind == "cut":
            path.write_bytes(kept[:place])
        elif kind == "longer":
            path.write_bytes(kept + b"0")
        elif kind == "zeroed":
            path.write_bytes(bytes(len(kept)))
        elif kind == "swapped" and other.exists():
            path.write_bytes(other.read_bytes())
        else:
            path.unlink()
        same = path.exists() and path.read_bytes() == kept
        for verify in (False, True):
            found, said = None, ""
            try:
                found = contents(open_prepared(data, verify=verify))
            except DataError as error:
                said = str(error)
            # A manifest may be changed where it says nothing, as in the blanks of its lines.
            harmless = same or (path.suffix == ".json" and found == whole)
            assert found == whole if harmless else path.name in said, f"{path.name} {kind} at {place}: {said}"
        path.write_bytes(kept)


def test_payload_is_checked_where_it_is_read(data: Path) -> None:
    path = data / "00000.ids"
    content = bytearray(path.read_bytes())
    content[70_000] ^= 1
    path.write_bytes(content)
    corpus = open_prepared(data)
    assert bytes(corpus.payload(1, 0, 9)) == bytes(content[5:14])
    stream = PackedStream(corpus, 1)
    stream.read(0, CHECKED_BYTES)
    message = r"00000\.ids: is damaged: its bytes 65536 to 90009 are not those that were written"
    for read in (lambda: stream.read(0, CHECKED_BYTES + 40), lambda: corpus.payload(1, 80_000), lambda: corpus[1]):
        with pytest.raises(DataError, match=message):
            read()
    assert len(corpus[2].segments[0].data) == 50_000, "wide ids are checked by their bytes"
    os.truncate(path, 100)
    with pytest.raises(DataError, match="has shrunk"):
        corpus.payload(1, 0, 9)


def test_links_do_not_lead_out_of_the_folder(data: Path, tmp_path: Path) -> None:
    for name in ("00000.ids", "00001.marks.npy", "00000.names"):
        (data / name).rename(tmp_path / name)
        os.symlink(tmp_path / name, data / name)
        with pytest.raises(DataError, match=rf"{name}: is a link that leads out"):
            open_prepared(data)
        (data / name).unlink()
        (tmp_path / name).rename(data / name)
    (data / "00000.ids").rename(data / "real")
    os.symlink("real", data / "00000.ids")
    assert len(open_prepared(data)) == 3
    os.symlink(data, tmp_path / "link")
    assert len(open_prepared(tmp_path / "link")) == 3, "a folder that was named itself may be a link"


@pytest.mark.parametrize(
    "lengths",
    [[2**62, 2**62, 2**62, 2**62 + 90_009], [-1, 90_010], [90_010], [90_008], [2**63 - 1, 2**63 - 1, 90_011]],
)
def test_lengths_that_cannot_be_are_refused(data: Path, lengths: list[int]) -> None:
    assert _ends(np.array(lengths), 90_009) is None
    shards = read_manifest(data)["shards"]
    rewrite(data, {"shards": shards[:1], "documents": 2, "segments": 3, "bytes": 90_009})
    np.save(data / "00000.lengths.npy", np.array(lengths))
    accept(data / "00000.lengths.npy")
    with pytest.raises(DataError, match=r"00000\.lengths\.npy: is damaged: its sum"):
        open_prepared(data)


def test_an_array_asks_for_no_more_memory_than_its_file_has(data: Path) -> None:
    path = data / "00000.lengths.npy"
    with open(path, "wb") as file:
        header = {"descr": "<i8", "fortran_order": False, "shape": (10**13,)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(24))
    rewrite(data, {"shards": read_manifest(data)["shards"][:1]})
    accept(path)
    with pytest.raises(DataError, match=r"00000\.lengths\.npy: is damaged: it is no array"):
        open_prepared(data)


def sparse(folder: Path, num_shards: int, shard_bytes: int) -> None:
    """Prepared data of zeros that take no room on the disk."""
    write([Document(segments=(Segment(modality="bytes", data=np.zeros(1, np.uint8)),), name="zeros")] * 1, folder)
    (shard,) = read_manifest(folder)["shards"]
    blocks = -(-shard_bytes // CHECKED_BYTES)
    assert shard_bytes % CHECKED_BYTES == 0
    shards = []
    np.save(folder / "00000.lengths.npy", np.array([shard_bytes]))
    np.save(folder / "00000.checks.npy", np.full(blocks, zlib.crc32(bytes(CHECKED_BYTES)), np.uint32))
    os.truncate(folder / "00000.ids", shard_bytes)
    for name in ("lengths.npy", "checks.npy"):
        accept(folder / f"00000.{name}")
    files = read_manifest(folder)["shards"][0]["files"]
    files["00000.ids"]["size"] = shard_bytes
    for number in range(num_shards):
        stem = f"{number:05d}"
        for name in files if number else ():
            os.link(folder / name, folder / name.replace("00000", stem))
        entries = {name.replace("00000", stem): about for name, about in files.items()}
        shards.append({**shard, "stem": stem, "bytes": shard_bytes, "files": entries})
    totals = {"documents": num_shards, "segments": num_shards, "bytes": num_shards * shard_bytes}
    rewrite(folder, {"shards": shards, **totals})


MEASURED = """
import resource, sys, time
from byteloom.corpus import split
from byteloom.loader import Loader, LoaderConfig
from byteloom.packing import PackedStream
from byteloom.shards import open_data

corpus = open_data(sys.argv[1])
learned, held_out = split(corpus)
loader = Loader(LoaderConfig(context=1024, batch_size=8), [(PackedStream(learned, 8), 1.0)])
for _ in range(10):
    next(loader)
position = loader.get_state()
for _ in range(2):
    after = next(loader)
resumed = Loader(LoaderConfig(context=1024, batch_size=8), [(PackedStream(learned, 8), 1.0)])
resumed.set_state(position)
next(resumed)
assert (next(resumed)["since"] == after["since"]).all()
print(corpus.num_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_payload(tmp_path: Path) -> None:
    """100 GB in 400 shards, 100 GB in one file as it is, and 100 MB, opened, split, shuffled, read and resumed."""
    sparse(tmp_path / "small", 1, 100 << 20)
    sparse(tmp_path / "large", 400, 250 << 20)
    (tmp_path / "raw.bin").touch()
    os.truncate(tmp_path / "raw.bin", 100 << 30)
    peaks = {}
    for name, size in (("small", 100 << 20), ("large", 100_000 << 20), ("raw.bin", 100 << 30)):
        command = [sys.executable, "-c", MEASURED, str(tmp_path / name)]
        num_bytes, kilobytes = map(int, subprocess.run(command, check=True, capture_output=True).stdout.split())
        assert num_bytes == size
        peaks[name] = kilobytes / 1024
    assert max(peaks.values()) < min(peaks.values()) + 32, peaks
