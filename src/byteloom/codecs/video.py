"""Video: what PyAV reads, animations, or bare frames, and back; pictures only, without sound.

In: a path, or an array (F, H, W, C). Out: a segment whose data are the frames one after another, each like a picture of
`byteloom.codecs.image`, and whose header is

    width, height, then numerator and denominator of the frames a second, uint16 each, big-endian; then a byte:
    channels << 4 | side of a patch in pixels, 0 for raster order

A video that is grey or RGB keeps every sample; one in luma and chroma becomes the RGB that is shown. Frames are taken
as equally far apart; transparency, and a turn that a camera notes beside the pixels, are not kept. Cost: the frames
that are kept, twice.
"""

import io
import math
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from byteloom.codecs import raw
from byteloom.codecs.image import MAX_PIXELS, PIXEL_SUFFIXES, read_tiles
from byteloom.documents import DataError, Segment
from byteloom.media import MAX_PAYLOAD, check_options, container, decoded, decoding, fit, reason
from byteloom.scan import check_pixels, reduced, scan, unscan

MODALITY = "video"
MARK = 263
HEADER_BYTES = 9
FILE_SUFFIX = ".mkv"
SUFFIXES = frozenset(
    ".3g2 .3gp .asf .avi .flv .ivf .m2ts .m4v .mjpeg .mkv .mov .mp4 .mpeg .mpg .mts .ogv .vob .webm .wmv .y4m".split()
)
HEADER = struct.Struct(">HHHHB")
MAX_RATE = 1000
USUAL_RATE = Fraction(25)
UNTIMED_RATE = Fraction(10)  # what browsers make of a frame of an animation that says nothing
ANIMATION = re.compile(rb"GIF8|\x89PNG|RIFF....WEBP", re.DOTALL)
WRITERS = {  # container, codec and its options of what can be written
    # Later levels of FFV1 cut a frame into slices, which not every size allows.
    ".mkv": ("matroska", "ffv1", {"level": "1"}),
    ".avi": ("avi", "ffv1", {"level": "1"}),
    ".mp4": ("mp4", "libx264", {"crf": "16"}),
    ".m4v": ("mp4", "libx264", {"crf": "16"}),
    ".mov": ("mov", "libx264", {"crf": "16"}),
    ".webm": ("webm", "libvpx-vp9", {"crf": "16", "b": "0"}),
}
CURE = "give a video, or the size of headerless frames as --video.shape"


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """How video is read."""

    scan: Literal["patch", "raster"] = "patch"
    """Order of the pixels of a frame: square patches one after another, or rows."""
    patch: int = 2
    """Side of a square patch in pixels, 1 to 15; with C channels it has patch * patch * C bytes."""
    channels: Literal["auto", "rgb", "grey"] = "auto"
    """What frames become: auto keeps grey, makes all else RGB and refuses more than 8 bits; the others convert."""
    size: int | None = None
    """Reduce frames whose longest side has more pixels than this; None keeps every pixel."""
    rate: float | None = None
    """Keep at most so many frames a second; None keeps every frame."""
    max_frames: int | None = None
    """Keep the first frames only; None keeps every frame."""
    shape: tuple[int, int, int] | None = None
    """Height, width and channels (1 or 3) of the frames that files of no video format hold, 8 bits a channel."""
    raw_rate: float = 25.0
    """Frames a second of headerless frames."""

    def __post_init__(self) -> None:
        check_options(self)
        check_pixels(self.patch, self.shape)
        if self.shape is not None and self.shape[2] not in (1, 3):
            raise ValueError(f"shape is {self.shape}; the frames of a video have 1 channel (grey) or 3 (RGB)")
        if self.raw_rate > MAX_RATE:
            raise ValueError(f"raw_rate is {self.raw_rate}; it must be at most {MAX_RATE} frames a second")

    @property
    def headerless(self) -> frozenset[str]:
        """Suffixes of files that are read as bare frames, because these options say what they need."""
        return PIXEL_SUFFIXES if self.shape is not None else frozenset()

    @property
    def side(self) -> int:
        """Side of a patch as a header has it: 0 for raster order."""
        return self.patch if self.scan == "patch" else 0


Config = VideoConfig


def encode(path: str | PathLike[str], config: VideoConfig = VideoConfig()) -> tuple[Segment, ...]:
    """A video as one segment: any container, an animated GIF, PNG or WebP, or headerless frames of `config.shape`.

    Raises:
        DataError: the file is no video, damaged, or too large, or has more than 8 bits a channel and none is chosen.
    """
    if raw.file_size(path) == 0:
        raise DataError(f"{path}: is empty; {CURE}")
    if config.shape is not None and Path(path).suffix.lower() not in SUFFIXES:
        pixels = read_tiles(path, config.shape)
        return (from_array(pixels[: config.max_frames], config.raw_rate, config),)
    with decoding(path, CURE):
        with open(path, "rb") as file:
            read = _read_animation if ANIMATION.match(file.read(12)) else _read_container
        return (read(path, config),)


def decode(segment: Segment, suffix: str = "") -> bytes:
    """The content of a video file in the format of `suffix`; by default Matroska with FFV1, which loses nothing.

    So does .avi; .mp4, .m4v, .mov and .webm are for players, .gif is an animation of 256 colours; .rgb, .raw, .bin and
    .u8 are the bare frames. Of no frames at all a black one is written.

    Raises:
        ValueError: the header is not one of a video, data are not bytes, or no format that can be written has that
            suffix or this size.
    """
    import av

    suffix = suffix.lower() or FILE_SUFFIX
    rate = unpack_header(segment.header)[3]
    frames = to_array(segment)
    if suffix in PIXEL_SUFFIXES:
        return frames.tobytes()
    if not len(frames):
        frames = np.zeros((1, *frames.shape[1:]), np.uint8)
    if suffix != ".gif" and suffix not in WRITERS:
        raise ValueError(f"no video format with suffix {suffix!r} can be written; take .gif, {', '.join(WRITERS)}")
    try:
        return _write_gif(frames, rate) if suffix == ".gif" else _write_container(frames, rate, *WRITERS[suffix])
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ValueError(
            f"a video of shape {frames.shape} at {rate} frames a second cannot be written as {suffix} "
            f"({reason(error)}); take .mkv"
        ) from error


def payload_size(header: bytes) -> None:
    """None: a video runs until it ends."""
    return


def unit_size(header: bytes) -> int:
    """Bytes of one frame. Raises ValueError where it is not the header of a video."""
    height, width, channels, _, _ = unpack_header(header)
    return height * width * channels


def to_array(segment: Segment) -> np.ndarray:
    """The frames (F, H, W, C) uint8; what is missing of the last one is 0. Raises ValueError as `unpack_header`."""
    height, width, channels, _, side = unpack_header(segment.header)
    data, size = raw.payload(segment), height * width * channels
    frames = -(-len(data) // size)
    return unscan(fit(data, frames * size).reshape(frames, size), height, width, channels, side)


def from_array(array: Any, rate: float | Fraction, config: VideoConfig = VideoConfig()) -> Segment:
    """A segment from frames (F, H, W) or (F, H, W, C) uint8, C being 1 (grey) or 3 (RGB), `rate` of them a second.

    Of the config only the order counts. Anything that numpy takes as an array will do, a torch tensor too.

    Raises:
        ValueError: another shape or dtype, a side of 0 or more than 65,535 pixels, or no such rate.
    """
    frames = np.asarray(array)
    frames = frames[..., None] if frames.ndim == 3 else frames
    if frames.ndim != 4 or frames.dtype != np.uint8:
        raise ValueError(f"frames have shape {frames.shape} and dtype {frames.dtype}; they must be (F, H, W, C) uint8")
    _, height, width, channels = frames.shape
    header = pack_header(height, width, channels, rate, config.side)
    return Segment(modality=MODALITY, data=scan(frames, config.side).reshape(-1), header=header)


def from_frames(array: Any, rate: float | Fraction, config: VideoConfig = VideoConfig()) -> Segment:
    """A segment from frames as `from_array` takes them, converted, reduced and thinned as a file of them would be.

    Raises:
        ValueError: as `from_array`.
        DataError: there are no frames.
    """
    segment = from_array(array, rate, config)
    if config.size is config.rate is config.max_frames is None and config.channels == "auto":
        return segment
    from PIL import Image

    frames = np.asarray(array)
    frames = frames[..., None] if frames.ndim == 3 else frames
    _, height, width, given = frames.shape
    grey = config.channels == "grey" or (config.channels == "auto" and given == 1)
    mode, channels = ("L", 1) if grey else ("RGB", 3)
    size = reduced(width, height, config.size)

    def shown() -> Iterator[tuple[float, np.ndarray]]:
        for number, frame in enumerate(frames):
            picture = Image.fromarray(frame[:, :, 0] if given == 1 else frame).convert(mode)
            picture = picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)
            yield number / float(rate), np.asarray(picture).reshape(size[1], size[0], channels)

    kept = _keep("the video", shown(), config.rate if config.rate is not None and config.rate < rate else None, config)
    return _segment("the video", kept, size, channels, Fraction(rate), config)


def pack_header(height: int, width: int, channels: int, rate: float | Fraction, side: int) -> bytes:
    """The header of a video; a rate that two numbers of 16 bits cannot say exactly is rounded.

    Raises:
        ValueError: no header can say that.
    """
    if not (0 < height <= MAX_PIXELS and 0 < width <= MAX_PIXELS and channels in (1, 3) and 0 < rate <= MAX_RATE):
        raise ValueError(
            f"a video of {width} x {height} pixels, {channels} channels and {rate} frames a second has no header; "
            f"sides may have 1 to {MAX_PIXELS:,} pixels, channels are 1 or 3, and there are at most {MAX_RATE} a second"
        )
    exact = Fraction(rate)
    near = 1 / (1 / exact).limit_denominator(65535) if exact >= 1 else exact.limit_denominator(65535)
    near = max(near, Fraction(1, 65535))
    return HEADER.pack(width, height, near.numerator, near.denominator, channels << 4 | side)


def unpack_header(header: bytes) -> tuple[int, int, int, Fraction, int]:
    """Height, width, channels, frames a second and side of a patch.

    Raises:
        ValueError: no video has this header, or a frame has more than `MAX_PAYLOAD` bytes.
    """
    if len(header) != HEADER_BYTES:
        raise ValueError(f"the header of a video segment has {len(header)} bytes; it must have {HEADER_BYTES}")
    width, height, numerator, denominator, rest = HEADER.unpack(header)
    channels, side = rest >> 4, rest & 15
    sized = width and height and channels in (1, 3) and width * height * channels <= MAX_PAYLOAD
    if not (sized and denominator and 0 < numerator <= MAX_RATE * denominator):
        raise ValueError(
            f"the header of a video segment asks for {width} x {height} pixels, {channels} channels and "
            f"{numerator}/{denominator} frames a second; no video has that"
        )
    return height, width, channels, Fraction(numerator, denominator), side


def _read_animation(path: str | PathLike[str], config: VideoConfig) -> Segment:
    """An animated picture, as Pillow puts its frames together."""
    from PIL import Image, ImageSequence

    with Image.open(path, formats=["GIF", "PNG", "WEBP"]) as picture:
        mode, channels = ("L", 1) if config.channels == "grey" else ("RGB", 3)
        size = _size(path, *picture.size, channels, getattr(picture, "n_frames", 1), config)
        times = [0.0]

        def frames() -> Iterator[tuple[float, np.ndarray]]:
            for frame in ImageSequence.Iterator(picture):
                shown = frame.convert(mode)
                shown = shown if shown.size == size else shown.resize(size, Image.Resampling.LANCZOS)
                seconds = (frame.info.get("duration") or 0) / 1000 or 1 / float(UNTIMED_RATE)
                times.append(times[-1] + seconds)
                yield times[-2], np.asarray(shown).reshape(size[1], size[0], channels)

        kept = _keep(path, frames(), config.rate, config)
    return _segment(path, kept, size, channels, (len(times) - 1) / Fraction(times[-1]), config)


def _read_container(path: str | PathLike[str], config: VideoConfig) -> Segment:
    """The pictures of a file that PyAV reads."""
    with container(path) as file:
        stream = next(iter(file.streams.video), None)
        if stream is None or stream.codec_context.format is None:
            raise DataError(f"{path}: holds no pictures, or none that are whole; {CURE}, or say --modality audio")
        context = stream.codec_context
        if config.channels == "auto" and any(component.bits > 8 for component in context.format.components):
            raise DataError(
                f"{path}: has more than 8 bits a channel; --video.channels rgb (or grey) reads it with loss"
            )
        grey = config.channels == "grey" or (config.channels == "auto" and context.format.name == "gray")
        pixel_format, channels = ("gray", 1) if grey else ("rgb24", 3)
        width, height = context.width, context.height
        size = _size(path, width, height, channels, stream.frames, config)
        context.options = {"max_pixels": str(MAX_PAYLOAD // channels)}
        rate = stream.average_rate or stream.guessed_rate or USUAL_RATE

        def frames() -> Iterator[tuple[float, np.ndarray]]:
            for number, frame in enumerate(decoded(path, file, stream)):
                if (frame.width, frame.height) != (width, height):
                    raise DataError(f"{path}: its frames change their size; convert it to one size")
                seconds = number / float(rate) if frame.time is None else frame.time
                yield (
                    seconds,
                    frame.to_ndarray(
                        width=size[0], height=size[1], format=pixel_format, interpolation="LANCZOS"
                    ).reshape(size[1], size[0], channels),
                )

        kept = _keep(path, frames(), config.rate if config.rate is not None and config.rate < rate else None, config)
        return _segment(path, kept, size, channels, rate, config)


def _size(
    path: str | PathLike[str], width: int, height: int, channels: int, frames: int, config: VideoConfig
) -> tuple[int, int]:
    """Width and height of what is kept. Raises DataError when a frame, or all that the header says, are too large."""
    if not (0 < width <= MAX_PIXELS and 0 < height <= MAX_PIXELS and width * height * channels <= MAX_PAYLOAD):
        raise DataError(f"{path}: has frames of {width:,} x {height:,} pixels; reduce it with another program")
    size = reduced(width, height, config.size)
    if config.rate is None and size[0] * size[1] * channels * min(frames, config.max_frames or frames) > MAX_PAYLOAD:
        raise _too_large(path)
    return size


def _keep(
    path: str | PathLike[str], frames: Iterable[tuple[float, np.ndarray]], rate: float | None, config: VideoConfig
) -> list[np.ndarray]:
    """The frames (H * W * C,) of (seconds, pixels), scanned: the first of every 1 / `rate` seconds, or all."""
    kept: list[np.ndarray] = []
    last, size = -1, 0
    for seconds, pixels in frames:
        if rate is not None:
            due = math.floor((seconds + 0.001) * rate)  # containers round to milliseconds
            if due <= last:
                continue
            last = due
        kept.append(scan(pixels[None], config.side)[0])
        size += pixels.size
        if size > MAX_PAYLOAD:
            raise _too_large(path)
        if len(kept) == config.max_frames:
            break
    return kept


def _segment(
    path: str | PathLike[str],
    kept: list[np.ndarray],
    size: tuple[int, int],
    channels: int,
    rate: Fraction,
    config: VideoConfig,
) -> Segment:
    if not kept:
        raise DataError(f"{path}: holds no frames; {CURE}")
    rate = min(rate, Fraction(config.rate or MAX_RATE), Fraction(MAX_RATE))
    header = pack_header(size[1], size[0], channels, rate, config.side)
    return Segment(modality=MODALITY, data=np.concatenate(kept), header=header)


def _too_large(path: str | PathLike[str]) -> DataError:
    return DataError(
        f"{path}: has more than {MAX_PAYLOAD:,} bytes of pixels; reduce it with --video.size, --video.rate or "
        "--video.max_frames"
    )


def _write_gif(frames: np.ndarray, rate: Fraction) -> bytes:
    from PIL import Image

    pictures = [Image.fromarray(frame[:, :, 0] if frame.shape[2] == 1 else frame) for frame in frames]
    file = io.BytesIO()
    pictures[0].save(
        file, "GIF", save_all=True, append_images=pictures[1:], duration=max(10, round(1000 / rate)), loop=0
    )
    return file.getvalue()


def _write_container(frames: np.ndarray, rate: Fraction, name: str, codec: str, options: dict[str, str]) -> bytes:
    import av

    _, height, width, channels = frames.shape
    if codec == "ffv1":
        pixel_format = "gray" if channels == 1 else "bgr0"
    else:  # chroma of half the size needs even sides
        pixel_format = "yuv444p" if width % 2 or height % 2 else "yuv420p"
    file = io.BytesIO()
    with av.open(file, "w", format=name) as output:
        stream: Any = output.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        for frame in frames:
            pixels = frame[:, :, 0] if channels == 1 else frame
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "gray" if channels == 1 else "rgb24")
            output.mux(stream.encode(picture))
        output.mux(stream.encode())
    return file.getvalue()
