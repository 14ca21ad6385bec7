"""A tokenizer for transformers without a vocabulary file: text or bytes to ids, and back, exactly.

In: str, bytes, or batches of them. Out: the compact id stream of `byteloom.hf`: 0-255 are bytes, 256-319 the reserved
ids of `byteloom.documents`, from 320 on codes and added tokens. Cost: no Python object for a byte but its entry in the
list of ids; a string of a megabyte takes some hundredths of a second.

Tokens have names: an ASCII byte is its character, another byte is `<0xE9>`; `<|pad|>`, `<|bos|>`, `<|eos|>`, a MARK its
modality as `<|text|>`, a digit of a header `<|digit_0|>` to `<|digit_f|>`, a code its id as `<|code_320|>`, and a
reserved id without a use `<|reserved_264|>`.
"""

import codecs as python_codecs
import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders
from tokenizers.models import BPE
from transformers import AddedToken, BatchEncoding, PreTrainedTokenizer
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils import PaddingStrategy
from transformers.utils.chat_template_utils import encode_marked_chat

from byteloom import codecs
from byteloom.documents import BOS, EOS, FIRST_DIGIT, FIRST_MARK, PAD, VOCAB_SIZE
from byteloom.hf.tokens import BYTE_IDS, BYTE_TOKENS, CHAT_TEMPLATE, cut, names_of, pattern_of, to_bytes
from byteloom.models.config import ModelConfig
from byteloom.models.store import read_model_config

MEDIA = ("image", "audio", "video")
"""Modalities whose MARK is a named token, such as `tokenizer.image_token`; in a text it is the place of a medium."""

Text = str | bytes | bytearray
Span = tuple[int, int]


class ByteloomTokenizer(PreTrainedTokenizer):
    """Text and bytes to ids and back.

    `tokenizer("text")` gives BOS, the MARK of text and the bytes; nothing ends it, so that a prompt goes on. A pair is
    a second segment. Special tokens that stand in a str are taken as such, unless `split_special_tokens`; in bytes they
    never are. In a str, surrogates U+DC80 to U+DCFF stand for the bytes that Python's "surrogateescape" makes them of.

    Where `vocab_size` is below 320 there is no structure: a text is its bytes, and `<|pad|>` pads batches only.

    Args:
        vocab_size: ids that the model has; 320 and more: bytes, structure, and codes from 320 on.
        modality: whose MARK opens a text, such as "text" or "bytes"; None: no MARK.
        marks: the MARKs of the modalities of codes that the model knows.
        add_bos_token: whether BOS stands before a text.
        add_eos_token: whether EOS stands behind it.
        errors: how bytes that are no UTF-8 are decoded, as of `bytes.decode`; "surrogateescape" loses nothing.
        **kwargs: those of any tokenizer of transformers.

    Raises:
        ValueError: `vocab_size` has no room for the bytes, or `modality`, `marks` or `errors` is unknown.
    """

    padding_side = "left"

    def __init__(
        self,
        vocab_size: int = VOCAB_SIZE,
        modality: str | None = "text",
        marks: Mapping[str, int] | None = None,
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        errors: str = "replace",
        **kwargs: Any,
    ) -> None:
        if vocab_size < PAD:
            raise ValueError(f"vocab_size is {vocab_size}; it must be at least {PAD}, for the bytes")
        self.marks = {**codecs.MARKS, **(marks or {})}
        if unfit := [f"{name!r}: {mark}" for name, mark in self.marks.items() if not FIRST_MARK <= mark < FIRST_DIGIT]:
            raise ValueError(f"marks has {unfit[0]}; a MARK is from {FIRST_MARK} to {FIRST_DIGIT - 1}")
        names = names_of(vocab_size, self.marks)
        if len(set(names.values())) < len(names) or len(set(self.marks.values())) < len(self.marks):
            raise ValueError(f"marks are {dict(marks or {})}; a name or an id among them stands for something else")
        if modality is not None and modality not in self.marks:
            raise ValueError(f"modality {modality!r} is unknown; known: {', '.join(sorted(self.marks))}, None")
        self._num_ids, self.modality = vocab_size, modality
        self.add_bos_token, self.add_eos_token = add_bos_token, add_eos_token
        self.errors = _checked_errors(errors)
        self._added_tokens_decoder = {i: AddedToken(name, special=True, normalized=False) for i, name in names.items()}
        for key, value in (("bos_token", BOS), ("eos_token", EOS), ("pad_token", PAD)):
            kwargs.setdefault(key, names.get(value))
        own = {"mark_token": self.marks.get(modality or ""), **{f"{name}_token": self.marks[name] for name in MEDIA}}
        others = kwargs.pop("model_specific_special_tokens", None) or {}
        kwargs["model_specific_special_tokens"] = {
            **{key: value for key, value in others.items() if key not in own},
            **{key: names[value] for key, value in own.items() if value in names},
        }
        kwargs.setdefault("chat_template", CHAT_TEMPLATE)
        super().__init__(
            vocab_size=vocab_size,
            modality=modality,
            marks=dict(marks or {}),
            add_bos_token=add_bos_token,
            add_eos_token=add_eos_token,
            errors=errors,
            **kwargs,
        )

    @classmethod
    def for_model(cls, config: ModelConfig, **options: Any) -> "ByteloomTokenizer":
        """The tokenizer of a native model; `options` as of the class."""
        return cls(**{**_options_of(config), **options})

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str], *inputs: Any, **kwargs: Any
    ) -> "ByteloomTokenizer":
        """Reads a folder; one without a tokenizer's config, such as a native one, by the config of its model.

        Raises:
            CheckpointError: it has neither, but a config.json that is no byteloom model's.
        """
        folder = Path(pretrained_model_name_or_path)
        if (folder / "config.json").is_file() and not (folder / "tokenizer_config.json").is_file():
            kwargs = {**_options_of(read_model_config(folder)), **kwargs}
        return super().from_pretrained(pretrained_model_name_or_path, *inputs, **kwargs)

    @property
    def vocab_size(self) -> int:
        """Number of ids without added tokens: that of the model."""
        return self._num_ids

    @property
    def all_special_tokens(self) -> list[str]:
        """Everything that is no text: structure, codes, and what was added as special."""
        own = (token.content for token in self._added_tokens_decoder.values() if token.special)
        return list(dict.fromkeys([*super().all_special_tokens, *own]))

    @property
    def backend_tokenizer(self) -> RustTokenizer:
        """The same tokenizer of the tokenizers library, for what decodes id by id: `transformers serve`, stop strings.

        It takes text only, and puts nothing around it.
        """
        if self._backend is None:
            self._backend = RustTokenizer(BPE(self.get_vocab(), [], byte_fallback=True))
            self._backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
            tokens = list(self._added_tokens_decoder.values())  # whose ids the vocabulary says
            self._backend.add_special_tokens([token for token in tokens if token.special])
            self._backend.add_tokens([token for token in tokens if not token.special])
        return self._backend

    @property
    def _tokenizer(self) -> RustTokenizer:  # as `transformers serve` calls it
        return self.backend_tokenizer

    @property
    def specials(self) -> tuple[list[int], list[int], list[int]]:
        """What stands before everything, before each text, and behind everything: one id or none."""
        has_mark = self._num_ids >= VOCAB_SIZE and self.modality is not None
        mark = [self.marks[self.modality or ""]] if has_mark else []
        bos = [self.bos_token_id] if self.add_bos_token and self.bos_token_id is not None else []
        eos = [self.eos_token_id] if self.add_eos_token and self.eos_token_id is not None else []
        return bos, mark, eos

    def get_vocab(self) -> dict[str, int]:
        """The id of every token."""
        return {**BYTE_IDS, **self._added_tokens_encoder}

    def decode_bytes(self, token_ids: Any) -> bytes:
        """The bytes among ids (T,), and the text of added tokens that are not special, exactly."""
        return self._content(np.asarray(token_ids), skip_special_tokens=True)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """BOS, MARK, the ids of a text, MARK and ids of its pair, EOS: those of them that are asked for."""
        bos, mark, eos = self.specials
        return [*bos, *mark, *token_ids_0, *([] if token_ids_1 is None else [*mark, *token_ids_1]), *eos]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 where `build_inputs_with_special_tokens` puts a special token, or the text holds one; else 0."""
        if not already_has_special_tokens:
            token_ids_0, token_ids_1 = self.build_inputs_with_special_tokens(token_ids_0, token_ids_1), None
        if token_ids_1 is not None:
            raise ValueError("a sequence that already has its special tokens is one; leave token_ids_1 out")
        return self._is_special(np.array(token_ids_0, np.int64)).astype(int).tolist()

    def tokenize(
        self, text: Text, pair: Text | None = None, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        """The names of the tokens of a text."""
        return self.convert_ids_to_tokens(self.encode(text, pair, add_special_tokens=add_special_tokens, **kwargs))

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of tokens by their names; a name that no token has stands for itself."""
        parts = (bytes([BYTE_IDS[token]]) if token in BYTE_IDS else to_bytes(token) for token in tokens)
        return b"".join(parts).decode("utf-8", self.errors)

    def _convert_token_to_id(self, token: str) -> int | None:
        return BYTE_IDS.get(token)

    def _convert_id_to_token(self, index: int) -> str:
        return BYTE_TOKENS[index] if 0 <= index < len(BYTE_TOKENS) else ""

    def _update_trie(self, unique_no_split_tokens: list[str] | None = None) -> None:
        """Called when tokens were added: makes the pattern that finds them in a text, the longest first."""
        self._backend: RustTokenizer | None = None
        added = [token for i, token in self._added_tokens_decoder.items() if i >= self._num_ids or i < PAD]
        self._pattern = pattern_of(self._num_ids, self.marks, added)

    def _token_of(self, name: str) -> tuple[int, AddedToken] | None:
        value = self._added_tokens_encoder.get(name)
        return None if value is None else (value, self._added_tokens_decoder[value])

    def _read(
        self, source: Any, split_special_tokens: bool, sanitize: bool, offsets: bool
    ) -> tuple[list[int], list[Span]]:
        """A text, its words, or its ids, as ids; and with `offsets` the bytes of the text that each stands for."""
        if isinstance(source, (str, bytes, bytearray)):
            if sanitize and isinstance(source, str):
                if offsets:
                    raise ValueError("return_offsets_mapping does not go with sanitize_control_tokens; leave one out")
                return encode_marked_chat(self, source), []
            ids: list[int] = []
            spans: list[Span] = []
            for place, data, value in cut(source, None if split_special_tokens else self._pattern, self._token_of):
                ids.extend(data if value is None else [value])
                if offsets and data:
                    width = 1 if value is None else len(data)
                    spans.extend((i, i + width) for i in range(place, place + len(data), width))
            return ids, spans
        if not isinstance(source, (list, tuple)):
            raise ValueError(f"a text is of type {type(source).__name__}; give str, bytes, ids, or a list of those")
        if all(isinstance(value, (int, np.integer)) for value in source):
            if offsets and source:
                raise ValueError("return_offsets_mapping needs texts, not ids; give str or bytes")
            return [int(value) for value in source], []
        words = [self._read(word, split_special_tokens, sanitize, offsets) for word in source]
        return [i for ids, _ in words for i in ids], [span for _, spans in words for span in spans]

    # The base class knows no bytes and no offsets, and takes an empty text for an empty batch.
    def _encode_plus(  # pyrefly: ignore[bad-override]
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: Any = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        split_special_tokens: bool | None = None,
        sanitize_control_tokens: bool = False,
        **kwargs: Any,
    ) -> BatchEncoding:
        split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        is_batch, rows = _rows(text, text_pair, is_split_into_words)
        columns: dict[str, list[Any]] = {self.model_input_names[0]: []}
        for sources in rows:
            read = [self._read(source, split, sanitize_control_tokens, return_offsets_mapping) for source in sources]
            row = self.prepare_for_model(
                *(ids for ids, _ in read),
                add_special_tokens=add_special_tokens,
                truncation=truncation_strategy.value,
                max_length=max_length,
                stride=stride,
                return_token_type_ids=return_token_type_ids,
                return_attention_mask=False,
                return_overflowing_tokens=return_overflowing_tokens,
                return_length=return_length,
                verbose=verbose,
            )
            if return_special_tokens_mask:  # also of those that stand in the text
                row["special_tokens_mask"] = self.get_special_tokens_mask(row["input_ids"], None, True)
            if return_overflowing_tokens and not return_tensors:  # in every row, or the columns differ in length
                row = {"overflowing_tokens": [], "num_truncated_tokens": 0, **row}
            if return_offsets_mapping:
                row["offset_mapping"] = self._offsets(
                    [spans for _, spans in read], add_special_tokens, truncation_strategy, max_length
                )
            for key, value in row.items():
                columns.setdefault(key, []).append(value)
        padded = self.pad(
            columns,
            padding=padding_strategy.value,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            return_attention_mask=return_attention_mask,
        )
        if return_tensors is not None:
            padded = {key: _as_array(values) for key, values in padded.items()}
        elif not is_batch:
            padded = {key: values[0] for key, values in padded.items()}
        return BatchEncoding(dict(padded), tensor_type=return_tensors)

    def _offsets(
        self, spans: list[list[Span]], add_special_tokens: bool, strategy: TruncationStrategy, max_length: int | None
    ) -> list[Span]:
        """The spans of what `prepare_for_model` makes of one or two texts; (0, 0) for what it adds."""
        bos, mark, eos = self.specials if add_special_tokens else ([], [], [])
        added = len(bos) + len(mark) * len(spans) + len(eos)
        excess = sum(map(len, spans)) + added - (max_length or 0)
        if strategy != TruncationStrategy.DO_NOT_TRUNCATE and max_length and excess > 0:
            places: list[Any] = list(spans)  # which `truncate_sequences` takes as well as ids
            kept: Any = self.truncate_sequences(*places, num_tokens_to_remove=excess, truncation_strategy=strategy)
            spans = [text or [] for text in kept[: len(spans)]]
        nothing = (0, 0)
        texts = [span for text in spans for span in (*[nothing] * len(mark), *text)]
        return [*[nothing] * len(bos), *texts, *[nothing] * len(eos)]

    def _pad(self, encoded_inputs: Any, *args: Any, padding_side: str | None = None, **kwargs: Any) -> dict[str, Any]:
        length = len(encoded_inputs[self.model_input_names[0]])
        padded = super()._pad(encoded_inputs, *args, padding_side=padding_side, **kwargs)
        if "offset_mapping" in padded:
            padding = [(0, 0)] * (len(padded[self.model_input_names[0]]) - length)
            spans = list(padded["offset_mapping"])
            padded["offset_mapping"] = (
                padding + spans if (padding_side or self.padding_side) == "left" else spans + padding
            )
        return padded

    def _is_special(self, ids: np.ndarray) -> np.ndarray:
        """Which of ids (T,) are structure, codes, or were declared special, (T,)."""
        own = (ids >= PAD) & (ids < max(self._num_ids, PAD + 1))
        declared = map(self._convert_token_to_id_with_added_voc, super().all_special_tokens)
        return own | np.isin(ids, [i for i in declared if i is not None])

    def _content(self, ids: np.ndarray, skip_special_tokens: bool) -> bytes:
        """What ids (T,) stand for; ids that no token has stand for nothing."""
        ids = ids.reshape(-1).astype(np.int64)
        if skip_special_tokens:
            ids = ids[~self._is_special(ids)]
        parts, start = [], 0
        for place in np.flatnonzero((ids < 0) | (ids >= PAD)).tolist():
            token = self._added_tokens_decoder.get(int(ids[place]))
            parts += [ids[start:place].astype(np.uint8).tobytes(), to_bytes(token.content) if token else b""]
            start = place + 1
        return b"".join([*parts, ids[start:].astype(np.uint8).tobytes()])

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        errors: str | None = None,
        **kwargs: Any,
    ) -> str:
        content = self._content(np.asarray(token_ids), skip_special_tokens)
        text = content.decode("utf-8", self.errors if errors is None else _checked_errors(errors))
        clean = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        return self.clean_up_tokenization(text) if clean else text

    def _save_pretrained(
        self,
        save_directory: str | PathLike[str],
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        """Called when the config was written: puts back what the base class leaves out, and leaves out what follows."""
        path = Path(file_names[0])
        config = json.loads(path.read_text("utf-8"))
        config |= {"add_bos_token": self.add_bos_token, "add_eos_token": self.add_eos_token}
        config.pop("model_specific_special_tokens", None)  # each of them has its own entry
        own = names_of(self._num_ids, self.marks)
        config["added_tokens_decoder"] = {i: t for i, t in config["added_tokens_decoder"].items() if int(i) not in own}
        path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
        return file_names


def _options_of(config: ModelConfig) -> dict[str, Any]:
    """The options of the tokenizer of a native model."""
    marks = {modality.name: modality.mark for modality in config.modalities}
    return {"vocab_size": config.vocab_size, "marks": marks, "model_max_length": config.context}


def _checked_errors(errors: str) -> str:
    try:
        python_codecs.lookup_error(errors)
    except LookupError as error:
        raise ValueError(f'errors is {errors!r}; say "replace", "ignore", "strict" or "surrogateescape"') from error
    return errors


def _as_array(column: list[Any]) -> Any:
    """Rows of one length as an array, which becomes a tensor many times faster; others as they are, to be refused."""
    is_even = len({len(row) if isinstance(row, list) else -1 for row in column}) == 1
    return np.array(column, np.int64) if is_even else column


def _rows(text: Any, text_pair: Any, is_split_into_words: bool) -> tuple[bool, list[tuple[Any, ...]]]:
    """Whether a call has a batch, and its rows, each a text or a text and its pair."""
    several = (list, tuple) if is_split_into_words else (list, tuple, str, bytes, bytearray)
    is_batch = isinstance(text, (list, tuple)) and (isinstance(text[0], several) if text else not is_split_into_words)
    if not is_batch:
        rows = [(text, text_pair)]
    elif text_pair is None:
        rows = [_pair_of(item, is_split_into_words) for item in text]
    elif isinstance(text_pair, (list, tuple)) and len(text_pair) == len(text):
        rows = list(zip(text, text_pair, strict=True))
    else:
        raise ValueError("text is a batch, so text_pair must be a batch of the same length")
    return is_batch, [(first,) if second is None else (first, second) for first, second in rows]


def _pair_of(item: Any, is_split_into_words: bool) -> tuple[Any, Any]:
    """An item of a batch as a text, and its pair or None."""
    is_text = not isinstance(item, tuple if is_split_into_words else (list, tuple))
    if is_text or not item or isinstance(item[0], (int, np.integer)):
        return item, None
    if len(item) > 2:
        raise ValueError(f"an item of the batch has {len(item)} texts; give a text or a pair of texts")
    return item[0], item[1] if len(item) == 2 else None
