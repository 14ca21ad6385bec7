"""The cache against forward calls without one: any model, any cut of the ids, rows that wait, crops, growth, beams."""

import copy
import itertools

import configs
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from test_multiscale import BY_STAGES

from byteloom.documents import BOS, EOS, PAD
from byteloom.hf.cache import FEW_COLUMNS, ByteloomCache
from byteloom.hf.modeling import ByteloomForCausalLM
from byteloom.models.config import ModelConfig

IDS = [0, 65, 255, BOS, EOS, 260, 304, PAD]


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to 1e-4 of the largest logit; -inf where the other is."""
    infinite = torch.isinf(a)
    assert torch.equal(infinite, torch.isinf(b))
    a, b = a.masked_fill(infinite, 0), b.masked_fill(infinite, 0)
    return bool((a - b).abs().max() <= 1e-4 * max(1.0, float(b.abs().max())))


@given(configs.models(), st.data())
def test_any_cut_of_any_ids_gives_the_logits_of_forward(config: ModelConfig, data: st.DataObject) -> None:
    assume(not config.embedder.streams)
    model = ByteloomForCausalLM.from_native(configs.build(config))
    length = data.draw(st.integers(1, 7))
    row = st.lists(st.sampled_from(IDS), min_size=length, max_size=length)
    ids = torch.tensor(data.draw(st.lists(row, min_size=1, max_size=3)))
    with torch.no_grad():
        try:
            wanted = model(ids).logits
        except ValueError as error:  # learned positions end
            assume("learned positions" not in str(error))
            raise
        cuts = [0, *sorted(data.draw(st.sets(st.integers(1, length - 1))) if length > 1 else []), length]
        cache, found = ByteloomCache(max_length=data.draw(st.sampled_from([None, 1, 8]))), []
        for begin, end in itertools.pairwise(cuts):
            found.append(model(ids[:, begin:end], past_key_values=cache).logits)
            assert cache.get_seq_length() == end
        assert close(torch.cat(found, dim=1), wanted)


def test_it_grows_and_long_continuations_are_read_at_once() -> None:
    model = ByteloomForCausalLM.from_native(configs.build(BY_STAGES[2]))
    ids = torch.randint(0, 256, (2, 3 * FEW_COLUMNS + 7))
    with torch.no_grad():
        wanted, cache = model(ids).logits, ByteloomCache(max_length=1)
        model(ids[:, :3], past_key_values=cache)
        last = model(ids[:, 3:-5], past_key_values=cache, logits_to_keep=1).logits
        assert last.shape[1] == 1 and close(last, wanted[:, -6:-5])
        steps = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(ids.shape[1] - 5, ids.shape[1])]
        assert close(torch.cat(steps, dim=1), wanted[:, -5:])


@pytest.mark.parametrize("few", [1, 4, FEW_COLUMNS + 3])
@pytest.mark.parametrize("removed", [0, 2, 5, 12])
def test_a_crop_forgets(few: int, removed: int) -> None:
    model = ByteloomForCausalLM.from_native(configs.build(BY_STAGES[3]))
    ids, other = torch.randint(0, 256, (2, 10 + few)), torch.randint(0, 256, (2, 3))
    with torch.no_grad():
        cache = ByteloomCache()
        model(ids[:, :10], past_key_values=cache)
        model(ids[:, 10:], past_key_values=cache, logits_to_keep=1)
        cache.crop(-removed)
        left = max(0, ids.shape[1] - removed)
        assert cache.get_seq_length() == left
        found = model(other, past_key_values=cache).logits
        assert close(found, model(torch.cat((ids[:, :left], other), dim=1)).logits[:, -3:])


def test_rows_change_places_and_multiply() -> None:
    model = ByteloomForCausalLM.from_native(configs.build(BY_STAGES[2]))
    ids = torch.tensor([[PAD, BOS, 260, 65, 66], [BOS, 260, 67, 68, 69]])
    with torch.no_grad():
        cache = ByteloomCache()
        model(ids, past_key_values=cache)
        twin = copy.deepcopy(cache)
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([3, 0, 0, 2]))
        assert cache.batch_size == 4
        rows = torch.cat((ids[[1, 0, 0, 1]], torch.tensor([[70], [71], [72], [73]])), dim=1)
        assert close(model(rows[:, -1:], past_key_values=cache).logits, model(rows).logits[:, -1:])
        later = torch.cat((ids, torch.tensor([[74], [75]])), dim=1)
        assert close(model(later[:, -1:], past_key_values=twin).logits, model(later).logits[:, -1:])
        with pytest.raises(ValueError, match="holds 2 rows and was given 4"):
            model(rows, past_key_values=twin)
        twin.reset()
        assert close(model(rows, past_key_values=twin).logits, model(rows).logits)


def test_compiled_steps_give_the_same() -> None:
    model = ByteloomForCausalLM.from_native(configs.build(BY_STAGES[2]))
    ids = torch.randint(0, 256, (1, 12))
    with torch.no_grad():
        cache = ByteloomCache(compiled=True)
        found = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(12)]
        assert close(torch.cat(found, dim=1), model(ids).logits)
