"""Sums before ratios, and which modality a position belongs to."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from byteloom import documents
from byteloom.losses import VOCABULARY, bits_per_byte, cross_entropy, marks_in_force, places_in_segment, summed_loss

ids_lists = st.lists(st.sampled_from([0, 7, 255, 256, 257, 258, 259, 260, 303, 304, 319, 320]), min_size=1, max_size=20)


def test_the_vocabulary_is_the_one_that_documents_write() -> None:
    assert VOCABULARY.pad_id == documents.PAD
    assert VOCABULARY.first_mark == documents.FIRST_MARK
    assert VOCABULARY.bos_id == documents.BOS
    assert VOCABULARY.end_of_marks == VOCABULARY.first_digit == documents.FIRST_DIGIT
    assert VOCABULARY.end_of_reserved == documents.VOCAB_SIZE


@given(ids=ids_lists, mark=st.sampled_from([256, 260, 262]))
def test_the_mark_in_force_is_the_last_one_before(ids: list[int], mark: int) -> None:
    expected, current = [], mark
    for value in ids:
        expected.append(current)
        current = value if 259 <= value < 304 else 256 if value == 257 else current
    found = marks_in_force(torch.tensor([ids]), torch.tensor([mark]))
    assert found.tolist() == [expected]


@given(ids=ids_lists, since=st.integers(0, 5), patch_size=st.sampled_from([None, 1, 4]))
def test_places_in_a_segment_are_counted_from_where_its_data_begin(
    ids: list[int], since: int, patch_size: int | None
) -> None:
    expected, begin = [], -since
    for place, value in enumerate(ids):
        expected.append(place - begin)
        if patch_size is None and 256 <= value < 320:
            begin = place + 1
        elif patch_size is not None and 257 <= value < 320:
            begin = (place // patch_size + 1) * patch_size
    found = places_in_segment(torch.tensor([ids]), torch.tensor([since]), patch_size)
    assert found.tolist() == [expected]


@given(ids=ids_lists, seed=st.integers(0, 1000))
def test_parts_by_modality_sum_to_the_whole(ids: list[int], seed: int) -> None:
    nats = torch.rand(1, len(ids), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    tensor = torch.tensor([ids])
    loss = summed_loss(nats, tensor)
    kept = [i for i, value in enumerate(ids) if value != 256]
    assert int(loss.count) == len(kept)
    assert int(loss.bytes) == sum(ids[i] < 256 or ids[i] >= 320 for i in kept)
    torch.testing.assert_close(loss.nats, nats[0, kept].sum())
    parts = loss.by_modality.values()
    torch.testing.assert_close(sum((part.nats for part in parts), torch.tensor(0.0).double()), loss.nats)
    assert sum(int(part.bytes) for part in parts) == int(loss.bytes)


def test_nats_become_bits_per_byte() -> None:
    assert bits_per_byte(math.log(256) * 10, 10) == 8.0
    assert math.isnan(bits_per_byte(1.0, 0))


def test_cross_entropy_is_minus_log_probability_in_fp32() -> None:
    logits = torch.randn(2, 3, 5).bfloat16()
    ids = torch.randint(0, 5, (2, 3))
    expected = -logits.float().log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    found = cross_entropy(logits, ids)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
