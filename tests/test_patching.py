"""Patch embedders and expanders."""

import pytest
import torch
from einops import rearrange

from byteloom.layers.patching import Expander, PatchConfig, PatchEmbedder


def embedder(span: int = 3, embed_dim: int = 4, dim: int = 12, projection: bool = False, **fields) -> PatchEmbedder:
    torch.manual_seed(0)
    return PatchEmbedder(
        PatchConfig(**fields), vocab_size=320, span=span, embed_dim=embed_dim, dim=dim, projection=projection
    )


def test_without_a_projection_a_patch_is_the_concatenation() -> None:
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    layer = embedder()
    torch.testing.assert_close(layer(ids), layer.table(ids).view(1, 2, 12))


def test_dual_patch_norm_stands_around_the_projection() -> None:
    ids = torch.tensor([[1, 2, 3]])
    layer = embedder(dim=8, projection=True, patch_norm="layer", embed_bias=True)
    x = torch.nn.functional.layer_norm(layer.table(ids).view(1, 1, 12), (12,))
    x = torch.nn.functional.layer_norm(layer.project(x), (8,))
    torch.testing.assert_close(layer(ids), x)


def test_convolutions_are_causal_and_cross_patch_borders() -> None:
    layer = embedder(span=2, dim=8, conv_kernels=(3, 5, 7))
    assert layer.halo == 12
    ids = torch.randint(0, 256, (1, 20))
    x = layer(ids)
    for place in range(20):
        other = ids.clone()
        other[0, place] ^= 1
        moved = (layer(other) - x).abs().amax(-1)[0] > 0
        assert not moved[: place // 2].any()
        assert moved[place // 2 : min(place // 2 + 6, 10)].all()


def test_a_halo_gives_what_the_whole_sequence_gives() -> None:
    layer = embedder(span=2, dim=8, conv_kernels=(3, 5))
    ids = torch.randint(0, 256, (1, 20))
    halo = layer.halo
    torch.testing.assert_close(layer(ids[:, 14 - halo : 16], halo), layer(ids)[:, 7:8])
    places = torch.arange(2 - halo, 4)
    cut = layer(ids[:, places.clamp(min=0)], halo, (places >= 0).unsqueeze(0))
    torch.testing.assert_close(cut, layer(ids)[:, 1:2])


@pytest.mark.parametrize("expand", ["linear", "slice"])
def test_an_expander_gives_each_child_its_share(expand: str) -> None:
    torch.manual_seed(0)
    layer = Expander(PatchConfig(patch_size=3, expand=expand), dim=12, child_dim=5)
    x = torch.randn(2, 4, 12)
    children = layer(x)
    assert children.shape == (2, 12, 5)
    if expand == "slice":
        expected = torch.stack([layer.project(part) for part in x.chunk(3, -1)], 2)
    else:
        expected = rearrange(layer.project(x), "b k (p d) -> b k p d", p=3)
    torch.testing.assert_close(children.view(2, 4, 3, 5), expected)
