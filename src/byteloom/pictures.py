"""Pictures of what a model wrote: contact sheets of images, spectrograms of sounds, clips of videos.

In: arrays, as the codecs' `to_array` gives them. Out: the bytes of a PNG, on a dark ground that suits light and dark
pages alike, or of a clip. Cost: a few copies of what is given; what is drawn has a bounded size, clips excepted.
"""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image, ImageDraw, ImageFont

from byteloom.codecs import video

GROUND, RAISED, INK, QUIET, ACCENT = "#12161f", "#232a38", "#e2e8f0", "#94a3b8", "#fb923c"
CELL_PIXELS = (192, 512)
"""Images are enlarged by a whole number up to the first and reduced to the second."""
MAX_COLUMNS = 1600
"""A sound is drawn in at most so many columns."""
DECIBELS = 80
"""From the loudest place of a spectrogram down to its black."""

Row = tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]


def contact_sheet(rows: Sequence[Row], zoom: int | None = None, captions: Sequence[str] = ()) -> bytes:
    """PNG of a table: a row for each image, in it what the model was given, what it made of it, and the original.

    Args:
        rows: images (H, W) or (H, W, C) uint8; None where there is none. A prompt that is lower than its completion
            ends at a tick beside the completion.
        zoom: pixels for each pixel; by default so that the largest image is clear.
        captions: a line under each row.

    Raises:
        ValueError: no rows, or captions for another number of rows.
    """
    if not rows or len(captions) not in (0, len(rows)):
        raise ValueError(f"{len(rows)} rows and {len(captions)} captions; give a row at least, and a caption for each")
    cells = [[None if array is None or not array.size else image_of(array) for array in row] for row in rows]
    scale = zoom or scale_for(max((max(image.size) for row in cells for image in row if image), default=1))
    cells = [[image and resized(image, scale) for image in row] for row in cells]
    sizes = [(max(i.width for i in row if i), max(i.height for i in row if i)) if any(row) else (1, 1) for row in cells]
    shown = [column for column in range(3) if any(row[column] for row in cells)]  # no column of nothing

    font, gap, line = ImageFont.load_default(14), 16, 22
    width = max(96, *(width for width, _ in sizes))
    below = gap + line if captions else gap
    top = gap + line + gap // 2
    sheet = Image.new("RGB", (gap + len(shown) * (width + gap), top + sum(s[1] + below for s in sizes)), GROUND)
    draw = ImageDraw.Draw(sheet)
    left_of = {column: gap + place * (width + gap) for place, column in enumerate(shown)}
    for column, left in left_of.items():
        draw.text((left, gap), ("prompt", "completion", "original")[column], INK, font)
    for index, (row, size) in enumerate(zip(cells, sizes, strict=True)):
        for column, left in left_of.items():
            draw.rectangle((left, top, left + size[0] - 1, top + size[1] - 1), RAISED)
            if image := row[column]:
                sheet.paste(image, (left, top))
        given, made, _ = row
        if given and made and given.height < made.height:
            for x in (left_of[1] - 8, left_of[1] + made.width + 2):
                draw.line((x, top + given.height, x + 5, top + given.height), ACCENT, 2)
        if captions:
            draw.text((gap, top + size[1] + 4), captions[index], QUIET, font)
        top += size[1] + below
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def spectrogram(samples: np.ndarray, rate: int, prompt: int = 0, title: str = "") -> bytes:
    """PNG of a sound: time to the right, frequency upwards, loudness as light.

    Args:
        samples: (N,) or (N, channels), of which the mean is shown; integers or floats.
        rate: samples a second.
        prompt: so many samples were given and not written; a line stands where they end.
        title: above the picture.

    Raises:
        ValueError: `rate` is not positive, or `samples` has another number of axes.
    """
    decibels, start, step = loudness(samples, rate)
    stop, seconds = start + decibels.shape[1] * step, len(samples) / rate
    figure = canvas(9, 3.4)
    axes = style(figure.subplots(), title, lifted=prompt > 0)
    shown = axes.imshow(
        decibels,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=-DECIBELS,
        vmax=0,
        extent=(start, stop, 0, rate / 2000),
    )
    axes.set(xlabel="seconds", ylabel="kHz", xlim=(0, seconds or stop), facecolor="black")
    colour_bar(figure, shown, axes, "dB below the loudest", extend="min")
    mark_prompt(axes, prompt, rate, len(samples))
    return png(figure)


def loudness(samples: np.ndarray, rate: int) -> tuple[np.ndarray, float, float]:
    """How loud each frequency is over time, in windows of about 32 ms.

    Args:
        samples: (N,) or (N, channels), of which the mean is taken.
        rate: samples a second.

    Returns:
        Decibels below the loudest place (frequencies from 0 to rate / 2, columns), not below -`DECIBELS`; the time at
        which the first column begins; and the seconds that a column stands for.

    Raises:
        ValueError: `rate` is not positive, or `samples` has another number of axes.
    """
    if rate <= 0:
        raise ValueError(f"rate is {rate}; it must be positive")
    wave = mono(samples)
    size = 2 ** int(np.clip(round(np.log2(rate * 0.032)), 4, 12))
    hop = max(size // 4, -(-len(wave) // MAX_COLUMNS))
    padded = np.pad(wave, (0, max(size - len(wave), 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop] * np.hanning(size)  # (columns, size)
    power = np.abs(np.fft.rfft(windows)).T ** 2
    decibels = 10 * np.log10(np.maximum(power / max(power.max(), 1e-20), 10 ** (-DECIBELS / 10)))
    return decibels, (size - hop) / 2 / rate, hop / rate  # a column stands for the hop at the middle of its window


def clip(frames: np.ndarray, rate: float, suffix: str = ".gif") -> bytes:
    """A clip to look at, as .gif, .mp4 or what else `codecs.video.decode` writes; small frames are enlarged.

    A side that is still odd gets its last pixels twice: most players of .mp4 refuse it otherwise.

    Args:
        frames: (F, H, W, C) uint8, of 1 channel or 3.
        rate: frames a second.
        suffix: the format.

    Raises:
        ValueError: frames of another kind, no frame, or a format that cannot be written.
    """
    if frames.ndim != 4 or not frames.size:
        raise ValueError(f"frames have shape {frames.shape}; they must be (F, H, W, C), at least one")
    zoom = int(max(scale_for(max(frames.shape[1:3])), 1))
    enlarged = frames.repeat(zoom, axis=1).repeat(zoom, axis=2)
    even = np.pad(enlarged, [(0, 0), *((0, side % 2) for side in enlarged.shape[1:3]), (0, 0)], mode="edge")
    return video.decode(video.from_array(even, rate), suffix)


def image_of(array: np.ndarray) -> Image.Image:
    """An image (H, W) or (H, W, C) uint8 as RGB: grey, grey and alpha, RGB, RGBA; of more channels the first three.

    Raises:
        ValueError: it has another shape or dtype.
    """
    array = np.asarray(array)
    if array.ndim not in (2, 3) or array.dtype != np.uint8 or not array.size:
        raise ValueError(f"an image has shape {array.shape} and dtype {array.dtype}; it must be (H, W[, C]) uint8")
    channels = 1 if array.ndim == 2 else array.shape[2]
    if channels > 4:
        array, channels = array[..., :3], 3
    image = Image.fromarray(np.ascontiguousarray(array[..., 0] if array.ndim == 3 and channels == 1 else array))
    if channels in (1, 3):
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, GROUND), image.convert("RGBA")).convert("RGB")


def scale_for(side: int) -> float:
    """The factor that makes an image of `side` pixels clear: a whole number, or below 1 for a large one."""
    small, large = CELL_PIXELS
    return min(1.0, large / side) if side > small else small // side


def resized(image: Image.Image, scale: float) -> Image.Image:
    """The image `scale` times as large: pixels as squares if enlarged, averaged if reduced."""
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX)


def mono(samples: np.ndarray) -> np.ndarray:
    """Samples (N,) or (N, channels) as floats (N,) with the largest at 1 or -1; what is no finite number is silence.

    Those of uint8 are silent at 128, as `codecs.audio` has them.

    Raises:
        ValueError: `samples` has another number of axes.
    """
    if samples.ndim not in (1, 2):
        raise ValueError(f"samples have shape {samples.shape}; they must be (N,) or (N, channels)")
    silence = 128.0 if samples.dtype == np.uint8 else 0.0
    wave = np.nan_to_num(samples.astype(np.float64) - silence, nan=0.0, posinf=0.0, neginf=0.0)
    wave = wave.mean(axis=1) if wave.ndim == 2 else wave
    return wave / max(np.abs(wave).max(initial=0.0), 1e-30)


def canvas(width: float, height: float) -> Figure:
    """A dark figure; its sides in hundreds of pixels."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    return Figure(figsize=(width, height), dpi=100, facecolor=GROUND, layout=layout)


def style(axes: Axes, title: str = "", lifted: bool = False) -> Axes:
    """Axes in the colours of these pictures; a `lifted` title leaves room for `mark_prompt`."""
    axes.set_facecolor(GROUND)
    axes.set_title(title, fontsize=11, color=INK, loc="left", pad=18 if lifted else 6)
    axes.tick_params(colors=QUIET, labelsize=9)
    axes.xaxis.label.set_color(QUIET)
    axes.yaxis.label.set_color(QUIET)
    axes.spines[:].set_visible(False)
    return axes


def colour_bar(figure: Figure, shown: AxesImage, axes: Axes | Sequence[Axes], label: str, extend: str) -> None:
    """A colour bar beside the axes; `extend` "max" says that there is more than its end."""
    colours = figure.colorbar(shown, ax=axes, pad=0.015, fraction=0.05, extend=extend, panchor=False)
    colours.outline.set_visible(False)
    colours.ax.tick_params(colors=QUIET, labelsize=9)
    colours.set_label(label, color=QUIET)


def mark_prompt(axes: Axes, prompt: int, rate: float, length: int) -> None:
    """A line where the prompt ends and what was written begins; none if there is only one of them."""
    if 0 < prompt < length:
        axes.axvline(prompt / rate, color=ACCENT, lw=1.2, ls="--")
        place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "color": ACCENT, "fontsize": 9}
        axes.annotate("prompt", (prompt / rate, 1), (-5, 3), ha="right", **place)
        axes.annotate("written", (prompt / rate, 1), (5, 3), ha="left", **place)


def png(figure: Figure) -> bytes:
    """A figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
