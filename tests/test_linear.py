"""Matrices: the loop that compiled code runs for one row, beside the library's product."""

import pytest
import torch
from torch import nn

from byteloom.layers.linear import Linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(64,), (1, 64), (1, 1, 64), (2, 64), (0, 64)])
def test_it_is_a_linear_layer(
    shape: tuple[int, ...], bias: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer = Linear(64, 48, bias=bias, dtype=dtype).requires_grad_(False)
    x = torch.randn(shape, dtype=dtype)
    wanted = nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), wanted)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    found = layer(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted, atol=1e-5 if dtype == torch.float32 else 0.03, rtol=0)


def test_one_row_compiled_is_one_loop() -> None:
    layer = Linear(64, 48).requires_grad_(False)
    x = torch.randn(1, 64)
    torch.testing.assert_close(torch.compile(layer, dynamic=False)(x), layer(x))
