"""The report: one file, nothing from outside, every byte of the sample in it."""

import html
import re

from byteloom.report import by_modality, comparison, page, tinted

EVALUATION = {
    "bits_per_byte": 2.5,
    "standard_error": None,
    "by_modality": {"text": {"bits_per_byte": 2.5, "bytes": 100}},
    "by_position_in_patch": [3.0, 2.0, None, 1.0][:2],
    "by_position_in_context": [
        {"start": 0, "stop": 1, "bits_per_byte": None},
        {"start": 1, "stop": 9, "bits_per_byte": 2.2},
    ],
}
METRICS = [
    {"step": 1, "bytes": 100, "bits_per_byte": 5.0},
    {"step": 2, "bytes": 200, "bits_per_byte": 4.0, "valid_bits_per_byte": 4.1},
]


def test_a_page_is_whole_and_needs_nothing_else() -> None:
    text = page(
        title="A <title>",
        lead="lead",
        metrics=METRICS,
        evaluation=EVALUATION,
        baselines={"gzip": {"bytes": 10, "bits_per_byte": 3.1}},
        prompt=b"if a < b:",
        continuation="ä\n".encode() + b"\xff",
        bits=[1.0] * 13,
    )
    assert text.count("<svg") == text.count("</svg>") == 3
    assert "A &lt;title&gt;" in text
    assert not re.findall(r'(?:src|href)="(?!#)[^"]+"', text.replace('xlink:href="#', 'xlink:href="#'))
    assert text.index("this model") < text.index(">gzip<"), "best first"


def test_modalities_have_a_table_where_there_are_several() -> None:
    assert by_modality(EVALUATION["by_modality"]) == ""
    found = by_modality(
        {
            "text": {"bits_per_byte": 2.5, "bytes": 1234},
            "<audio>": {"bits_per_byte": 4.1, "bytes": 66, "bits_per_sample": 8.2},
        }
    )
    assert "<td>text</td><td>1,234</td><td>2.500</td><td></td>" in found
    assert "<td>&lt;audio&gt;</td><td>66</td><td>4.100</td><td>8.200</td>" in found


def test_the_error_bar_is_the_models() -> None:
    found = comparison({**EVALUATION, "standard_error": 0.0123}, {"gzip": {"bytes": 10, "bits_per_byte": 3.1}})
    assert "<td>2.500 ± 0.012</td>" in found and found.count("±") == 1


def test_a_sample_keeps_its_bytes_and_shows_their_cost() -> None:
    data = "a<ä漢".encode() + b"\xff"
    tinted_text = tinted(data, [1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 5.0, 9.0])
    shown = html.unescape(re.sub(r"<[^>]+>", "", tinted_text))
    assert shown == "a<ä漢\\xff"
    assert re.findall(r'title="([\d.]+) bits"', tinted_text) == ["1.00", "2.00", "7.00", "15.00", "9.00"]
