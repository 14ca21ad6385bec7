"""The compact stream against `to_ids`: documents of any segments, batches with padding, and what is no document."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_multiscale import BY_STAGES, TWO

from byteloom.codecs import MARKS, image
from byteloom.documents import BOS, EOS, PAD, Document, Segment, to_ids
from byteloom.hf.layout import Cursor, cursor_of, native_prompts, native_sequences
from byteloom.layers.modalities import EmbedderConfig, StreamConfig
from byteloom.models.config import ModelConfig, StageConfig

DIGITS = {MARKS["image"]: 2 * image.HEADER_BYTES}
FUSED = ModelConfig(
    stages=(StageConfig(dim=16, num_layers=1, num_heads=2, patch_size=4), TWO.stages[1]),
    tied_head=False,
    embedder=EmbedderConfig(
        kind="fusion",
        streams=(
            StreamConfig(name="audio", size=2, role="given"),
            StreamConfig(name="video", size=2, role="predicted"),
        ),
    ),
)


@st.composite
def documents(draw: st.DrawFn) -> Document:
    segments = []
    for _ in range(draw(st.integers(0, 4))):
        modality = draw(st.sampled_from(["text", "bytes", "image"]))
        data = np.frombuffer(draw(st.binary(max_size=20)), np.uint8)
        header = bytes(range(image.HEADER_BYTES)) if modality == "image" else b""
        segments.append(Segment(modality=modality, data=data, header=header))
    return Document(segments=tuple(segments))


@given(documents(), st.integers(1, 9))
def test_a_document_without_its_pads_gets_them_back(document: Document, span: int) -> None:
    native = to_ids(document, MARKS, span).astype(np.int64)
    compact = native[native != PAD]
    places, following = Cursor(span, DIGITS).extend(compact)
    laid = np.full(len(native), PAD)
    laid[places] = compact
    assert laid.tolist() == native.tolist()
    assert following[:-1].tolist() == places[1:].tolist()
    assert following[-1] % span == 0  # another document begins on a border


@given(st.lists(st.sampled_from([0, 65, 255, BOS, EOS, 260, 261, 304, 319, 320]), max_size=30), st.integers(1, 5))
def test_any_ids_are_laid_out_as_one_at_a_time(values: list[int], span: int) -> None:
    ids = np.array(values, np.int64)
    whole, single = Cursor(span, {261: 4}), Cursor(span, {261: 4})
    places, following = whole.extend(ids)
    for value, place, after in zip(values, places.tolist(), following.tolist(), strict=True):
        assert single.next_place <= place
        assert single.push(value) == place
        assert single.next_place == after
    assert whole == single
    assert (np.diff(places) > 0).all()
    cut = len(values) // 2  # in two parts as in one
    parts = Cursor(span, {261: 4})
    assert [*parts.extend(ids[:cut])[0], *parts.extend(ids[cut:])[0]] == places.tolist()


@given(st.data(), st.integers(0, 20))
def test_where_the_next_id_comes_does_not_look_ahead(data: st.DataObject, cut: int) -> None:
    ids = np.array(data.draw(st.lists(st.sampled_from([1, BOS, EOS, 260, 261, 304]), min_size=cut)), np.int64)
    one, other = Cursor(4, {261: 2}), Cursor(4, {261: 2})
    assert one.extend(ids)[1][:cut].tolist() == other.extend(ids[:cut])[1].tolist()


def test_rows_of_a_batch_are_laid_out_as_alone() -> None:
    config = BY_STAGES[2]
    rows = [[BOS, 260, 65, 66], [65], [], [BOS, 260]]
    padded = torch.tensor([[PAD] * (4 - len(row)) + row for row in rows])
    native, lengths, cursors = native_prompts(config, padded)
    every, following = native_sequences(config, padded)
    for i, row in enumerate(rows):
        cursor = cursor_of(config)
        places = [cursor.push(value) for value in row]
        assert [int(native[i, place]) for place in places] == row
        assert cursors[i] == cursor
        assert lengths[i] == cursor.next_place == int(following[i, -1])
        assert every[i, : cursor.place].tolist() == native[i, : cursor.place].tolist()


def test_what_cannot_be_laid_out_is_refused() -> None:
    with pytest.raises(ValueError, match="hold 320; this model has the ids 0 to 319"):
        native_prompts(BY_STAGES[2], torch.tensor([[320]]))
    with pytest.raises(ValueError, match="hold -1; this model has the ids 0 to 319"):
        native_sequences(BY_STAGES[2], torch.tensor([[-1]]))
    with pytest.raises(ValueError, match="side by side"):
        cursor_of(FUSED)
