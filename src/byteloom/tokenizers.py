"""Tokenizers: segments of bytes as ids of a discrete vocabulary, and back, through the models of `transformers`.

In: a text, sound or picture as its codec gives it, or its file. Out: a `Segment` of a token modality, whose ids lie in
that vocabulary's own block from 320 on. Cost: one pass through the tokenizer's model, in which a whole file is in
memory at once.

    text      ids of a BPE or SentencePiece tokenizer
    sound     frames of EnCodec, DAC or Mimi: the residual codebooks of a frame stand side by side, coarsest first, so
              that patches of as many ids as there are codebooks are frames; each codebook has its own ids
    picture   codes of Chameleon's, Emu3's or Janus's VQ, row by row; the header says how many rows and columns

Weights are read from safetensors only, no code is taken from a model's folder, and nothing is downloaded but what is
named with "hub:" in front, such as "hub:facebook/encodec_24khz".
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isqrt, prod
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from byteloom import codecs
from byteloom.codecs import audio, image
from byteloom.documents import DataError, Segment

AnyPath = str | PathLike[str]

MAX_GRID = 1 << 14
"""The most codes of a picture: 2048 x 2048 pixels where a code stands for 16 x 16."""


@dataclass(frozen=True, kw_only=True)
class TextTokenizer:
    """Text as the ids of a tokenizer; bytes that are no UTF-8 become U+FFFD."""

    encode_text: Callable[[str], list[int]]
    """Text to ids, no special ones added."""
    decode_ids: Callable[[list[int]], str]
    """Ids to text, special ones and all."""
    sizes: tuple[int, ...]
    """One codebook: the vocabulary."""
    header_bytes: int = 0
    """Text needs none."""

    def read(self, path: AnyPath) -> Segment:
        """A file as a text segment."""
        return codecs.read(path, "text").segments[0]

    def encode(self, segment: Segment) -> tuple[np.ndarray, bytes]:
        """Codes (N, 1) of a text segment."""
        text = segment.data.astype(np.uint8).tobytes().decode("utf-8", "replace")
        return np.array(self.encode_text(text), np.int64).reshape(-1, 1), b""

    def decode(self, codes: np.ndarray, header: bytes) -> Segment:
        """Codes (N, 1) as a text segment."""
        return text_segment(self.decode_ids(codes[:, 0].tolist()))

    def num_frames(self, header: bytes) -> int | None:
        """Text ends where it ends."""
        return None


def text_segment(text: str) -> Segment:
    """A text as a segment of bytes; surrogates that no UTF-8 can write become "?"."""
    return Segment(modality="text", data=np.frombuffer(text.encode("utf-8", "replace"), np.uint8))


def text_tokenizer(source: AnyPath) -> TextTokenizer:
    """A tokenizer for text: a folder with one of any kind that transformers knows, or a tokenizer.json file.

    Raises:
        DataError: it is missing or damaged.
    """
    if Path(source).is_file():
        from tokenizers import Tokenizer as JsonTokenizer

        with _loading(source, "a tokenizer"):
            fast = JsonTokenizer.from_file(str(source))
        fast.no_truncation()
        fast.no_padding()
        return TextTokenizer(
            encode_text=lambda text: fast.encode(text, add_special_tokens=False).ids,
            decode_ids=lambda ids: fast.decode(ids, skip_special_tokens=False),
            sizes=(1 + max(fast.get_vocab().values(), default=0),),
        )
    from transformers import AutoTokenizer

    with _loading(source, "a tokenizer"):
        tokenizer: Any = AutoTokenizer.from_pretrained(**_place(source))
    return TextTokenizer(
        encode_text=lambda text: tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"],
        decode_ids=lambda ids: tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False),
        sizes=(1 + max(tokenizer.get_vocab().values(), default=0),),
    )


_SOUND_TO_CODES: dict[str, Callable[[Any, Any], Any]] = {
    "encodec": lambda model, sound: model.encode(sound, bandwidth=model.config.target_bandwidths[-1]).audio_codes[0],
    "dac": lambda model, sound: model.encode(sound).audio_codes,
    "mimi": lambda model, sound: model.encode(sound, num_quantizers=model.config.num_quantizers).audio_codes,
}
"""Samples (1, 1, N) to codes (1, C, frames), by model type."""

_CODES_TO_SOUND: dict[str, Callable[[Any, Any], Any]] = {
    "encodec": lambda model, codes: model.decode(codes[None], [None]).audio_values,
    "dac": lambda model, codes: model.decode(audio_codes=codes).audio_values,
    "mimi": lambda model, codes: model.decode(codes).audio_values,
}
"""Codes (1, C, frames) to samples, by model type."""


@dataclass(frozen=True, kw_only=True)
class AudioTokenizer:
    """Sound, mono and at the model's own rate, as frames of residual codes; the header is the rate, 3 bytes."""

    model: Any
    """EncodecModel, DacModel or MimiModel."""
    kind: str
    """Its model type."""
    rate: int
    """Samples a second."""
    hop: int
    """Samples of a frame."""
    sizes: tuple[int, ...]
    """The codebooks that are used, coarsest first."""
    header_bytes: int = 3
    """The rate, big-endian."""

    def read(self, path: AnyPath) -> Segment:
        """A sound file as mono 16-bit samples at the model's rate."""
        return audio.encode(path, audio.AudioConfig(coding="pcm16", rate=self.rate, mono=True))[0]

    def encode(self, segment: Segment) -> tuple[np.ndarray, bytes]:
        """Codes (frames, C) of an audio segment, the last frame filled up with silence.

        Raises:
            ValueError: the segment is not mono, or has another rate than the model.
        """
        import torch

        samples = mono_samples(segment, self.rate)
        header = self.rate.to_bytes(3, "big")
        if not len(samples):
            return np.zeros((0, len(self.sizes)), np.int64), header
        samples = np.pad(samples, (0, -len(samples) % self.hop))
        with torch.inference_mode():
            codes = _SOUND_TO_CODES[self.kind](self.model, torch.from_numpy(samples)[None, None])
        return codes[0, : len(self.sizes)].T.numpy(), header

    def decode(self, codes: np.ndarray, header: bytes) -> Segment:
        """Codes (frames, C) as an audio segment, which is as long as its frames."""
        import torch

        self.num_frames(header)
        samples = np.zeros(0, np.float32)
        if len(codes):
            with torch.inference_mode():
                samples = _CODES_TO_SOUND[self.kind](self.model, torch.from_numpy(codes.T.copy())[None]).flatten()
            samples = samples.numpy()[: len(codes) * self.hop]
        return mono_segment(samples, self.rate)

    def num_frames(self, header: bytes) -> int | None:
        """Sound ends where it ends. Raises ValueError where the header is of another rate."""
        rate = int.from_bytes(header, "big")
        if header and (len(header) != self.header_bytes or rate != self.rate):
            raise ValueError(f"the header says {rate} Hz, and {self.kind} has {self.rate}; use the tokenizer it is of")
        return None


def mono_samples(segment: Segment, rate: int) -> np.ndarray:
    """The samples (N,) float32 from -1 to 1 of an audio segment.

    Raises:
        ValueError: they are not mono, or not at `rate` Hz.
    """
    found, channels, _ = audio.unpack_header(segment.header)
    if channels != 1 or found != rate:
        raise ValueError(
            f"the sound has {channels} channels at {found} Hz, and its codec takes 1 at {rate}; "
            "give its file, which is then resampled"
        )
    as_float = audio.from_array(audio.to_array(segment), rate, audio.AudioConfig(coding="float32"))
    return audio.to_array(as_float)[:, 0]


def mono_segment(samples: np.ndarray, rate: int) -> Segment:
    """Samples (N,) float32 from -1 to 1 as an audio segment of 16 bits."""
    return audio.from_array(samples, rate, audio.AudioConfig(coding="pcm16"))


def audio_tokenizer(source: AnyPath, codebooks: int | None = None) -> AudioTokenizer:
    """A neural audio codec: a folder (or "hub:OWNER/NAME") with an EnCodec, DAC or Mimi model.

    Args:
        source: the folder.
        codebooks: how many of the residual codebooks to use, from the coarsest on; None: all.

    Raises:
        DataError: it is missing, damaged, or another model.
        ValueError: it has fewer codebooks, or needs more than codes to decode.
    """
    from transformers import AutoConfig, AutoModel

    with _loading(source, "an audio codec"):
        config = AutoConfig.from_pretrained(**_place(source))
    if config.model_type not in _SOUND_TO_CODES:
        raise DataError(f"{source}: is a model of type {config.model_type}; known: {', '.join(_SOUND_TO_CODES)}")
    if getattr(config, "audio_channels", 1) != 1 or getattr(config, "chunk_length_s", None) is not None:
        raise ValueError(
            f"{source}: is a stereo codec or one of normalised chunks, whose loudness is no code; "
            "take a mono one, such as the 24 kHz EnCodec"
        )
    model = _load(AutoModel, source, config=config)
    available = config.n_codebooks if config.model_type == "dac" else config.num_quantizers
    if not 1 <= (codebooks or available) <= available or codebooks == 0:
        raise ValueError(f"codebooks is {codebooks}; {source} has {available}")
    return AudioTokenizer(
        model=model,
        kind=config.model_type,
        rate=config.sampling_rate,
        hop=config.frame_size if config.model_type == "mimi" else config.hop_length,
        sizes=(config.codebook_size,) * (codebooks or available),
    )


_IMAGE_MODELS = {
    "chameleon": ("ChameleonVQVAE", "num_embeddings"),
    "emu3": ("Emu3VQVAE", "codebook_size"),
    "janus": ("JanusVQVAE", "num_embeddings"),
}
"""Class of each family's VQ model, and the field of its config that is the size of its codebook."""


@dataclass(frozen=True, kw_only=True)
class ImageTokenizer:
    """Pictures in RGB as a grid of codes, row by row; the header is its rows and columns, 2 bytes each."""

    model: Any
    """ChameleonVQVAE, Emu3VQVAE or JanusVQVAE."""
    kind: str
    """Its family, "chameleon", "emu3" or "janus"."""
    factor: int
    """Side of the square of pixels that a code stands for."""
    mean: np.ndarray
    """(3,) what is subtracted from pixel values between 0 and 1."""
    std: np.ndarray
    """(3,) what they are divided by then."""
    size: int | None
    """The longest side that a file is reduced to."""
    sizes: tuple[int, ...]
    """One codebook."""
    header_bytes: int = 4
    """Rows and columns, big-endian."""

    def read(self, path: AnyPath) -> Segment:
        """A picture file as RGB, its longest side at most `size`."""
        return image.encode(path, image.ImageConfig(channels="rgb", scan="raster", size=self.size))[0]

    def encode(self, segment: Segment) -> tuple[np.ndarray, bytes]:
        """Codes (rows * columns, 1) of an image segment, resized where its sides are no multiples of `factor`.

        Raises:
            ValueError: the picture is not RGB or too large.
        """
        import torch
        from PIL import Image

        pixels = image.to_array(segment)  # (H, W, C)
        if pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size:
            raise ValueError(f"the picture has shape {pixels.shape}; give it in RGB, or its file")
        rows, columns = (max(1, round(side / self.factor)) for side in pixels.shape[:2])
        if rows * columns > MAX_GRID:
            raise ValueError(f"the picture needs {rows} x {columns} codes, more than {MAX_GRID}; reduce it with size")
        header = rows.to_bytes(2, "big") + columns.to_bytes(2, "big")
        height, width = rows * self.factor, columns * self.factor
        if pixels.shape[:2] != (height, width):
            pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
        values = ((pixels / 255 - self.mean) / self.std).astype(np.float32).transpose(2, 0, 1)  # (3, H, W)
        batch = torch.from_numpy(np.ascontiguousarray(values))[None]
        sizes = {"image_sizes": torch.tensor([[height, width]])} if self.kind == "emu3" else {}
        with torch.inference_mode():
            codes = self.model.encode(batch, return_dict=True, **sizes).image_tokens
        codes = codes[0] if self.kind == "emu3" else codes
        return codes.reshape(-1, 1).numpy(), header

    def decode(self, codes: np.ndarray, header: bytes) -> Segment:
        """Codes (rows * columns, 1) as an image segment; without a header the largest square that they fill.

        Raises:
            ValueError: the header makes no sense, or the model has no decoder (Chameleon's in transformers).
        """
        import torch

        if self.kind == "chameleon":
            raise ValueError("transformers has no decoder of Chameleon's VQ; use Emu3's or Janus's to decode pictures")
        rows, columns = self._grid(header) if header else (isqrt(len(codes)),) * 2
        if not rows:
            raise ValueError("a picture without codes cannot be decoded")
        tokens = torch.from_numpy(codes[: rows * columns].reshape(1, rows, columns))
        if self.kind == "janus":  # its decoder expects the grid it was built for, and is convolutional nevertheless
            self.model.quantize.quant_state_dims = [rows, columns]
            tokens = tokens.flatten(1)
        with torch.inference_mode():
            values = self.model.decode(tokens)[0].numpy().transpose(1, 2, 0)  # (H, W, 3)
        pixels = (np.nan_to_num(values) * self.std + self.mean) * 255
        return image.from_array(pixels.round().clip(0, 255).astype(np.uint8))

    def num_frames(self, header: bytes) -> int | None:
        """Rows times columns; None without a header: a square. Raises ValueError where they make no picture."""
        return prod(self._grid(header)) if header else None

    def _grid(self, header: bytes) -> tuple[int, int]:
        rows, columns = int.from_bytes(header[:2], "big"), int.from_bytes(header[2:], "big")
        if len(header) != self.header_bytes or not 1 <= rows * columns <= MAX_GRID:
            raise ValueError(f"a picture of {rows} x {columns} codes cannot be; it has 1 to {MAX_GRID}")
        return rows, columns


def image_tokenizer(source: AnyPath, size: int | None = 512) -> ImageTokenizer:
    """A VQ image model: a folder (or "hub:OWNER/NAME") with Chameleon's, Emu3's or Janus's, alone or in a whole model.

    Args:
        source: the folder.
        size: files are reduced to this longest side; None: not.

    Raises:
        DataError: it is missing, damaged, or another model.
    """
    import transformers

    with _loading(source, "a VQ image model"):
        kind = transformers.AutoConfig.from_pretrained(**_place(source)).model_type.removesuffix("_vqgan")
    if kind not in _IMAGE_MODELS:
        raise DataError(f"{source}: is a model of type {kind}; known: {', '.join(_IMAGE_MODELS)}")
    name, codebook_size = _IMAGE_MODELS[kind]
    # In a whole model's folder its weights have a prefix.
    model = _load(getattr(transformers, name), source, key_mapping={r"^(model\.)?vqmodel\.": ""})
    with _loading(source, "a VQ image model"):
        mean, std = _normalisation(source)
    return ImageTokenizer(
        model=model,
        kind=kind,
        factor=2 ** (len(model.config.channel_multiplier) - 1),
        mean=mean,
        std=std,
        size=size,
        sizes=(getattr(model.config, codebook_size),),
    )


def _normalisation(source: AnyPath) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation by which a model's folder wants pixel values normalised; (-1, 1) where it says nothing."""
    from transformers.image_processing_base import ImageProcessingMixin

    options: dict[str, Any] = {}
    with contextlib.suppress(OSError):
        options, _ = ImageProcessingMixin.get_image_processor_dict(**_place(source))
    scale = options.get("rescale_factor", 1 / 255) * 255
    mean, std = (np.broadcast_to(np.float64(options.get(f"image_{key}", 0.5)), (3,)) for key in ("mean", "std"))
    return mean / scale, std / scale


def _place(source: AnyPath) -> dict[str, Any]:
    """The options of `from_pretrained` for a folder, or for a model of the hub where that is asked for.

    Raises:
        DataError: there is no such folder.
    """
    name = str(source)
    if name.startswith("hub:"):
        return {"pretrained_model_name_or_path": name.removeprefix("hub:"), "trust_remote_code": False}
    if not Path(source).is_dir():
        raise DataError(f"{source}: is no folder; name one with a model in it, or hub:OWNER/NAME to download one")
    return {"pretrained_model_name_or_path": name, "trust_remote_code": False, "local_files_only": True}


def _load(model_class: Any, source: AnyPath, **options: Any) -> Any:
    """A model in evaluation mode and fp32, every weight of it from safetensors."""
    import torch

    with _loading(source, "a model"):
        model, report = model_class.from_pretrained(
            **_place(source), use_safetensors=True, output_loading_info=True, dtype=torch.float32, **options
        )
    if missing := sorted(report["missing_keys"]):
        raise DataError(f"{source}: lacks {len(missing)} of the model's weights, such as {missing[0]}; copy it again")
    return model.eval()


@contextlib.contextmanager
def _loading(source: AnyPath, what: str) -> Iterator[None]:
    """Inside, transformers says nothing on stderr, and whatever goes wrong is one DataError."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # the libraries have many ways to say that a file is missing or damaged
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise DataError(f"{source}: cannot be loaded as {what} ({reason})") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
