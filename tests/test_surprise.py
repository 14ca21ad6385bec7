"""Maps of surprise: each bit at the place of what it paid for, and nothing that a model writes fails."""

import html
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from byteloom import surprise
from byteloom.codecs import audio, image, video
from byteloom.documents import Segment
from byteloom.surprise import (
    MAX_TEXT_BYTES,
    in_place,
    surprise_map,
    surprise_picture,
    surprise_text,
    surprise_video,
    surprise_waveform,
)

SIDES = st.integers(1, 9)
RNG = np.random.default_rng(0)


def opened(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


@given(SIDES, SIDES, st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_bits_are_at_the_pixels_that_they_paid_for(height, width, channels, patch, raster) -> None:
    config = image.ImageConfig(scan="raster" if raster else "patch", patch=patch)
    picture = pixels(height, width, channels)
    segment = image.from_array(picture, config)
    np.testing.assert_array_equal(in_place(segment, segment.data.astype(float)), picture)


@given(st.integers(1, 4), SIDES, SIDES, st.sampled_from([1, 3]), st.integers(1, 4))
def test_bits_are_at_the_frames_that_they_paid_for(count, height, width, channels, patch) -> None:
    frames = pixels(count, height, width, channels)
    segment = video.from_array(frames, 25, video.VideoConfig(patch=patch))
    np.testing.assert_array_equal(in_place(segment, segment.data.astype(float)), frames)


def test_a_sample_costs_what_its_bytes_and_channels_cost() -> None:
    stereo = audio.from_array(np.zeros((3, 2), np.int16), 8000)
    bits = in_place(stereo, np.arange(12.0))
    assert bits.tolist() == [0 + 1 + 2 + 3, 4 + 5 + 6 + 7, 8 + 9 + 10 + 11]
    assert in_place(stereo, np.arange(11.0)).tolist() == [6, 22], "a sample that is cut off is not heard either"
    with pytest.raises(ValueError, match="'text' has no places"):
        in_place(Segment(modality="text", data=np.zeros(2, np.uint8)), np.zeros(2))


def test_what_the_data_does_not_reach_is_not_known() -> None:
    whole = image.from_array(pixels(4, 6, 3), image.ImageConfig(patch=2))
    cut = replace(whole, data=whole.data[:30])  # two patches and a half
    known = np.isfinite(in_place(cut, np.ones(30)))
    assert known.sum() == 30 and known[:2, :4].all() and known[0, 4:].all() and not known[1:, 4:].any()
    longer = replace(whole, data=np.concatenate([whole.data, whole.data]))
    assert in_place(longer, np.ones(144)).shape == (4, 6, 3)
    clip = video.from_array(pixels(2, 4, 6, 3), 25)
    assert np.isfinite(in_place(replace(clip, data=clip.data[:80]), np.ones(80))).sum(axis=(1, 2, 3)).tolist() == [
        72,
        8,
    ]


def test_the_hottest_pixel_is_as_far_into_the_map_as_into_the_picture() -> None:
    picture, bits = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 0.1)
    picture[5, 2] = 255
    bits[5, 2] = 9
    shown = opened(surprise_picture(picture, bits))
    left, right = shown[40:, :390], shown[40:, 400:770]  # without titles and the colour bar

    def middle(mask: np.ndarray) -> tuple[float, float]:
        y, x = np.nonzero(mask)
        return float(y.mean()), float(x.mean())

    black = np.nonzero((left == 0).all(axis=2))
    spot = middle(left.min(axis=2) > 250)
    hot = middle(right.sum(axis=2) > 500)
    assert spot[0] == pytest.approx(hot[0], abs=1)
    assert (spot[0] - black[0].min()) / (np.ptp(black[0]) + 1) == pytest.approx(5.5 / 8, abs=0.05)
    assert 0 < hot[1] < right.shape[1] / 2


def test_a_louder_price_stands_higher_under_its_part_of_the_wave() -> None:
    samples = np.round(9000 * np.sin(np.arange(8000) / 9)).astype(np.int16)
    bits = np.where(np.arange(8000) < 4000, 2.0, 8.0)
    below = opened(surprise_waveform(samples, bits, 8000))[230:300]
    heights = [(below[:, column, 0] > 80).sum() for column in (200, 700)]
    assert heights[1] > 3 * heights[0] > 0


def shown_text(page: bytes) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.decode().split('<pre class="whole">')[1].split("</pre>")[0]))


def test_a_text_is_whole_with_the_price_of_each_character_and_its_prompt_bold() -> None:
    data = "a<ä漢".encode()
    suffix, page = surprise_map(
        Segment(modality="text", data=np.frombuffer(data, np.uint8)), [1, 2, 3, 4, 5, 5, np.nan], prompt=2
    )
    assert suffix == ".html" and shown_text(page) == "a<ä漢"
    assert re.findall(r'title="([\d.]+) bits"', page.decode()) == ["1.00", "2.00", "7.00", "10.00"]
    assert "3.333 bits per byte over 7 bytes" in page.decode(), "what is not known does not count"
    bold = re.search(r'<span class="prompt">(.*?</span>)</span>', page.decode())
    assert bold and html.unescape(re.sub(r"<[^>]+>", "", bold[1])) == "a<"


def test_of_a_long_text_the_beginning_is_shown() -> None:
    page = surprise_text(b"x" * (MAX_TEXT_BYTES + 5), np.ones(MAX_TEXT_BYTES + 5))
    assert shown_text(page) == "x" * MAX_TEXT_BYTES
    assert "65,541 bytes" in page.decode() and "The first 65,536" in page.decode()


@pytest.mark.parametrize("length", [0, 1, 49, 1000])
@pytest.mark.parametrize("modality", ["image", "video", "audio", "text", "bytes", "tokens"])
def test_every_modality_has_its_map_however_long_its_data(modality: str, length: int) -> None:
    header = {
        "image": image.pack_header(4, 4, 3, 2),
        "video": video.pack_header(4, 4, 3, 12.5, 2),
        "audio": audio.pack_header(8000, 2, "pcm16"),
    }.get(modality, b"")
    data = pixels(length).astype(np.uint16) + 320 if modality == "tokens" else pixels(length)
    bits = RNG.uniform(0, 8, length) if length > 1 else np.full(length, np.nan)
    suffix, content = surprise_map(Segment(modality=modality, data=data, header=header), bits, prompt=length // 2)
    assert suffix == (".html" if modality in ("text", "bytes") and length else ".png")
    assert opened(content).size if suffix == ".png" else content.endswith(b"</html>\n")


@pytest.mark.parametrize("shape", [(1, 300, 3), (300, 1, 1), (900, 700, 3), (2, 2, 2), (3, 3, 4)])
def test_pictures_of_any_shape_have_a_map(shape: tuple[int, ...]) -> None:
    height, width, _ = opened(surprise_picture(pixels(*shape), RNG.uniform(0, 8, shape))).shape
    assert max(height, width) < 1000


@pytest.mark.parametrize("shape", [(1, 4, 4, 3), (3, 8, 4, 1), (40, 4, 16, 3)])
def test_clips_of_any_length_have_a_strip(shape: tuple[int, ...]) -> None:
    assert opened(surprise_video(pixels(*shape), RNG.uniform(0, 8, shape), 12)).size


def test_a_strip_shows_frames_from_the_first_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.arange(30, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    shown: list[int] = []
    draw = surprise.image_of
    monkeypatch.setattr(surprise, "image_of", lambda frame: shown.append(int(frame[0, 0, 0])) or draw(frame))
    surprise_video(frames, np.ones(frames.shape), 25)
    assert shown == [0, 4, 8, 12, 17, 21, 25, 29]


def test_each_frame_of_a_strip_has_its_own_map_below_it() -> None:
    frames, prices = np.zeros((8, 4, 4, 3), np.uint8), np.arange(8.0)
    strip = opened(surprise_video(frames, prices[:, None, None, None] * np.ones(frames.shape), 25))
    heat = strip[40:240, 60:900].sum(axis=2).max(axis=0)  # by column, without the times and the colour bar
    middles = np.linspace(0.5, 7.5, 8) / 8 * (np.nonzero(heat > 60)[0].max() + 1)
    assert (np.diff(heat[middles.astype(int)]) > 0).all()


def test_bits_that_do_not_fit_are_refused() -> None:
    text = Segment(modality="text", data=np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match=r"bits have shape \(3,\) for data of shape \(4,\)"):
        surprise_map(text, np.zeros(3))
    with pytest.raises(ValueError, match="header"):
        surprise_map(replace(text, modality="image", header=b"\0" * 5), np.zeros(4))
    with pytest.raises(ValueError, match="no frame"):
        surprise_video(np.zeros((0, 4, 4, 3), np.uint8), np.zeros((0, 4, 4, 3)), 25)
