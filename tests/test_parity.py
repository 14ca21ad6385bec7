"""The paper's listing, written independently, against paper mode."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from byteloom.models.config import ModelConfig, StageConfig
from byteloom.models.multiscale import Multiscale

PAD = 319
"""The listing's pad is an id with an embedding like any other; here one that the data do not use."""


class ListingDecoder(nn.Module):
    """A pre-norm decoder written with torch's own layers, learned positions outside."""

    def __init__(self, dim: int, num_heads: int, num_layers: int):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            dim, num_heads, 4 * dim, dropout=0.0, activation="relu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, num_layers, nn.LayerNorm(dim), enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.layers(x, mask=mask, is_causal=True)


class Listing(nn.Module):
    """The paper's appendix: pad ids in front, fold, global model, unfold, add, local model. D_L = D_G, no w_GL."""

    def __init__(self, patch_size: int, dim: int, num_layers: tuple[int, int], max_patches: int):
        super().__init__()
        self.patch_size = patch_size
        self.global_embedding = nn.Embedding(320, dim)
        self.global_positions = nn.Parameter(torch.randn(max_patches * patch_size, dim))
        self.local_embedding = nn.Embedding(320, dim)
        self.local_positions = nn.Parameter(torch.randn(patch_size, dim))
        self.global_model = ListingDecoder(dim * patch_size, 2, num_layers[0])
        self.local_model = ListingDecoder(dim, 2, num_layers[1])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        size, batch = self.patch_size, ids.shape[0]
        shifted = F.pad(ids, (size, -size), value=PAD)
        x = self.global_embedding(shifted) + self.global_positions[: ids.shape[1]]
        x = self.global_model(rearrange(x, "b (t p) e -> b t (p e)", p=size))
        x = rearrange(x, "b t (p e) -> (b t) p e", p=size)
        own = rearrange(ids, "b (t p) -> (b t) p", p=size)
        own = F.pad(own, (1, -1), value=PAD)
        x = x + self.local_embedding(own) + self.local_positions
        logits = F.linear(self.local_model(x), self.local_embedding.weight)
        return rearrange(logits, "(b t) l v -> b (t l) v", b=batch)


def copy_decoder(source: ListingDecoder, target: nn.Module) -> None:
    for theirs, ours in zip(source.layers.layers, target.blocks, strict=True):
        query, key, value = theirs.self_attn.in_proj_weight.chunk(3)
        query_bias, key_bias, value_bias = theirs.self_attn.in_proj_bias.chunk(3)
        pairs = [
            (ours.attention.query, query, query_bias),
            (ours.attention.key, key, key_bias),
            (ours.attention.value, value, value_bias),
            (ours.attention.out, theirs.self_attn.out_proj.weight, theirs.self_attn.out_proj.bias),
            (ours.mlp.up, theirs.linear1.weight, theirs.linear1.bias),
            (ours.mlp.down, theirs.linear2.weight, theirs.linear2.bias),
            (ours.attention_norm, theirs.norm1.weight, theirs.norm1.bias),
            (ours.mlp_norm, theirs.norm2.weight, theirs.norm2.bias),
        ]
        for module, weight, bias in pairs:
            module.weight.copy_(weight)
            module.bias.copy_(bias)
    target.norm.load_state_dict(source.layers.norm.state_dict())


@pytest.mark.parametrize(("patch_size", "num_layers"), [(4, (2, 2)), (3, (1, 3)), (8, (2, 1))])
def test_the_papers_listing_agrees_with_paper_mode(patch_size: int, num_layers: tuple[int, int]) -> None:
    seed = torch.seed() % 2**31
    print("seed", seed)
    torch.manual_seed(seed)
    dim, patches = 16, 5
    listing = Listing(patch_size, dim, num_layers, patches).eval()
    paper = {
        "num_heads": 2,
        "position": "learned",
        "norm": "layer",
        "norm_eps": 1e-5,
        "qk_norm": False,
        "mlp": "relu",
        "attention_bias": True,
        "mlp_bias": True,
    }
    model = Multiscale(
        ModelConfig(
            stages=(
                StageConfig(
                    **paper,
                    dim=dim * patch_size,
                    num_layers=num_layers[0],
                    patch_size=patch_size,
                    embed_dim=dim,
                    projection=False,
                    expand="slice",
                    max_positions=patches,
                ),
                StageConfig(**paper, dim=dim, num_layers=num_layers[1]),
            ),
            context=patches * patch_size,
        )
    ).eval()
    with torch.no_grad():
        copy_decoder(listing.global_model, model.stacks[0])
        copy_decoder(listing.local_model, model.stacks[1])
        model.embedders[0].table.weight.copy_(listing.global_embedding.weight)
        model.embedders[1].table.weight.copy_(listing.local_embedding.weight)
        # A patch of positions is one position of ours; a patch of pads is our start vector.
        model.stacks[0].positions.copy_(listing.global_positions.view(patches, -1))
        model.stacks[1].positions.copy_(listing.local_positions)
        model.starts[0].copy_(listing.global_embedding.weight[PAD].repeat(patch_size))
        model.starts[1].copy_(listing.local_embedding.weight[PAD])
        model.expanders[0].project.weight.copy_(torch.eye(dim))
        ids = torch.randint(0, 256, (3, patches * patch_size))
        expected, found = listing(ids), model(ids)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found / scale, expected / scale, atol=1e-5, rtol=0)
