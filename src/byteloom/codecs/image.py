"""Pictures: any format that Pillow reads, or tiles of pixels without a header, and back.

In: a path, or an array (H, W, C). Out: a segment whose data are the pixels, 8 bits a channel, in patch or raster order
(`byteloom.scan`), and whose header is

    width uint16, height uint16, big-endian; then a byte: channels << 4 | side of a patch in pixels, 0 for raster order

Nothing is lost unless an option says so. Of an animation the first frame is read; the orientation that a camera notes
beside the pixels is not applied. Cost: about three times the pixels while a file is read.
"""

import io
import struct
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from byteloom.codecs import raw
from byteloom.documents import DataError, Segment
from byteloom.media import MAX_PAYLOAD, check_options, decoding, fit
from byteloom.scan import check_pixels, reduced, scan, unscan

if TYPE_CHECKING:
    from PIL import Image

MODALITY = "image"
MARK = 261
HEADER_BYTES = 5
FILE_SUFFIX = ".png"
SUFFIXES = frozenset(
    """.apng .avif .bmp .cur .dds .dib .gif .icns .ico .j2k .jfif .jp2 .jpe .jpeg .jpg .jpx .pbm .pcx .pfm .pgm .png
    .pnm .ppm .psd .qoi .ras .sgi .tga .tif .tiff .webp .xbm""".split()
)
PIXEL_SUFFIXES = frozenset(".bin .raw .rgb .u8".split())

MODES = {"1": "L", "L": "L", "LA": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB", "RGBX": "RGB", "RGBA": "RGBA"}
WITH_ALPHA = {"L": "LA", "RGB": "RGBA"}
MODES_BY_CHANNELS = ("", "L", "LA", "RGB", "RGBA")
UNSAFE = frozenset({"EPS", "PDF"})  # never read or written: the first starts another program
HEADER = struct.Struct(">HHB")
MAX_PIXELS = 65535
WRITTEN_WITH: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True, "exact": True}}
CURE = "give a picture, or the size of headerless pixels as --image.shape"


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How pictures are read."""

    scan: Literal["patch", "raster"] = "patch"
    """Order of the pixels: square patches one after another, or rows."""
    patch: int = 2
    """Side of a square patch in pixels, 1 to 15; with C channels it has patch * patch * C bytes."""
    channels: Literal["auto", "rgb", "grey"] = "auto"
    """What pictures become: auto keeps grey, RGB and alpha and refuses what 8 bits cannot hold; the others convert."""
    size: int | None = None
    """Reduce pictures whose longest side has more pixels than this; None keeps every pixel."""
    shape: tuple[int, int, int] | None = None
    """Height, width and channels of the tiles that files of no picture format hold, 8 bits a channel, rows first."""

    def __post_init__(self) -> None:
        check_options(self)
        check_pixels(self.patch, self.shape)

    @property
    def headerless(self) -> frozenset[str]:
        """Suffixes of files that are read as bare pixels, because these options say what they need."""
        return PIXEL_SUFFIXES if self.shape is not None else frozenset()

    @property
    def side(self) -> int:
        """Side of a patch as a header has it: 0 for raster order."""
        return self.patch if self.scan == "patch" else 0


Config = ImageConfig


def encode(path: str | PathLike[str], config: ImageConfig = ImageConfig()) -> tuple[Segment, ...]:
    """A picture as one segment; or a file of headerless tiles, if `config.shape` says their size, as one for each.

    Raises:
        DataError: the file is no picture, damaged, or too large, or would lose something that no option allows to.
    """
    if raw.file_size(path) == 0:
        raise DataError(f"{path}: is empty; {CURE}")
    if config.shape is not None and Path(path).suffix.lower() not in SUFFIXES:
        pixels = read_tiles(path, config.shape)
        header = pack_header(*config.shape, config.side)
        return tuple(Segment(modality=MODALITY, data=data, header=header) for data in scan(pixels, config.side))
    return (from_array(_read_picture(path, config), config),)


def decode(segment: Segment, suffix: str = "") -> bytes:
    """The content of a picture file in the format of `suffix`, PNG by default.

    PNG and WebP lose nothing; .rgb, .raw, .bin and .u8 are the bare pixels, rows first. Where a format cannot hold the
    channels, such as alpha in JPEG, they become RGB.

    Raises:
        ValueError: the header is not one of a picture, data are not bytes, or no format that can be written has that
            suffix or this size.
    """
    from PIL import Image

    suffix = suffix.lower() or FILE_SUFFIX
    pixels = to_array(segment)
    if suffix in PIXEL_SUFFIXES:
        return pixels.tobytes()
    name = Image.registered_extensions().get(suffix, "")
    if name not in Image.SAVE or name in UNSAFE:
        raise ValueError(f"no picture format with suffix {suffix!r} can be written; take .png, .webp or .jpg")
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    reason: Exception | None = None
    for mode in dict.fromkeys((picture.mode, "RGB")):
        file = io.BytesIO()
        try:
            picture.convert(mode).save(file, name, **WRITTEN_WITH.get(name, {}))
            return file.getvalue()
        except (OSError, ValueError, struct.error) as error:
            reason = error
    raise ValueError(f"a picture of shape {pixels.shape} cannot be written as {suffix} ({reason}); take .png")


def payload_size(header: bytes) -> int:
    """How many bytes of pixels a header asks for. Raises ValueError where it is not the header of a picture."""
    height, width, channels, _ = unpack_header(header)
    return height * width * channels


def to_array(segment: Segment) -> np.ndarray:
    """The pixels (H, W, C) uint8; those that are missing are 0. Raises ValueError as `payload_size`."""
    height, width, channels, side = unpack_header(segment.header)
    data = fit(raw.payload(segment), height * width * channels)
    return unscan(data[None], height, width, channels, side)[0]


def from_array(array: Any, config: ImageConfig = ImageConfig()) -> Segment:
    """A segment from pixels (H, W) or (H, W, C) uint8: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.

    Of the config only the order counts. Anything that numpy takes as an array will do, a torch tensor too.

    Raises:
        ValueError: another shape or dtype, or a side of 0 or more than 65,535 pixels.
    """
    pixels = np.asarray(array)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"pixels have shape {pixels.shape} and dtype {pixels.dtype}; they must be (H, W, C) uint8")
    height, width, channels = pixels.shape
    header = pack_header(height, width, channels, config.side)
    return Segment(modality=MODALITY, data=scan(pixels[None], config.side)[0], header=header)


def from_content(content: bytes, config: ImageConfig = ImageConfig()) -> Segment:
    """A segment from the content of a picture file.

    Raises:
        DataError: as `encode`.
    """
    return from_array(_read_picture("the picture", config, content), config)


def from_picture(picture: "Image.Image", config: ImageConfig = ImageConfig()) -> Segment:
    """A segment from a picture of Pillow, converted and reduced as a file of it would be.

    Raises:
        DataError: it is too large, or would lose something that no option allows to.
    """
    return from_array(_pixels_of("the picture", picture, config), config)


def pack_header(height: int, width: int, channels: int, side: int) -> bytes:
    """The header of a picture. Raises ValueError when no header can say that."""
    if not (0 < height <= MAX_PIXELS and 0 < width <= MAX_PIXELS and 0 < channels < 5):
        raise ValueError(
            f"a picture of {width} x {height} pixels and {channels} channels has no header; "
            f"sides may have 1 to {MAX_PIXELS:,} pixels, and channels are 1 to 4"
        )
    return HEADER.pack(width, height, channels << 4 | side)


def unpack_header(header: bytes) -> tuple[int, int, int, int]:
    """Height, width, channels and side of a patch.

    Raises:
        ValueError: no picture has this header, or it has more than `MAX_PAYLOAD` bytes.
    """
    if len(header) != HEADER_BYTES:
        raise ValueError(f"the header of an image segment has {len(header)} bytes; it must have {HEADER_BYTES}")
    width, height, rest = HEADER.unpack(header)
    channels, side = rest >> 4, rest & 15
    if not (width and height and 0 < channels < 5 and width * height * channels <= MAX_PAYLOAD):
        raise ValueError(
            f"the header of an image segment asks for {width} x {height} pixels and {channels} channels; "
            f"there must be some, 1 to 4 channels, and at most {MAX_PAYLOAD:,} bytes"
        )
    return height, width, channels, side


def read_tiles(path: str | PathLike[str], shape: tuple[int, int, int]) -> np.ndarray:
    """Headerless pixels (N, H, W, C), mapped. Raises DataError when the file does not hold a whole number of tiles."""
    data = raw.map_file(path)
    height, width, channels = shape
    if len(data) % (height * width * channels):
        raise DataError(
            f"{path}: {len(data):,} bytes are no whole number of {height} x {width} x {channels}; "
            "give the height, width and channels of what it holds"
        )
    return data.reshape(-1, height, width, channels)


def _read_picture(path: str | PathLike[str], config: ImageConfig, content: bytes | None = None) -> np.ndarray:
    """The pixels (H, W, C) of a picture file, or of its content if that is at hand, as the config wants them."""
    with decoding(path, CURE):
        from PIL import Image

        Image.init()
        try:
            source = path if content is None else io.BytesIO(content)
            opened = Image.open(source, formats=sorted(set(Image.OPEN) - UNSAFE))
        except Image.DecompressionBombError as error:
            raise DataError(f"{path}: has too many pixels ({error}); cut or reduce it") from error
        with opened as picture:
            return _pixels_of(path, picture, config)


def _pixels_of(path: str | PathLike[str], picture: "Image.Image", config: ImageConfig) -> np.ndarray:
    """The pixels (H, W, C) of a picture of Pillow, as the config wants them. Raises DataError, which names the path."""
    from PIL import Image

    mode = _mode(path, picture, config)
    width, height = picture.size
    channels = MODES_BY_CHANNELS.index(mode)
    if max(width, height) > MAX_PIXELS or width * height * channels > MAX_PAYLOAD:
        raise DataError(
            f"{path}: {width:,} x {height:,} pixels are more than {MAX_PIXELS:,} a side or "
            f"{MAX_PAYLOAD:,} bytes; cut or reduce it"
        )
    wide = picture.mode.startswith(("I", "F"))
    kept = Image.fromarray(_to_8_bits(np.asarray(picture))) if wide else picture
    kept = kept.convert("RGB") if kept.mode == "LAB" else kept  # which Pillow makes nothing else of
    kept = kept if kept.mode == mode else kept.convert(mode)
    size = reduced(width, height, config.size)
    if size != kept.size:
        kept = kept.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(kept).reshape(size[1], size[0], channels)


def _mode(path: str | PathLike[str], picture: "Image.Image", config: ImageConfig) -> str:
    """The mode of 8-bit channels that a picture becomes. Raises DataError where "auto" would lose something."""
    if config.channels != "auto":
        return "RGB" if config.channels == "rgb" else "L"
    mode = MODES.get(picture.mode)
    if mode is None or _is_deep(picture):
        depth = f"more than 8 bits a channel (mode {picture.mode})" if mode or picture.mode[0] in "IF" else picture.mode
        raise DataError(
            f"{path}: has {depth}, which 8-bit grey, RGB and alpha cannot hold; "
            "--image.channels rgb (or grey) reads it with loss"
        )
    return WITH_ALPHA.get(mode, mode) if picture.has_transparency_data else mode


def _is_deep(picture: "Image.Image") -> bool:
    """Whether the file has more than 8 bits a channel; Pillow itself opens such colours as 8-bit ones."""
    for tile in getattr(picture, "tile", ()):
        parts = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        greatest = parts[-1] if tile.codec_name.startswith("ppm") else 0
        if ";16" in str(parts[0]) or (isinstance(greatest, int) and greatest > 255):
            return True
    return False


def _to_8_bits(samples: np.ndarray) -> np.ndarray:
    """Grey of 16 bits by its upper byte; of 32 bits or real numbers stretched from its least to its greatest value."""
    if samples.dtype == np.uint16:
        return (samples >> 8).astype(np.uint8)
    values = np.nan_to_num(samples.astype(np.float64), posinf=0, neginf=0)
    least, greatest = values.min(), values.max()
    return np.rint((values - least) * (255 / max(greatest - least, 1e-300))).astype(np.uint8)
