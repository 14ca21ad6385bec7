"""Generation: batches against single rows, the model's own argmax, stops, UTF-8, documents, and beyond the context."""

import dataclasses
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import configs
import numpy as np
import pytest
import torch
from test_cli import refused, run_here
from test_multiscale import BY_STAGES, ONE, TWO

from byteloom.codecs import audio, image, video
from byteloom.commands import generate as command
from byteloom.documents import Document, Segment, to_fused_ids, to_ids
from byteloom.drafts import Draft, Prompt, begin, prompt_ids
from byteloom.generation import generate, generate_documents, stream
from byteloom.layers.continuous import InputConfig
from byteloom.layers.modalities import EmbedderConfig, StreamConfig
from byteloom.models import decoding
from byteloom.models.config import ModalityConfig, ModelConfig, StageConfig
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import save
from byteloom.sampling import SamplingConfig

GREEDY = SamplingConfig(temperature=0)
LONG = {n: dataclasses.replace(config, context=96) for n, config in BY_STAGES.items()}


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_greedy_is_the_argmax_of_forward(num_stages: int) -> None:
    model = configs.build(LONG[num_stages])
    written = generate(model, "ab", max_bytes=12, sampling=GREEDY)
    ids = prompt_ids("ab", model.config.span(0), "text").tolist()
    for value in written:
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, 0]]))[0, -1]
        assert value == int(logits[:256].argmax())
        ids.append(value)
    assert len(written) == 12 or int(logits[258]) >= 0


@pytest.mark.parametrize("num_stages", [1, 2, 3])
@pytest.mark.parametrize("sampling", [GREEDY, SamplingConfig(temperature=0.8, top_k=20, repetition_penalty=1.2)])
def test_a_row_in_a_ragged_batch_writes_what_it_writes_alone(num_stages: int, sampling: SamplingConfig) -> None:
    model = configs.build(LONG[num_stages])
    prompts = ["", "a", "some longer prompt", "xyz"]
    together = generate(model, prompts, max_bytes=20, sampling=sampling, seed=3, stop=b"\x07")
    alone = [
        generate(model, p, max_bytes=20, sampling=sampling, seed=3 + i, stop=b"\x07") for i, p in enumerate(prompts)
    ]
    assert together == alone


def test_seeds_decide() -> None:
    model = configs.build(LONG[2])
    assert generate(model, "a", seed=1, max_bytes=30) == generate(model, "a", seed=1, max_bytes=30)
    assert generate(model, "a", seed=1, max_bytes=30) != generate(model, "a", seed=2, max_bytes=30)


def test_stops_end_rows_at_different_times() -> None:
    model = configs.build(LONG[2])
    free = generate(model, ["a", "bc"], max_bytes=30)
    stops = [free[0][3:5], free[1][8:9]]
    for row, found in enumerate(generate(model, ["a", "bc"], max_bytes=30, stop=stops)):
        ends = [free[row].find(stop) + len(stop) for stop in stops if stop in free[row]]
        assert found == free[row][: min(ends)]


def test_streaming_gives_the_same_bytes_as_they_come() -> None:
    model = configs.build(LONG[2])
    rows: dict[int, bytes] = {0: b"", 1: b""}
    for step in stream(model, ["a", "bc"], max_bytes=9):
        for row, value in step:
            rows[row] += bytes([value])
    assert list(rows.values()) == generate(model, ["a", "bc"], max_bytes=9)


@pytest.mark.parametrize("max_bytes", [1, 2, 3, 7, 64])
def test_valid_utf8_is_valid(max_bytes: int) -> None:
    model = configs.build(LONG[2])
    prompts = ["", "ä", b"cut \xe2\x82", "漢字"]
    for prompt, written in zip(prompts, generate(model, prompts, max_bytes=max_bytes, valid_utf8=True)):
        whole = (prompt.encode() if isinstance(prompt, str) else prompt) + written
        assert whole.decode()
        assert len(written) <= max_bytes


def test_a_begun_character_that_does_not_fit_is_gone_on_with() -> None:
    (written,) = generate(configs.build(LONG[2]), [b"\xf0\x9f"], max_bytes=1, valid_utf8=True)
    assert 0x80 <= written[0] < 0xC0


def test_a_model_of_bytes_alone_gets_bytes_alone() -> None:
    model = configs.build(dataclasses.replace(LONG[2], vocab_size=256))
    assert len(generate(model, ["ab", ""], max_bytes=6, valid_utf8=True)[1]) == 6


def test_the_end_of_a_document_ends_a_row() -> None:
    model = configs.build(dataclasses.replace(LONG[2], head_bias=True))
    with torch.no_grad():
        model.head_bias[258] = 1e4
    assert generate(model, ["a", ""], max_bytes=5) == [b"", b""]


def test_no_mark_or_pad_is_ever_written() -> None:
    model = configs.build(dataclasses.replace(LONG[2], head_bias=True))
    with torch.no_grad():
        model.head_bias[[256, 257, 260]] = 1e4
    assert len(generate(model, "", max_bytes=20)) <= 20


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_a_continuation_may_outgrow_the_context(num_stages: int) -> None:
    model = configs.build(dataclasses.replace(BY_STAGES[num_stages], context=24, head_bias=True))
    with torch.no_grad():
        model.head_bias[258] = -1e4
    prompts, span = ["a", "abcdefgh"], model.config.span(0)
    for prompt, written in zip(prompts, generate(model, prompts, max_bytes=80, sampling=GREEDY), strict=True):
        ids, expected = prompt_ids(prompt, span, "text").tolist(), []
        while len(expected) < 80:
            with torch.no_grad():
                expected.append(int(model(torch.tensor([[*ids, 0]]))[0, -1, :256].argmax()))
            if len(ids) >= 24:  # the older half is forgotten, up to a patch border
                ids = ids[-(-(len(ids) // 2) // span) * span :]
            ids.append(expected[-1])
        assert written == bytes(expected)


def test_learned_positions_do_too() -> None:
    stage = StageConfig(dim=16, num_layers=1, num_heads=2, position="learned", max_positions=24)
    model = configs.build(ModelConfig(stages=(stage,), context=24, head_bias=True))
    with torch.no_grad():
        model.head_bias[258] = -1e4
    assert len(generate(model, "a", max_bytes=60)) == 60


def test_bad_requests_are_refused() -> None:
    model = configs.build(ONE)
    with pytest.raises(ValueError, match="takes 33 ids and the context is 32"):
        generate(model, "x" * 31)
    with pytest.raises(ValueError, match="empty stop"):
        generate(model, "x", stop=[b""])
    with pytest.raises(ValueError, match="max_bytes"):
        generate(model, "x", max_bytes=-1)
    with pytest.raises(ValueError, match="'smell' is unknown"):
        generate(model, "x", modality="smell")
    assert generate(model, "x", max_bytes=0) == b""
    assert generate(model, [], max_bytes=4) == []


# -- documents of any modality -----------------------------------------------------------------------------------------

MARKS = {modality.name: modality.mark for modality in configs.MODALITIES}
PICTURE = image.from_array(np.arange(36, dtype=np.uint8).reshape(3, 4, 3))
SAMPLINGS = [GREEDY, SamplingConfig(temperature=0.9, top_k=30, repetition_penalty=1.1)]


def modal(kind: str = "universal", context: int = 160, num_stages: int = 2, heads: str = "by_modality") -> Multiscale:
    """A model of text, pictures and codes that hardly ever ends a document."""
    config = dataclasses.replace(
        BY_STAGES[num_stages],
        context=context,
        vocab_size=330,
        modalities=configs.MODALITIES,
        embedder=EmbedderConfig(kind=kind, positions=0 if kind == "plain" else 7),
        heads=heads,
        head_bias=True,
    )
    model = configs.build(config)
    with torch.no_grad():
        model.head_bias[258] = -1e4
    return model


def fused(roles: tuple[str, str], context: int = 160) -> Multiscale:
    """A model of sound and pictures side by side, two bytes of each in a patch."""
    streams = tuple(StreamConfig(name=name, size=2, role=role) for name, role in zip(("audio", "image"), roles))
    embedder = EmbedderConfig(kind="fusion", streams=streams)
    config = dataclasses.replace(BY_STAGES[2], context=context, embedder=embedder, heads="by_modality", head_bias=True)
    model = configs.build(config)
    with torch.no_grad():
        model.head_bias[258] = -1e4
    return model


def part(modality: str, data: "bytes | range" = b"", header: bytes = b"") -> Segment:
    return Segment(modality=modality, data=np.array(list(data), np.uint16), header=header)


def document(*segments: Segment) -> Document:
    return Document(segments=segments)


def half(segment: Segment) -> Segment:
    return dataclasses.replace(segment, data=segment.data[: len(segment.data) // 2])


PROMPTS: list[Prompt] = [
    "some text",
    b"",
    document(half(PICTURE)),
    document(part("text", b"a picture:"), part("image")),
    document(part("codes", range(320, 325))),
    document(),
    to_ids(document(part("text", b"x")), MARKS, 4)[:-1],
]


def slow(model: Multiscale, draft: Draft, max_bytes: int, context: int) -> list[int]:
    """The ids of a greedy document, each by a whole forward pass over what the row still sees."""
    cut, span = 0, model.config.span(0)
    while not draft.is_done(max_bytes):
        if len(draft.ids) - cut > context:  # the last id was read when the older half had gone
            cut += -(-(len(draft.ids) - 1 - cut) // 2 // span) * span
        before, mark, since = draft.ids[:cut], 256, 0
        for i, value in enumerate(before):
            structure = 256 <= value < 320 and not (value == 256 and model.config.embedder.streams)
            mark = value if 259 <= value < 304 else 256 if value == 257 else mark
            since = 0 if structure else since + 1
            if structure and model.config.embedder.streams:  # data begin at the next border
                since = (i + 1) % span - span if (i + 1) % span else 0
        seen = torch.tensor([[*draft.ids[cut:], 0]])
        with torch.no_grad():
            logits = model(seen, mark=torch.tensor([mark]), since=torch.tensor([since]))[0, -1]
        choices = draft.choices()
        values = [value for choice in choices for value in choice]
        draft.take(max(values, key=lambda value: float(logits[value])), chosen=len(values) > 1)
    return draft.ids


@pytest.mark.parametrize("num_stages", [1, 2, 3])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("valid_utf8", [False, True])
def test_a_document_of_one_segment_is_what_generate_writes(
    num_stages: int, sampling: SamplingConfig, valid_utf8: bool
) -> None:
    """The twin of the path that looks at bytes once a patch."""
    model = configs.build(LONG[num_stages])
    prompts = ["", "a", "some longer prompt", b"cut \xe2\x82"]
    options = {"max_bytes": 20, "sampling": sampling, "seed": 5, "valid_utf8": valid_utf8}
    written = generate(model, prompts, **options)
    for prompt, text, found in zip(prompts, written, generate_documents(model, prompts, **options), strict=True):
        whole = (prompt.encode() if isinstance(prompt, str) else prompt) + text
        assert [(segment.modality, segment.data.tobytes()) for segment in found.segments] == [("text", whole)]


@pytest.mark.parametrize(
    ("kind", "sampling"), [("plain", SAMPLINGS[1]), ("specific", GREEDY), ("universal", SAMPLINGS[1])]
)
def test_a_row_among_other_modalities_gives_what_it_gives_alone(kind: str, sampling: SamplingConfig) -> None:
    model = modal(kind, context=60, heads="shared" if kind == "plain" else "by_modality")
    options = {"max_bytes": 50, "sampling": sampling, "modalities": ["text", "codes"], "valid_utf8": True}
    together = generate_documents(model, PROMPTS, seed=7, **options)
    for row, (prompt, found) in enumerate(zip(PROMPTS, together, strict=True)):
        assert found == generate_documents(model, prompt, seed=7 + row, **options)
        assert all(segment.data.tobytes().decode() for segment in found.segments if segment.modality == "text" and row)
    assert len({len(draft.segments) for draft in together}) > 1


@pytest.mark.parametrize(
    ("kind", "num_stages", "context"),
    [("universal", 1, 36), ("universal", 2, 36), ("universal", 3, 36), ("specific", 2, 36), ("universal", 2, 400)],
)
def test_documents_are_the_argmax_of_forward_beyond_the_context_too(kind: str, num_stages: int, context: int) -> None:
    """What is forgotten is handed over as the mark in force and the place in the segment."""
    model = modal(kind, context, num_stages)
    for prompt in (document(half(PICTURE)), document(part("codes", range(320, 325))), "text"):
        draft = begin(model.config, prompt, modalities=["codes", "image"])
        found = generate_documents(model, prompt, max_bytes=45, sampling=GREEDY, modalities=["codes", "image"])
        ids = slow(model, draft, 45, context)
        assert to_ids(found, MARKS, model.config.span(0))[: len(ids)].tolist() == ids


def test_rows_that_end_leave_a_compiled_batch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is compiled, not compiled: a row that lives takes the place of one that ended."""
    model = modal()
    with torch.no_grad():
        model.head_bias[258] = 2.0
    options = {"max_bytes": 30, "seed": 3, "modalities": ["codes", "text"], "max_context": 60}
    expected = generate_documents(model, PROMPTS, **options)
    assert len({sum(len(segment.data) for segment in found.segments) for found in expected}) > 3
    monkeypatch.setattr(decoding, "compiled_run", lambda *_: decoding.run_on_device)
    assert generate_documents(model, PROMPTS, compiled=True, **options) == expected


def test_bytes_beyond_the_context_know_what_they_are_of() -> None:
    model = modal(context=36)
    draft = begin(model.config, "a prompt")
    expected = slow(model, draft, 90, 36)[12:]
    assert list(generate(model, ["a prompt", "x"], max_bytes=90, sampling=GREEDY)[0]) == expected


def test_a_picture_ends_where_its_header_says_and_what_follows_is_chosen() -> None:
    model = modal()
    (found,) = generate_documents(model, document(half(PICTURE)), max_bytes=99, modalities=()).segments
    assert found.header == PICTURE.header and len(found.data) == 36
    assert np.array_equal(found.data[:18], PICTURE.data[:18]) and image.to_array(found).shape == (3, 4, 3)
    more = generate_documents(model, document(half(PICTURE)), max_bytes=30, modalities=["codes"]).segments
    assert len(more[0].data) == 36 and {segment.modality for segment in more[1:]} == {"codes"}
    assert sum(len(segment.data) for segment in more[1:]) == 12 and all(s.data.min() >= 320 for s in more[1:])


def test_a_header_is_finished_even_where_no_data_are_wanted() -> None:
    model = modal()
    (empty,) = generate_documents(model, document(part("image")), max_bytes=0, seed=1).segments
    assert len(empty.header) == 5 and len(empty.data) == 0
    (other,) = generate_documents(model, document(part("image")), max_bytes=0, seed=2).segments
    assert other.header != empty.header
    assert generate_documents(model, document(PICTURE), max_bytes=0) == document(PICTURE)
    assert generate_documents(model, [], max_bytes=9) == []


def test_a_length_may_be_asked_for() -> None:
    model = modal()
    with torch.no_grad():
        model.head_bias[258] = 1e4
    sampling = SamplingConfig(top_k=5)
    found = [generate_documents(model, "ab", max_bytes=12, min_bytes=n, sampling=sampling) for n in (0, 7, 12)]
    assert [len(draft.segments[0].data) for draft in found] == [2, 9, 14]
    # A picture that is whole ends all the same.
    assert generate_documents(model, document(PICTURE), max_bytes=9, min_bytes=9, modalities=()) == document(PICTURE)


SOUND = Segment(modality="audio", data=np.arange(14, dtype=np.uint8), header=audio.pack_header(8000, 1, "pcm8"))


@pytest.mark.parametrize("context", [40, 400])
def test_fused_documents_are_the_argmax_of_forward_and_hold_what_is_given(context: int) -> None:
    model = fused(("given", "predicted"), context)
    begun = dataclasses.replace(PICTURE, data=PICTURE.data[:6])
    prompts = [document(SOUND, begun), document(dataclasses.replace(SOUND, data=SOUND.data[:5]), part("image"))]
    together = generate_documents(model, prompts, max_bytes=99, sampling=GREEDY)
    for prompt, found in zip(prompts, together, strict=True):
        ids = slow(model, begin(model.config, prompt), 99, context)
        assert to_fused_ids(found, {"audio": 262, "image": 261}, [2, 2])[: len(ids)].tolist() == ids
        assert found == generate_documents(model, prompt, max_bytes=99, sampling=GREEDY)
        assert found.segments[0] == prompt.segments[0]
    assert len(together[0].segments[1].data) == 14 and np.array_equal(together[0].segments[1].data[:6], begun.data)
    assert len(together[1].segments[1].data) == 6 and len(together[1].segments[1].header) == 5


def test_fused_streams_that_are_all_predicted_end_by_themselves_or_by_length() -> None:
    model = fused(("predicted", "predicted"))
    (sound, picture) = generate_documents(model, "", max_bytes=50).segments
    assert len(sound.data) + len(picture.data) == 50 and len(sound.header) == 4
    with torch.no_grad():
        model.head_bias[258] = 1e4
    prompt = document(SOUND, part("image", header=PICTURE.header))
    (sound, picture) = generate_documents(model, prompt, max_bytes=50, sampling=GREEDY).segments
    assert sound == SOUND and len(picture.data) == 14
    with pytest.raises(ValueError, match="generate_documents"):
        generate(model, "")
    with pytest.raises(ValueError, match="valid_utf8"):
        generate_documents(model, "", valid_utf8=True)


def test_bad_requests_for_documents_are_refused() -> None:
    with pytest.raises(ValueError, match="knows no documents"):
        generate_documents(configs.build(dataclasses.replace(LONG[2], vocab_size=256)), "a")
    model = modal(context=40)
    for prompt, options, expected in (
        ("x", {"max_bytes": -1}, "max_bytes"),
        ("x", {"modalities": ["smell"]}, "it knows codes, image, text"),
        (document(SOUND), {}, "'audio' is unknown"),
    ):
        with pytest.raises(ValueError, match=expected):
            generate_documents(model, prompt, **options)


@pytest.mark.parametrize("max_context", [None, 12])
def test_continuous_inputs_stand_before_every_prompt(max_context: int | None) -> None:
    """Greedy bytes are those of plain forward calls with the same inputs, beyond the context too."""
    config = dataclasses.replace(TWO, inputs=(InputConfig(name="words", width=3),))
    model, greedy = configs.build(config), SamplingConfig(temperature=0)
    x = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(1))
    shared = {"max_bytes": 20, "sampling": greedy, "max_context": max_context}
    together = generate(model, ["ab", "abcde"], inputs=[("words", x)], **shared)
    for row, prompt in enumerate(["ab", "abcde"]):
        assert together[row] == generate(model, prompt, inputs=[("words", x[row : row + 1])], **shared)
        document = generate_documents(model, prompt, inputs=[("words", x[row : row + 1])], **shared)
        assert bytes(document.segments[0].data) == prompt.encode() + together[row]
    assert together != generate(model, ["ab", "abcde"], inputs=[("words", x + 1)], **shared)
    if max_context is None:
        ids = torch.from_numpy(prompt_ids("ab", 4, "text")).unsqueeze(0)
        for value in together[0]:
            following = model(torch.cat((ids, ids[:, :1]), 1), inputs=[("words", x[:1])])[0, -1]
            allowed = torch.cat((following[:256], following[258:259]))
            assert int(allowed.argmax()) == value
            ids = torch.cat((ids, torch.tensor([[value]])), 1)
    with pytest.raises(ValueError, match="2 rows for 1 prompts"):
        generate(model, "a", inputs=[("words", x)])


@pytest.mark.parametrize("kind", ["plain", "universal"])
def test_of_a_long_prompt_the_end_is_read(kind: str) -> None:
    """As if the model had started there, told what came before."""
    modalities = (ModalityConfig(name="text", mark=260), ModalityConfig(name="audio", mark=262))
    apart = {"modalities": modalities, "embedder": EmbedderConfig(kind=kind, positions=16)} if kind != "plain" else {}
    model = configs.build(dataclasses.replace(TWO, **apart))
    sound = audio.from_array(np.arange(60, dtype=np.int16) * 300, 8000, audio.AudioConfig(coding="mulaw"))
    document = Document(segments=(sound,))
    greedy = SamplingConfig(temperature=0)
    found = generate_documents(model, document, max_bytes=5, sampling=greedy, modalities=())
    assert np.array_equal(found.segments[0].data[:60], sound.data)
    ids = prompt_ids(document, 4, "audio")
    cut = -(-(len(ids) - 16) // 4) * 4  # half of the context of 32
    told = {"mark": torch.tensor([262]), "since": torch.tensor([cut - 12])} if kind != "plain" else {}
    read = torch.from_numpy(ids[cut:]).unsqueeze(0)
    for value in found.segments[0].data[60:].tolist():
        logits = model(torch.cat((read, read[:, :1]), 1), **told)[0, -1]
        assert int(logits[:256].argmax()) == value
        read = torch.cat((read, torch.tensor([[value]])), 1)


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(configs.build(TWO), tmp_path / "model", {"modalities": ["text", "audio"]})
    slow = Segment(modality="audio", data=SOUND.data, header=audio.pack_header(40, 1, "pcm8"))
    (tmp_path / "in.wav").write_bytes(audio.decode(slow, ".wav"))
    return tmp_path / "model"


def test_no_file_is_replaced_unasked_and_none_that_is_read(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there.wav").write_bytes(b"mine")
    (tmp_path / "page.0.txt").write_text("a")
    sound = ["generate", saved, "--prompt-file", tmp_path / "in.wav", "--out"]
    parts = ["generate", saved, "--follow", "audio", "--out", tmp_path / "page"]
    for args, code, expected in (
        ([*sound, tmp_path / "there.wav"], 1, "there.wav: is there already"),
        ([*sound, tmp_path / "in.wav", "--overwrite"], 2, "in.wav: is what this command reads"),
        ([*sound, tmp_path / "no" / "out.wav"], 2, f"there is no folder {tmp_path / 'no'}"),
        ([*parts, "--prompt", "a"], 1, "page.0.txt: is there already"),
        ([*parts, "--prompt-file", tmp_path / "page.0.txt", "--overwrite"], 2, "page.0.txt: is what this"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(command, "generate_documents", None)  # it is said before the work
            found, line = refused(capsys, *args)
        assert found == code and expected in line
    err = run_here(capsys, *sound, tmp_path / "there.wav", "--overwrite")
    assert "writes 1 s of audio, 40 bytes" in err
    (written,) = audio.encode(tmp_path / "there.wav")
    assert len(written.data) == 14 + 40 and np.array_equal(written.data[:14], SOUND.data)


@pytest.mark.parametrize(
    ("modality", "header", "size"),
    [
        ("audio", audio.pack_header(8000, 1, "mulaw"), 8000),
        ("audio", audio.pack_header(44100, 2, "pcm16"), 1 << 17),
        ("video", video.pack_header(2, 2, 1, Fraction(3), 0), 12),
        ("video", video.pack_header(2, 2, 1, Fraction(1, 5), 0), 4),
        ("video", video.pack_header(300, 200, 3, Fraction(25), 0), 180000),
    ],
)
def test_by_default_a_second_in_whole_units_is_written(modality: str, header: bytes, size: int) -> None:
    prompt = document(Segment(modality=modality, data=np.zeros(0, np.uint8), header=header))
    options = command.Options(model=Path())
    assert command.how_much(prompt, 0, (), options, TWO) == (size, size)
    assert command.how_much(prompt, 0, ["text"], options, TWO) == (size, 0)


def test_what_was_written_before_an_interrupt_is_kept(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> Iterator[list[tuple[int, int]]]:
        yield [(0, 98)]
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "stream", interrupted)
    code, line = refused(capsys, "generate", saved, "--prompt", "a", "--out", tmp_path / "out.txt")
    assert code == 130 and "out.txt has the 1 bytes written so far" in line
    assert (tmp_path / "out.txt").read_bytes() == b"ab"


def test_a_sound_that_an_interrupt_ends_is_the_sound_so_far(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same samples as without, up to there; where there is none yet, no file."""
    sound = ["generate", saved, "--prompt-file", tmp_path / "in.wav", "--seconds", "1", "--out"]
    run_here(capsys, *sound, tmp_path / "whole.wav")
    step, left = Multiscale.step, iter(range(25))

    def interrupted(*args: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Multiscale, "step", interrupted)
        code, line = refused(capsys, *sound, tmp_path / "part.wav")
    (whole,), (part,) = audio.encode(tmp_path / "whole.wav"), audio.encode(tmp_path / "part.wav")
    assert code == 130 and "part.wav has the 26 bytes so far" in line
    assert np.array_equal(part.data, whole.data[: 14 + 26])
    with monkeypatch.context() as patch:
        patch.setattr(Multiscale, "prefill", lambda *_: interrupted())
        assert refused(capsys, *sound, tmp_path / "none.wav")[0] == 130
    assert not (tmp_path / "none.wav").exists()
