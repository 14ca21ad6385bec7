"""The tokenizer for transformers: any bytes back, special tokens, batches, saving, and what other tools do with it."""

import copy
import pickle
import time
from pathlib import Path
from threading import Thread
from typing import Any

import configs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_multiscale import TWO
from tokenizers.decoders import DecodeStream
from transformers import AddedToken, DataCollatorForLanguageModeling, StopStringCriteria, TextIteratorStreamer
from transformers.generation.streamers import TextStreamer

from byteloom import save
from byteloom.codecs import MARKS
from byteloom.documents import BOS, EOS, PAD, Document, Segment, to_ids
from byteloom.hf.tokenization import ByteloomTokenizer
from byteloom.models.config import ModalityConfig, ModelConfig
from byteloom.models.store import CheckpointError

TEXT, BYTES, IMAGE = MARKS["text"], MARKS["bytes"], MARKS["image"]
TOKENIZER = ByteloomTokenizer()
EXACT = ByteloomTokenizer(errors="surrogateescape")
CHAT = [{"role": "user", "content": "Hi <|eos|>"}, {"role": "assistant", "content": "Yes, "}]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
some = st.one_of(texts, st.sampled_from(["<|eos|>", "<|code_320|>", "<tool>", "<|text|>", "<|nothing|>"]))


def chat(chats: Any, tokenizer: ByteloomTokenizer = TOKENIZER, **options: Any) -> Any:
    return tokenizer.apply_chat_template(chats, **options)


def ids_of(text: str | bytes, **options: bool) -> list[int]:
    return TOKENIZER(text, **options)["input_ids"]


def test_a_thousand_random_byte_strings_come_back() -> None:
    rng = np.random.default_rng(0)
    strings = [rng.bytes(int(rng.integers(0, 200))) for _ in range(1000)]
    for data, ids in zip(strings, TOKENIZER(strings)["input_ids"], strict=True):
        segment = Segment(modality="text", data=np.frombuffer(data, np.uint8))
        assert ids == to_ids(Document(segments=(segment,)), MARKS)[:-1].tolist()
        assert TOKENIZER.decode_bytes(ids) == data
        text = EXACT.decode(ids, skip_special_tokens=True)
        assert EXACT(text, split_special_tokens=True)["input_ids"] == ids
        assert TOKENIZER.decode(ids, skip_special_tokens=True) == data.decode("utf-8", "replace")


@given(text=texts)
def test_text_comes_back(text: str) -> None:
    ids = ids_of(text, split_special_tokens=True)
    assert ids == [BOS, TEXT, *text.encode()]
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text
    assert TOKENIZER.decode(torch.tensor([ids]), skip_special_tokens=True) == [text]
    assert TOKENIZER.convert_tokens_to_string(TOKENIZER.tokenize(text, split_special_tokens=True)) == text
    assert TOKENIZER.convert_tokens_to_ids(TOKENIZER.convert_ids_to_tokens(ids)) == ids


@given(parts=st.lists(some, max_size=5))
def test_what_the_rust_library_reads_is_the_same(parts: list[str]) -> None:
    tokenizer = ByteloomTokenizer(vocab_size=330)
    tokenizer.add_tokens(["<tool>"])
    text = "".join(parts)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.backend_tokenizer.encode(text).ids == ids
    assert tokenizer.backend_tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode(ids) == text


def test_special_tokens_in_text_are_taken_unless_split_and_in_bytes_never() -> None:
    assert ids_of("a<|eos|>b<|image|>") == [BOS, TEXT, 97, EOS, 98, IMAGE]
    assert ids_of("a<|eos|>", split_special_tokens=True) == [BOS, TEXT, *b"a<|eos|>"]
    assert ids_of(b"a<|eos|>") == ids_of("a<|eos|>", split_special_tokens=True)
    assert ids_of("<|eos|", add_special_tokens=False) == [*b"<|eos|"]
    assert TOKENIZER.decode([BOS, TEXT, 97, 304, 319, 264]) == "<|bos|><|text|>a<|digit_0|><|digit_f|><|reserved_264|>"
    assert ByteloomTokenizer(split_special_tokens=True)("<|eos|>")["input_ids"] == [BOS, TEXT, *b"<|eos|>"]


def test_what_stands_around_a_text() -> None:
    ended = ByteloomTokenizer(add_bos_token=False, add_eos_token=True, modality="bytes")
    assert ended("a")["input_ids"] == [BYTES, 97, EOS]
    assert ended("a", "b")["input_ids"] == [BYTES, 97, BYTES, 98, EOS]
    assert ByteloomTokenizer(modality=None)("a")["input_ids"] == [BOS, 97]
    assert ids_of("") == [BOS, TEXT]
    assert ids_of("", add_special_tokens=False) == []
    assert TOKENIZER("a", "b", return_token_type_ids=True)["token_type_ids"] == [0, 0, 0, 1, 1]
    assert TOKENIZER.num_special_tokens_to_add(pair=True) == 3


def test_a_model_of_bytes_has_no_structure() -> None:
    tokenizer = ByteloomTokenizer(vocab_size=256)
    assert tokenizer("a<|eos|>")["input_ids"] == [*b"a<|eos|>"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (None, None, PAD)
    assert len(tokenizer) == len(tokenizer.get_vocab()) == 257
    assert chat(CHAT, tokenizer, tokenize=False).startswith("User: Hi")
    lines = ByteloomTokenizer(vocab_size=256, eos_token="\n")
    assert lines.eos_token_id == 10 and lines("a\n")["input_ids"] == [97, 10]


@pytest.mark.parametrize("size", [256, 320, 330])
def test_the_vocabulary_agrees_with_itself(size: int) -> None:
    tokenizer = ByteloomTokenizer(vocab_size=size)
    vocab = tokenizer.get_vocab()
    assert sorted(vocab.values()) == list(range(max(size, 257))) and len(tokenizer) == len(vocab)
    assert tokenizer.vocab_size == size
    for token, i in vocab.items():
        assert tokenizer.convert_tokens_to_ids(token) == i and tokenizer.convert_ids_to_tokens(i) == token
    assert set(tokenizer.all_special_ids) == set(range(256, max(size, 257)))
    assert tokenizer.convert_tokens_to_ids("no such token") is None
    assert tokenizer.decode([97, 100_000, -1]) == "a"


def test_codes_have_names_and_are_no_text() -> None:
    tokenizer = ByteloomTokenizer(vocab_size=330, marks={"voice": 280})
    ids = tokenizer("a<|voice|><|code_329|><|code_330|>")["input_ids"]
    assert ids == [BOS, TEXT, 97, 280, 329, *b"<|code_330|>"]
    assert tokenizer.decode(ids) == "<|bos|><|text|>a<|voice|><|code_329|><|code_330|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<|code_330|>"
    assert tokenizer.decode_bytes(ids) == b"a<|code_330|>"


def test_tokens_can_be_added() -> None:
    tokenizer = ByteloomTokenizer()
    assert tokenizer.add_tokens(["<tool>", "<|eos|>", AddedToken("<cut>", lstrip=True, rstrip=True)]) == 2
    assert tokenizer.add_special_tokens({"extra_special_tokens": ["<end>"]}) == 1
    assert tokenizer.add_tokens([AddedToken("one", single_word=True)]) == 1
    assert len(tokenizer) == 324 and tokenizer.vocab_size == 320
    ids = tokenizer("é<tool>x <cut> y<end>one none", add_special_tokens=False)["input_ids"]
    assert ids == [*"é".encode(), 320, 120, 321, 121, 322, 323, *b" none"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "é<tool>x<cut>yone none"
    assert tokenizer.decode_bytes(ids) == "é<tool>x<cut>yone none".encode()


def test_batches_are_padded_and_cut() -> None:
    batch = TOKENIZER(["a", b"bcd", ""], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == [
        [PAD, PAD, BOS, TEXT, 97],
        [BOS, TEXT, 98, 99, 100],
        [PAD, PAD, PAD, BOS, TEXT],
    ]
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1, 1], [1] * 5, [0, 0, 0, 1, 1]]
    assert isinstance(TOKENIZER("a", return_tensors="np")["input_ids"], np.ndarray)
    assert TOKENIZER("a", return_tensors="np")["input_ids"].shape == (1, 3)
    right = TOKENIZER(["a", "bc"], padding=True, padding_side="right", pad_to_multiple_of=4)
    assert right["input_ids"] == [[BOS, TEXT, 97, PAD], [BOS, TEXT, 98, 99]]
    assert TOKENIZER("", add_special_tokens=False, padding="max_length", max_length=2)["input_ids"] == [PAD, PAD]
    assert TOKENIZER([])["input_ids"] == []
    assert TOKENIZER([[1, 2], [3]])["input_ids"] == [[BOS, TEXT, 1, 2], [BOS, TEXT, 3]]
    assert TOKENIZER([("a", b"b"), ("c",)])["input_ids"] == [[BOS, TEXT, 97, TEXT, 98], [BOS, TEXT, 99]]
    assert TOKENIZER(["ab", "c"], is_split_into_words=True)["input_ids"] == [BOS, TEXT, *b"abc"]
    assert TOKENIZER("abcd", truncation=True, max_length=4)["input_ids"] == [BOS, TEXT, *b"ab"]
    left = ByteloomTokenizer(truncation_side="left", padding_side="right")
    assert left(["abcd", ""], truncation=True, max_length=4, padding=True)["input_ids"] == [
        [BOS, TEXT, *b"cd"],
        [BOS, TEXT, PAD, PAD],
    ]
    over = TOKENIZER(["abc", "d"], truncation=True, max_length=3, return_overflowing_tokens=True, return_length=True)
    assert over["overflowing_tokens"] == [[*b"bc"], []] and over["num_truncated_tokens"] == [2, 0]
    assert over["length"] == [3, 3]
    assert TOKENIZER(text_target="a")["input_ids"] == [BOS, TEXT, 97]


@given(first=texts, second=st.none() | st.binary(max_size=9), limit=st.integers(14, 30), side=st.booleans())
def test_offsets_are_those_of_the_bytes(first: str, second: bytes | None, limit: int, side: bool) -> None:
    tokenizer = ByteloomTokenizer(truncation_side="left" if side else "right", add_eos_token=True)
    told = tokenizer(
        first,
        second,
        truncation="longest_first" if second is None else "only_second" if len(first.encode()) < 9 else "only_first",
        max_length=limit,
        padding="max_length",
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    columns = (told["input_ids"], told["offset_mapping"], told["special_tokens_mask"])
    marks, sources = 0, {1: first.encode(), 2: second or b""}
    for i, (start, stop), special in zip(*columns, strict=True):
        marks += i == TEXT
        assert special == (i >= PAD)
        if i >= PAD:
            assert (start, stop) == (0, 0)
        else:
            assert sources[marks][start:stop] == bytes([i])


def test_offsets_of_tokens_in_the_text_are_where_they_stand() -> None:
    tokenizer = ByteloomTokenizer()
    tokenizer.add_tokens([AddedToken("<cut>", lstrip=True, rstrip=True)])
    told = tokenizer(["ä <cut> é<|eos|>", ""], return_offsets_mapping=True, padding=True)
    assert told["input_ids"][0] == [BOS, TEXT, *"ä".encode(), 320, *"é".encode(), EOS]
    assert told["offset_mapping"][0][2:] == [(0, 1), (1, 2), (3, 8), (9, 10), (10, 11), (11, 18)]
    assert told["offset_mapping"][1] == [(0, 0)] * 8


def test_bytes_that_are_no_text() -> None:
    ids = [BOS, TEXT, 0xFF, 97]
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "�a"
    assert TOKENIZER.decode(ids, skip_special_tokens=True, errors="ignore") == "a"
    assert TOKENIZER.decode(ids, skip_special_tokens=True, errors="surrogateescape") == "\udcffa"
    assert ids_of("\udcffa") == ids
    assert ids_of("\ud800\udc80", add_special_tokens=False) == [0xED, 0xA0, 0x80, 0x80]
    with pytest.raises(UnicodeDecodeError):
        TOKENIZER.decode(ids, errors="strict")


def test_what_cannot_be_used_is_named() -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"vocab_size": 255}, "vocab_size is 255"),
        ({"modality": "smell"}, "'smell' is unknown"),
        ({"marks": {"voice": 12}}, "'voice': 12"),
        ({"marks": {"voice": 260}}, "stands for something else"),
        ({"marks": {"pad": 280}}, "stands for something else"),
        ({"errors": "nonsense"}, "errors is 'nonsense'"),
    ]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            ByteloomTokenizer(**options)
    with pytest.raises(ValueError, match="of type int"):
        TOKENIZER(3)
    with pytest.raises(ValueError, match="3 texts"):
        TOKENIZER([["a", "b", "c"]])
    with pytest.raises(ValueError, match="same length"):
        TOKENIZER(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="padding=True"):
        TOKENIZER(["a", "bc"], return_tensors="pt")
    with pytest.raises(ValueError, match="needs texts, not ids"):
        TOKENIZER([1, 2], return_offsets_mapping=True)


def test_chats() -> None:
    assert chat(CHAT, tokenize=False) == "<|bos|><|text|>User: Hi <|eos|>\n\nAssistant: Yes, \n\n"
    ids = chat(CHAT[:1], add_generation_prompt=True)["input_ids"]
    assert ids == [BOS, TEXT, *b"User: Hi ", EOS, *b"\n\nAssistant: "]
    plain = chat(CHAT[:1], sanitize_control_tokens=True, return_dict=False)
    assert plain == [BOS, TEXT, *b"User: Hi <|eos|>\n\n"]
    going_on = chat(CHAT, continue_final_message=True, return_dict=False)
    assert bytes(going_on[-16:]) == b"Assistant: Yes, "
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}, {"type": "smell"}]}]
    assert chat(parts, tokenize=False) == "<|bos|><|text|>User: <|image|>What?\n\n"
    assert TOKENIZER.image_token_id == IMAGE and TOKENIZER.mark_token_id == TEXT
    batch = chat([CHAT, CHAT[:1]], padding=True, return_tensors="pt")
    assert batch["input_ids"].shape[0] == 2 and batch["input_ids"][1, 0] == PAD


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    tokenizer = ByteloomTokenizer(
        vocab_size=330, modality="bytes", marks={"voice": 280}, add_eos_token=True, errors="ignore", model_max_length=99
    )
    tokenizer.add_tokens(["<tool>"])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<end>"]})
    tokenizer.chat_template = "{{ messages[0].content }}"
    files = [Path(name).name for name in tokenizer.save_pretrained(tmp_path)]
    assert (
        sorted(files)
        == sorted(path.name for path in tmp_path.iterdir())
        == sorted(["chat_template.jinja", "tokenizer_config.json"])
    )
    assert (tmp_path / "tokenizer_config.json").stat().st_size < 3000
    again = ByteloomTokenizer.from_pretrained(tmp_path)
    text = "a<tool><end><|voice|><|code_329|>"
    for copied in (again, pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert copied(text) == tokenizer(text)
        assert copied.get_vocab() == tokenizer.get_vocab()
        assert copied.decode([0xFF, 97]) == "a"
        assert chat(CHAT, copied, tokenize=False) == "Hi <|eos|>"
        assert (copied.model_max_length, copied.padding_side, copied.modality) == (99, "left", "bytes")
        assert copied.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == "a<tool>"
    text_again = ByteloomTokenizer.from_pretrained(tmp_path, modality="text", add_eos_token=False)
    assert text_again("a")["input_ids"] == [BOS, TEXT, 97] and text_again.mark_token_id == TEXT


def test_a_native_folder_says_what_its_model_knows(tmp_path: Path) -> None:
    save(configs.build(TWO), tmp_path)
    tokenizer = ByteloomTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.model_max_length) == (TWO.vocab_size, TWO.context)
    voice = ModalityConfig(name="voice", mark=280, first_id=320, num_ids=10)
    config = ModelConfig(stages=TWO.stages, vocab_size=330, context=64, modalities=(voice,))
    assert ByteloomTokenizer.for_model(config, errors="ignore").convert_tokens_to_ids("<|voice|>") == 280
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    with pytest.raises(CheckpointError, match="not the config of a byteloom model"):
        ByteloomTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("errors", ["replace", "surrogateescape"])
def test_streamers_print_whole_characters(errors: str, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = ByteloomTokenizer(errors=errors)
    text = "Grüße, 漢字と かな 🎉 end\n"
    ids = tokenizer(text)["input_ids"]
    streamer = TextStreamer(tokenizer, skip_special_tokens=True)  # pyrefly: ignore[bad-argument-type]
    for value in ids:
        streamer.put(torch.tensor([value]))
        out = capsys.readouterr().out
        assert out in text and "�" not in out
    streamer.end()
    pieces = TextIteratorStreamer(tokenizer, skip_special_tokens=True)
    thread = Thread(target=lambda: [*map(pieces.put, map(torch.tensor, [[i] for i in ids])), pieces.end()])
    thread.start()
    assert "".join(pieces) == text
    thread.join()
    stream, written = DecodeStream([], skip_special_tokens=True), ""
    for value in ids:
        written += stream.step(tokenizer._tokenizer, value) or ""
    assert written == text


def test_stop_strings_stop_in_any_script() -> None:
    stop = StopStringCriteria(TOKENIZER, ["é。", "\n\nUser:"])
    for text, stops in (("aé。", True), ("aé", False), ("b\n\nUser:", True), ("\n\nUser", False), ("ã。", False)):
        ids = TOKENIZER(text, return_tensors="pt")["input_ids"]
        assert bool(stop(ids, None)) == stops


def test_collators_and_datasets_take_it() -> None:
    from datasets import Dataset

    data = Dataset.from_dict({"text": ["a", "bcd", ""]})
    mapped = data.map(lambda rows: TOKENIZER(rows["text"]), batched=True, num_proc=2, remove_columns=["text"])
    assert mapped["input_ids"][1] == [BOS, TEXT, *b"bcd"]
    batch = DataCollatorForLanguageModeling(TOKENIZER, mlm=False)([mapped[i] for i in range(3)])
    assert batch["input_ids"].shape == (3, 5) and batch["labels"][0].tolist() == [-100, -100, BOS, TEXT, 97]


def test_a_megabyte_takes_no_object_for_a_byte() -> None:
    text = "Grüße <b> <|eos" * 60_000
    began = time.process_time()
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text
    assert time.process_time() - began < 10  # it takes a tenth of a second; a list of names would take ten times that
