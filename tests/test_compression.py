"""Archives: back byte for byte, as small as the model says, and refused wherever something is not as it was."""

import dataclasses
import hashlib
import io
import itertools
import json
import os
import random
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import configs
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_cli import byteloom, refused
from test_loop import TEXT
from test_multiscale import ONE, THREE, TWO

import byteloom as package
from byteloom import archives, cli, codecs, compression
from byteloom.archives import ArchiveError, lane_borders, lay_out, segments_of, unpack
from byteloom.codecs import media_from_dict
from byteloom.compression import compress, decompress, lanes_of
from byteloom.documents import Document, Segment, to_ids
from byteloom.evaluation import evaluate
from byteloom.layers.modalities import EmbedderConfig
from byteloom.losses import bits_per_byte
from byteloom.models.config import ModalityConfig, ModelConfig
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import save

WIDE = dataclasses.replace(TWO, context=64, init_std=0.15)
NOISE = random.Random(0).randbytes(3000)


def text_segment(data: bytes) -> Segment:
    return Segment(modality="text", data=np.frombuffer(data, np.uint8))


def trained(config: ModelConfig = WIDE, steps: int = 100) -> Multiscale:
    """A model that knows a little of TEXT."""
    torch.manual_seed(0)
    model = Multiscale(config)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for step in range(steps):
        starts = torch.randint(0, len(TEXT) - 60, (4,), generator=torch.Generator().manual_seed(step)).tolist()
        documents = (Document(segments=(text_segment(TEXT[start : start + 60]),)) for start in starts)
        ids = torch.tensor(np.stack([to_ids(document, codecs.MARKS, 4)[:-1] for document in documents]).astype(int))
        loss = model.loss(ids)
        (loss.nats / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Multiscale:
    return trained()


def broken() -> Multiscale:
    """A model whose logits are no numbers."""
    model = Multiscale(WIDE)
    torch.nn.init.constant_(model.starts[0], float("nan"))
    return model


def resealed(archive: bytes) -> bytes:
    """An archive whose checksum fits what follows it, as one would forge it."""
    head, body = archive[:6], archive[10:]
    return head + struct.pack("<I", zlib.crc32(body)) + body


@pytest.mark.parametrize("config", [ONE, TWO, THREE], ids=["one", "two", "three"])
def test_files_of_every_size_come_back(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = Multiscale(config)
    for size in (0, 1, 2, 31, 32, 33, 150):
        data = TEXT[:size]
        assert decompress(model, compress(model, data)) == data
        assert decompress(model, compress(model, data, lanes=5)) == data


@settings(max_examples=15, deadline=None)
@given(config=configs.models(), data=st.binary(min_size=1, max_size=80), lanes=st.integers(1, 4))
def test_any_model_brings_any_bytes_back(config: ModelConfig, data: bytes, lanes: int) -> None:
    model = configs.build(config, 0)
    if config.embedder.streams:
        with pytest.raises(ValueError, match="side by side"):
            compress(model, data)
        return
    with pytest.MonkeyPatch.context() as patched:  # what is coded, not what is stored because it is so short
        patched.setattr(compression, "pays", lambda words, data: True)
        archive = compress(model, data, lanes=lanes)
    assert not unpack(archive)[0].stored
    assert decompress(model, archive) == data


def test_a_model_that_knows_only_bytes(model: Multiscale) -> None:
    small = Multiscale(dataclasses.replace(TWO, vocab_size=256))
    data = b"ab" * 40
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compression, "pays", lambda words, data: True)
        assert decompress(small, compress(small, data, lanes=3)) == data
    with pytest.raises(ValueError, match="256 bytes"):
        compress(Multiscale(dataclasses.replace(TWO, vocab_size=100)), data)


def test_the_size_is_what_the_model_says(model: Multiscale) -> None:
    """Within half a percent of the nats that `forward` gives for the same lanes, and a header below 100 bytes."""
    data = TEXT[:6000]
    archive = compress(model, data, lanes=120)  # lanes that fit in the context
    header, words = unpack(archive)
    assert not header.stored and len(archive) - len(words) < 100
    lanes = lanes_of(model, (text_segment(data),), 120)
    ids, coded = lanes.stretch(0, lanes.length)
    assert lanes.length <= model.config.context and coded.sum() == len(data)
    ids[coded] = np.frombuffer(data, np.uint8)
    with torch.inference_mode():
        nats = model.nats(torch.from_numpy(ids.astype(np.int64)))[torch.from_numpy(coded)].double().sum().item()
    assert 8 * len(words) / len(data) == pytest.approx(bits_per_byte(nats, len(data)), rel=0.005)
    assert len(words) < len(data) / 2


def test_a_lane_that_outgrows_the_context_goes_on_with_its_newest_half(model: Multiscale) -> None:
    """As sliding windows that advance by half do, which is worth more than to begin anew."""
    data = TEXT[:700]
    archive = compress(model, data, lanes=1)
    header, words = unpack(archive)
    bits, values = 0.0, np.frombuffer(data, np.uint8)

    def exchange(places: np.ndarray, counts: np.ndarray) -> np.ndarray:
        nonlocal bits
        bits += float(-np.log2(counts[0, values[places[0]]] / counts.sum()))
        return values[places]

    with compression.as_recorded(header):
        compression.run(model, header, lanes_of(model, (text_segment(data),), 1), exchange)
    places = evaluate(model, data, method="sliding").by_position_in_patch
    assert bits / len(data) == pytest.approx(sum(filter(None, places)) / len(places), rel=0.005)
    assert bits <= 8 * len(words) <= bits * 1.001 + 64
    assert decompress(model, archive) == data
    assert len(archive) < len(compress(model, data, lanes=50))


def test_what_does_not_shrink_is_stored(model: Multiscale) -> None:
    archive = compress(model, NOISE)
    assert unpack(archive)[0].stored and len(archive) < len(NOISE) + 100
    assert decompress(model, archive) == NOISE
    assert len(compress(model, b"")) < 100


def test_what_is_stored_needs_no_device(model: Multiscale, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(model, tmp_path / "model")
    header, content = unpack(compress(model, NOISE))
    (tmp_path / "a.bloom").write_bytes(archives.pack(dataclasses.replace(header, device="cuda"), content))
    cli.main(["decompress", str(tmp_path / "model"), str(tmp_path / "a.bloom")])
    assert (tmp_path / "a").read_bytes() == NOISE and "3,000 bytes" in capsys.readouterr().out


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"threads": 2}, {"lanes": 7}], ids=str)
def test_options_are_recorded_and_used_again(model: Multiscale, options: dict) -> None:
    threads = torch.get_num_threads()
    archive = compress(model, TEXT[:200], **options)
    header, _ = unpack(archive)
    assert {name: getattr(header, name) for name in options} == options
    assert decompress(model, archive) == TEXT[:200]
    assert torch.get_num_threads() == threads


def test_ambient_settings_of_torch_do_not_matter(model: Multiscale) -> None:
    archive = compress(model, TEXT[:900])
    threads, products = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(3)
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            assert decompress(model.train(), archive) == TEXT[:900]
        assert torch.get_num_threads() == 3 and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(products)


def test_another_process_with_other_threads_opens_it(model: Multiscale, tmp_path: Path) -> None:
    save(model, tmp_path / "model")
    (tmp_path / "a.bloom").write_bytes(compress(model, TEXT[:1500]))
    code = "import sys, byteloom; d = byteloom.decompress(byteloom.load(sys.argv[1]), open(sys.argv[2], 'rb').read())"
    for threads in ("2",):
        done = subprocess.run(
            [sys.executable, "-c", code + "; sys.stdout.buffer.write(d)", tmp_path / "model", tmp_path / "a.bloom"],
            capture_output=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        )
        assert done.stdout == TEXT[:1500]


def test_other_numbers_are_refused_before_and_other_content_after(
    model: Multiscale, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = compress(model, TEXT[:900])
    with monkeypatch.context() as patched:
        exact = compression.counts_of
        patched.setattr(compression, "counts_of", lambda logits: exact(logits * (1 + 1e-5)))
        with pytest.raises(ArchiveError, match="other numbers here"):
            decompress(model, archive)
        probed = compression.probe(model, unpack(archive)[0], 10)
        patched.setattr(compression, "probe", lambda *_: unpack(archive)[0].probe)
        with pytest.raises(ArchiveError, match="not the file that went in"):
            decompress(model, archive)
    assert len(probed) == 8 and probed != unpack(archive)[0].probe


def test_another_model_is_refused_by_its_hash(model: Multiscale) -> None:
    for data in (TEXT[:900], NOISE):  # what is stored too
        archive = compress(model, data)
        other = Multiscale(model.config)
        other.load_state_dict(model.state_dict())
        assert decompress(other, archive) == data
        with torch.no_grad():
            other.starts[0][0] += 1e-6
        with pytest.raises(ArchiveError, match=rf"made by model {unpack(archive)[0].model.hex()}"):
            decompress(other, archive)


def test_every_flipped_bit_and_every_cut_is_found(model: Multiscale) -> None:
    archive = compress(model, TEXT[:600])
    for place in range(len(archive)):
        for bit in range(8):
            damaged = bytearray(archive)
            damaged[place] ^= 1 << bit
            with pytest.raises(ArchiveError):
                unpack(bytes(damaged))
        with pytest.raises(ArchiveError):
            unpack(archive[:place])
    with pytest.raises(ArchiveError, match="damaged"):
        unpack(archive + b"\0")


def test_forged_archives_never_give_wrong_bytes(model: Multiscale, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a checksum that fits, each byte changed: an error in one line, or the same file."""
    monkeypatch.setattr(compression, "MAX_BYTES", 1 << 8)  # a forged size is refused, and a small one soon decoded
    data = TEXT[:150]
    archive = compress(model, data)
    refusals = set()
    threads = archives.HEAD.size + archives.FIXED.size - 2  # a hundred of them would take their time
    for place in {*range(archives.HEAD.size + 16, len(archive), 3)} - {threads}:
        forged = bytearray(archive)
        forged[place] ^= random.Random(place).randrange(1, 256)
        try:
            assert decompress(model, resealed(bytes(forged))) == data
        except ArchiveError as error:
            refusals.add(str(error))
    assert len(refusals) >= 3 and not any("\n" in line for line in refusals)


def test_lengths_are_bounded_before_anything_is_made(model: Multiscale, monkeypatch: pytest.MonkeyPatch) -> None:
    header, words = unpack(compress(model, TEXT[:600]))
    for layout in (
        ((1, 260, b"", 1 << 34),),
        ((1 << 34, 260, b"", 1),),
        ((1 << 20, 260, b"", 1),),
        ((1, 260, b"", archives.MAX_BYTES),),
    ):
        with pytest.raises(ArchiveError, match="more than it can hold"):
            unpack(archives.pack(dataclasses.replace(header, layout=layout), words))
    for change in ({"lanes": 0}, {"lanes": 601}, {"threads": 0}, {"context": 0}, {"stored": True, "lanes": 0}):
        change["layout"] = () if "stored" in change else header.layout
        with pytest.raises(ArchiveError, match="forged"):
            unpack(archives.pack(dataclasses.replace(header, **change), words))
    crowded = (((1 << 18) - 1, 260, bytes(16), 1), (1, 260, b"", 600))  # a lane has few bytes, and many ids
    with monkeypatch.context() as patched:
        patched.setattr(compression, "probe", lambda *_: pytest.fail("the model was asked"))
        with pytest.raises(ArchiveError, match=r"cannot be opened: 20,000 lanes with a context of 64 .* fewer lanes"):
            decompress(model, archives.pack(dataclasses.replace(header, layout=crowded, lanes=20000), words))
    with pytest.raises(ArchiveError, match="damaged"):
        unpack(archives.pack(dataclasses.replace(header, layout=((1, 260, bytes(17), 600),)), words))
    with pytest.raises(ArchiveError, match="a context of 1000"):
        decompress(model, archives.pack(dataclasses.replace(header, context=1000), words))
    with pytest.raises(ArchiveError, match="mark 300"):
        decompress(model, archives.pack(dataclasses.replace(header, layout=((1, 300, b"", 600),)), words))
    monster = struct.pack(">HHB", 999, 999, 3 << 4)
    with pytest.raises(ArchiveError, match="not as many as its header says"):
        decompress(model, archives.pack(dataclasses.replace(header, layout=((1, 261, monster, 600),)), words))
    with pytest.raises(ArchiveError, match="not an archive"):
        unpack(b"PK\x03\x04 something else")
    with pytest.raises(ArchiveError, match="format 9"):
        unpack(archives.MAGIC + b"\x09" + bytes(100))


@pytest.mark.parametrize("options", [{"lanes": 0}, {"lanes": 1 << 16}, {"threads": 0}, {"threads": 256}], ids=str)
def test_senseless_options_are_refused(model: Multiscale, options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        compress(model, b"abc", **options)


def test_lanes_are_bounded_by_what_they_see(model: Multiscale, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_PLACES", 1000)
    with pytest.raises(ValueError, match="take fewer lanes"):
        compress(model, TEXT[:5000], lanes=30)


def test_a_broken_model_is_named() -> None:
    with pytest.raises(ValueError, match="no numbers"):
        compress(broken(), b"abc")


@settings(max_examples=60)
@given(
    parts=st.lists(st.tuples(st.sampled_from(["text", "image"]), st.integers(1, 70)), min_size=1, max_size=6),
    lanes=st.integers(1, 9),
    span=st.integers(1, 7),
    vocab_size=st.sampled_from([256, 257, 258, 262, 310, 320]),
    step=st.integers(1, 50),
)
def test_each_lane_is_a_document_of_its_own(
    parts: list[tuple[str, int]], lanes: int, span: int, vocab_size: int, step: int
) -> None:
    """As `to_ids` lays it out, in whatever stretches it is made."""
    headers = {"text": b"", "image": b"\0\x01\x23\xff"}
    segments = [Segment(modality=name, data=np.zeros(size, np.uint8), header=headers[name]) for name, size in parts]
    starts = np.cumsum([0, *(size for _, size in parts)])
    lanes = min(lanes, int(starts[-1]))
    found = lay_out(segments, codecs.MARKS, lanes, 100, span, vocab_size)
    stretches = [found.stretch(start, min(start + step, found.length)) for start in range(0, found.length, step)]
    ids, coded = (np.concatenate(both, axis=1) for both in zip(*stretches))
    for lane, (begin, end) in enumerate(itertools.pairwise(lane_borders(starts, lanes).tolist())):
        inside = [
            dataclasses.replace(part, data=part.data[max(begin - start, 0) : max(end - start, 0)])
            for part, start in zip(segments, starts.tolist())
        ]
        document = Document(segments=tuple(part for part in inside if len(part.data)))
        row = to_ids(document, codecs.MARKS, span)[:-1]
        row = row[row < vocab_size]
        assert np.array_equal(ids[lane, : len(row)], row) and not ids[lane, len(row) :].any()
        assert np.array_equal(coded[lane], np.pad(row < 256, (0, found.length - len(row))))


def test_what_is_only_claimed_takes_no_memory() -> None:
    vast = Segment(modality="text", data=np.broadcast_to(np.uint8(0), 1 << 28))
    tracemalloc.start()
    found = lay_out([vast], codecs.MARKS, 1, 4096, 8, 320)
    ids, coded = found.stretch(1 << 20, (1 << 20) + 100)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1 << 24 and found.length == (1 << 28) + 8
    assert coded.all() and not ids.any()


def test_borders_of_lanes_go_to_segments_that_are_near() -> None:
    pictures = np.arange(11) * 100
    assert lane_borders(pictures, 3).tolist() == [0, 300, 700, 1000]
    assert lane_borders(np.array([0, 1000]), 3).tolist() == [0, 333, 666, 1000]
    assert lane_borders(np.array([0, 44, 1000]), 2).tolist() == [0, 44 + 432, 1000]
    for seed in range(50):
        rng = np.random.default_rng(seed)
        starts = np.unique([0, *rng.integers(1, 10 ** rng.integers(2, 6), 40)])
        borders = lane_borders(starts, 7)
        assert borders[0] == 0 and borders[-1] == starts[-1] and (np.diff(borders) > 0).all()


def test_media_are_their_samples_only_where_the_file_comes_back(tmp_path: Path) -> None:
    """16-bit PCM and bare or PPM pixels are; JPEG, PNG and what is damaged are bytes."""
    rng = np.random.default_rng(0)
    sound = (np.cumsum(rng.standard_normal(800)) * 200).astype(np.int16)
    pixels = Image.fromarray(rng.integers(0, 256, (8, 12, 3), np.uint8))
    soundfile.write(tmp_path / "a.wav", sound, 8000)
    (tmp_path / "tail.wav").write_bytes((tmp_path / "a.wav").read_bytes() + b"LIST\4\0\0\0abcd")
    pixels.save(tmp_path / "a.ppm")
    (tmp_path / "tiles.bin").write_bytes(rng.integers(0, 256, 5 * 8 * 8 * 3, np.uint8).tobytes())
    pixels.save(tmp_path / "a.png")
    (tmp_path / "cut.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:500])
    (tmp_path / "a.txt").write_bytes(TEXT[:100])
    media = media_from_dict({"image": {"shape": [8, 8, 3]}})
    found = {}
    for path in sorted(tmp_path.iterdir()):
        data = path.read_bytes()
        segments = segments_of(path, data, media)
        assert not segments or b"".join(map(archives.bare, segments)) == data
        found[path.name] = [segment.modality for segment in segments]
    assert found == {
        "a.png": [],
        "a.ppm": ["bytes", "image"],
        "a.txt": [],
        "a.wav": ["bytes", "audio"],
        "cut.wav": [],
        "tail.wav": ["bytes", "audio", "bytes"],
        "tiles.bin": ["image"] * 5,
    }


def test_samples_are_coded_as_samples_where_that_is_cheaper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8))
    pixels.save(tmp_path / "a.ppm")
    data = (tmp_path / "a.ppm").read_bytes()
    segments = segments_of(tmp_path / "a.ppm", data)
    modalities = (ModalityConfig(name="bytes", mark=259), ModalityConfig(name="image", mark=261))
    config = dataclasses.replace(WIDE, modalities=modalities, embedder=EmbedderConfig(kind="universal"))
    torch.manual_seed(0)
    model = Multiscale(config)
    monkeypatch.setattr(compression, "pays", lambda words, data: True)
    monkeypatch.setattr(compression, "sampled_nats", lambda model, sample: float(not sample.header))
    archive = compress(model, data, segments=segments, lanes=3)
    header, words = unpack(archive)
    assert [(count, mark) for count, mark, _, _ in header.layout] == [(1, 259), (1, 261)]
    assert len(archive) - len(words) < 100
    assert decompress(model, archive) == data
    empty, tokens = text_segment(b""), Segment(modality="text", data=np.zeros(3, np.uint16))
    monkeypatch.setattr(archives, "MAX_SEGMENTS", 3)
    for wrong, said in (
        (segments[:1], "not the data"),
        ((*segments, empty), "has no bytes"),
        ((*segments, tokens), "has no bytes"),
        ((dataclasses.replace(segments[0], modality="smell"), segments[1]), "'smell' is unknown"),
        (segments * 2, "4 segments are more"),
    ):
        with pytest.raises(ValueError, match=said):
            compress(model, data, segments=wrong)


def test_the_mark_is_that_of_the_content_unless_another_saves_much(
    model: Multiscale, monkeypatch: pytest.MonkeyPatch
) -> None:
    latin = TEXT[:900].replace(b"easy", "schön".encode("latin-1"))
    costs: dict[str, float] = {}
    monkeypatch.setattr(compression, "sampled_nats", lambda model, sample: costs.get(sample.modality, 1.0))
    for data, cost, chosen in (
        (TEXT[:900], {}, "text"),
        (latin, {}, "bytes"),
        (latin, {"audio": 0.99}, "bytes"),
        (latin, {"audio": 0.9, "text": 0.95}, "audio"),
    ):
        costs = cost
        assert [segment.modality for segment in compression.cheapest(model, data, ())] == [chosen]


def test_names_at_the_top(model: Multiscale) -> None:
    assert package.decompress(model, package.compress(model, b"abc" * 50)) == b"abc" * 50


def test_progress_counts_every_byte(model: Multiscale) -> None:
    counts: list[int] = []
    archive = compress(model, TEXT[:700], lanes=3, progress=counts.append)
    assert sum(counts) == 700 and max(counts) == 3
    counts.clear()
    decompress(model, archive, progress=counts.append)
    assert sum(counts) == 700


# -- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(model: Multiscale, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("commands")
    save(model, path / "model", {"modalities": ["text"]})
    (path / "a.txt").write_bytes(TEXT[:1000])
    return path


def test_the_commands_as_a_user_types_them(folder: Path, tmp_path: Path) -> None:
    source, archive, back = tmp_path / "a[" / "old].txt", tmp_path / "a.bloom", tmp_path / "b.txt"
    source.parent.mkdir()
    source.write_bytes(TEXT[:1000])
    out, err = byteloom("compress", folder / "model", source, "-o", archive, "--json", tmp_path / "report.json")
    assert "a[/old].txt" in "".join(out.split()), "no markup of rich"
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["bytes"] == 1000 and report["archive_bytes"] == archive.stat().st_size
    assert report["header_bytes"] < 100 and set(report["baselines"]) == {"gzip", "bzip2", "xz", "zstd"}
    assert report["bits_per_byte"] == 8 * archive.stat().st_size / 1000 and not err
    out, _ = byteloom("decompress", folder / "model", archive, "-o", back)
    assert "1,000 bytes" in out and back.read_bytes() == TEXT[:1000]


def test_standard_input_and_output(folder: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary) -> None:
    from byteloom.commands import compress as forward
    from byteloom.commands import decompress as backward

    class Source:
        def __init__(self, content: bytes):
            self.buffer = io.BytesIO(content)

    monkeypatch.setattr(sys, "stdin", Source(TEXT[:300]))
    forward.main([str(folder / "model"), "-", "-o", "-", "--no-baseline"])
    archive = capfdbinary.readouterr().out
    monkeypatch.setattr(sys, "stdin", Source(archive))
    backward.main([str(folder / "model"), "-", "-o", "-"])
    assert capfdbinary.readouterr().out == TEXT[:300]


def test_a_file_that_its_reader_cuts_off_is_an_error(folder: Path, model: Multiscale, tmp_path: Path) -> None:
    """Where text that a reader has seen enough of is none (`test_a_closed_pipe_ends_quietly`)."""
    data = NOISE * 100
    header = dataclasses.replace(unpack(compress(model, NOISE))[0], content=hashlib.sha256(data).digest()[:16])
    (tmp_path / "a.bloom").write_bytes(archives.pack(header, data))
    command = f"'{sys.executable}' -m byteloom decompress '{folder}/model' '{tmp_path}/a.bloom' -o - | head -c 5"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True)
    assert done.returncode == 1 and done.stderr == b"byteloom: stdout: the reader stopped before all was written\n"


def test_every_mistake_is_one_line_and_leaves_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, archive, out = folder / "model", tmp_path / "a.bloom", tmp_path / "out.txt"
    monkeypatch.setattr("byteloom.commands.decompress.can_compile", lambda device: False)
    archive.write_bytes(compress(trained(steps=0), TEXT[:300]))
    cases = [
        (1, "made by model", ["decompress", model, tmp_path / "other.bloom", "-o", out]),
        (1, "there already", ["compress", model, folder / "a.txt", "-o", archive]),
        (1, "No such file", ["compress", model, tmp_path / "none", "-o", out]),
        (1, "is a folder", ["compress", model, tmp_path, "-o", out]),
        (1, "not an archive", ["decompress", model, folder / "a.txt", "-o", out]),
        (1, "damaged", ["decompress", model, tmp_path / "cut.bloom", "-o", out]),
        (2, "does not end in .bloom", ["decompress", model, folder / "a.txt"]),
        (2, "stdin has no name", ["compress", model, "-"]),
        (2, "lanes is 0", ["compress", model, folder / "a.txt", "-o", out, "--lanes", 0]),
        (2, "cannot both", ["compress", model, folder / "a.txt", "-o", "-", "--json", "-"]),
        (1, "config.json", ["compress", tmp_path / "no-model", folder / "a.txt", "-o", out]),
        (1, "no numbers", ["compress", tmp_path / "broken", folder / "a.txt", "-o", out]),
        (1, "--compile needs g++", ["decompress", model, tmp_path / "compiled.bloom", "-o", out]),
    ]
    header, _ = unpack(compress(Multiscale(WIDE), b"a" * 400))
    header = dataclasses.replace(header, stored=False, layout=((1, 260, b"", 400),))
    (tmp_path / "other.bloom").write_bytes(archives.pack(header, bytes(80)))
    (tmp_path / "compiled.bloom").write_bytes(archives.pack(dataclasses.replace(header, compiled=True), bytes(80)))
    (tmp_path / "cut.bloom").write_bytes(compress(Multiscale(WIDE), TEXT[:300])[:-3])
    save(broken(), tmp_path / "broken")
    before = sorted(tmp_path.iterdir())
    for code, said, arguments in cases:
        got, err = refused(capsys, *arguments)
        assert (got, said in err) == (code, True), err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.benchmark
def test_compiled_steps_come_back(model: Multiscale) -> None:
    archive = compress(model, TEXT[:3000], lanes=16, compiled=True)
    assert unpack(archive)[0].compiled and decompress(model, archive) == TEXT[:3000]
