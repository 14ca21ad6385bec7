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


@pytest.mark.parametrize("fields", [{"conv_kernels": (3, 5)}, {"ngrams": (2, 3, 9)}])
def test_a_halo_gives_what_the_whole_sequence_gives(fields: dict[str, tuple[int, ...]]) -> None:
    layer = embedder(span=2, dim=8, **fields)
    if layer.strings is not None:
        torch.nn.init.normal_(layer.strings.weight)
    ids = torch.randint(0, 256, (1, 20))
    halo = layer.halo
    torch.testing.assert_close(layer(ids[:, 14 - halo : 16], halo), layer(ids)[:, 7:8])
    places = torch.arange(2 - halo, 4)
    cut = layer(ids[:, places.clamp(min=0)], halo, (places >= 0).unsqueeze(0))
    torch.testing.assert_close(cut, layer(ids)[:, 1:2])


def with_strings(span: int, ngrams: tuple[int, ...] = (2, 5)) -> PatchEmbedder:
    """An embedder whose tables of strings are not zero."""
    layer = embedder(span=span, dim=8, ngrams=ngrams, ngram_rows=10_007, ngram_dim=3)
    torch.nn.init.normal_(layer.strings.weight)
    return layer


@pytest.mark.parametrize("span", [1, 2, 7])
def test_strings_end_with_a_patchs_last_byte(span: int) -> None:
    layer = with_strings(span)
    ids = torch.randint(0, 256, (1, 6 * span))
    rows = layer.hash_strings(ids, 0, None)
    assert rows.shape == (1, 6, 2) and layer.halo == max(5 - span, 0)
    assert (rows[..., 0] < 10_007).all() and (rows[..., 1] >= 10_007).all() and (rows < 2 * 10_007).all()
    for place in range(6 * span):
        other = ids.clone()
        other[0, place] ^= 1
        moved = (layer.hash_strings(other, 0, None) != rows)[0]
        for i, length in enumerate((2, 5)):
            wanted = [k * span + span - length <= place < (k + 1) * span for k in range(6)]
            assert moved[:, i].tolist() == wanted
    # The same string is the same row wherever it stands; what stands before the first byte is PAD.
    twice = torch.cat((ids, ids), dim=1)
    again = layer.hash_strings(twice, 0, None)
    assert torch.equal(again[:, :6], rows) and torch.equal(again[:, -1], rows[:, -1])
    # A patch that holds all of a string has none of what is before the first byte.
    zeros = layer.hash_strings(ids * 0, 0, None)[0]
    assert torch.equal(zeros[0], zeros[-1]) == (span >= 5)


def test_strings_that_were_never_met_say_nothing() -> None:
    ids = torch.randint(0, 256, (1, 6))
    layer = embedder(ngrams=(2, 4))
    layer.init_bytes(0.02, None)
    torch.testing.assert_close(layer(ids), layer.table(ids).view(1, 2, 12))


def test_different_strings_seldom_share_a_row() -> None:
    layer = embedder(span=1, embed_dim=12, ngrams=(3,), ngram_rows=1 << 16)
    ids = torch.arange(256).repeat_interleave(64).view(-1, 1)
    ids = torch.cat((ids, torch.arange(64).repeat(256).view(-1, 1), torch.full((256 * 64, 1), 101)), dim=1)
    rows = layer.hash_strings(ids, 0, None)[:, -1, 0]
    # 16,384 strings thrown at random into 65,536 rows reach 14,500 of them.
    assert rows.unique().numel() > 14_000


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
