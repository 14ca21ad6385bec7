"""Comparison: the same items for everybody, codecs that lose nothing, and numbers that add up."""

import io
import json
import lzma
import math
import os
import resource
from pathlib import Path

import configs
import numpy as np
import pytest
import soundfile
from PIL import Image
from test_corpus import folder_of, text
from test_evaluation import FUSED, shown, side_by_side
from test_multiscale import TWO

from byteloom import cli
from byteloom.codecs import audio, image, video
from byteloom.comparison import (
    ALONE,
    CODECS,
    Entry,
    Measured,
    columns,
    compare,
    items_of_segments,
    rows_first,
    valid_utf8,
    written_size,
)
from byteloom.corpus import MAX_OPEN_FILES, Corpus
from byteloom.documents import DataError, Document, Segment
from byteloom.evaluation import baselines, evaluate
from byteloom.items import item_counts, standard_error
from byteloom.models.config import ModelConfig
from byteloom.models.store import save

WORDS = b"some words and other words, and the same words again. " * 9


def pixels(seed: int, *shape: int) -> np.ndarray:
    """A smooth picture or clip with a little noise."""
    ramp = np.add.outer(np.arange(shape[-3]) * 5, np.arange(shape[-2]) * 3)[..., None]
    return (ramp + np.random.default_rng(seed).integers(0, 9, shape)).astype(np.uint8)


def picture(seed: int, channels: int = 3, scan: str = "patch") -> Segment:
    return image.from_array(pixels(seed, 6, 8, channels), image.ImageConfig(scan=scan))


def wave(coding: str, channels: int = 1) -> Segment:
    samples = np.random.default_rng(0).normal(0, 0.2, (500, channels)).clip(-1, 1).cumsum(0) / 30
    return audio.from_array(samples, 8000, audio.AudioConfig(coding=coding))


def measured(corpus: Corpus, seed: int = 0, config: ModelConfig = TWO) -> Measured:
    model = configs.build(config, seed)
    return Measured(config, corpus, evaluate(model, corpus, context=64), {"parameters": 1000})


def by_name(entries: tuple[Entry, ...]) -> dict[str, Entry]:
    return {entry.name: entry for entry in entries}


# -- codecs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["PNG", "WebP lossless", "JPEG XL"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pictures_come_back_from_each_codec(name: str, channels: int) -> None:
    if name == "JPEG XL":
        pytest.importorskip("pillow_jxl")
    segment = picture(0, channels)
    content = CODECS["image"][name](segment)
    mode = ["", "L", "LA", "RGB", "RGBA"][channels]
    found = np.asarray(Image.open(io.BytesIO(content)).convert(mode)).reshape(6, 8, channels)
    assert np.array_equal(found, image.to_array(segment))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("coding", ["pcm8", "pcm16", "pcm24"])
def test_sounds_come_back_from_flac(coding: str, channels: int, tmp_path: Path) -> None:
    segment = wave(coding, channels)
    (tmp_path / "a.flac").write_bytes(CODECS["audio"]["FLAC"](segment))
    assert audio.encode(tmp_path / "a.flac")[0] == segment


def test_every_code_of_mulaw_comes_back_from_flac_in_the_order_of_loudness() -> None:
    codes = np.random.default_rng(0).permutation(256).astype(np.uint8)
    content = CODECS["audio"]["FLAC"](Segment(modality="audio", data=codes, header=audio.pack_header(8000, 1, "mulaw")))
    assert soundfile.info(io.BytesIO(content)).subtype == "PCM_S8"
    ranks = soundfile.read(io.BytesIO(content), dtype="int16")[0] >> 8
    assert len(set(ranks.tolist())) == 256
    assert (np.diff(audio.from_mulaw(codes[np.argsort(ranks)]).astype(int)) >= 0).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(4, 6, 8), (3, 5, 7)])
def test_clips_come_back_from_ffv1(channels: int, shape: tuple[int, int, int], tmp_path: Path) -> None:
    segment = video.from_array(pixels(0, *shape, channels), 12)
    (tmp_path / "a.nut").write_bytes(CODECS["video"]["FFV1"](segment))
    assert video.encode(tmp_path / "a.nut")[0] == segment


def test_what_a_codec_cannot_hold_it_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    flac = CODECS["audio"]["FLAC"]
    assert written_size(flac, wave("float32")) is None
    assert written_size(flac, wave("pcm16", 9)) is None
    assert written_size(flac, wave("pcm16")) == len(flac(wave("pcm16")))
    wide = image.from_array(np.zeros((1, 20000), np.uint8))
    assert written_size(CODECS["image"]["WebP lossless"], wide) is None

    def missing(segment: Segment) -> bytes:
        raise ModuleNotFoundError("No module named 'codec'")

    assert written_size(missing, wide) is None
    both = Corpus.from_documents([Document(segments=(part,), name="x") for part in (wide, picture(0))])
    assert {"PNG"} <= set(by_name(compare({"m": measured(both)}).entries))
    assert "WebP lossless" not in by_name(compare({"m": measured(both)}).entries)


def test_compressors_get_rows() -> None:
    for scan in ("patch", "raster"):
        assert rows_first(picture(0, scan=scan)).data.tobytes() == pixels(0, 6, 8, 3).tobytes()
    clip = video.from_array(pixels(0, 2, 6, 8, 3), 5)
    assert rows_first(clip).data.tobytes() == pixels(0, 2, 6, 8, 3).tobytes()
    assert rows_first(wave("pcm16")) == wave("pcm16")


def test_items_are_compressed_as_the_baselines_compress() -> None:
    random = np.random.default_rng(0)
    for data in (WORDS, WORDS * 50, b"x", random.integers(0, 256, 5000, np.uint8).tobytes()):
        found = {name: len(compress(data)) for name, compress in ALONE.items()}
        assert found["xz"] == len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
        expected = {name: sums["bytes"] for name, sums in baselines(data).items()}
        # One that knows the size beforehand may choose better, and writes the size.
        assert abs(found.pop("zstd") - expected.pop("zstd")) < 20 and found == expected


# -- the comparison ----------------------------------------------------------------------------------------------------


def test_segments_belong_to_items_as_evaluation_counts_them() -> None:
    page = Document(segments=(*text(b"a page", name="").segments, shown(0), shown(1)), name="page")
    album = Document(segments=(shown(0), shown(1), shown(2)), name="album")
    empty = Document(segments=(), name="empty")
    corpus = Corpus.from_documents([page, empty, album, text(b"words", name="w")])
    items = items_of_segments(corpus, item_counts(corpus, fused=False))
    assert items.tolist() == [0, 0, 0, 2, 3, 4, 5]
    found = np.bincount(items, [len(part.data) for i in range(len(corpus)) for part in corpus[i].segments])
    assert found.tolist() == evaluate(configs.build(TWO), corpus).by_item[:, 1].tolist()


def test_models_and_compressors_stand_side_by_side() -> None:
    corpus = Corpus.from_documents([text(WORDS, name="a"), text(WORDS[::-1], name="b"), text(b"short", name="c")])
    models = {name: measured(corpus, seed) for seed, name in enumerate(("first", "second"))}
    found = compare(models)
    entries = by_name(found.entries)
    assert set(entries) == {"first", "second", *ALONE}
    bits = [entry.bits_per_byte for entry in found.entries]
    assert bits == sorted(bits), "best first"
    for name, one in models.items():
        assert entries[name].bits_per_byte == one.found.bits_per_byte and entries[name].details["parameters"] == 1000
        assert found.error(entries[name]) == pytest.approx(one.found.standard_error)
        assert entries[name].details["by_position_in_patch"] == one.found.by_position_in_patch
    for name, sums in baselines(corpus).items():
        assert entries[name].bits_per_byte == sums["bits_per_byte"] and entries[name].kind == "compressor"
        assert found.by_file(entries[name])[2] == 8 * len(ALONE[name](b"short")) / 5
    assert found.file_sizes.tolist() == [len(WORDS), len(WORDS), 5]
    weighted = np.dot(found.by_file(entries["first"]), found.file_sizes) / found.file_sizes.sum()
    assert weighted == pytest.approx(entries["first"].bits_per_byte)
    assert set(by_name(compare(models, others=False).entries)) == {"first", "second"}


def test_the_error_of_a_difference_is_taken_item_by_item() -> None:
    corpus = Corpus.from_documents([text(WORDS[:n], name=f"{n}") for n in (40, 90, 200, 300)])
    found = compare({"a": measured(corpus, 0), "b": measured(corpus, 1)}, others=False)
    best, other = found.entries
    distance = found.distance(other)
    assert distance["more_than_best"] == pytest.approx(other.bits_per_byte - best.bits_per_byte)
    pairs = np.stack([(other.bits - best.bits) * math.log(2), found.bytes], axis=1)
    assert distance["standard_error_of_more"] == pytest.approx(standard_error(pairs))
    assert found.distance(best) == {"more_than_best": 0, "standard_error_of_more": 0}


def test_codecs_stand_where_their_modality_does() -> None:
    album = Document(segments=(picture(0), picture(1)), name="album.bin")
    page = Document(segments=(*text(WORDS, name="").segments, picture(2)), name="page")
    corpus = Corpus.from_documents([text(WORDS, name="a"), album, page])
    found = compare({"model": measured(corpus)})
    png = by_name(found.entries)["PNG"]
    sizes = [len(CODECS["image"]["PNG"](picture(i))) for i in range(3)]
    assert png.kind == "codec" and png.bits_per_byte is None
    assert png.by_modality == {"image": 8 * sum(sizes) / (3 * 144)}
    assert png.bits[1:3].tolist() == [8 * sizes[0], 8 * sizes[1]], "each picture of a file of many"
    assert np.isnan(png.bits[[0, 3]]).all(), "no text, and no page that is more than a picture"
    assert found.by_file(png) == [None, pytest.approx(8 * (sizes[0] + sizes[1]) / 288), None]
    assert [entry.bits_per_byte is None for entry in found.entries] == [False] * 5 + [True] * (len(found.entries) - 5)
    xz = by_name(found.entries)["xz"]
    rows = b"".join(pixels(i, 6, 8, 3).tobytes() for i in range(3))
    assert xz.by_modality["image"] == baselines(rows)["xz"]["bits_per_byte"]
    assert xz.bits_per_byte == pytest.approx(baselines(WORDS + rows[:288] + WORDS + rows[288:])["xz"]["bits_per_byte"])
    heads, rows = columns(found)
    assert heads[3:] == ["text", "image", "parameters"] and len(rows) == len(found.entries)
    alone = compare({"model": measured(Corpus.from_documents([album]))})
    assert by_name(alone.entries)["PNG"].bits_per_byte == 8 * (sizes[0] + sizes[1]) / 288


def test_a_fused_model_is_compared_on_what_it_predicts() -> None:
    corpus = Corpus.from_documents([side_by_side(9, "a"), side_by_side(5, "b")])
    found = compare({"fused": measured(corpus, config=FUSED)})
    assert found.bytes.tolist() == [27, 15] and found.files == ("a", "b")
    xz = by_name(found.entries)["xz"]
    assert xz.bits.tolist() == [8 * len(ALONE["xz"](b"w" * 2 * n + b"s" * n)) for n in (9, 5)]


@pytest.mark.parametrize(("coding", "size"), [("pcm16", "1,000"), ("pcm8", "500")])
def test_different_bytes_are_not_compared(coding: str, size: str) -> None:
    """Nor where they are as many; but it is all the same in which order a model reads a picture."""
    one = Corpus.from_documents([Document(segments=(wave("mulaw"),), name="a.wav")])
    other = Corpus.from_documents([Document(segments=(wave(coding),), name="a.wav")])
    with pytest.raises(DataError, match=rf"x and y read the data as different bytes \(500 and {size}\)"):
        compare({"x": measured(one), "y": measured(other)})
    scans = {
        scan: measured(Corpus.from_documents([Document(segments=(picture(0, scan=scan),))]))
        for scan in ("patch", "raster")
    }
    assert len(compare(scans, others=False).entries) == 2


def test_more_files_than_may_be_open_are_compared(tmp_path: Path) -> None:
    data = folder_of(tmp_path, {f"{i:03}.txt": b"file %d" % i for i in range(MAX_OPEN_FILES + 60)})
    one = measured(Corpus.from_paths(data))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, hard))
    try:
        found = compare({"m": one})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(found.files) == MAX_OPEN_FILES + 60


def test_all_is_json_and_without_gaps() -> None:
    corpus = Corpus.from_documents([text(WORDS, name="a"), Document(segments=(picture(0),), name="p.png")])
    report = json.loads(json.dumps(compare({"model": measured(corpus)}).to_json(), allow_nan=False))
    assert report["files"] == [{"name": "a", "bytes": len(WORDS)}, {"name": "p.png", "bytes": 144}]
    assert report["bytes"] == len(WORDS) + 144 and report["items"] == 2
    keys = {"name", "kind", "bits_per_byte", "standard_error", "more_than_best", "by_modality", "by_file"}
    assert all(keys <= set(entry) for entry in report["entries"])
    (model,) = (entry for entry in report["entries"] if entry["kind"] == "model")
    assert model["method"] == "basic" and model["context"] == 64 and model["dynamic"] is None


def test_the_share_of_valid_utf8() -> None:
    assert valid_utf8(["aä漢😀".encode()]) == 1
    assert valid_utf8([b"abc\xff", b"abcd"]) == 7 / 8
    assert valid_utf8([b"ab\xc3", b"a"]) == 1, "a cut character says nothing"
    assert valid_utf8([b"\xc3a\xe6\xbcb"]) == 2 / 5
    assert valid_utf8([b"\x80" * 5]) == 0
    assert valid_utf8([b"", b""]) is None


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    for name, coding in (("one", "auto"), ("two", "auto"), ("narrow", "mulaw")):
        run = {"modalities": ["text"], "media": {"audio": {"coding": coding}}}
        save(configs.build(TWO, seed=len(name)), tmp_path / "runs" / name, run)
    return [str(tmp_path / "runs" / name) for name in ("one", "two", "narrow")]


def test_the_command_compares(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder_of(tmp_path / "in", {"a.txt": WORDS, "b.txt": WORDS[:99], "empty.txt": b""})
    Image.fromarray(pixels(0, 6, 8, 3)).save(data / "c.png")
    page = tmp_path / "report.html"
    command = ["compare", *runs[:2], "--data", str(data), "--out", str(page)]
    cli.main([*command, "--samples", "2", "--sample-bytes", "8", "--json", "-"])
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert [file["name"] for file in report["files"]] == ["a.txt", "b.txt", "c.png"]
    assert report["skipped"] == [{"file": "empty.txt", "reason": "is empty"}]
    models = {entry["name"]: entry for entry in report["entries"] if entry["kind"] == "model"}
    assert set(models) == {"one", "two"} and all(0 <= entry["valid_utf8"] <= 1 for entry in models.values())
    assert "PNG" in page.read_text() and f"shown in {page}" in err
    cli.main(["compare", runs[0], "--data", str(data / "a.txt"), "--no-others", "--dynamic", "--max-bytes", "64"])
    out, _ = capsys.readouterr()
    assert "1 file, 64 bytes" in out and "xz" not in out


def test_runs_read_media_as_they_learned_it_or_as_asked(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = tmp_path / "a.wav"
    sound.write_bytes(audio.decode(wave("pcm16")))
    command = ["compare", runs[0], runs[2], "--data", str(sound)]
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    err = capsys.readouterr().err
    assert stop.value.code == 1 and "one and narrow read the data as different bytes" in err
    cli.main([*command, "--audio.coding", "mulaw", "--json", "-"])
    report = json.loads(capsys.readouterr().out)
    assert report["bytes"] == 500 and "FLAC" in [entry["name"] for entry in report["entries"]]


def test_senseless_comparisons_are_refused(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(folder_of(tmp_path / "in", {"a.txt": WORDS}))
    for arguments, expected in (
        (["--data", data], "name models and data"),
        ([runs[0]], "name models and data"),
        ([runs[0], runs[0], "--data", data], "named twice"),
        ([runs[0], "--data", data, "--samples", "-1"], "--samples is -1"),
        ([runs[0], "--data", data, "--dynamic", "--method", "strided"], "one: method 'strided'"),
        ([runs[0], "--data", data, "--dynamic", "--weights", "bf16"], "do not learn"),
        ([runs[0], "--data", data, "--max-bytes", "0"], "--max-bytes is 0"),
        ([runs[0], "--data", data, "--out", f"{data}/no/report.html"], "there is no folder"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["compare", *arguments])
        err = capsys.readouterr().err
        assert stop.value.code == 2 and expected in err and err.count("\n") == 1, err
