"""Contact sheets, spectrograms and clips: what is given is in them, at its place."""

import io

import av
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from byteloom.pictures import (
    ACCENT,
    DECIBELS,
    GROUND,
    MAX_COLUMNS,
    RAISED,
    clip,
    contact_sheet,
    image_of,
    loudness,
    mono,
    spectrogram,
)

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def opened(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in to_rgb(colour))


def plain(height: int, width: int, colour: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, 3)).copy()


def area(picture: np.ndarray, colour: tuple[int, ...]) -> tuple[slice, slice]:
    """The rows and columns that a colour spans; it fills them."""
    y, x = np.nonzero((picture == colour).all(axis=2))
    place = slice(int(y.min()), int(y.max()) + 1), slice(int(x.min()), int(x.max()) + 1)
    assert (picture[place] == colour).all()
    return place


def test_a_sheet_shows_prompt_completion_and_original_side_by_side() -> None:
    sheet = opened(contact_sheet([(plain(16, 32, RED), plain(32, 32, GREEN), plain(32, 32, BLUE))], zoom=4))
    red, green, blue = (area(sheet, colour) for colour in (RED, GREEN, BLUE))
    assert [p.stop - p.start for p in (*red, *green, *blue)] == [64, 128, 128, 128, 128, 128]
    assert red[0].start == green[0].start == blue[0].start
    assert red[1].stop < green[1].start and green[1].stop < blue[1].start
    below = sheet[red[0].stop : green[0].stop, red[1]]
    assert (below == rgb(RAISED)).all(), "what was not given is empty"
    beside = sheet[red[0].stop, red[1].stop : green[1].start]
    assert (beside == rgb(ACCENT)).all(axis=1).any(), "a tick where the prompt ends"


def test_pixels_stay_pixels_and_rows_keep_their_order() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (2, 5, 7, 3), np.uint8)
    sheet = opened(contact_sheet([(None, first, None), (None, second, None)], zoom=3))
    enlarged = [picture.repeat(3, 0).repeat(3, 1) for picture in (first, second)]
    tops = [
        y
        for picture in enlarged
        for y in range(sheet.shape[0] - 15)
        if (sheet[y : y + 15, 16 : 16 + 21] == picture).all()
    ]
    assert len(tops) == 2 and tops[0] + 15 < tops[1]
    assert sheet.shape[1] < 2 * 96, "no column where nothing is"


def test_small_pictures_are_enlarged_and_large_ones_reduced() -> None:
    def side(size: int) -> int:
        place = area(opened(contact_sheet([(None, plain(size, size, RED), None)])), RED)
        return place[0].stop - place[0].start

    assert [side(size) for size in (1, 32, 100, 192, 300, 512, 1500)] == [192, 192, 100, 192, 300, 512, 512]


def test_a_caption_is_under_each_row() -> None:
    rows = [(None, plain(8, 8, RED), None)] * 2
    bare, named = opened(contact_sheet(rows)), opened(contact_sheet(rows, captions=["3.1 bits", "2.9 bits"]))
    assert named.shape[0] == bare.shape[0] + 2 * 22
    with pytest.raises(ValueError, match="2 rows and 1 captions"):
        contact_sheet(rows, captions=["one"])
    with pytest.raises(ValueError, match="0 rows"):
        contact_sheet([])


def test_a_sheet_of_nothing_is_a_picture_all_the_same() -> None:
    assert opened(contact_sheet([(None, None, None), (np.zeros((0, 4, 3), np.uint8), None, None)])).size


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (4, 4, 2), (4, 4, 3), (4, 4, 4), (4, 4, 7)])
def test_any_number_of_channels_becomes_rgb(shape: tuple[int, ...]) -> None:
    array = np.full(shape, 255, np.uint8)
    assert (np.asarray(image_of(array)) == 255).all()
    if shape[2:] in ((2,), (4,)):
        array[..., -1] = 0  # what is transparent shows the ground
        assert (np.asarray(image_of(array)) == rgb(GROUND)).all()


@pytest.mark.parametrize("array", [np.zeros((2, 2), np.int16), np.zeros(4, np.uint8), np.zeros((0, 2, 3), np.uint8)])
def test_what_is_no_image_is_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be \\(H, W"):
        image_of(array)


def tone(hertz: float, rate: int, seconds: float) -> np.ndarray:
    return np.round(20000 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.int16)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_loudness_finds_a_tone_at_its_height_and_time(rate: int) -> None:
    """A second of a low tone, then one of a high tone, ten times as faint."""
    sound = np.concatenate([tone(rate / 8, rate, 1), tone(3 * rate / 8, rate, 1) // 10])
    decibels, start, step = loudness(sound, rate)
    times = start + step * (np.arange(decibels.shape[1]) + 0.5)
    hertz = decibels.argmax(axis=0) * rate / 2 / (len(decibels) - 1)
    first, second = times < 0.95, times > 1.05
    assert first.sum() == pytest.approx(0.95 / step, abs=3) and second.sum() == pytest.approx(0.95 / step, abs=3)
    assert (hertz[first] == rate / 8).all() and (hertz[second] == 3 * rate / 8).all()
    assert decibels.max() == 0 and decibels.min() == -DECIBELS
    assert decibels[:, second].max() == pytest.approx(-20, abs=0.1)


def test_a_long_sound_is_drawn_in_a_bounded_number_of_columns() -> None:
    decibels, start, step = loudness(tone(1000, 8000, 300), 8000)
    assert 1500 < decibels.shape[1] <= MAX_COLUMNS
    assert start + step * decibels.shape[1] == pytest.approx(300, abs=1)


def test_a_spectrogram_has_low_tones_below_and_early_ones_left() -> None:
    sound = np.concatenate([tone(1000, 8000, 1), tone(3000, 8000, 1)])
    light = opened(spectrogram(sound, 8000)).astype(int).sum(axis=2)
    rows = [int(light[30:250, column].argmax()) for column in (250, 600)]
    assert rows[0] > rows[1] + 50


def test_a_spectrogram_marks_where_the_prompt_ends() -> None:
    def light(prompt: int) -> np.ndarray:
        """Light of each column of the plot in rows that the low tone leaves black."""
        return opened(spectrogram(tone(500, 8000, 2), 8000, prompt))[60:150, 60:780].astype(int).sum(axis=(0, 2))

    plot = opened(spectrogram(tone(500, 8000, 2), 8000))[200:280, 55:780].astype(int).sum(axis=2)
    width = (plot > 300).any(axis=0).sum()  # of the tone's own line
    assert light(0).max() == light(16000).max() < light(8000).max() / 10
    first, second, third = (int(light(prompt).argmax()) for prompt in (4000, 8000, 12000))
    assert [second - first, third - second] == pytest.approx([width / 4] * 2, rel=0.05)


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(0, np.int16),
        np.zeros(1, np.int16),
        np.zeros((0, 2), np.int16),
        np.full(100, np.nan, np.float32),
        np.full(100, 3e38, np.float32),
        np.full(50, -(2**31), np.int32),
    ],
)
def test_any_samples_have_a_spectrogram(samples: np.ndarray) -> None:
    for rate in (1, 8000, 2**24 - 1):
        assert opened(spectrogram(samples, rate)).any()
    with pytest.raises(ValueError, match="rate is 0"):
        spectrogram(samples, 0)


def test_channels_are_averaged_and_the_loudest_is_one() -> None:
    assert mono(np.array([[100, 300], [-50, -50]], np.int16)).tolist() == [1.0, -0.25]
    assert mono(np.array([128, 255, 64], np.uint8)).tolist() == [0.0, 1.0, -64 / 127], "8 bits are silent at 128"
    assert mono(np.array([0.5, np.inf, np.nan])).tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="must be \\(N,\\)"):
        mono(np.zeros((2, 2, 2)))


def test_the_same_samples_give_the_same_file() -> None:
    assert spectrogram(tone(440, 8000, 0.5), 8000) == spectrogram(tone(440, 8000, 0.5), 8000)


def moving(count: int, height: int, width: int) -> np.ndarray:
    """Black frames (count, H, W, 3) with a white column that moves to the right."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[np.arange(count), :, np.arange(count)] = 255
    return frames


@pytest.mark.parametrize("rate", [5, 12.5, 24])
def test_an_animation_has_its_frames_enlarged_at_its_rate(rate: float) -> None:
    frames = moving(6, 8, 12)
    with Image.open(io.BytesIO(clip(frames, rate, ".gif"))) as animation:
        assert animation.size == (12 * 16, 8 * 16) and animation.n_frames == 6
        milliseconds = []
        for index in range(6):
            animation.seek(index)
            shown = np.asarray(animation.convert("L"))
            assert (shown == frames[index, :, :, 0].repeat(16, 0).repeat(16, 1)).all()
            milliseconds.append(animation.info["duration"])
    assert sum(milliseconds) == pytest.approx(6000 / rate, abs=10)


def test_a_film_has_its_frames_enlarged_at_its_rate() -> None:
    frames = moving(6, 9, 13)  # times 14
    with av.open(io.BytesIO(clip(frames, 12, ".mp4"))) as film:
        shown = [frame.to_ndarray(format="gray") for frame in film.decode(video=0)]
        assert film.streams.video[0].average_rate == 12 and film.streams.video[0].codec_context.name == "h264"
    assert [frame.shape for frame in shown] == [(9 * 14, 13 * 14)] * 6
    for index, frame in enumerate(shown):
        lightest = frame.mean(axis=0).reshape(13, 14).mean(axis=1).argmax()
        assert lightest == index


def test_a_film_of_odd_sides_is_one_that_players_take() -> None:
    with av.open(io.BytesIO(clip(moving(2, 35, 201), 12, ".mp4"))) as film:
        (first, _) = (frame.to_ndarray(format="gray") for frame in film.decode(video=0))
        assert film.streams.video[0].codec_context.pix_fmt == "yuv420p"
    assert first.shape == (36, 202)
    assert first[:, 0].min() > 150 > 60 > first[:, 4:].max()


def test_large_frames_keep_their_size_and_no_frames_are_refused() -> None:
    with Image.open(io.BytesIO(clip(moving(2, 200, 300), 10))) as animation:
        assert animation.size == (300, 200)
    for frames in (moving(0, 4, 4), moving(1, 4, 4)[0]):
        with pytest.raises(ValueError, match="at least one"):
            clip(frames, 10)
    with pytest.raises(ValueError, match=r"'\.xyz'"):
        clip(moving(2, 4, 4), 10, ".xyz")
