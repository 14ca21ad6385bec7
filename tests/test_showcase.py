"""What a model makes of data, as a page: every modality, each bit from the model itself, each file what it says."""

import dataclasses
import json
import math
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from configs import build
from PIL import Image
from test_multiscale import TWO

from byteloom import cli, codecs
from byteloom.codecs import audio, image, video
from byteloom.corpus import Corpus
from byteloom.documents import Document, Segment, to_ids
from byteloom.evaluation import evaluate
from byteloom.layers.modalities import EmbedderConfig, StreamConfig
from byteloom.models.config import ModalityConfig
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import save
from byteloom.showcase import bits_of, show_evaluation, show_written

RNG = np.random.default_rng(0)
NAMES = ("bytes", "text", "image", "audio", "video")
MODAL = dataclasses.replace(
    TWO,
    modalities=tuple(ModalityConfig(name=name, mark=codecs.MARKS[name]) for name in NAMES),
    embedder=EmbedderConfig(kind="universal"),
    context=256,
)
FUSED = dataclasses.replace(
    TWO,
    embedder=EmbedderConfig(
        kind="fusion",
        streams=(StreamConfig(name="audio", size=3, role="given"), StreamConfig(name="text", size=1)),
    ),
    tied_head=False,
    context=256,
)


def plain(data: bytes, modality: str = "text") -> Segment:
    return Segment(modality=modality, data=np.frombuffer(data, np.uint8))


def picture(height: int = 6, width: int = 4) -> Segment:
    return image.from_array(RNG.integers(0, 256, (height, width, 3), np.uint8))


def sound(samples: int = 60) -> Segment:
    return audio.from_array(RNG.integers(-9000, 9000, samples).astype(np.int16), 80)


def clip(frames: int = 3) -> Segment:
    return video.from_array(RNG.integers(0, 256, (frames, 4, 4, 3), np.uint8), 5)


def files_of(page: Path) -> list[str]:
    """The files that a page shows; all are there."""
    found = [unescape(name) for name in re.findall(r'<(?:img|iframe|audio|video) src="([^"]+)"', page.read_text())]
    assert all((page.parent / name).stat().st_size for name in found)
    return found


def shown(folder: Path, model: Multiscale, *documents: Document, **options: int) -> list[str]:
    corpus = Corpus.from_documents(documents)
    return files_of(show_evaluation(folder, model, corpus, evaluate(model, corpus), **options))


def test_bits_are_those_of_the_model_itself() -> None:
    """... of each id of data given all before it, in order, as one call of the model has them."""
    model, page = build(MODAL), Document(segments=(plain(b"a caption"), picture(), plain(b"end")))
    ids = torch.from_numpy(to_ids(page, codecs.MARKS, 4).astype(np.int64))[None]
    with torch.inference_mode():
        logits = model(ids).double()
    nats = torch.nn.functional.cross_entropy(logits.mT, ids, reduction="none")[0].numpy()
    found = bits_of(model, page, codecs.MARKS)
    assert [len(part) for part in found] == [9, 72, 3]
    np.testing.assert_allclose(np.concatenate(found), nats[ids[0].numpy() < 256] / math.log(2), atol=1e-4)
    measured = evaluate(model, Corpus.from_documents([Document(segments=(clip(),))]))
    assert measured.bytes == len(bits_of(model, Document(segments=(clip(),)), codecs.MARKS)[0])


def test_windows_leave_no_gap_where_the_context_is_short() -> None:
    model = build(dataclasses.replace(MODAL, context=24))
    (bits,) = bits_of(model, Document(segments=(plain(bytes(range(200)), "bytes"),)), codecs.MARKS)
    assert np.isfinite(bits).all() and len(bits) == 200
    wide = bits_of(build(MODAL), Document(segments=(plain(bytes(range(200)), "bytes"),)), codecs.MARKS)[0]
    np.testing.assert_allclose(bits[:16], wide[:16], atol=1e-4)


def test_a_given_stream_costs_nothing() -> None:
    page = Document(segments=(sound(15), plain(b"0123456789")))
    given, text = bits_of(build(FUSED), page, codecs.MARKS)
    assert len(given) == 30 and np.isnan(given).all()
    assert len(text) == 10 and np.isfinite(text).all()


def test_every_modality_of_a_corpus_is_shown(tmp_path: Path) -> None:
    segments = (plain(b"some words"), plain(b"\xff\x00" * 9, "bytes"), picture(), sound(), clip())
    files = shown(tmp_path, build(MODAL), *(Document(segments=(segment,)) for segment in segments), most_bytes=30)
    views = {"text": 1, "bytes": 1, "image": 1, "audio": 3, "video": 2}
    for modality, count in views.items():
        for what in ("original", "completion"):
            assert sum(f"{modality}-{what}" in name for name in files) == count, (modality, what)
    assert "pictures.png" in files and len(files) == 1 + 2 * sum(views.values())
    page = (tmp_path / "index.html").read_text()
    assert page.count("<dt>left out</dt>") == page.count("<dt>written</dt>") == 5

    for name in files:
        if name.endswith(".wav"):
            samples, rate = soundfile.read(tmp_path / name, dtype="int16")
            original = audio.to_array(segments[3])[:, 0]
            assert rate == 80 and len(samples) == 60 and (samples[:45] == original[:45]).all()
            assert (samples == original).all() == ("original" in name)
        if name.endswith(".gif"):
            assert Image.open(tmp_path / name).n_frames == 3


def test_a_contact_sheet_holds_each_picture_with_the_half_that_was_given(tmp_path: Path) -> None:
    pictures = [image.from_array(np.full((8, 8, 3), value, np.uint8)) for value in (250, 252, 254)]
    files = shown(tmp_path, build(MODAL), Document(segments=tuple(pictures)), count=2)
    assert files[0] == "pictures.png" and sum("original" in name for name in files) == 2
    sheet = np.asarray(Image.open(tmp_path / "pictures.png").convert("RGB")).astype(int)
    areas = [int((sheet == value).all(axis=2).sum()) for value in (250, 252, 254)]
    assert areas[1] == 0, "two of three, evenly"
    half, whole = (8 * 4 * 24**2, 8 * 8 * 24**2)
    assert min(areas[0], areas[2]) >= 2 * half + whole


def test_nothing_is_written_where_nothing_may_be(tmp_path: Path) -> None:
    files = shown(tmp_path, build(MODAL), Document(segments=(picture(),)), Document(segments=(sound(),)), most_bytes=0)
    assert files and not any("completion" in name or name == "pictures.png" for name in files)


def test_documents_of_several_modalities_and_streams_are_shown_whole(tmp_path: Path) -> None:
    files = shown(tmp_path, build(MODAL), Document(segments=(plain(b"a caption"), picture())), most_bytes=50)
    assert [name for name in files if name.startswith("1-1")] == ["1-1-text-original-surprise.html"]
    assert {"1-2-image-completion-surprise.png", "pictures.png"} <= set(files), "of the last part the model wrote some"
    files = shown(tmp_path, build(FUSED), Document(segments=(sound(15), plain(b"0123456789"))), most_bytes=5)
    assert "1-1-audio-original-sound.wav" in files and "1-1-audio-completion-sound.wav" not in files
    page = (tmp_path / "1-2-text-completion-surprise.html").read_text()
    assert "over 10 bytes" in page and 'class="prompt"' in page


def test_what_was_written_is_shown_beside_what_it_was_cut_from(tmp_path: Path) -> None:
    model, whole = build(MODAL), picture()
    begun = Document(segments=(dataclasses.replace(whole, data=whole.data[:24]),))
    written = Document(segments=(dataclasses.replace(whole, data=whole.data[::-1].copy()), plain(b"and more")))
    files = files_of(show_written(tmp_path, model, begun, written, Document(segments=(whole,))))
    assert {"pictures.png", "1-1-image-original-surprise.png", "1-2-text-completion-surprise.html"} <= set(files)
    page = (tmp_path / "index.html").read_text()
    tail = bits_of(model, written, codecs.MARKS)
    assert f"<dd>{np.concatenate([tail[0][24:], tail[1]]).mean():.3f}</dd>" in page
    files = files_of(show_written(tmp_path, model, begun, written, None))
    assert not any("original" in name for name in files)


def test_a_model_that_knows_bytes_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="256 ids and knows no documents"):
        bits_of(build(dataclasses.replace(TWO, vocab_size=256)), Document(segments=(plain(b"a"),)), codecs.MARKS)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save(Multiscale(MODAL), tmp_path / "run", {})
    Image.fromarray(RNG.integers(0, 256, (6, 4, 3), np.uint8)).save(tmp_path / "in.png")
    (tmp_path / "in.txt").write_text("some words to show")
    return tmp_path / "run"


def test_evaluate_shows_pictures(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", run, tmp_path / "in.png", tmp_path / "in.txt", "--no-baseline", "--json", "-"]
    cli.main([*map(str, command), "--pictures", str(tmp_path / "a" / "b"), "--show", "1", "--show-bytes", "9"])
    out, err = capsys.readouterr()
    assert f"shown in {tmp_path / 'a' / 'b' / 'index.html'}" in err
    page = tmp_path / "a" / "b" / "index.html"
    assert f"<dd>{json.loads(out)['bits_per_byte']:.3f}</dd>" in page.read_text()
    assert "in.png" in page.read_text() and len(files_of(page)) == 5
    with pytest.raises(SystemExit, match="2"):
        cli.main([*map(str, command), "--show", "0"])
    assert "--show is 0" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "views"), [("in.png", 3), ("in.txt", 2)])
def test_generate_shows_what_it_wrote(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, views: int
) -> None:
    out = tmp_path / f"out-{name}"
    command = ["generate", run, "--prompt-file", tmp_path / name, "--prompt-share", 0.5, "--out", out]
    cli.main([*map(str, command), "--pictures", str(tmp_path / "shown")])
    assert "shown in" in capsys.readouterr().err and out.stat().st_size
    assert len(files_of(tmp_path / "shown" / "index.html")) == views
