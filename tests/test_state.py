"""Caches and tails: where a position goes, what it sees, what a stretch hands on."""

import pytest
import torch

from byteloom.layers.attention import Reach, alibi_slopes
from byteloom.layers.state import Kept
from byteloom.layers.transformer import BlockConfig, Stack

REACHES = {
    "full": (None, {}, 0),
    "window": (None, {"window": 3}, 0),
    "patches": (4, {}, 0),
    "patches that look back": (4, {}, 2),
}


@pytest.mark.parametrize("name", REACHES)
@pytest.mark.parametrize("position", ["rope", "alibi", "none"])
def test_the_short_cut_sees_what_the_long_way_sees(name: str, position: str) -> None:
    patch, fields, lookback = REACHES[name]
    config = BlockConfig(dim=16, num_layers=1, num_heads=2, position=position, **fields)  # type: ignore[arg-type]
    stack = Stack(config, patch, lookback)
    slopes = alibi_slopes(2) if position == "alibi" else None
    state = stack.start(2, 12, torch.float32, torch.device("cpu"))
    for p in range(12):
        index = [p % 4 if stack.reach.isolated else p] * 2
        short = state.place(stack.reach, [p, p], index, None, slopes)
        long = state.place_of(stack.reach, torch.tensor([p, p]), slopes)
        size = state.keys[0].shape[2]
        assert torch.as_tensor(short.slot).expand(2).tolist() == long.slot.tolist() == [p % size] * 2
        assert torch.as_tensor(short.first).expand(2, 1).tolist() == torch.as_tensor(long.first).expand(2, 1).tolist()
        assert (long.bias[:, :, short.seen :] == -torch.inf).all()
        seen = long.bias[:, :, : short.seen]
        assert torch.equal(torch.zeros_like(seen) if short.bias is None else short.bias, seen)
        if position == "rope":
            for a, b in zip(short.rope, long.rope, strict=True):
                assert torch.equal(a.expand_as(b), b)
        # Exactly the positions within reach are seen.
        first = max(0, int(stack.reach.first(torch.tensor(p))))
        assert int((long.bias[0, 0] > -torch.inf).sum()) == p - first + 1


@pytest.mark.parametrize(
    ("reach", "limit"),
    [(Reach(), None), (Reach(window=3), 3), (Reach(patch_size=4), 4), (Reach(patch_size=4, lookback=2), 6)],
)
def test_a_cache_is_as_long_as_its_reach(reach: Reach, limit: int | None) -> None:
    config = BlockConfig(dim=16, num_layers=1, num_heads=2, window=reach.window)
    state = Stack(config, reach.patch_size, reach.lookback).start(1, 20, torch.float32, torch.device("cpu"))
    assert state.keys[0].shape == state.values[0].shape == (1, 2, limit or 20, 8)


def test_selected_rows_are_copies() -> None:
    config = BlockConfig(dim=16, num_layers=2, num_heads=2, token_shift=True)
    state = Stack(config).start(3, 5, torch.float32, torch.device("cpu"))
    for i, tensor in enumerate(state.tensors()[:-2]):
        tensor.copy_(torch.arange(3.0).view(3, *[1] * (tensor.ndim - 1)).expand_as(tensor) + i)
    chosen = state.select(torch.tensor([2, 0, 2]))
    for before, after in zip(state.tensors()[:-2], chosen.tensors()[:-2], strict=True):
        assert torch.equal(after, before[[2, 0, 2]])
    state.keys[0].zero_()
    assert float(chosen.keys[0].max()) == 2.0


def test_a_tail_is_the_end_of_what_was_joined() -> None:
    def kept(begin: int, end: int) -> Kept:
        x = torch.arange(begin, end, dtype=torch.float32).view(1, -1, 1, 1).expand(1, -1, 2, 4)
        return Kept(x, x + 100, (x[:, :, 0], x[:, :, 1]))

    tail = kept(0, 5).join(kept(5, 8)).tail(4)
    assert torch.equal(tail.keys, kept(4, 8).keys) and torch.equal(tail.values, kept(4, 8).values)
    assert tail.shifted is not None and torch.equal(tail.shifted[0], kept(7, 8).keys[:, :, 0])
    assert tail.tail(0).keys.shape[1] == 0
