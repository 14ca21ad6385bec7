"""Sound: what soundfile or PyAV read, or bare 16-bit samples, and back.

In: a path, or an array of samples. Out: a segment whose data are the samples, little-endian, channels interleaved, and
whose header is

    rate in Hz, 24 bits, big-endian; then a byte: (channels - 1) << 4 | number of the coding in `CODINGS`

Nothing is lost unless an option says so; what was compressed with loss (MP3, Vorbis, AAC) becomes 16-bit samples.
Cost: blocks of a million samples are converted through float32, which is exact for every coding.
"""

import io
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from byteloom.codecs import raw
from byteloom.documents import DataError, Segment
from byteloom.media import MAX_PAYLOAD, check_options, container, decoded, decoding, reason

MODALITY = "audio"
MARK = 262
HEADER_BYTES = 4
FILE_SUFFIX = ".wav"
RAW_SUFFIXES = frozenset(".pcm .raw .s16le".split())
SUFFIXES = RAW_SUFFIXES | frozenset(
    """.aac .ac3 .aif .aifc .aiff .amr .ape .au .caf .flac .m4a .m4b .mka .mp2 .mp3 .oga .ogg .opus .rf64 .snd .voc .w64
    .wav .wave .wma .wv""".split()
)

CODINGS = {"pcm8": 1, "pcm16": 2, "pcm24": 3, "float32": 4, "mulaw": 1}
"""Bytes of a sample in each coding, in the order of their numbers in a header."""

MAX_RATE = (1 << 24) - 1
MAX_CHANNELS = 16
MAX_RATIO = 256
MAX_DECODED = 1 << 31
BLOCK = 1 << 20
CURE = "give a sound, or the rate of headerless 16-bit samples as --audio.raw_rate"
WIDTHS = {  # of what soundfile calls a subtype, where it is not 16 bits; None: more than any coding holds
    "PCM_S8": "pcm8", "PCM_U8": "pcm8", "DPCM_8": "pcm8", "PCM_24": "pcm24", "ALAC_20": "pcm24", "ALAC_24": "pcm24",
    "DWVW_24": "pcm24", "FLOAT": "float32", "ULAW": "mulaw", "PCM_32": None, "ALAC_32": None, "DOUBLE": None,
}  # fmt: skip
SUBTYPES = {"pcm8": "PCM_U8", "pcm16": "PCM_16", "pcm24": "PCM_24", "float32": "FLOAT", "mulaw": "PCM_16"}
CUT_SHORT = re.compile(r"^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
UNSET_SIZE = (1 << 31) - (1 << 16)  # what streams that do not know their length say, or more
UNKNOWN_LENGTH = 1 << 62  # what soundfile says of those, or more


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """How sound is read."""

    coding: Literal["auto", "pcm8", "pcm16", "pcm24", "float32", "mulaw"] = "auto"
    """How a sample is written: auto keeps what the file has; mulaw is G.711, 8 bits a sample."""
    rate: int | None = None
    """Resample to so many samples a second; None keeps the file's rate."""
    mono: bool = False
    """Average the channels to one."""
    raw_rate: int | None = None
    """Samples a second of headerless signed 16-bit little-endian samples (.s16le, .pcm, .raw, unknown suffixes)."""
    raw_channels: int = 1
    """Channels of headerless samples, 1 to 16."""

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("rate", "raw_rate"):
            if (getattr(self, name) or 0) > MAX_RATE:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at most {MAX_RATE:,} Hz")
        if self.raw_channels > MAX_CHANNELS:
            raise ValueError(f"raw_channels is {self.raw_channels}; it must be 1 to {MAX_CHANNELS}")

    @property
    def headerless(self) -> frozenset[str]:
        """Suffixes of files that are read as bare samples, because these options say what they need."""
        return RAW_SUFFIXES if self.raw_rate is not None else frozenset()


Config = AudioConfig


def encode(path: str | PathLike[str], config: AudioConfig = AudioConfig()) -> tuple[Segment, ...]:
    """A sound as one segment.

    Raises:
        DataError: the file is no sound, damaged, or too large, or has samples wider than any coding and none is chosen.
    """
    if raw.file_size(path) == 0:
        raise DataError(f"{path}: is empty; {CURE}")
    suffix = Path(path).suffix.lower()
    if suffix in RAW_SUFFIXES or (config.raw_rate is not None and suffix not in SUFFIXES):
        return (_read_raw(path, config),)
    with decoding(path, CURE):
        import soundfile

        try:
            return (_read_soundfile(path, config),)
        except soundfile.LibsndfileError as error:
            if error.code not in (1, 4):  # 1: no format that it knows, 4: no encoding that it knows; others: damaged
                raise
        return (_read_container(path, config),)


def decode(segment: Segment, suffix: str = "") -> bytes:
    """The content of a sound file in the format of `suffix`, WAV by default; .s16le, .pcm and .raw are bare 16 bits.

    WAV loses nothing (mu-law is written as the 16 bits that it stands for), FLAC nothing but the end of float32.

    Raises:
        ValueError: the header is not one of a sound, data are not bytes, or no format that can be written has that
            suffix, these channels or this rate.
    """
    import soundfile

    suffix = suffix.lower() or FILE_SUFFIX
    rate, _, coding = unpack_header(segment.header)
    samples = to_array(segment)
    if suffix in RAW_SUFFIXES:
        return _pack(_to_float(samples), "pcm16").tobytes()
    name = {".oga": "OGG", ".opus": "OGG", ".aif": "AIFF", ".wave": "WAV"}.get(suffix, suffix[1:].upper())
    if name not in soundfile.available_formats():
        raise ValueError(f"no sound format with suffix {suffix!r} can be written; take .wav, .flac, .ogg or .mp3")
    wanted = ("OPUS",) if suffix == ".opus" else (SUBTYPES[coding], "PCM_S8" if coding == "pcm8" else "PCM_24")
    subtype = next((subtype for subtype in wanted if soundfile.check_format(name, subtype)), None)
    if coding == "pcm8":  # soundfile has no unsigned type
        samples = (samples.astype(np.int16) - 128) * 256
    file = io.BytesIO()
    try:
        soundfile.write(file, samples, rate, format=name, subtype=subtype)
    except (soundfile.SoundFileError, ValueError) as error:
        raise ValueError(
            f"a sound of {samples.shape[1]} channels at {rate:,} Hz cannot be written as {suffix} "
            f"({reason(error)}); take .wav"
        ) from error
    return file.getvalue()


def payload_size(header: bytes) -> None:
    """None: a sound runs until it ends."""
    return


def unit_size(header: bytes) -> int:
    """Bytes of one sample of every channel. Raises ValueError where it is not the header of a sound."""
    _, channels, coding = unpack_header(header)
    return channels * CODINGS[coding]


def to_array(segment: Segment) -> np.ndarray:
    """The samples (N, channels), full scale of their type; one that is cut off at the end is dropped.

    int16 for pcm16 and mulaw, uint8 for pcm8 (128 is silence), int32 for pcm24 (its lowest byte is 0), float32.

    Raises:
        ValueError: the header is not one of a sound, or data are not bytes.
    """
    _, channels, coding = unpack_header(segment.header)
    data = raw.payload(segment)
    width = CODINGS[coding]
    data = np.ascontiguousarray(data[: len(data) // (channels * width) * channels * width])
    if coding == "mulaw":
        samples = from_mulaw(data)
    elif coding == "pcm24":
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = data.reshape(-1, 3)
        samples = wide.view("<i4")
    else:
        samples = data.view({"pcm8": "|u1", "pcm16": "<i2", "float32": "<f4"}[coding])
    return samples.reshape(-1, channels).astype(samples.dtype.newbyteorder("="), copy=False)


def from_array(array: Any, rate: int, config: AudioConfig = AudioConfig()) -> Segment:
    """A segment from samples (N,) or (N, channels), full scale of their type, at `rate` Hz.

    uint8 (128 is silence), int16, int32 whose lowest byte is 0 (24 bits), float32 or float64 from -1 to 1. Of the
    config only the coding counts; "auto" keeps the type, and float64 becomes float32. Anything that numpy takes as an
    array will do, a torch tensor too.

    Raises:
        ValueError: another shape or dtype, a rate or number of channels that no header can say, or 32-bit samples and
            no coding chosen.
    """
    samples = np.asarray(array)
    samples = samples[:, None] if samples.ndim == 1 else samples
    codings = {"u1": "pcm8", "i2": "pcm16", "i4": "pcm24", "f4": "float32", "f8": "float32"}
    kind = samples.dtype.str[1:]
    if samples.ndim != 2 or kind not in codings:
        raise ValueError(
            f"samples have shape {samples.shape} and dtype {samples.dtype}; they must be (N, channels) of uint8, "
            "int16, int32 or floating point"
        )
    if kind == "i4" and config.coding == "auto" and (samples & 255).any():
        raise ValueError("samples have 32 bits and no coding holds them; choose one in the config, such as pcm24")
    coding = codings[kind] if config.coding == "auto" else config.coding
    header = pack_header(rate, samples.shape[1], coding)
    return Segment(modality=MODALITY, data=_pack(_to_float(samples), coding), header=header)


def from_samples(array: Any, rate: int, config: AudioConfig = AudioConfig()) -> Segment:
    """A segment from samples as `from_array` takes them, mixed, resampled and coded as a file of them would be.

    Raises:
        ValueError: as `from_array`.
        DataError: they cannot be resampled to the rate of the config.
    """
    segment = from_array(array, rate, config)
    if config.rate in (None, rate) and not config.mono:
        return segment
    samples = np.asarray(array)
    samples = samples[:, None] if samples.ndim == 1 else samples
    step = max(1, BLOCK // samples.shape[1])
    blocks = (_to_float(samples[start : start + step]) for start in range(0, len(samples), step))
    coding = unpack_header(segment.header)[2]
    with decoding("the sound", CURE):
        return _collect("the sound", blocks, rate, samples.shape[1], coding, config)


def pack_header(rate: int, channels: int, coding: str) -> bytes:
    """The header of a sound. Raises ValueError when no header can say that."""
    if not (0 < rate <= MAX_RATE and 0 < channels <= MAX_CHANNELS):
        raise ValueError(
            f"a sound of {channels} channels at {rate:,} Hz has no header; "
            f"there may be 1 to {MAX_CHANNELS} channels and 1 to {MAX_RATE:,} Hz"
        )
    return (rate << 8 | (channels - 1) << 4 | list(CODINGS).index(coding)).to_bytes(HEADER_BYTES, "big")


def unpack_header(header: bytes) -> tuple[int, int, str]:
    """Rate, channels and coding. Raises ValueError where no sound has this header."""
    if len(header) != HEADER_BYTES:
        raise ValueError(f"the header of an audio segment has {len(header)} bytes; it must have {HEADER_BYTES}")
    rate, rest = int.from_bytes(header[:3], "big"), header[3]
    if rate == 0 or rest & 15 >= len(CODINGS):
        raise ValueError(
            f"the header of an audio segment says {rate} Hz and coding {rest & 15}; there is no such sound"
        )
    return rate, (rest >> 4) + 1, list(CODINGS)[rest & 15]


def to_mulaw(samples: np.ndarray) -> np.ndarray:
    """16-bit samples as G.711 mu-law codes, uint8, of the same shape."""
    magnitude = np.minimum(np.abs(samples.astype(np.int32)), 32635) + 132
    exponent = np.searchsorted(1 << np.arange(8, 15), magnitude, side="right")
    mantissa = magnitude >> (exponent + 3) & 15
    return (~((samples < 0) << 7 | exponent << 4 | mantissa)).astype(np.uint8)


def from_mulaw(codes: np.ndarray) -> np.ndarray:
    """G.711 mu-law codes as 16-bit samples, int16, of the same shape."""
    code = ~codes.astype(np.int32) & 255
    magnitude = (((code & 15) << 3) + 132 << (code >> 4 & 7)) - 132
    return np.where(code & 128, -magnitude, magnitude).astype(np.int16)


def _to_float(samples: np.ndarray) -> np.ndarray:
    """Samples of any type, full scale, as float32 from -1 to 1; exact up to 24 bits."""
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == "i":
        return (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32)
    return samples.astype(np.float32)


def _pack(samples: np.ndarray, coding: str) -> np.ndarray:
    """Samples (N, channels) float32 as the bytes of a payload."""
    if coding == "float32":
        return np.ascontiguousarray(samples, "<f4").view(np.uint8).reshape(-1)
    full = {"pcm8": 1 << 7, "pcm24": 1 << 23}.get(coding, 1 << 15)
    whole = np.clip(np.rint(np.nan_to_num(samples) * np.float32(full)), -full, full - 1).astype("<i4").reshape(-1)
    if coding == "pcm8":
        return (whole + 128).astype(np.uint8)
    if coding == "pcm24":
        return whole.view(np.uint8).reshape(-1, 4)[:, :3].reshape(-1)
    return to_mulaw(whole) if coding == "mulaw" else whole.astype("<i2").view(np.uint8)


def _read_raw(path: str | PathLike[str], config: AudioConfig) -> Segment:
    """Headerless 16-bit samples: the mapped file itself where nothing is to be converted."""
    if config.raw_rate is None:
        raise DataError(f"{path}: has no header that says its rate; give it as --audio.raw_rate, such as 8000")
    data, channels = raw.map_file(path), config.raw_channels
    if len(data) % (2 * channels):
        raise DataError(f"{path}: {len(data):,} bytes are no whole number of 16-bit samples of {channels} channels")
    mixed = config.mono and channels > 1
    if config.coding in ("auto", "pcm16") and config.rate in (None, config.raw_rate) and not mixed:
        return Segment(modality=MODALITY, data=data, header=pack_header(config.raw_rate, channels, "pcm16"))
    samples = data.view("<i2").reshape(-1, channels)
    step = BLOCK // channels
    blocks = (_to_float(samples[start : start + step]) for start in range(0, len(samples), step))
    with decoding(path, CURE):
        return _collect(path, blocks, config.raw_rate, channels, "pcm16", config)


def _read_soundfile(path: str | PathLike[str], config: AudioConfig) -> Segment:
    import soundfile

    with soundfile.SoundFile(path) as file:
        cut = any(int(end) < int(said) < UNSET_SIZE for said, end in CUT_SHORT.findall(file.extra_info))
        if cut or (file.format == "OGG" and (file.frames == 0 or _ogg_is_cut(path))):
            raise DataError(f"{path}: is cut short or damaged; take another copy")
        if file.format == "MP3":  # of one that does not count its samples soundfile reads as many as it guesses
            return _read_container(path, config, file.frames if _mp3_has_count(path) else 1)
        step = max(1, BLOCK // file.channels)
        blocks = (file.read(step, dtype="float32", always_2d=True) for _ in itertools.count())
        whole = _whole(path, blocks, file.frames)
        return _collect(path, whole, file.samplerate, file.channels, WIDTHS.get(file.subtype, "pcm16"), config)


def _ogg_is_cut(path: str | PathLike[str]) -> bool:
    """Whether an Ogg file lacks its last page, which soundfile passes over in silence."""
    tail = raw.map_file(path)[-(1 << 16) :].tobytes()  # a page has at most 65,307 bytes
    page = tail[max(0, tail.rfind(b"OggS")) :]
    sizes = page[27 : 27 + page[26]] if len(page) > 26 else b""
    is_last = page[5:6] and page[5] & 4
    return not is_last or len(page) < 27 + page[26] + sum(sizes)


def _mp3_has_count(path: str | PathLike[str]) -> bool:
    """Whether the first frame of an MP3 file, after its tags, says how many follow."""
    head = raw.map_file(path)
    tags = int.from_bytes(head[6:10].tobytes(), "big") if head[:3].tobytes() == b"ID3" else None
    start = 0 if tags is None else 10 + sum((tags >> 8 * i & 127) << 7 * i for i in range(4))
    frame = head[start : start + 200].tobytes()
    return b"Xing" in frame or b"Info" in frame


def _whole(path: str | PathLike[str], blocks: Iterable[np.ndarray], frames: int) -> Iterator[np.ndarray]:
    """Blocks up to an empty one. Raises DataError when they have fewer samples than the file says."""
    found = 0
    for block in blocks:
        if not len(block):
            break
        found += len(block)
        yield block
    if found < frames < UNKNOWN_LENGTH:
        raise DataError(f"{path}: ends after {found:,} of {frames:,} samples; take another copy")


def _read_container(path: str | PathLike[str], config: AudioConfig, frames: int = 1) -> Segment:
    """The first sound of a file that PyAV reads, which must have so many samples."""
    with container(path) as file:
        import av

        if not file.streams.audio:
            raise DataError(f"{path}: holds no sound; {CURE}")
        stream = file.streams.audio[0]
        channels, rate = stream.codec_context.channels, stream.codec_context.sample_rate
        native = {"u8": "pcm8", "s32": "pcm24"}.get(stream.codec_context.format.packed.name, "pcm16")
        to_float = av.AudioResampler(format="flt")

        def blocks() -> Iterator[np.ndarray]:
            for frame in decoded(path, file, stream):
                for converted in to_float.resample(frame):
                    yield converted.to_ndarray().reshape(-1, channels)

        return _collect(path, _whole(path, blocks(), frames), rate, channels, native, config)


def _collect(
    path: str | PathLike[str],
    blocks: Iterable[np.ndarray],
    rate: int,
    channels: int,
    native: str | None,
    config: AudioConfig,
) -> Segment:
    """Blocks of samples (n, channels) float32 as a segment, converted as the config says."""
    coding = native if config.coding == "auto" else config.coding
    if coding is None:
        raise DataError(
            f"{path}: has samples that no coding holds whole; --audio.coding pcm24 (or float32) rounds them"
        )
    kept = 1 if config.mono else channels
    if kept > MAX_CHANNELS or not 0 < rate <= MAX_RATE:
        raise DataError(
            f"{path}: has {channels} channels at {rate:,} Hz, and 1 to {MAX_CHANNELS} at 1 to {MAX_RATE:,} Hz can be "
            "read; --audio.mono makes one channel of many"
        )
    header = pack_header(config.rate or rate, kept, coding)
    parts, size = [], 0
    for block in _resampled(path, _mixed(path, blocks, config.mono), rate, kept, config.rate or rate):
        parts.append(_pack(block, coding))
        size += len(parts[-1])
        if size > MAX_PAYLOAD:
            raise DataError(
                f"{path}: has more than {MAX_PAYLOAD:,} bytes of samples; cut it, or reduce it with --audio.rate, "
                "--audio.mono and --audio.coding mulaw"
            )
    return Segment(modality=MODALITY, data=np.concatenate([np.empty(0, np.uint8), *parts]), header=header)


def _mixed(path: str | PathLike[str], blocks: Iterable[np.ndarray], mono: bool) -> Iterator[np.ndarray]:
    """Blocks, of one channel with `mono`. Raises DataError when there are too many, however few are kept later."""
    taken = 0
    for block in blocks:
        taken += block.size
        if taken > MAX_DECODED:
            raise DataError(f"{path}: has more than {MAX_DECODED:,} samples; cut it")
        yield block.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32) if mono else block


def _resampled(
    path: str | PathLike[str], blocks: Iterable[np.ndarray], rate: int, channels: int, wanted: int
) -> Iterator[np.ndarray]:
    """Blocks at another rate, `wanted` / `rate` times as long in all, rounded up."""
    if rate == wanted:
        yield from blocks
        return
    if max(rate, wanted) > MAX_RATIO * min(rate, wanted):
        raise DataError(f"{path}: {rate:,} Hz is too far from {wanted:,} Hz to resample; choose a nearer --audio.rate")
    import av

    layout = f"{channels}c"
    resampler = av.AudioResampler(format="flt", layout=layout, rate=wanted)
    step = max(1, BLOCK * rate // (wanted * channels))
    taken = given = 0

    def pieces() -> Iterator[np.ndarray]:
        nonlocal taken
        for block in blocks:
            taken += len(block)
            for start in range(0, len(block), step):
                yield block[start : start + step]
        # Silence after the end brings out what the filter still holds, however short the sound is.
        yield np.zeros((64 * math.ceil(rate / wanted) + 64, channels), np.float32)

    for piece in pieces():
        frame = av.AudioFrame.from_ndarray(piece.reshape(1, -1), format="flt", layout=layout)
        frame.sample_rate = rate
        for result in resampler.resample(frame):
            samples = result.to_ndarray().reshape(-1, channels)[: -(-taken * wanted // rate) - given]
            given += len(samples)
            yield samples
