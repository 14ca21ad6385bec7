"""Random models: a hypothesis strategy over every field of every config, and weights that hide nothing."""

from dataclasses import replace

import torch
from hypothesis import strategies as st

from byteloom.layers.continuous import InputConfig
from byteloom.layers.modalities import EmbedderConfig, StreamConfig
from byteloom.layers.prediction import PredictorConfig
from byteloom.models.config import ModalityConfig, ModelConfig, StageConfig
from byteloom.models.multiscale import Multiscale

VARIED_STAGE = {
    "dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "position", "rope_base", "max_positions", "norm",
    "norm_eps", "qk_norm", "mlp", "mlp_ratio", "attention_bias", "mlp_bias", "token_shift", "dropout", "window",
    "zero_init", "residual_scalars", "patch_size", "embed_dim", "projection", "patch_norm", "patch_norm_eps",
    "conv_kernels", "offsets", "ngrams", "ngram_rows", "ngram_dim", "embed_bias", "expand", "expand_bias",
    "cross_patch",
}  # fmt: skip
VARIED_EMBEDDER = {
    "kind", "bottleneck", "pooling", "dropout", "positions", "streams", "fuse", "stream_dropout",
}  # fmt: skip
VARIED_MODEL = {
    "stages", "vocab_size", "context", "tied_head", "head_bias", "logit_cap", "init_std", "late_parent", "modalities",
    "embedder", "heads", "inputs", "init_waves", "matches",
}  # fmt: skip
"""What `models` draws; a test compares these with the dataclasses' fields, so that a new option is not forgotten."""

CONTEXT = 24
MODALITIES = (
    ModalityConfig(name="text", mark=260),
    ModalityConfig(name="image", mark=261),
    ModalityConfig(name="codes", mark=280, first_id=320, num_ids=10),
)


PREDICTORS = (
    PredictorConfig(),
    PredictorConfig(guess="picture", width=2),
    PredictorConfig(guess="picture", channels=1, width=4, side=2, told=True),
    PredictorConfig(guess="mulaw", channels=1, told=True),
    PredictorConfig(guess="pcm16", channels=2),
    PredictorConfig(guess="pcm8", channels=1),
)
"""How bytes may be guessed."""


@st.composite
def models(draw: st.DrawFn, late_parent: bool | None = None, kind: str | None = None) -> ModelConfig:
    """A config of 1 to 3 stages with patches of 1 to 5, and an embedder of any kind, or of the one that is named."""
    num_stages = draw(st.integers(2 if kind == "fusion" else 1, 3))
    patch_sizes = [draw(st.integers(1, 5)) for _ in range(num_stages - 1)]
    late = num_stages > 1 and (draw(st.integers(0, 5)) == 0 if late_parent is None else late_parent)
    late = late and kind in (None, "plain")
    if kind is None:
        kinds = ["plain", "universal", "specific", *(["fusion"] if num_stages > 1 else [])]
        kind = "plain" if late else draw(st.sampled_from(kinds))
    pooling = draw(st.sampled_from(["concat", "concat", "attention"]))
    bottleneck = draw(st.sampled_from([None, None, 3]))
    reshaped = pooling == "attention" or bottleneck is not None
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
            "conv_kernels": () if kind == "fusion" else draw(st.sampled_from([(), (), (3, 5, 7), (2,)])),
            "offsets": () if kind == "fusion" else draw(st.sampled_from([(), (2,), (3, 5)])),
            "ngrams": () if kind == "fusion" else draw(st.sampled_from([(), (2,), (3, 5)])),
            "ngram_rows": draw(st.sampled_from([7, 40])),
            "ngram_dim": draw(st.sampled_from([3, 8])),
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
        plain = fields["patch_norm"] == "none" and not reshaped and draw(st.booleans())
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
    streams = draw(fused_streams(patch_sizes)) if kind == "fusion" else ()
    modalities = () if kind == "fusion" or late or (kind == "plain" and draw(st.booleans())) else MODALITIES
    predictors = [draw(st.sampled_from(PREDICTORS)) for _ in modalities[:2]]
    modalities = (
        *(replace(modality, predictor=predictor) for modality, predictor in zip(modalities, predictors, strict=False)),
        *modalities[2:],
    )
    apart = bool(modalities or streams) and draw(st.booleans())
    matched = not (kind == "fusion" or late or apart)
    return ModelConfig(
        stages=tuple(stages),
        vocab_size=330 if modalities else draw(st.sampled_from([320, 330])),
        context=draw(st.sampled_from([CONTEXT, CONTEXT - 1])),
        tied_head=draw(st.booleans()) and (apart or kind in ("plain", "universal")),
        heads="by_modality" if apart else "shared",
        modalities=modalities,
        embedder=EmbedderConfig(
            kind=kind,
            bottleneck=bottleneck,
            pooling=pooling,
            dropout=draw(st.sampled_from([0.0, 0.1])),
            positions=0 if kind == "plain" else draw(st.sampled_from([0, 7, 16])),
            streams=streams,
            fuse=draw(st.sampled_from(["sum", "attention"])),
            stream_dropout=draw(st.sampled_from([0.0, 0.5])) if streams else 0.0,
        ),
        inputs=draw(st.sampled_from([(), (InputConfig(name="colours", width=3, patch=(2, 2)),)])),
        head_bias=draw(st.booleans()),
        logit_cap=draw(st.sampled_from([None, 5.0])),
        init_std=draw(st.sampled_from([0.02, 0.006])),
        init_waves=draw(st.sampled_from([None, 8.0])) if not late else None,
        matches=draw(st.sampled_from([(), (1, 2, 3), (2, 5)])) if matched else (),
        late_parent=late,
    )


@st.composite
def fused_streams(draw: st.DrawFn, patch_sizes: list[int]) -> tuple[StreamConfig, ...]:
    """One to three streams that share a patch of the coarsest stage."""
    unit = 1
    for size in patch_sizes[1:]:
        unit *= size
    count = draw(st.integers(1, min(3, patch_sizes[0])))
    borders = sorted(draw(st.permutations(range(1, patch_sizes[0])))[: count - 1])
    sizes = [unit * (b - a) for a, b in zip([0, *borders], [*borders, patch_sizes[0]], strict=True)]
    order = {"given": 0, "predicted": 1, "past": 2}
    others = [draw(st.sampled_from(list(order))) for _ in sizes[1:]]
    roles = sorted(["predicted", *others], key=order.__getitem__)
    pairs = zip(roles, sizes, strict=True)
    return tuple(StreamConfig(name=f"stream {i}", size=size, role=role) for i, (role, size) in enumerate(pairs))


def build(config: ModelConfig, seed: int = 0) -> Multiscale:
    """A model in evaluation mode whose weights are all random: zero-init and unit scales would hide leaks."""
    torch.manual_seed(seed)
    model = Multiscale(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if parameter.ndim < 2 else 0.0))
    return model
