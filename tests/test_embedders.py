"""Each kind of embedder where the config asks for it, as wide as its stage."""

import configs
import torch

from byteloom.layers.modalities import EmbedderConfig, FusedEmbedder, ModalEmbedder, StreamConfig
from byteloom.layers.patching import PatchEmbedder
from byteloom.models.config import ModelConfig, StageConfig
from byteloom.models.embedders import make_embedder

STAGES = (
    StageConfig(dim=32, num_layers=1, num_heads=2, patch_size=4),
    StageConfig(dim=16, num_layers=1, num_heads=2),
)


def test_the_embedder_is_the_one_that_the_config_names() -> None:
    plain = ModelConfig(stages=STAGES)
    modal = ModelConfig(
        stages=STAGES, modalities=configs.MODALITIES, vocab_size=330, embedder=EmbedderConfig(kind="universal")
    )
    streams = (StreamConfig(name="a", size=2, role="predicted"), StreamConfig(name="b", size=2, role="past"))
    fused = ModelConfig(
        stages=STAGES, embedder=EmbedderConfig(kind="fusion", streams=streams), heads="by_modality", tied_head=False
    )
    assert [type(make_embedder(plain, stage)) for stage in (0, 1)] == [PatchEmbedder, PatchEmbedder]
    assert [type(make_embedder(modal, stage)) for stage in (0, 1)] == [ModalEmbedder, ModalEmbedder]
    assert type(make_embedder(fused, 0)) is FusedEmbedder


def test_it_gives_vectors_as_wide_as_the_stage() -> None:
    for stage, width in ((0, 32), (1, 16)):
        found = make_embedder(ModelConfig(stages=STAGES), stage)(torch.zeros(2, 8, dtype=torch.long))
        assert found.shape == (2, 8 // (4 if stage == 0 else 1), width)
