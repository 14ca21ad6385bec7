"""Sound: every sample back, whatever the width and format; G.711 against another implementation."""

import io
import math
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from byteloom.codecs import audio
from byteloom.codecs.audio import AudioConfig
from byteloom.documents import DataError, Segment
from byteloom.media import MAX_PAYLOAD

TYPES = {"pcm8": np.uint8, "pcm16": np.int16, "pcm24": np.int32, "float32": np.float32, "mulaw": np.int16}


def noise(coding: str, length: int, channels: int, seed: int = 0) -> np.ndarray:
    """Samples (length, channels) that this coding holds exactly."""
    rng = np.random.default_rng(seed)
    if coding == "float32":
        return rng.standard_normal((length, channels)).astype(np.float32)
    if coding == "mulaw":
        return audio.from_mulaw(rng.integers(0, 255, (length, channels), dtype=np.uint8))
    if coding == "pcm24":
        return (rng.integers(-(1 << 23), 1 << 23, (length, channels)) << 8).astype(np.int32)
    bounds = np.iinfo(TYPES[coding])
    return rng.integers(bounds.min, bounds.max, (length, channels), TYPES[coding], endpoint=True)


def read(path: Path, **options: object) -> tuple[np.ndarray, int, str]:
    """Samples, rate and coding of a file."""
    (segment,) = audio.encode(path, AudioConfig(**options))  # pyrefly: ignore[bad-argument-type]
    rate, _, coding = audio.unpack_header(segment.header)
    return audio.to_array(segment), rate, coding


@given(
    coding=st.sampled_from(list(audio.CODINGS)),
    length=st.one_of(st.integers(0, 3), st.integers(4, 3000)),
    channels=st.integers(1, 16),
    rate=st.integers(1, 384000),
    seed=st.integers(0, 99),
)
def test_samples_come_back_from_segment_and_file(
    coding: str, length: int, channels: int, rate: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    samples = noise(coding, length, channels, seed)
    segment = audio.from_array(samples, rate, AudioConfig(coding=coding))  # pyrefly: ignore[bad-argument-type]
    assert len(segment.data) == length * audio.unit_size(segment.header)
    back = audio.to_array(segment)
    assert np.array_equal(back, samples) and back.dtype == TYPES[coding]
    path = tmp_path_factory.mktemp("audio") / "a.wav"
    path.write_bytes(audio.decode(segment))
    found, found_rate, found_coding = read(path)
    assert np.array_equal(found, samples) and found_rate == rate
    assert found_coding == ("pcm16" if coding == "mulaw" else coding)


@pytest.mark.parametrize(
    ("suffix", "coding"),
    [
        (suffix, coding)
        for suffix in (".flac", ".aiff", ".au", ".caf", ".w64", ".rf64")
        for coding in ("pcm8", "pcm16", "pcm24", "float32")
        if (suffix, coding) != (".flac", "float32")
    ],
)
def test_lossless_formats_lose_nothing(suffix: str, coding: str, tmp_path: Path) -> None:
    samples = noise(coding, 1000, 2)
    (tmp_path / f"a{suffix}").write_bytes(audio.decode(audio.from_array(samples, 22050), suffix))
    found, rate, found_coding = read(tmp_path / f"a{suffix}")
    assert np.array_equal(found, samples) and (rate, found_coding) == (22050, coding)


def test_the_header_and_the_order_are_as_documented() -> None:
    samples = np.array([[1, -2], [256, 3]], np.int16)
    segment = audio.from_array(samples, 0x01F480)
    assert segment.header == bytes([0x01, 0xF4, 0x80, 0x11])
    assert segment.data.tolist() == [1, 0, 0xFE, 0xFF, 0, 1, 3, 0]
    whole = audio.from_array(np.array([0x12345600], np.int32), 1)
    assert whole.header == bytes([0, 0, 1, 0x02]) and whole.data.tolist() == [0x56, 0x34, 0x12]
    assert list(audio.CODINGS) == ["pcm8", "pcm16", "pcm24", "float32", "mulaw"]
    assert audio.payload_size(segment.header) is None


def test_mulaw_is_that_of_g711() -> None:
    # Decision values of the positive segments and what their codes stand for, from G.711 table 2a.
    assert audio.from_mulaw(np.array([0x80, 0x8F, 0x90, 0xA0, 0xB0, 0xEF, 0xF0, 0xFF], np.uint8)).tolist() == [
        4 * value for value in (8031, 4191, 3999, 1983, 975, 33, 30, 0)
    ]
    assert audio.to_mulaw(np.array([0, 3, 4, 32767, -32768, -4, 124, 120], np.int16)).tolist() == [
        0xFF, 0xFF, 0xFE, 0x80, 0x00, 0x7E, 0xEF, 0xF0,
    ]  # fmt: skip
    every = np.arange(-32768, 32768).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, every, 8000, format="RAW", subtype="ULAW")
    theirs = np.frombuffer(file.getvalue(), np.uint8)
    assert np.array_equal(audio.to_mulaw(every), theirs)
    read_back, _ = soundfile.read(
        io.BytesIO(bytes(range(256))), dtype="int16", samplerate=8000, channels=1, format="RAW", subtype="ULAW"
    )
    codes = np.arange(256, dtype=np.uint8)
    assert np.array_equal(audio.from_mulaw(codes), read_back)
    assert np.array_equal(audio.to_mulaw(read_back), np.where(codes == 0x7F, 0xFF, codes))  # two zeros


@pytest.mark.parametrize("subtype", ["PCM_32", "DOUBLE"])
def test_samples_too_wide_for_any_coding_are_refused_until_one_is_chosen(subtype: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", [0.5, -0.25], 8000, subtype=subtype)
    with pytest.raises(DataError, match=r"a\.wav: has samples .*--audio\.coding pcm24"):
        read(tmp_path / "a.wav")
    assert read(tmp_path / "a.wav", coding="pcm24")[0].ravel().tolist() == [1 << 30, -(1 << 29)]


def test_mulaw_and_alaw_files_are_read_exactly(tmp_path: Path) -> None:
    samples = noise("pcm16", 500, 1)
    for subtype, coding in (("ULAW", "mulaw"), ("ALAW", "pcm16")):
        soundfile.write(tmp_path / "a.wav", samples, 8000, subtype=subtype)
        found, _, found_coding = read(tmp_path / "a.wav")
        assert found_coding == coding
        assert np.array_equal(found, soundfile.read(tmp_path / "a.wav", dtype="int16", always_2d=True)[0])


@pytest.mark.parametrize("suffix", [".mp3", ".ogg", ".opus"])
def test_what_was_compressed_with_loss_becomes_16_bits(suffix: str, tmp_path: Path) -> None:
    samples = (np.sin(np.arange(24000) * 0.05) * 20000).astype(np.int16)
    (tmp_path / f"a{suffix}").write_bytes(audio.decode(audio.from_array(samples, 24000), suffix))
    found, rate, coding = read(tmp_path / f"a{suffix}")
    assert (found.shape, rate, coding) == ((24000, 1), 24000, "pcm16")
    assert np.abs(found[2000:-2000, 0] - samples[2000:-2000].astype(int)).max() < 3000


@pytest.mark.parametrize(
    ("container", "codec", "suffix", "width", "coding"),
    [
        ("mp4", "alac", ".m4a", "s16p", "pcm16"),
        ("mp4", "alac", ".m4a", "s32p", "pcm24"),
        ("matroska", "pcm_s16le", ".mka", "s16", "pcm16"),
        ("matroska", "pcm_u8", ".mka", "u8", "pcm8"),
    ],
)
def test_containers_that_only_pyav_reads(
    container: str, codec: str, suffix: str, width: str, coding: str, tmp_path: Path
) -> None:
    samples = noise(coding, 3000, 2)
    path = tmp_path / f"a{suffix}"
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=8000, layout="stereo", format=width)
        packed = {"pcm8": "u8", "pcm16": "s16", "pcm24": "s32"}[coding]
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format=packed, layout="stereo")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))  # pyrefly: ignore[missing-attribute]
        output.mux(stream.encode())  # pyrefly: ignore[missing-attribute]
    found, rate, found_coding = read(path)
    assert np.array_equal(found, samples) and (rate, found_coding) == (8000, coding)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"a\{suffix}: "):
        read(path)


def test_an_mp3_that_does_not_count_its_samples_is_read_to_its_end(tmp_path: Path) -> None:
    sound = np.concatenate([np.random.default_rng(0).standard_normal(100000) * 0.3, np.zeros(100000)])
    path = tmp_path / "a.mp3"
    with av.open(str(path), "w", options={"write_xing": "0"}) as output:
        stream = output.add_stream("libmp3lame", rate=44100, layout="mono")
        stream.codec_context.qscale = True  # pyrefly: ignore[missing-attribute]
        frame = av.AudioFrame.from_ndarray(sound.astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate = 44100
        output.mux(stream.encode(frame))  # pyrefly: ignore[missing-attribute]
        output.mux(stream.encode())  # pyrefly: ignore[missing-attribute]
    assert not audio._mp3_has_count(path)
    assert soundfile.info(path).frames < 190000  # what soundfile guesses, and stops at
    assert len(read(path)[0]) >= 200000


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".aiff", ".au", ".caf", ".w64", ".rf64"])
def test_a_truncated_sound_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    content = audio.decode(audio.from_array(noise("pcm16", 20000, 2), 44100), suffix)
    path.write_bytes(content)
    assert read(path)[0].shape == (20000, 2)
    for share in (0.001, 0.1, 0.5, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(DataError, match=rf"a\{suffix}: "):
            read(path)


def test_a_stream_that_does_not_know_its_length_is_read(tmp_path: Path) -> None:
    content = bytearray(audio.decode(audio.from_array(noise("pcm16", 100, 1), 8000)))
    place = content.index(b"data") + 4
    content[4:8] = content[place : place + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(content)
    assert len(read(tmp_path / "a.wav")[0]) == 100


@pytest.mark.parametrize("rate", [8000, 22050, 48000, 11111])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_resampling_keeps_a_tone_and_the_length(rate: int, channels: int, tmp_path: Path) -> None:
    length = (1 << 20) // channels + 5000  # more than one block
    tone = np.sin(np.arange(length)[:, None] * 0.05 + np.arange(channels))
    soundfile.write(tmp_path / "a.wav", tone * 0.5, 44100, subtype="FLOAT")
    found, found_rate, coding = read(tmp_path / "a.wav", rate=rate)
    assert (found.shape, found_rate, coding) == ((math.ceil(length * rate / 44100), channels), rate, "float32")
    expected = 0.5 * np.sin(np.arange(len(found))[:, None] * (0.05 * 44100 / rate) + np.arange(channels))
    assert np.abs(found - expected)[200:-200].max() < 1e-3


@pytest.mark.parametrize("length", [0, 1, 2, 100])
def test_the_shortest_sounds_are_resampled_too(length: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(length, 0.5), 44100)
    for rate in (200, 8000, 48000):
        assert len(read(tmp_path / "a.wav", rate=rate)[0]) == math.ceil(length * rate / 44100)
    with pytest.raises(DataError, match="too far from 10 Hz"):
        read(tmp_path / "a.wav", rate=10)


def test_channels_are_averaged_and_codings_converted(tmp_path: Path) -> None:
    samples = np.array([[100, 300], [-32768, -32768], [32767, 32767]], np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 8000)
    assert read(tmp_path / "a.wav", mono=True)[0].ravel().tolist() == [200, -32768, 32767]
    assert read(tmp_path / "a.wav", coding="pcm8")[0][1:].tolist() == [[0, 0], [255, 255]]
    assert read(tmp_path / "a.wav", coding="float32")[0][1].tolist() == [-1.0, -1.0]
    assert np.array_equal(read(tmp_path / "a.wav", coding="mulaw")[0], audio.from_mulaw(audio.to_mulaw(samples)))
    many = np.zeros((10, 20), np.int16)
    soundfile.write(tmp_path / "a.wav", many, 8000)
    with pytest.raises(DataError, match=r"20 channels .*--audio\.mono"):
        read(tmp_path / "a.wav")
    assert read(tmp_path / "a.wav", mono=True)[0].shape == (10, 1)


@given(samples=st.lists(st.integers(-32768, 32767), max_size=20), channels=st.integers(1, 3))
def test_headerless_samples_are_the_file_itself(
    samples: list[int], channels: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = np.array(samples[: len(samples) // channels * channels], "<i2").tobytes() or bytes(2 * channels)
    for suffix in (".s16le", ".xyz"):
        path = tmp_path_factory.mktemp("audio") / f"a{suffix}"
        path.write_bytes(content)
        config = AudioConfig(raw_rate=8000, raw_channels=channels)
        (segment,) = audio.encode(path, config)
        assert segment.data.tobytes() == content and audio.unpack_header(segment.header) == (8000, channels, "pcm16")
        assert audio.decode(segment, ".s16le") == content
        (quiet,) = audio.encode(path, AudioConfig(raw_rate=8000, raw_channels=channels, coding="mulaw"))
        assert np.array_equal(quiet.data, audio.to_mulaw(np.frombuffer(content, "<i2")))


def test_headerless_samples_need_a_rate_and_whole_samples(tmp_path: Path) -> None:
    (tmp_path / "a.s16le").write_bytes(bytes(7))
    with pytest.raises(DataError, match=r"a\.s16le: .*--audio\.raw_rate"):
        read(tmp_path / "a.s16le")
    with pytest.raises(DataError, match="7 bytes are no whole number"):
        read(tmp_path / "a.s16le", raw_rate=8000)
    soundfile.write(tmp_path / "a.wav", [0.5], 44100)
    assert read(tmp_path / "a.wav", raw_rate=8000)[1] == 44100


def test_a_bomb_is_refused_while_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.flac", np.zeros(3 << 20, np.int16), 8000)
    monkeypatch.setattr(audio, "MAX_PAYLOAD", 1 << 21)
    with pytest.raises(DataError, match=r"a\.flac: has more than 2,097,152 bytes"):
        read(tmp_path / "a.flac")
    monkeypatch.setattr(audio, "MAX_DECODED", 1 << 21)
    with pytest.raises(DataError, match=r"a\.flac: has more than 2,097,152 samples"):
        read(tmp_path / "a.flac", rate=100)
    assert MAX_PAYLOAD == 1 << 28


@given(data=st.binary(max_size=30), coding=st.integers(0, 15), channels=st.integers(1, 16))
def test_a_model_may_end_anywhere(data: bytes, coding: int, channels: int) -> None:
    header = bytes([0, 31, 64, (channels - 1) << 4 | coding])
    segment = Segment(modality="audio", data=np.frombuffer(data, np.uint8), header=header)
    if coding >= len(audio.CODINGS):
        with pytest.raises(ValueError, match="header of an audio segment"):
            audio.decode(segment)
        return
    samples = audio.to_array(segment)
    assert samples.shape == (len(data) // audio.unit_size(header), channels)
    assert audio.decode(segment)[:4] == b"RIFF"


@pytest.mark.parametrize("header", [b"", b"\0\x1f\x40", b"\0\0\0\x01", b"\0\x1f\x40\x05"])
def test_a_header_that_makes_no_sense_is_refused(header: bytes) -> None:
    with pytest.raises(ValueError, match="header of an audio segment"):
        audio.unit_size(header)


def test_arrays_that_are_no_sound_are_refused() -> None:
    for array in (np.zeros((2, 2, 2)), np.zeros(2, np.int64), np.zeros((2, 17)), np.array([1], np.int32)):
        with pytest.raises(ValueError, match=r"samples|channels"):
            audio.from_array(array, 8000)
    assert audio.from_array(np.array([1], np.int32), 8000, AudioConfig(coding="pcm24")).data.tolist() == [0, 0, 0]
    assert audio.to_array(audio.from_array(np.array([0.5]), 8000)).tolist() == [[0.5]]
    assert audio.from_array(np.array([np.nan, 9.0, -9.0]), 1, AudioConfig(coding="pcm16")).data.tolist() == [
        0, 0, 255, 127, 0, 128,
    ]  # fmt: skip
    for rate in (0, 1 << 24):
        with pytest.raises(ValueError, match="Hz"):
            audio.from_array(np.zeros(2, np.int16), rate)
    with pytest.raises(ValueError, match="raw_channels is 17"):
        AudioConfig(raw_channels=17)
    with pytest.raises(ValueError, match="raw_rate is 16777216"):
        AudioConfig(raw_rate=1 << 24)


def test_formats_that_cannot_be_written_are_named() -> None:
    segment = audio.from_array(noise("pcm16", 10, 16), 44100)
    with pytest.raises(ValueError, match=r"suffix '\.xyz'"):
        audio.decode(segment, ".xyz")
    with pytest.raises(ValueError, match=r"16 channels at 44,100 Hz cannot be written as \.mp3 \([^<]*\)"):
        audio.decode(segment, ".mp3")
