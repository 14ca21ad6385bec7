"""What a tokenizer is made of: names of ids, texts cut at the tokens that stand in them, the template of chats.

In: a str or bytes. Out: its bytes, and the ids of tokens between them. Cost: one search of the text, one copy.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from transformers import AddedToken

from byteloom.documents import BOS, EOS, FIRST_DIGIT, PAD, VOCAB_SIZE

CHAT_TEMPLATE = """\
{{- bos_token }}{{ mark_token }}
{%- for message in messages %}
    {{- message.role | capitalize }}{{ ": " }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == "text" %}
                {{- part.text }}
            {%- elif part.type in ("image", "audio", "video") %}
                {{- "<|" + part.type + "|>" }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- "\\n\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "Assistant: " }}
{%- endif %}
"""
"""A chat as a text, which any model that has seen text can go on with; a medium is its placeholder."""

BYTE_TOKENS = [chr(i) if i < 128 else f"<0x{i:02X}>" for i in range(PAD)]
"""The name of each byte."""

BYTE_IDS = {token: i for i, token in enumerate(BYTE_TOKENS)}

SPACE = re.compile(r"\s*")


def names_of(vocab_size: int, marks: Mapping[str, int]) -> dict[int, str]:
    """The names of the ids from 256 on."""
    if vocab_size < VOCAB_SIZE:
        return {PAD: "<|pad|>"}
    return {
        **{i: f"<|reserved_{i}|>" for i in range(PAD, FIRST_DIGIT)},
        PAD: "<|pad|>",
        BOS: "<|bos|>",
        EOS: "<|eos|>",
        **{mark: f"<|{modality}|>" for modality, mark in marks.items()},
        **{FIRST_DIGIT + i: f"<|digit_{i:x}|>" for i in range(VOCAB_SIZE - FIRST_DIGIT)},
        **{i: f"<|code_{i}|>" for i in range(VOCAB_SIZE, vocab_size)},
    }


def pattern_of(vocab_size: int, marks: Mapping[str, int], added: Iterable[AddedToken]) -> re.Pattern[str]:
    """What finds a token in a text: those of a vocabulary and those that were added, of these the longest first."""
    longest_first = sorted(added, key=lambda token: len(token.content), reverse=True)
    words = [rf"(?<!\w){re.escape(t.content)}(?!\w)" if t.single_word else re.escape(t.content) for t in longest_first]
    own = names_of(min(vocab_size, VOCAB_SIZE), marks).values()
    codes = [r"<\|code_[0-9]+\|>"] if vocab_size > VOCAB_SIZE else []
    return re.compile("|".join([*words, *map(re.escape, own), *codes]))


def cut(
    text: str | bytes | bytearray,
    pattern: re.Pattern[str] | None,
    token_of: Callable[[str], tuple[int, AddedToken] | None],
) -> Iterator[tuple[int, bytes, int | None]]:
    """A text in order: where a piece of it begins, in bytes, its bytes, and its id if it is a token of its own.

    Bytes are one piece, and so is a text without a pattern. `token_of` gives the id and the token of what the pattern
    finds, or None where it is none after all, such as a code that there is not.
    """
    if not isinstance(text, str):
        yield 0, bytes(text), None
        return
    start = place = 0  # of what was not given yet: in characters, and in bytes
    search_from = 0
    while pattern is not None and (found := pattern.search(text, search_from)):
        known = token_of(found[0])
        if known is None:
            search_from = found.start() + 1
            continue
        value, token = known
        before = text[start : found.start()]
        yield place, to_bytes(before.rstrip() if token.lstrip else before), None
        place += len(to_bytes(before))
        yield place, to_bytes(found[0]), value
        space = SPACE.match(text, found.end()) if token.rstrip else None
        start = search_from = space.end() if space else found.end()
        place += len(to_bytes(text[found.start() : start]))
    yield place, to_bytes(text[start:]), None


def to_bytes(text: str) -> bytes:
    """UTF-8, where surrogates that "surrogateescape" makes become their bytes again, and others what WTF-8 writes."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        escaped = ("\udc80" <= char <= "\udcff" for char in text)
        return b"".join(
            char.encode("utf-8", "surrogateescape" if is_byte else "surrogatepass")
            for char, is_byte in zip(text, escaped, strict=True)
        )
