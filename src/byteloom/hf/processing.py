"""A processor for transformers: text, pictures, sound and video to one stream of ids, and back.

In: texts in which `<|image|>`, `<|audio|>` and `<|video|>` say where a medium goes, and the media: pictures of Pillow,
arrays, or files. Out: the compact ids of documents, as `byteloom.hf.tokenization` has them; a medium is its MARK, the
digits of its header, and its samples, as the codec of its modality writes them. Cost: the samples, as Python ints.
"""

import base64
import binascii
import dataclasses
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from transformers import BatchFeature, ProcessorMixin
from transformers.utils.chat_template_utils import mark_control_tokens

from byteloom import codecs
from byteloom.codecs import DEFAULT_MEDIA, MediaConfig, audio, image, media_from_dict, video
from byteloom.documents import PAD, VOCAB_SIZE, Document, Segment, from_ids, opening
from byteloom.hf.tokenization import MEDIA, ByteloomTokenizer
from byteloom.models.store import read_run

MARKED = mark_control_tokens("x", re.compile("x"))[0]
"""What stands before a token that `sanitize_control_tokens` makes a plain text."""

PLACEHOLDER = re.compile(rf"(?<!{MARKED})<\|({'|'.join(MEDIA)})\|>")


class ByteloomProcessor(ProcessorMixin):
    """Documents of text and media to ids and back.

    Args:
        tokenizer: reads and writes the text.
        media: how media are read: the options of each codec, as `MediaConfig` or its fields.
        chat_template: of `apply_chat_template`; by default the tokenizer's.

    Raises:
        ValueError: `media` has an option that there is not.
    """

    tokenizer: ByteloomTokenizer

    def __init__(
        self,
        tokenizer: ByteloomTokenizer,
        media: MediaConfig | Mapping[str, Any] = DEFAULT_MEDIA,
        chat_template: str | dict[str, str] | None = None,
    ) -> None:
        super().__init__(tokenizer, chat_template=chat_template or tokenizer.chat_template)
        self.media_config = media_from_dict(media) if isinstance(media, Mapping) else media
        self.media = dataclasses.asdict(self.media_config)  # as processor_config.json has it

    @classmethod
    def from_pretrained(  # pyrefly: ignore[bad-override]
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> "ByteloomProcessor":
        """Reads a folder; where it has no processor's config, its config.json says how media were read in training.

        Raises:
            CheckpointError: the config.json is no byteloom model's.
        """
        folder = Path(pretrained_model_name_or_path)
        if (folder / "config.json").is_file() and not (folder / "processor_config.json").is_file():
            kwargs = {"media": read_run(folder).get("media") or {}, **kwargs}
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def _load_tokenizer_from_pretrained(
        cls, sub_processor_type: str, pretrained_model_name_or_path: Any, subfolder: str = "", **kwargs: Any
    ) -> ByteloomTokenizer:
        """Called by `from_pretrained`; needs no Auto class, and keeps what is the processor's from the tokenizer."""
        kwargs = {key: value for key, value in kwargs.items() if key != "media"}
        return ByteloomTokenizer.from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)

    def __call__(  # pyrefly: ignore[bad-override]
        self,
        images: Any = None,
        text: Any = None,
        videos: Any = None,
        audio: Any = None,
        *,
        sampling_rate: int | None = None,
        fps: float | None = None,
        add_special_tokens: bool = True,
        split_special_tokens: bool | None = None,
        sanitize_control_tokens: bool = False,
        text_kwargs: Mapping[str, Any] | None = None,
        images_kwargs: Mapping[str, Any] | None = None,
        audio_kwargs: Mapping[str, Any] | None = None,
        videos_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """One document, or a batch of them, as `input_ids` and `attention_mask`: a row for each, also of a single one.

        A medium stands where the text has its placeholder; where a text has none of any kind, media come first:
        images, sound, video. Text after a medium is a new segment of text. Media of a batch are a list with a list for
        each text, or one list, from which each text takes as many as it has placeholders, or else one.

        Args:
            images: pictures of Pillow, arrays (H, W) or (H, W, C) uint8, names of files, or their content as base64.
            text: str or bytes, or a list of them; None: no text.
            videos: arrays (N, H, W, C) uint8, lists of pictures, (either, frames a second), or names of files.
            audio: samples (N,) or (N, channels), (samples, rate), objects with "array" and "sampling_rate", or names
                of files.
            sampling_rate: of samples that come without their rate.
            fps: frames a second of videos that come without.
            add_special_tokens: whether BOS, MARK of text and EOS are put in, as by the tokenizer.
            split_special_tokens: take special tokens in texts as text; placeholders too.
            sanitize_control_tokens: as of `apply_chat_template`.
            text_kwargs: more of `kwargs`.
            images_kwargs: nothing; for what passes it to every processor.
            audio_kwargs: `sampling_rate`.
            videos_kwargs: `fps`.
            **kwargs: as of the tokenizer: `padding`, `truncation`, `max_length`, `return_tensors` ...

        Raises:
            ValueError: nothing is given, placeholders and media differ in number, or a medium has no such shape, no
                rate, or an unfit size.
            DataError: a file cannot be read, or a medium would lose something that no option of `media` allows to.
        """
        kwargs = {**(text_kwargs or {}), **kwargs}
        add_special_tokens = kwargs.pop("add_special_tokens", add_special_tokens)
        sampling_rate = (audio_kwargs or {}).get("sampling_rate", sampling_rate)
        fps = (videos_kwargs or {}).get("fps", fps)
        given = {"image": images, "audio": audio, "video": videos}
        if text is None and all(value is None for value in given.values()):
            raise ValueError("nothing is given; give text, images, audio or videos")
        if split_special_tokens is None:
            split_special_tokens = self.tokenizer.split_special_tokens
        reading = {"split_special_tokens": split_special_tokens, "sanitize_control_tokens": sanitize_control_tokens}
        pieces = [[piece] if split_special_tokens else _pieces(piece) for piece in _texts(text, given)]
        items = {name: _spread(name, value, pieces) for name, value in given.items()}
        ids = []
        for i, row in enumerate(pieces):
            media = {name: [self._segment(name, item, sampling_rate, fps) for item in items[name][i]] for name in MEDIA}
            ids.append(self._document_ids(row, media, add_special_tokens, reading))
        return BatchFeature(dict(self.tokenizer(ids, add_special_tokens=False, **kwargs)))

    def decode_document(self, token_ids: Any) -> Document:
        """Ids (T,) as a document, whatever a model wrote; padding is left out.

        A modality of codes is known by `tokenizer.marks`; a model of bytes only writes text.
        """
        ids = np.asarray(token_ids).reshape(-1)
        ids = ids[ids != PAD]
        marks, modality = self.tokenizer.marks, self.tokenizer.modality
        if self.tokenizer.vocab_size < VOCAB_SIZE and modality is not None:
            ids = np.concatenate([[marks[modality]], ids])
        return from_ids(ids, marks)

    def to_media(self, token_ids: Any) -> list[Any]:
        """The segments of ids (T,), in order, as what people use.

        Text is str, a picture a PIL.Image, a sound (samples (N, channels), rate), a video (frames (N, H, W, C), rate),
        bytes are bytes; codes, which need their own decoder, stay a `Segment`.

        Raises:
            ValueError: the header of a medium makes no sense, or its data are no bytes.
        """
        return [self._medium(segment) for segment in self.decode_document(token_ids).segments]

    def _document_ids(
        self, pieces: list[Any], media: dict[str, list[Segment]], add_special_tokens: bool, reading: dict[str, bool]
    ) -> list[int]:
        """The ids of one document: texts, and between them the names of the media that stand there."""
        if len(pieces) == 1:  # no placeholder
            pieces = [*(part for name in MEDIA for _ in media[name] for part in ("", name)), pieces[0]]
        queues = {name: iter(segments) for name, segments in media.items()}
        bos, mark, eos = self.tokenizer.specials if add_special_tokens else ([], self.tokenizer.specials[1], [])
        ids: list[int] = []
        is_marked = not add_special_tokens  # whether text may stand here without a MARK before it
        for piece, is_text in zip(pieces, itertools.cycle((True, False))):
            if not is_text:
                segment = next(queues[piece])
                ids += opening(codecs.MARKS[piece], segment.header).tolist() + segment.data.tolist()
                is_marked = False
                continue
            text = self.tokenizer(piece, add_special_tokens=False, verbose=False, **reading)["input_ids"]
            opens_itself = bool(text) and text[0] in self._openings
            if not is_marked and not opens_itself and (text or len(pieces) == 1):
                ids += mark
            ids += text
        # A rendered chat template has its BOS.
        return [*(bos if ids[:1] != bos else []), *ids, *eos]

    @property
    def _openings(self) -> set[int | None]:
        """What a text may begin with so that no MARK goes before it."""
        return {*self.tokenizer.marks.values(), self.tokenizer.bos_token_id, self.tokenizer.eos_token_id} - {None}

    def _segment(self, modality: str, item: Any, sampling_rate: int | None, fps: float | None) -> Segment:
        """One medium as a segment."""
        if self.tokenizer.vocab_size < VOCAB_SIZE:
            raise ValueError(f"{modality} is given, and the model knows bytes of text only; give it text")
        config = getattr(self.media_config, modality)
        if isinstance(item, (str, PathLike)):
            if modality == "image" and not os.path.isfile(item):
                return image.from_content(_from_base64(str(item)), config)
            segments = codecs.read(item, modality, self.media_config).segments
            if len(segments) != 1:
                raise ValueError(f"{item}: holds {len(segments)} tiles; give a file of one {modality}")
            return segments[0]
        if modality == "image":
            return _image(item, config)
        array, rate = _with_rate(item, sampling_rate if modality == "audio" else fps)
        if rate is None:
            say = "sampling_rate=" if modality == "audio" else "fps="
            raise ValueError(f"{modality} has no rate; give ({modality}, rate), or {say}")
        if modality == "audio":
            return audio.from_samples(_array(array), int(rate), config)
        return video.from_frames(_array(array), rate, config)

    def _medium(self, segment: Segment) -> Any:
        if segment.modality not in codecs.MARKS:
            return segment
        codec = codecs.by_modality(segment.modality)
        if segment.modality == "text":
            return codec.decode(segment).decode("utf-8", self.tokenizer.errors)
        if segment.modality == "image":
            from PIL import Image

            pixels = image.to_array(segment)
            return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        if segment.modality == "audio":
            return audio.to_array(segment), audio.unpack_header(segment.header)[0]
        if segment.modality == "video":
            return video.to_array(segment), float(video.unpack_header(segment.header)[3])
        return codec.decode(segment)

    def _multimodal_inputs_from_conversations(
        self, conversations: list[list[dict[str, Any]]], *args: Any, **kwargs: Any
    ) -> tuple[list[list[Any]], list[list[Any]], list[list[Any]], dict[str, Any]]:
        """Called by `apply_chat_template`: the media in chats, a list for each. The base class would resample sound."""
        found = [_media_of(conversation) for conversation in conversations]
        images, sounds, videos = ([media[name] for media in found] for name in MEDIA)
        return images, videos, sounds if any(sounds) else [], {}


def _media_of(conversation: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The media in a chat, in order, by the names of their modalities."""
    media: dict[str, list[Any]] = {name: [] for name in MEDIA}
    for message in conversation:
        content = message.get("content")
        for part in content if isinstance(content, (list, tuple)) else ():
            name = part.get("type")
            if name in media:
                media[name] += [part[key] for key in (name, "url", "path", "base64") if key in part][:1]
    return media


def _texts(text: Any, given: Mapping[str, Any]) -> list[Any]:
    """The texts of a batch, empty ones where there are only media."""
    if text is None:
        nested = (value for name, value in given.items() if _is_list(name, value) and _is_nested(name, value))
        return [""] * len(next(nested, [None]))
    if isinstance(text, (str, bytes, bytearray)):
        return [text]
    if not isinstance(text, (list, tuple)):
        raise ValueError(f"text is of type {type(text).__name__}; give str, bytes, or a list of those")
    return list(text)


def _pieces(text: Any) -> list[Any]:
    """A text cut at its placeholders: texts, and between them the names of the media that go there."""
    return PLACEHOLDER.split(text) if isinstance(text, str) else [text]


def _spread(name: str, value: Any, pieces: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The media of one modality that go to each text."""
    wanted = [list(row[1::2]).count(name) for row in pieces]
    anywhere = [len(row) == 1 for row in pieces]
    if value is None:
        rows: list[list[Any]] = [[] for _ in pieces]
    elif not _is_list(name, value):
        rows = [[value]]
    elif _is_nested(name, value):
        rows = [[] if row is None else list(row) if _is_list(name, row) else [row] for row in value]
    elif len(pieces) == 1:
        rows = [list(value)]
    else:  # one list for several texts
        counts = wanted if any(wanted) else [1] * len(pieces)
        if sum(counts) != len(value):
            raise ValueError(f"{len(value)} of {name} for {sum(counts)} places in {len(pieces)} texts; give as many")
        ends = np.cumsum([0, *counts])
        rows = [list(value[start:stop]) for start, stop in itertools.pairwise(ends.tolist())]
    if len(rows) != len(pieces):
        raise ValueError(
            f"{name} is given for {len(rows)} texts, and there are {len(pieces)}; give a list for each text"
        )
    for row, count, free in zip(rows, wanted, anywhere, strict=True):
        if len(row) != count and not free:
            raise ValueError(
                f"a text has {count} <|{name}|> and {len(row)} of {name} for them; give as many, or write bare MARKs "
                "with the tokenizer"
            )
    return rows


def _is_list(name: str, value: Any) -> bool:
    """Whether these are several media, or rows of them, and not one medium."""
    if not isinstance(value, (list, tuple)):
        return False
    if isinstance(value, tuple) and len(value) == 2 and name != "image" and isinstance(value[1], Real):
        return False  # with its rate
    return not (name == "video" and len(value) > 0 and all(_is_picture(item) for item in value))


def _is_nested(name: str, value: Sequence[Any]) -> bool:
    """Whether a list has a row for each text."""
    return any(item is None or _is_list(name, item) for item in value)


def _is_picture(item: Any) -> bool:
    """Whether it is a frame of a video: a picture of Pillow or an array (H, W, C)."""
    return hasattr(item, "convert") or getattr(item, "ndim", 0) == 3


def _with_rate(item: Any, rate: float | None) -> tuple[Any, float | None]:
    """A medium and its rate, its own where it comes with one."""
    if isinstance(item, Mapping):
        return item["array"], item.get("sampling_rate", rate)
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Real):
        return item
    return item, rate


def _image(item: Any, config: image.ImageConfig) -> Segment:
    """A picture of Pillow or an array, converted and reduced as a file would be."""
    if hasattr(item, "convert"):
        return image.from_picture(item, config)
    segment = image.from_array(_array(item), config)
    if config.size is None and config.channels == "auto":
        return segment
    from PIL import Image

    pixels = image.to_array(segment)
    return image.from_picture(Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels), config)


def _from_base64(text: str) -> bytes:
    """The content of a file that is given as base64, or as a data: address."""
    if text.startswith(("http://", "https://")):
        raise ValueError(f"{text}: is an address; download it and give the file")
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{text:.80}: is no file, and no picture as base64; check the path") from error


def _array(item: Any) -> np.ndarray:
    """An array, a tensor of any device, or frames one by one, as an array."""
    if isinstance(item, (list, tuple)):
        return np.stack([_array(part) for part in item])
    return np.asarray(item.detach().cpu() if hasattr(item, "detach") else item)
