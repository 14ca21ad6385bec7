"""The stack: rotary positions, norms, token shift, learned positions, initial weights."""

import math

import pytest
import torch
import torch.nn.functional as F

from byteloom.layers.attention import Reach
from byteloom.layers.transformer import ACTIVATIONS, BlockConfig, Stack, rope_table, rotate, shift_tokens

SMALL = {"dim": 16, "num_layers": 2, "num_heads": 2}


def turned(x: torch.Tensor, position: int, base: float = 10000.0) -> torch.Tensor:
    cos, sin = rope_table(torch.tensor([position]), x.shape[-1], base)
    return rotate(x, cos, sin)


def test_rope_keeps_norms_and_depends_on_distance_only() -> None:
    q, k = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0))
    for position in (0, 1, 7, 1000):
        torch.testing.assert_close(turned(q, position).norm(), q.norm())
    near = (turned(q, 5) * turned(k, 2)).sum()
    torch.testing.assert_close(near, (turned(q, 1003) * turned(k, 1000)).sum(), atol=1e-4, rtol=1e-4)
    assert abs(float(near - (turned(q, 6) * turned(k, 2)).sum())) > 1e-3


def test_rope_is_a_rotation_of_pairs_as_complex_numbers() -> None:
    x = torch.randn(1, 6, generator=torch.Generator().manual_seed(1))
    frequencies = 100.0 ** (-torch.arange(3) / 3)
    expected = torch.complex(x[:, :3], x[:, 3:]) * torch.exp(1j * 4 * frequencies)
    torch.testing.assert_close(turned(x, 4, 100.0), torch.cat((expected.real, expected.imag), -1))


def test_rope_is_exact_at_a_million() -> None:
    cos, _ = rope_table(torch.tensor([1_000_003]), 4, 10000.0)
    assert float(cos[0, 0]) == pytest.approx(math.cos(1_000_003), abs=1e-6)


def test_activations_are_what_they_are_called() -> None:
    x = torch.linspace(-2, 2, 9)
    torch.testing.assert_close(ACTIVATIONS["relu2"](x), torch.where(x > 0, x * x, 0.0))
    torch.testing.assert_close(ACTIVATIONS["swiglu"](x), x * torch.sigmoid(x))
    torch.testing.assert_close(ACTIVATIONS["gelu"](x), F.gelu(x))


def test_token_shift_takes_half_of_the_channels_from_the_position_before() -> None:
    x = torch.arange(24.0).view(1, 6, 4)
    out = shift_tokens(x, Reach())
    torch.testing.assert_close(out[..., :2], x[..., :2])
    torch.testing.assert_close(out[:, 1:, 2:], x[:, :-1, 2:])
    assert not out[:, 0, 2:].any()
    patched = shift_tokens(x, Reach(patch_size=3))
    assert not patched[:, 3, 2:].any()
    torch.testing.assert_close(patched[:, 4, 2:], x[:, 3, 2:])


def test_zero_init_makes_a_stack_the_norm_of_its_input() -> None:
    stack = Stack(BlockConfig(**SMALL))
    for block in stack.blocks:
        torch.nn.init.zeros_(block.attention.out.weight)
        torch.nn.init.zeros_(block.mlp.down.weight)
    x = torch.randn(1, 5, 16)
    torch.testing.assert_close(stack(x), F.rms_norm(x, (16,), eps=1e-6))


def test_residual_scalars_mix_the_input_back_in() -> None:
    block = Stack(BlockConfig(**SMALL, residual_scalars=True)).blocks[0]
    torch.nn.init.constant_(block.stream_scale, 2.0)
    torch.nn.init.constant_(block.input_scale, 3.0)
    assert float(block.mix_input(torch.tensor(5.0), torch.tensor(7.0))) == 31.0


def test_grouped_queries_equal_repeated_keys_and_values() -> None:
    torch.manual_seed(0)
    grouped = Stack(BlockConfig(**{**SMALL, "num_heads": 4}, num_kv_heads=2))
    full = Stack(BlockConfig(**{**SMALL, "num_heads": 4}))
    weights = grouped.state_dict()
    for name in list(weights):
        if ".key." in name or ".value." in name:
            weights[name] = weights[name].view(2, 4, 16).repeat_interleave(2, 0).reshape(16, 16)
    full.load_state_dict(weights)
    x = torch.randn(2, 9, 16)
    torch.testing.assert_close(grouped(x), full(x), atol=1e-5, rtol=1e-5)


def test_qk_norm_bounds_scores() -> None:
    torch.manual_seed(0)
    attention = Stack(BlockConfig(**SMALL)).blocks[0].attention
    q, k, _ = attention.project(1000 * torch.randn(1, 5, 16), None)
    for x in (q, k):
        torch.testing.assert_close(x.square().mean(-1), torch.ones(1, 5, 2), atol=1e-4, rtol=1e-4)


def test_a_learned_table_is_added_once_a_position() -> None:
    torch.manual_seed(0)
    stack = Stack(BlockConfig(**SMALL, position="learned", max_positions=6))
    torch.nn.init.normal_(stack.positions)
    plain = Stack(BlockConfig(**SMALL, position="none"))
    plain.load_state_dict({name: value for name, value in stack.state_dict().items() if name != "positions"})
    x = torch.randn(1, 6, 16)
    torch.testing.assert_close(stack(x), plain(x + stack.positions))
