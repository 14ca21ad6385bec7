"""Random models: a hypothesis strategy over every field of every config, and weights that hide nothing."""

import torch
from hypothesis import strategies as st

from byteloom.models.config import ModelConfig, StageConfig
from byteloom.models.multiscale import Multiscale

VARIED_STAGE = {
    "dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "position", "rope_base", "max_positions", "norm",
    "norm_eps", "qk_norm", "mlp", "mlp_ratio", "attention_bias", "mlp_bias", "token_shift", "dropout", "window",
    "zero_init", "residual_scalars", "patch_size", "embed_dim", "projection", "patch_norm", "patch_norm_eps",
    "conv_kernels", "embed_bias", "expand", "expand_bias", "cross_patch",
}  # fmt: skip
VARIED_MODEL = {
    "stages", "vocab_size", "context", "tied_head", "head_bias", "logit_cap", "init_std", "late_parent",
}  # fmt: skip
"""What `models` draws; a test compares these with the dataclasses' fields, so that a new option is not forgotten."""

CONTEXT = 24


@st.composite
def models(draw: st.DrawFn, late_parent: bool | None = None) -> ModelConfig:
    """A config of 1 to 3 stages with patches of 1 to 5."""
    num_stages = draw(st.integers(1, 3))
    patch_sizes = [draw(st.integers(1, 5)) for _ in range(num_stages - 1)]
    late = num_stages > 1 and (draw(st.integers(0, 5)) == 0 if late_parent is None else late_parent)
    stages = []
    for i in range(num_stages):
        span = 1
        for size in patch_sizes[i:]:
            span *= size
        finest = i == num_stages - 1
        num_heads = draw(st.sampled_from([1, 2, 4]))
        position = draw(st.sampled_from(["rope", "learned", "rope+learned", "alibi", "none"]))
        fields: dict[str, object] = {
            "num_layers": draw(st.integers(1, 2)),
            "num_heads": num_heads,
            "num_kv_heads": draw(st.sampled_from([None, 1, num_heads])),
            "head_dim": draw(st.sampled_from([None, 6])),
            "position": position,
            "rope_base": draw(st.sampled_from([100.0, 10000.0])),
            "norm": draw(st.sampled_from(["rms", "layer"])),
            "norm_eps": draw(st.sampled_from([1e-6, 1e-5])),
            "qk_norm": draw(st.booleans()),
            "mlp": draw(st.sampled_from(["relu", "gelu", "relu2", "swiglu"])),
            "mlp_ratio": draw(st.sampled_from([1.5, 4.0])),
            "attention_bias": draw(st.booleans()),
            "mlp_bias": draw(st.booleans()),
            "token_shift": draw(st.booleans()),
            "dropout": draw(st.sampled_from([0.0, 0.1])),
            "zero_init": draw(st.booleans()),
            "residual_scalars": draw(st.booleans()),
            "conv_kernels": draw(st.sampled_from([(), (), (3, 5, 7), (2,)])),
            "patch_norm": draw(st.sampled_from(["none", "rms", "layer"])),
            "patch_norm_eps": draw(st.sampled_from([1e-6, 1e-5])),
            "expand_bias": draw(st.booleans()),
        }
        dim = draw(st.sampled_from([16, 32]))
        if not finest:
            fields["patch_size"] = patch_sizes[i]
            fields["expand"] = draw(st.sampled_from(["linear", "slice"]))
            dim = dim if fields["expand"] == "linear" else 4 * patch_sizes[i] * num_heads
            dim = dim if dim % num_heads == 0 else 4 * num_heads
        plain = fields["patch_norm"] == "none" and draw(st.booleans())
        if plain and not finest:
            width = -(-dim // span)
            fields["projection"] = False if width * span == dim else None
            fields["embed_dim"] = width if width * span == dim else None
        elif not finest:
            fields["embed_dim"] = draw(st.sampled_from([None, 5]))
            fields["embed_bias"] = draw(st.booleans()) or fields["patch_norm"] != "none"
            fields["projection"] = True if fields["embed_bias"] else None
        fields["dim"] = dim
        if position in ("learned", "rope+learned"):
            fields["max_positions"] = CONTEXT + 2
        if draw(st.integers(0, 2)) == 0 and not (late and i):
            fields["window"] = draw(st.sampled_from([1, 3, 8]))
        elif i and not late and draw(st.booleans()):
            fields["cross_patch"] = draw(st.integers(1, patch_sizes[i - 1]))
        if position in ("rope", "rope+learned") and fields["head_dim"] is None and (dim // num_heads) % 2:
            fields["head_dim"] = 6
        if dim % 2:
            fields["token_shift"] = False
        stages.append(StageConfig(**fields))
    return ModelConfig(
        stages=tuple(stages),
        vocab_size=draw(st.sampled_from([320, 330])),
        context=draw(st.sampled_from([CONTEXT, CONTEXT - 1])),
        tied_head=draw(st.booleans()),
        head_bias=draw(st.booleans()),
        logit_cap=draw(st.sampled_from([None, 5.0])),
        init_std=draw(st.sampled_from([0.02, 0.006])),
        late_parent=late,
    )


def build(config: ModelConfig, seed: int = 0) -> Multiscale:
    """A model in evaluation mode whose weights are all random: zero-init and unit scales would hide leaks."""
    torch.manual_seed(seed)
    model = Multiscale(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if parameter.ndim < 2 else 0.0))
    return model
