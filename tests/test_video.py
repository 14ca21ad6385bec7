"""Video: every sample of grey and RGB back; rates, sizes and limits; what is damaged is refused."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from byteloom.codecs import image, video
from byteloom.codecs.video import VideoConfig
from byteloom.documents import DataError, Segment
from byteloom.media import MAX_PAYLOAD


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def numbered(count: int) -> np.ndarray:
    """Frames (F, 16, 24, 3), each filled with its number times 8."""
    return np.broadcast_to((np.arange(count) * 8).astype(np.uint8)[:, None, None, None], (count, 16, 24, 3))


def read(path: Path, **options: object) -> tuple[np.ndarray, Fraction]:
    """Frames and their rate."""
    (segment,) = video.encode(path, VideoConfig(**options))  # pyrefly: ignore[bad-argument-type]
    return video.to_array(segment), video.unpack_header(segment.header)[3]


rates = st.one_of(
    st.sampled_from([Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60), Fraction(25), Fraction(1, 4)]),
    st.integers(1, 120).map(Fraction),
)


@settings(max_examples=30)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3])),
    patch=st.integers(1, 15),
    order=st.sampled_from(["patch", "raster"]),
    suffix=st.sampled_from([".mkv", ".avi"]),
    rate=rates,
    seed=st.integers(0, 99),
)
def test_frames_come_back_from_segment_and_file(
    shape: tuple[int, int, int, int],
    patch: int,
    order: str,
    suffix: str,
    rate: Fraction,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    frames = noise(*shape, seed=seed)
    config = VideoConfig(patch=patch, scan=order)  # pyrefly: ignore[bad-argument-type]
    segment = video.from_array(frames, rate, config)
    assert np.array_equal(video.to_array(segment), frames)
    assert len(segment.data) == len(frames) * video.unit_size(segment.header)
    path = tmp_path_factory.mktemp("video") / f"a{suffix}"
    path.write_bytes(video.decode(segment, suffix))
    assert video.encode(path, config) == (segment,)


def test_the_header_and_the_order_are_as_documented() -> None:
    frames = noise(2, 4, 258, 3)
    segment = video.from_array(frames, Fraction(30000, 1001))
    assert segment.header == bytes([1, 2, 0, 4, 0x75, 0x30, 0x03, 0xE9, 0x32])
    pictures = [image.from_array(frame).data for frame in frames]
    assert np.array_equal(segment.data, np.concatenate(pictures))
    assert video.from_array(frames[..., 0], 25).header[-1] == 0x12
    assert video.payload_size(segment.header) is None


@given(rate=st.floats(1e-9, 1000))
def test_any_rate_is_said_within_what_16_bits_can(rate: float) -> None:
    found = video.unpack_header(video.pack_header(1, 1, 3, rate, 0))[3]
    assert abs(found - Fraction(rate)) <= max(Fraction(1, 65535), Fraction(rate) ** 2 / 65535)


@pytest.mark.parametrize(("suffix", "form"), [(".mp4", "mov"), (".mov", "mov"), (".webm", "matroska"), (".gif", "gif")])
@pytest.mark.parametrize("size", [(48, 64), (33, 47), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_players_are_given_what_they_play(
    suffix: str, form: str, size: tuple[int, int], channels: int, tmp_path: Path
) -> None:
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    moving = np.stack([np.sin(rows / 9 + time / 3) + np.cos(columns / 7) for time in range(8)])
    grey = (moving * 60 + 128).astype(np.uint8)[..., None]
    content = video.decode(video.from_array(grey.repeat(channels, axis=3), 10), suffix)
    with av.open(io.BytesIO(content)) as file:
        assert file.format.name.startswith(form)
    (tmp_path / f"a{suffix}").write_bytes(content)
    frames, rate = read(tmp_path / f"a{suffix}")
    assert (frames.shape, rate) == ((8, *size, 3), 10)
    assert np.abs(frames - grey.astype(int)).mean() < 4


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animations_are_read_frame_by_frame(suffix: str, tmp_path: Path) -> None:
    frames = noise(4, 9, 11, 3) // 128 * 255
    pictures = [Image.fromarray(frame) for frame in frames]
    path = tmp_path / f"a{suffix}"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[50, 50, 100, 200], lossless=True)
    found, rate = read(path)
    assert np.array_equal(found, frames) and rate == 10
    assert read(path, channels="grey", max_frames=2)[0].shape == (2, 9, 11, 1)
    assert read(path, rate=5.0)[0].shape == (2, 9, 11, 3)  # those that begin at 0.0 and 0.2 s
    assert read(path, size=5)[0].shape == (4, 4, 5, 3)


def test_frames_are_kept_by_rate_and_number(tmp_path: Path) -> None:
    for suffix in (".mkv", ".avi"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(video.decode(video.from_array(numbered(30), Fraction(30000, 1001)), suffix))
        third, rate = read(path, rate=10.0)
        assert rate == 10 and (third[:, 0, 0, 0] // 8).tolist() == [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]
        same, rate = read(path, rate=60.0)
        assert len(same) == 30 and rate == Fraction(30000, 1001)
        first, _ = read(path, max_frames=4)
        assert np.array_equal(first, numbered(4))
        small, _ = read(path, size=12)
        assert small.shape == (30, 8, 12, 3) and np.abs(small[:, 0, 0, 0] - np.arange(30) * 8).max() <= 1


def test_grey_is_made_on_request(tmp_path: Path) -> None:
    frames = np.full((2, 8, 8, 3), (200, 100, 50), np.uint8)
    (tmp_path / "a.mkv").write_bytes(video.decode(video.from_array(frames, 25)))
    grey, _ = read(tmp_path / "a.mkv", channels="grey")
    assert grey.shape == (2, 8, 8, 1) and np.abs(grey.astype(int) - 124).max() <= 1


def test_more_than_8_bits_are_refused_until_an_option_allows_it(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 8, 8, "yuv420p10le"  # pyrefly: ignore[missing-attribute]
        output.mux(stream.encode(av.VideoFrame.from_ndarray(noise(8, 8, 3), "rgb24")))  # pyrefly: ignore[missing-attribute]
        output.mux(stream.encode())  # pyrefly: ignore[missing-attribute]
    with pytest.raises(DataError, match=r"a\.mkv: has more than 8 bits .*--video\.channels rgb"):
        read(path)
    assert read(path, channels="rgb")[0].shape == (1, 8, 8, 3)


def test_a_wrong_suffix_is_read_by_content_and_a_sound_is_no_video(tmp_path: Path) -> None:
    frames = noise(2, 6, 8, 3)
    (tmp_path / "a.mp4").write_bytes(video.decode(video.from_array(frames, 25)))
    assert np.array_equal(read(tmp_path / "a.mp4")[0], frames)
    with av.open(str(tmp_path / "b.mp4"), "w") as output:
        stream = output.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))  # pyrefly: ignore[missing-attribute]
        output.mux(stream.encode())  # pyrefly: ignore[missing-attribute]
    with pytest.raises(DataError, match=r"b\.mp4: holds no pictures.*--modality audio"):
        read(tmp_path / "b.mp4")


def test_headerless_frames_are_one_segment(tmp_path: Path) -> None:
    frames = noise(5, 4, 6, 3)
    path = tmp_path / "frames.bin"
    path.write_bytes(frames.tobytes())
    config = VideoConfig(shape=(4, 6, 3), raw_rate=12.5)
    assert video.encode(path, config) == (video.from_array(frames, 12.5, config),)
    assert video.decode(video.from_array(frames, 12.5, config), ".rgb") == frames.tobytes()
    assert len(read(path, shape=(4, 6, 3), max_frames=2)[0]) == 2
    with pytest.raises(DataError, match=r"frames\.bin: 360 bytes are no whole number of 7 x 6 x 3"):
        read(path, shape=(7, 6, 3))
    for options, named in (
        ({"shape": (4, 6, 4)}, "shape"),
        ({"raw_rate": 1001.0}, "raw_rate"),
        ({"patch": 16}, "patch"),
    ):
        with pytest.raises(ValueError, match=f"^{named} is "):
            VideoConfig(**options)  # pyrefly: ignore[bad-argument-type]


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".mp4", ".webm", ".gif"])
def test_a_truncated_video_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    content = video.decode(video.from_array(noise(12, 32, 48, 3), 24), suffix)
    path.write_bytes(content)
    assert len(read(path)[0]) == 12
    for share in (0.01, 0.1, 0.5, 0.8):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(DataError, match=rf"a\{suffix}: "):
            read(path)


def test_a_video_whose_index_comes_first_is_refused_when_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"  # pyrefly: ignore[missing-attribute]
        for frame in noise(20, 32, 32, 3):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))  # pyrefly: ignore[missing-attribute]
        output.mux(stream.encode())  # pyrefly: ignore[missing-attribute]
    assert len(read(path)[0]) == 20
    content = path.read_bytes()
    for share in (0.5, 0.9, 0.98):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(DataError, match=r"a\.mp4: "):
            read(path)


def test_too_many_pixels_are_refused_before_and_while_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mkv"
    path.write_bytes(video.decode(video.from_array(noise(10, 16, 16, 3), 25)))
    (tmp_path / "b.mp4").write_bytes(video.decode(video.from_array(noise(10, 16, 16, 3), 25), ".mp4"))
    monkeypatch.setattr(video, "MAX_PAYLOAD", 5 * 768)
    for name in ("a.mkv", "b.mp4"):
        with pytest.raises(DataError, match=rf"{name}: has more than .*--video\.size"):
            read(tmp_path / name)
        assert len(read(tmp_path / name, max_frames=5)[0]) == 5
    monkeypatch.setattr(video, "MAX_PAYLOAD", 767)
    with pytest.raises(DataError, match=r"a\.mkv: has frames of 16 x 16 pixels"):
        read(path, size=4)


@given(length=st.integers(0, 40), channels=st.sampled_from([1, 3]))
@settings(max_examples=20)
def test_a_model_may_end_anywhere(length: int, channels: int) -> None:
    header = video.pack_header(2, 3, channels, 25, 2)
    segment = Segment(modality="video", data=np.arange(1, length + 1, dtype=np.uint8), header=header)
    frames = video.to_array(segment)
    assert frames.shape == (-(-length // (6 * channels)), 2, 3, channels)
    whole = video.from_array(frames, 25).data if len(frames) else np.empty(0, np.uint8)
    assert np.array_equal(whole[:length], segment.data) and not whole[length:].any()
    with av.open(io.BytesIO(video.decode(segment))) as file:
        assert len(list(file.decode(video=0))) == max(1, len(frames))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        video.pack_header(2, 3, 3, 25, 2)[:-1],
        bytes([0, 0, 0, 4, 0, 25, 0, 1, 0x32]),
        bytes([0, 4, 0, 4, 0, 25, 0, 0, 0x32]),
        bytes([0, 4, 0, 4, 0, 0, 0, 1, 0x32]),
        bytes([0, 4, 0, 4, 4, 0, 0, 1, 0x32]),
        bytes([0, 4, 0, 4, 0, 25, 0, 1, 0x42]),
        bytes([255, 255, 255, 255, 0, 25, 0, 1, 0x32]),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(header: bytes) -> None:
    with pytest.raises(ValueError, match="header of a video segment"):
        video.unit_size(header)
    with pytest.raises(ValueError, match="header of a video segment"):
        video.decode(Segment(modality="video", data=np.zeros(3, np.uint8), header=header))
    assert MAX_PAYLOAD == 1 << 28


def test_arrays_and_formats_that_are_none_are_refused() -> None:
    for array in (np.zeros((2, 2, 2, 3)), np.zeros((2, 2, 2, 4), np.uint8), np.zeros((2, 0, 2, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"frames|pixels"):
            video.from_array(array, 25)
    for rate in (0, -1, 1001):
        with pytest.raises(ValueError, match="frames a second has no header"):
            video.from_array(noise(1, 2, 2, 3), rate)
    with pytest.raises(ValueError, match=r"suffix '\.xyz'"):
        video.decode(video.from_array(noise(1, 2, 2, 3), 25), ".xyz")
    with pytest.raises(ValueError, match=r"cannot be written as \.mp4"):
        video.decode(video.from_array(noise(1, 1, 60000, 1), 25), ".mp4")
