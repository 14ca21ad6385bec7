"""Pictures: every pixel back, whatever the mode and format; what would lose something is refused."""

import dataclasses
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from byteloom.codecs import image
from byteloom.codecs.image import ImageConfig
from byteloom.documents import DataError, Segment
from byteloom.media import MAX_PAYLOAD

RNG = np.random.default_rng(0)
RASTER = ImageConfig(scan="raster")


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def read(path: Path, **options: object) -> np.ndarray:
    (segment,) = image.encode(path, ImageConfig(**options))  # pyrefly: ignore[bad-argument-type]
    return image.to_array(segment)


@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4)),
    patch=st.integers(1, 15),
    order=st.sampled_from(["patch", "raster"]),
    suffix=st.sampled_from([".png", ".webp", ".tif"]),
    seed=st.integers(0, 99),
)
def test_pixels_come_back_from_segment_and_file(
    shape: tuple[int, int, int],
    patch: int,
    order: str,
    suffix: str,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    config = ImageConfig(patch=patch, scan=order)  # pyrefly: ignore[bad-argument-type]
    segment = image.from_array(pixels, config)
    assert np.array_equal(image.to_array(segment), pixels)
    assert image.payload_size(segment.header) == len(segment.data) == pixels.size
    path = tmp_path_factory.mktemp("image") / f"picture{suffix}"
    path.write_bytes(image.decode(segment, suffix))
    if suffix == ".webp" and shape[2] < 3:  # WebP has no grey
        colour = np.concatenate([pixels[..., :1].repeat(3, axis=2), pixels[..., 1:]], axis=2)
        assert np.array_equal(read(path), colour)
    else:
        assert image.encode(path, config) == (segment,)


def test_the_header_and_the_order_are_as_documented() -> None:
    pixels = np.arange(4 * 258 * 3, dtype=np.uint32).astype(np.uint8).reshape(4, 258, 3)
    patch = image.from_array(pixels)
    assert patch.header == bytes([1, 2, 0, 4, 0x32]) and patch.modality == "image"
    assert patch.data[:12].tolist() == [*pixels[0, :2].ravel(), *pixels[1, :2].ravel()]
    raster = image.from_array(pixels, RASTER)
    assert raster.header == bytes([1, 2, 0, 4, 0x30]) and np.array_equal(raster.data, pixels.ravel())
    assert image.from_array(pixels[..., 0]).header[-1] == 0x12


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P"])
def test_what_8_bits_hold_is_kept(mode: str, tmp_path: Path) -> None:
    whole = Image.fromarray(noise(9, 14, 4), "RGBA")
    (whole.convert("RGB").quantize(16) if mode == "P" else whole.convert(mode)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == mode
        expected = np.asarray(picture.convert({"1": "L", "P": "RGB"}.get(mode, mode))).reshape(9, 14, -1)
    assert np.array_equal(read(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_a_transparent_colour_becomes_alpha(mode: str, tmp_path: Path) -> None:
    colour = noise(3, 4, 3) // 64 * 64
    colour[0, 0] = colour[2, 3] = 64
    picture = Image.fromarray(colour).convert(mode)
    value = picture.getpixel((0, 0))
    picture.save(tmp_path / "a.png", transparency=value)
    pixels = read(tmp_path / "a.png")
    assert pixels.shape == (3, 4, 2 if mode == "L" else 4)
    assert np.array_equal(pixels[..., -1] == 0, (np.asarray(picture) == value).reshape(3, 4, -1).all(axis=2))


def png(depth: int, colour: int, data: bytes, width: int = 2, height: int = 1) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" + data)) + chunk(b"IEND", b"")


DEEP = {
    "grey16.png": png(16, 0, struct.pack(">2H", 0x1234, 0xABCD)),
    "rgb16.png": png(16, 2, struct.pack(">6H", *range(0, 60000, 10000))),
    "alpha16.png": png(16, 4, struct.pack(">4H", 0x1234, 0xFFFF, 0xABCD, 0xFFFF)),
    "rgba16.png": png(16, 6, struct.pack(">8H", *range(0, 64000, 8000))),
    "grey16.pgm": b"P5 2 1 65535\n" + struct.pack(">2H", 0x1234, 0xABCD),
    "rgb16.ppm": b"P6 2 1 65535\n" + struct.pack(">6H", *range(0, 60000, 10000)),
}
for name, mode in (
    ("cmyk.tif", "CMYK"),
    ("lab.tif", "LAB"),
    ("float.tif", "F"),
    ("wide.tif", "I"),
    ("deep.tif", "I;16"),
):
    _file = io.BytesIO()
    Image.new(mode, (2, 1), 7).save(_file, "TIFF")
    DEEP[name] = _file.getvalue()


@pytest.mark.parametrize("name", DEEP)
def test_what_8_bits_cannot_hold_is_refused_until_an_option_allows_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(DEEP[name])
    with pytest.raises(DataError, match=rf"{name}: has .* --image\.channels rgb"):
        read(path)
    assert read(path, channels="rgb").shape == (1, 2, 3)
    assert read(path, channels="grey").shape == (1, 2, 1)


def test_16_bits_lose_their_lower_byte_and_real_numbers_are_stretched(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(DEEP["grey16.png"])
    assert read(tmp_path / "a.png", channels="grey").ravel().tolist() == [0x12, 0xAB]
    Image.fromarray(np.array([[-1.0, 0.0, 3.0, np.nan]], np.float32)).save(tmp_path / "f.tif")
    assert read(tmp_path / "f.tif", channels="grey").ravel().tolist() == [0, 64, 255, 64]


def test_channels_are_made_and_pictures_reduced_on_request(tmp_path: Path) -> None:
    pixels = np.full((40, 100, 3), (200, 100, 50), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    grey = read(tmp_path / "a.png", channels="grey", size=50)
    assert grey.shape == (20, 50, 1) and (grey == 124).all()  # 0.299 R + 0.587 G + 0.114 B
    assert np.array_equal(read(tmp_path / "a.png", size=100), pixels)


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((5, 6, 3), value, np.uint8)) for value in (10, 200)]
    for suffix in ("gif", "webp", "png"):
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
        assert (read(tmp_path / f"a.{suffix}") == 10).all()


def test_a_wrong_suffix_is_read_by_content(tmp_path: Path) -> None:
    pixels = noise(4, 5, 3)
    (tmp_path / "a.jpg").write_bytes(image.decode(image.from_array(pixels), ".png"))
    assert np.array_equal(read(tmp_path / "a.jpg"), pixels)


def test_headerless_tiles_are_many_segments(tmp_path: Path) -> None:
    tiles = noise(5, 4, 6, 3)
    (tmp_path / "tiles.bin").write_bytes(tiles.tobytes())
    segments = image.encode(tmp_path / "tiles.bin", ImageConfig(shape=(4, 6, 3)))
    assert segments == tuple(image.from_array(tile) for tile in tiles)
    raster = image.encode(tmp_path / "tiles.bin", ImageConfig(shape=(4, 6, 3), scan="raster"))
    assert np.array_equal(np.concatenate([segment.data for segment in raster]), tiles.ravel())
    assert image.decode(raster[2], ".bin") == tiles[2].tobytes()
    Image.fromarray(tiles[0]).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png", shape=(9, 9, 3)), tiles[0])
    with pytest.raises(DataError, match=r"tiles\.bin: 360 bytes are no whole number of 7 x 6 x 3"):
        image.encode(tmp_path / "tiles.bin", ImageConfig(shape=(7, 6, 3)))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".webp", ".bmp", ".tif", ".ppm", ".qoi", ".avif", ".jp2"])
def test_a_truncated_picture_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    content = image.decode(image.from_array(noise(60, 50, 3)), suffix)
    path.write_bytes(content)
    assert read(path).shape == (60, 50, 3)
    for share in (0.05, 0.5, 0.97):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(DataError, match=rf"a\{suffix}: cannot be decoded"):
            read(path)


@pytest.mark.parametrize(
    "content",
    [png(8, 2, b"", 60000, 60000), png(8, 2, b"", 1, 1 << 30), png(8, 0, b"", 20000, 13000), b"P5 16385 16385 255\n"],
)
def test_a_bomb_is_refused_before_it_is_decoded(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(DataError, match=r"bomb\.png: .*pixels.*; cut or reduce it"):
        read(tmp_path / "bomb.png")


def test_postscript_starts_no_program(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "EPS"
    with pytest.raises(DataError, match="cannot identify"):
        read(tmp_path / "a.png")
    with pytest.raises(ValueError, match="no picture format"):
        image.decode(image.from_array(noise(2, 2, 3)), ".eps")


@given(length=st.integers(0, 40), width=st.integers(1, 4), height=st.integers(1, 4))
def test_a_model_may_write_too_little_and_too_much(length: int, width: int, height: int) -> None:
    header = image.pack_header(height, width, 3, 0)
    data = np.arange(1, length + 1, dtype=np.uint8)
    pixels = image.to_array(Segment(modality="image", data=data, header=header))
    expected = np.zeros(width * height * 3, np.uint8)
    expected[: min(length, expected.size)] = data[: expected.size]
    assert np.array_equal(pixels.ravel(), expected)
    assert image.decode(Segment(modality="image", data=data, header=header))[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "header",
    [b"", b"\0\1\0\1", b"\0\0\0\1\x30", b"\0\1\0\0\x30", b"\0\1\0\1\x00", b"\0\1\0\1\x50", b"\xff" * 4 + b"\x32"],
)
def test_a_header_that_makes_no_sense_is_refused(header: bytes) -> None:
    with pytest.raises(ValueError, match="header of an image segment"):
        image.payload_size(header)
    with pytest.raises(ValueError, match="header of an image segment"):
        image.decode(Segment(modality="image", data=np.zeros(3, np.uint8), header=header))


def test_the_largest_picture_is_the_limit() -> None:
    assert image.payload_size(image.pack_header(1 << 14, 1 << 14, 1, 2)) == MAX_PAYLOAD
    with pytest.raises(ValueError, match="at most 268,435,456 bytes"):
        image.payload_size(image.pack_header(1 << 14, (1 << 14) + 1, 1, 2))


def test_formats_that_lack_channels_get_rgb_and_others_are_named() -> None:
    alpha = image.from_array(noise(4, 5, 4))
    for suffix, form in ((".jpg", "JPEG"), (".gif", "GIF"), (".bmp", "BMP")):
        with Image.open(io.BytesIO(image.decode(alpha, suffix))) as picture:
            assert (picture.format, picture.size) == (form, (5, 4))
    with pytest.raises(ValueError, match=r"suffix '\.xyz'"):
        image.decode(alpha, ".xyz")
    with pytest.raises(ValueError, match=r"cannot be written as \.webp"):
        image.decode(image.from_array(np.zeros((1, 20000, 3), np.uint8)), ".webp")


def test_arrays_that_are_no_pictures_are_refused() -> None:
    for array in (
        np.zeros((2, 2, 3)),
        np.zeros((2, 2, 5), np.uint8),
        np.zeros((0, 2, 3), np.uint8),
        np.zeros(3, np.uint8),
    ):
        with pytest.raises(ValueError, match=r"pixels"):
            image.from_array(array)
    with pytest.raises(ValueError, match="patch is 16"):
        ImageConfig(patch=16)
    assert dataclasses.replace(ImageConfig(), size=3).size == 3
