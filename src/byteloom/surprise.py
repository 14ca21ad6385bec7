"""Maps of surprise: what each place of a picture, a clip, a sound or a text cost a model, in bits.

In: a segment and the bits of each of its data ids, in the order of the stream; or arrays. Out: the bytes of a PNG, or
of an HTML page for text. Cost: a few copies of the bits as floats; sounds are drawn in a bounded number of columns,
clips in a bounded number of frames, texts up to `MAX_TEXT_BYTES`.

Bits may be NaN where they are not known: those places are grey, or left out, and do not count in a mean.
"""

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from PIL import Image

from byteloom import codecs, gallery
from byteloom.codecs import audio, image, video
from byteloom.documents import Segment
from byteloom.pictures import (
    ACCENT,
    INK,
    MAX_COLUMNS,
    RAISED,
    canvas,
    colour_bar,
    image_of,
    mark_prompt,
    mono,
    png,
    resized,
    scale_for,
    style,
)
from byteloom.report import tinted
from byteloom.scan import unscan

HEAT = colormaps["inferno"].with_extremes(bad="#475569")
MAX_TEXT_BYTES = 1 << 16
"""Of a longer text the beginning is shown: a byte becomes some 70 of HTML."""
STRIP_FRAMES = 8
"""Frames of a clip that are shown, evenly spread over it."""


def surprise_map(segment: Segment, bits: np.ndarray, prompt: int = 0) -> tuple[str, bytes]:
    """The map of surprise of a segment, and the suffix of a file for it.

    An image or a clip becomes a heat map of its pixels, a sound a curve below its waveform, text and bytes a tinted
    page, and data of no codec, such as tokens, a curve over its ids.

    Args:
        segment: of any modality, whole or cut anywhere.
        bits: surprise of each of its data ids (N,), in the order of the stream; NaN where it is not known.
        prompt: so many of the ids were given and not written; shown where they end in a sound, and bold in a text.

    Raises:
        ValueError: not one number for each id, or the header makes no sense.
    """
    bits = np.asarray(bits, np.float64)
    _same_shape(segment.data, bits)
    if segment.modality not in codecs.MARKS or not bits.size:
        return ".png", surprise_trace(bits)
    if segment.modality == image.MODALITY:
        return ".png", surprise_picture(image.to_array(segment), in_place(segment, bits))
    if segment.modality == video.MODALITY:
        rate = float(video.unpack_header(segment.header)[3])
        return ".png", surprise_video(video.to_array(segment), in_place(segment, bits), rate)
    if segment.modality == audio.MODALITY:
        rate, given = audio.unpack_header(segment.header)[0], prompt // audio.unit_size(segment.header)
        return ".png", surprise_waveform(audio.to_array(segment), in_place(segment, bits), rate, given)
    return ".html", surprise_text(codecs.by_modality(segment.modality).decode(segment), bits, prompt)


def in_place(segment: Segment, bits: np.ndarray) -> np.ndarray:
    """The bits of a segment's data ids (N,) at the places that the codec's `to_array` puts the data to.

    An image (H, W, C) and a video (F, H, W, C): in the order of pixels, NaN where the data ends early. A sound (N,):
    summed over the bytes and channels of each sample.

    Raises:
        ValueError: the segment is none of these, or its header makes no sense.
    """
    if segment.modality == audio.MODALITY:
        size = audio.unit_size(segment.header)
        return bits[: len(bits) // size * size].reshape(-1, size).sum(axis=1)
    if segment.modality == image.MODALITY:
        height, width, channels, side = image.unpack_header(segment.header)
        return _unscanned(bits[: height * width * channels], 1, height, width, channels, side)[0]
    if segment.modality == video.MODALITY:
        height, width, channels, _, side = video.unpack_header(segment.header)
        return _unscanned(bits, -(-len(bits) // (height * width * channels)), height, width, channels, side)
    raise ValueError(f"data of modality {segment.modality!r} has no places; known: image, video and audio")


def surprise_picture(picture: np.ndarray, bits: np.ndarray) -> bytes:
    """PNG of a picture beside its map of surprise, in bits per pixel.

    Args:
        picture: (H, W, C) uint8.
        bits: of each of its bytes, (H, W, C).

    Raises:
        ValueError: the shapes differ.
    """
    _same_shape(picture, bits)
    height, width = picture.shape[:2]
    aspect = np.clip(height / width, 1 / 4, 4)
    figure = canvas(2 * 3.8 * min(1, 1 / aspect) + 0.9, 3.8 * min(1, aspect) + 0.5)
    left, right = figure.subplots(1, 2)
    style(left, f"{width} × {height}").imshow(_reduced(image_of(picture)))
    by_pixel = np.asarray(_reduced(Image.fromarray(bits.sum(axis=2, dtype=np.float32))))
    shown = style(right, _price(bits, "byte")).imshow(by_pixel, HEAT, vmin=0, vmax=_ceiling(by_pixel))
    for axes in (left, right):
        axes.set(xticks=[], yticks=[])
    colour_bar(figure, shown, right, "bits per pixel", extend="max")
    return png(figure)


def surprise_video(frames: np.ndarray, bits: np.ndarray, rate: float) -> bytes:
    """PNG of a strip of frames above their maps of surprise, and below them the bits per byte of every frame.

    Args:
        frames: (F, H, W, C) uint8.
        bits: of each of their bytes, (F, H, W, C).
        rate: frames a second.

    Raises:
        ValueError: the shapes differ, or there is no frame.
    """
    _same_shape(frames, bits)
    if not len(frames):
        raise ValueError("there is no frame; a strip needs one")
    count, height, width = frames.shape[:3]
    chosen = np.unique(np.linspace(0, count - 1, min(STRIP_FRAMES, count)).round().astype(int))
    by_pixel = bits[chosen].sum(axis=3)
    ceiling = _ceiling(by_pixel)
    tall = np.clip(height / width, 0.2, 2.0)  # a frame is about an inch wide
    figure = canvas(10, 2.3 * tall + 2.5)
    top, middle, below = figure.subplots(3, height_ratios=(tall, tall, 1.2))
    lefts, heats = np.arange(len(chosen)) * width * 1.05, []
    for left, index, heat in zip(lefts, chosen, by_pixel, strict=True):
        extent = (left, left + width, height, 0)
        top.imshow(_reduced(image_of(frames[index])), extent=extent)
        heats.append(middle.imshow(heat, HEAT, vmin=0, vmax=ceiling, extent=extent))
    for axes in (top, middle):
        style(axes).set(xlim=(0, (STRIP_FRAMES * 1.05 - 0.05) * width), ylim=(height, 0), yticks=[], anchor="W")
        axes.tick_params(length=0, labeltop=axes is top, labelbottom=False)
        axes.set_xticks(lefts + width / 2, [f"{index / rate:.2f} s" for index in chosen])
    colour_bar(figure, heats[0], [top, middle], "bits per pixel", extend="max")
    style(below, _price(bits, "byte"))
    starts = np.arange(count) * frames[0].size
    _curve(below, _means(bits.ravel(), starts), count / rate, "bits per byte")
    below.set_xlabel("seconds")
    return png(figure)


def surprise_waveform(samples: np.ndarray, bits: np.ndarray, rate: int, prompt: int = 0) -> bytes:
    """PNG of a waveform above the bits that its samples cost.

    Args:
        samples: (N,) or (N, channels), of which the mean is shown.
        bits: of each sample, all its bytes and channels together, (N,).
        rate: samples a second.
        prompt: so many samples were given and not written; a line stands where they end.

    Raises:
        ValueError: not one number for each sample.
    """
    wave = mono(samples)
    _same_shape(wave, bits)
    figure = canvas(9, 3.6)
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    style(above, _price(bits, "sample"), lifted=prompt > 0).tick_params(bottom=False)
    starts, seconds = _columns(len(wave)), len(wave) / rate
    outline = np.stack([np.minimum.reduceat(wave, starts), np.maximum.reduceat(wave, starts)], axis=1).ravel()
    above.plot(np.repeat(starts / rate, 2), outline, color=INK, lw=0.8)
    above.set(ylim=(-1.05, 1.05), yticks=[])
    mark_prompt(above, prompt, rate, len(wave))
    _curve(style(below), _means(bits, starts), seconds, "bits per sample")
    below.set_xlabel("seconds")
    return png(figure)


def surprise_trace(bits: np.ndarray) -> bytes:
    """PNG of the bits (N,) of ids that have no picture of their own, such as the tokens of a codec."""
    figure = canvas(9, 2.4)
    axes = style(figure.subplots(), _price(bits, "id"))
    _curve(axes, _means(bits, _columns(len(bits))), len(bits), "bits per id")
    axes.set_xlabel("place in the segment")
    return png(figure)


def surprise_text(data: bytes, bits: np.ndarray, prompt: int = 0) -> bytes:
    """A page that shows a text, each character tinted by what it cost; bytes that are no UTF-8 as \\xNN.

    Args:
        data: the text.
        bits: of each of its bytes.
        prompt: so many bytes were given and not written; they are bold.

    Raises:
        ValueError: not one number for each byte.
    """
    _same_shape(np.frombuffer(data, np.uint8), bits)
    note = f"{_price(bits, 'byte')} over {len(data):,} bytes; the stronger the tint, the more bits a character cost."
    if len(data) > MAX_TEXT_BYTES:
        note += f" The first {MAX_TEXT_BYTES:,} bytes are shown."
    costs = np.nan_to_num(bits[:MAX_TEXT_BYTES]).tolist()
    given, written = data[:MAX_TEXT_BYTES][:prompt], data[:MAX_TEXT_BYTES][prompt:]
    shown = tinted(given, costs, "prompt") + tinted(written, costs[len(given) :])
    return gallery.page("Surprise", f'<p class="lead">{note}</p><pre class="whole">{shown}</pre>').encode()


def _unscanned(bits: np.ndarray, count: int, height: int, width: int, channels: int, side: int) -> np.ndarray:
    """Bits in the order of a scan, as many as there are, at their pixels (count, H, W, C)."""
    whole = np.full(count * height * width * channels, np.nan)
    whole[: len(bits)] = bits
    return unscan(whole.reshape(count, -1), height, width, channels, side)


def _curve(axes: Axes, bits: np.ndarray, length: float, label: str) -> None:
    """What was paid in equal stretches of so long a whole, filled from zero."""
    edges = np.linspace(0, length, len(bits) + 1)
    axes.stairs(bits, edges, color=ACCENT, alpha=0.35, fill=True)
    axes.stairs(bits, edges, color=ACCENT, lw=0.9, baseline=None)
    axes.set(xlim=(0, length or 1), ylim=(0, _ceiling(bits, 1.0) * 1.1), ylabel=label)
    axes.grid(axis="y", color=RAISED)
    axes.set_axisbelow(True)


def _reduced(picture: Image.Image) -> Image.Image:
    """What is larger than it can be shown, smaller."""
    return resized(picture, min(1.0, scale_for(max(picture.size))))


def _columns(length: int) -> np.ndarray:
    """Where each of at most `MAX_COLUMNS` equal stretches of so many values starts."""
    count = min(length, MAX_COLUMNS)
    return np.arange(count) * length // max(count, 1)


def _means(bits: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The mean of the known bits of each stretch; NaN where none is known."""
    known = np.isfinite(bits)
    counts = np.add.reduceat(known.astype(np.int64), starts)
    return np.add.reduceat(np.where(known, bits, 0.0), starts) / np.where(counts, counts, np.nan)


def _ceiling(bits: np.ndarray, share: float = 0.99) -> float:
    """The top of a scale: so large a share of the known bits lies below it."""
    known = bits[np.isfinite(bits)]
    return max(float(np.quantile(known, share)), 1e-3) if known.size else 1.0


def _price(bits: np.ndarray, unit: str) -> str:
    known = bits[np.isfinite(bits)]
    return f"{known.mean():.3f} bits per {unit}" if known.size else "no bits known"


def _same_shape(data: np.ndarray, bits: np.ndarray) -> None:
    if data.shape != bits.shape:
        raise ValueError(f"bits have shape {bits.shape} for data of shape {data.shape}; give a number for each")
