"""Which embedder a stage of a model has: a `ModelConfig` and the number of a stage -> a module of layers/."""

from typing import Any

from byteloom.layers.modalities import Embedder, FusedEmbedder, ModalEmbedder
from byteloom.layers.patching import PatchEmbedder
from byteloom.models.config import ModelConfig


def make_embedder(config: ModelConfig, stage: int) -> Embedder:
    """The embedder of a stage: `PatchEmbedder`, or one that tells modalities or streams apart."""
    layer, options, kinds = config.stages[stage], config.embedder, config.kinds
    if options.kind == "fusion" and stage == 0:
        return FusedEmbedder(layer, options, embed_dim=config.embed_dim(0), dim=layer.dim)
    sizes: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "span": config.span(stage),
        "embed_dim": config.embed_dim(stage),
        "dim": layer.dim,
        "projection": config.projection(stage),
    }
    if options.kind != "plain":
        return ModalEmbedder(layer, options, kinds, **sizes)
    return PatchEmbedder(
        layer, **sizes, bottleneck=options.bottleneck, pooling=options.pooling, dropout=options.dropout
    )
