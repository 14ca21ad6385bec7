"""Named runs: a function each, which returns a whole config. Options on the command line only change its fields.

`NAMES` finds them; the name of a recipe is its function's with dashes for underscores. Those named paper-... are the
models of arXiv 2305.07185 (appendix); how many bytes they saw is not theirs but ours.
"""

import difflib
import itertools
from collections.abc import Callable
from dataclasses import replace
from types import FunctionType
from typing import Any

from byteloom.codecs import MARKS, MediaConfig
from byteloom.codecs.audio import AudioConfig
from byteloom.codecs.image import ImageConfig
from byteloom.codecs.video import VideoConfig
from byteloom.layers.modalities import EmbedderConfig
from byteloom.layers.prediction import PredictorConfig
from byteloom.models.config import ModalityConfig, ModelConfig, StageConfig
from byteloom.train.loop import RunConfig, TrainConfig
from byteloom.train.optim import OptimConfig

Recipe = Callable[[], RunConfig]


def text_small() -> RunConfig:
    """Text in any script, 10 minutes on 2 cores: patches of 4, a window of 32 bytes, hashed strings, matches."""
    return RunConfig(
        model=ModelConfig(
            stages=(
                StageConfig(dim=256, num_layers=1, num_heads=4, patch_size=4, token_shift=True),
                StageConfig(dim=128, num_layers=2, num_heads=2, window=32, token_shift=True, **STRINGS),
            ),
            context=4096,
            matches=MATCHES,
            init_std=0.08,
        ),
        optim=OptimConfig(warmup=0.05),
        train=TrainConfig(batch_size=2, max_seconds=600),
    )


def text_base() -> RunConfig:
    """Text on one GPU for an hour or more: text-small grown to 24M parameters and 25M in tables, context 4096."""
    return _grown(512, 6, 256, 6, window=64, context=4096, batch_size=16, learning_rate=2e-3, max_seconds=3600)


def text_large() -> RunConfig:
    """Text on large GPUs: text-small grown to 179M parameters and 25M in tables, context 8192."""
    return _grown(1024, 12, 512, 8, window=128, context=8192, batch_size=32, learning_rate=1e-3, max_seconds=86400)


def code_small() -> RunConfig:
    """Source code, 10 minutes on 2 cores: text-small with longer strings."""
    return _with_longer_strings(text_small())


def code_base() -> RunConfig:
    """Source code on one GPU: text-base with longer strings."""
    return _with_longer_strings(text_base())


def code_large() -> RunConfig:
    """Source code on large GPUs: text-large with longer strings."""
    return _with_longer_strings(text_large())


def image_small() -> RunConfig:
    """Pictures 32 pixels wide, 10 minutes on 2 cores: patches of 2 x 2 RGB pixels (P = 12)."""
    return _samples(IMAGE, (192, 2), (128, 1), batch_size=1)


def image_base() -> RunConfig:
    """Pictures 32 pixels wide on one GPU: the shape of image-small, 15M parameters."""
    return _samples(IMAGE, (512, 4), (256, 3), batch_size=16, learning_rate=2e-3, max_seconds=3600)


def image_large() -> RunConfig:
    """Pictures 32 pixels wide on large GPUs: the shape of image-small, 140M parameters."""
    return _samples(IMAGE, (1024, 10), (512, 6), batch_size=32, learning_rate=1e-3, max_seconds=86400)


def audio_small() -> RunConfig:
    """Sound, a byte a sample in 8-bit mu-law, 10 minutes on 2 cores: patches of 4 samples, which are guessed."""
    return _samples(AUDIO, (128, 1), (128, 2), batch_size=1)


def audio_base() -> RunConfig:
    """Sound in 8-bit mu-law on one GPU: the shape of audio-small, 17M parameters."""
    return _samples(AUDIO, (512, 4), (256, 4), batch_size=8, learning_rate=2e-3, max_seconds=3600)


def audio_large() -> RunConfig:
    """Sound in 8-bit mu-law on large GPUs: the shape of audio-small, 155M parameters."""
    return _samples(AUDIO, (1024, 10), (512, 8), batch_size=16, learning_rate=1e-3, max_seconds=86400)


def audio16_small() -> RunConfig:
    """Sound in 16-bit samples, 10 minutes on 2 cores: patches of 2 samples, which are guessed."""
    return _samples(AUDIO16, (128, 1), (128, 2), batch_size=1)


def audio16_base() -> RunConfig:
    """Sound in 16-bit samples on one GPU: the shape of audio16-small, 17M parameters."""
    return _samples(AUDIO16, (512, 4), (256, 4), batch_size=8, learning_rate=2e-3, max_seconds=3600)


def audio16_large() -> RunConfig:
    """Sound in 16-bit samples on large GPUs: the shape of audio16-small, 155M parameters."""
    return _samples(AUDIO16, (1024, 10), (512, 8), batch_size=16, learning_rate=1e-3, max_seconds=86400)


def video_small() -> RunConfig:
    """Clips of 64 x 64 RGB frames, 10 minutes on 2 cores: patches of 2 x 2 pixels (P = 12)."""
    return _samples(VIDEO, (192, 2), (128, 1), batch_size=1)


def video_base() -> RunConfig:
    """Clips of 64 x 64 frames on one GPU: the shape of video-small, 15M parameters."""
    return _samples(VIDEO, (512, 4), (256, 3), batch_size=4, learning_rate=2e-3, max_seconds=3600)


def video_large() -> RunConfig:
    """Clips of 64 x 64 frames on large GPUs: the shape of video-small, 140M parameters."""
    return _samples(VIDEO, (1024, 10), (512, 6), batch_size=8, learning_rate=1e-3, max_seconds=86400)


def mixed_small() -> RunConfig:
    """Text, pictures and sound in one model, 10 minutes on 2 cores: patches of 12 for all, an embedder for each."""
    return _samples(MIXED, (256, 2), (128, 3), batch_size=1)


def mixed_base() -> RunConfig:
    """Text, pictures and sound on one GPU: the shape of mixed-small, 20M parameters."""
    return _samples(MIXED, (512, 4), (256, 4), batch_size=16, learning_rate=2e-3, max_seconds=3600)


def mixed_large() -> RunConfig:
    """Text, pictures and sound on large GPUs: the shape of mixed-small, 160M parameters."""
    return _samples(MIXED, (1024, 10), (512, 8), batch_size=32, learning_rate=1e-3, max_seconds=86400)


def unified_8b() -> RunConfig:
    """Text, image and audio tokens in one stage of 36 layers, 4096 wide: 7.8B parameters.

    Of these 7.25B are the layers' (36 x 12 x 4096^2), 0.28B the tables (67,665 tokens of three vocabularies, the bytes,
    and the 64 reserved ids once for each) and as many the heads, which are not tied to them.
    """
    sizes = {"text-tokens": 50257, "image-tokens": 16384, "audio-tokens": 1024}
    first_ids = itertools.accumulate(sizes.values(), initial=320)
    return RunConfig(
        model=ModelConfig(
            stages=(StageConfig(dim=4096, num_layers=36, num_heads=32, mlp="gelu", mlp_ratio=4.0),),
            vocab_size=320 + sum(sizes.values()),
            context=8192,
            tied_head=False,
            heads="by_modality",
            embedder=EmbedderConfig(kind="specific"),
            modalities=tuple(
                ModalityConfig(name=name, mark=280 + i, first_id=first_id, num_ids=size)
                for i, ((name, size), first_id) in enumerate(zip(sizes.items(), first_ids, strict=False))
            ),
        ),
        optim=OptimConfig(optimizer="adamw", learning_rate=3e-4, weight_decay=0.1, warmup=0.01, final=0.1),
        train=TrainConfig(batch_size=4, accumulation=8, steps=100_000, valid_bytes=1 << 20),
    )


def million_small() -> RunConfig:
    """A context of 1,048,576 bytes in three stages, small enough for a step on 2 cores."""
    return _million((256, 4), (192, 2), (128, 2), patch_sizes=(16, 8))


def million_base() -> RunConfig:
    """A context of 1,048,576 bytes in three stages, 150M parameters."""
    return _million((1024, 8), (512, 6), (256, 4), patch_sizes=(8, 8))


def gpt2_bytes() -> RunConfig:
    """GPT-2 small over bytes: one stage, learned positions, LayerNorm, GELU. A baseline."""
    return _baseline(
        StageConfig(
            dim=768, num_layers=12, num_heads=12, position="learned", max_positions=1024, norm="layer", norm_eps=1e-5,
            qk_norm=False, mlp="gelu", attention_bias=True, mlp_bias=True, zero_init=False,
        )
    )  # fmt: skip


def llama_bytes() -> RunConfig:
    """Llama over bytes, as wide and deep as gpt2-bytes: one stage, RoPE, RMSNorm, SwiGLU. A baseline."""
    return _baseline(
        StageConfig(dim=768, num_layers=12, num_heads=12, qk_norm=False, mlp="swiglu", mlp_ratio=8 / 3, zero_init=False)
    )


def paper_s1() -> RunConfig:
    """The paper's S1, "125M": one stage of 12 layers, width 768."""
    return _paper(_paper_stage(768, 12, 12, 1024), context=1024)


def paper_s2() -> RunConfig:
    """The paper's S2, "350M": one stage of 24 layers, width 1024."""
    return _paper(_paper_stage(1024, 24, 16, 1024), context=1024)


def paper_s3() -> RunConfig:
    """The paper's S3, "760M": one stage of 24 layers, width 1536."""
    return _paper(_paper_stage(1536, 24, 16, 1024), context=1024)


def paper_s4() -> RunConfig:
    """The paper's S4, "1.3B": one stage of 24 layers, width 2048."""
    return _paper(_paper_stage(2048, 24, 32, 1024), context=1024)


def paper_s5() -> RunConfig:
    """The paper's S5, "2.7B": one stage of 32 layers, width 2560."""
    return _paper(_paper_stage(2560, 32, 32, 1024), context=1024)


def paper_s6() -> RunConfig:
    """The paper's S6, "6.7B": one stage of 32 layers, width 4096."""
    return _paper(_paper_stage(4096, 32, 32, 1024), context=1024)


def paper_text() -> RunConfig:
    """The paper's text model, "758M" + "262M": P = 8, context 8192."""
    return _paper(_paper_stage(2048, 14, 16, 1024, 8), _paper_stage(1024, 18, 16), context=8192, batch_size=48)


def paper_image64() -> RunConfig:
    """The paper's large ImageNet64 model, "2.7B" + "350M": P = 12, context 12,288."""
    return _paper(_paper_stage(2560, 32, 32, 1024, 12, pad=True), _paper_stage(1024, 24, 16), context=12288)


def paper_image256() -> RunConfig:
    """The paper's ImageNet256 model, "125M" + "125M": P = 192, context 196,608."""
    return _paper(_paper_stage(768, 12, 12, 1024, 192), _paper_stage(768, 12, 12), context=196608)


def paper_image640() -> RunConfig:
    """The paper's ImageNet640 model, "125M" + "83M": P = 192, context 1,228,800."""
    return _paper(_paper_stage(768, 12, 12, 6400, 192), _paper_stage(768, 8, 12), context=1228800)


def paper_audio() -> RunConfig:
    """The paper's audio model, "350M" + "125M": P = 32, context 524,288."""
    return _paper(_paper_stage(1024, 24, 16, 16384, 32), _paper_stage(768, 12, 12), context=524288)


NAMES: dict[str, Recipe] = {
    name.replace("_", "-"): thing
    for name, thing in list(vars().items())
    if isinstance(thing, FunctionType) and not name.startswith("_") and thing.__annotations__ == {"return": RunConfig}
}
"""Every recipe by its name."""


def by_name(name: str) -> RunConfig:
    """The run of that name. Raises ValueError, with the nearest names, where there is none."""
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(sorted(NAMES))}"
        raise ValueError(f"recipe {name!r} is unknown; {hint}")
    return NAMES[name]()


def modalities(*names: str, **predictors: PredictorConfig) -> tuple[ModalityConfig, ...]:
    """Modalities of files, by the names of their codecs, as a model tells them apart, and how bytes are guessed."""
    known = {name: PredictorConfig() for name in names} | predictors
    return tuple(ModalityConfig(name=name, mark=MARKS[name], predictor=known[name]) for name in names)


def _with_longer_strings(run: RunConfig) -> RunConfig:
    *coarse, finest = run.model.stages
    return replace(run, model=replace(run.model, stages=(*coarse, replace(finest, ngrams=LONGER))))


def _grown(
    coarse: int, coarse_layers: int, fine: int, fine_layers: int, *, window: int, context: int, batch_size: int,
    learning_rate: float, max_seconds: float,
) -> RunConfig:  # fmt: skip
    """The shape of text-small at another size."""
    common: dict[str, Any] = {"token_shift": True}
    strings = STRINGS | {"ngram_rows": 1 << 18} | common
    return RunConfig(
        model=ModelConfig(
            stages=(
                StageConfig(dim=coarse, num_layers=coarse_layers, num_heads=coarse // 64, patch_size=4, **common),
                StageConfig(dim=fine, num_layers=fine_layers, num_heads=fine // 64, window=window, **strings),
            ),
            context=context,
            matches=MATCHES,
        ),
        optim=OptimConfig(learning_rate=learning_rate, warmup=0.02, weight_decay=0.01),
        train=TrainConfig(batch_size=batch_size, max_seconds=max_seconds, valid_bytes=1 << 20),
    )


STRINGS: dict[str, Any] = {"ngrams": (2, 3, 4), "ngram_rows": 1 << 17, "ngram_dim": 32}
LONGER = (2, 3, 4, 5, 6, 8)
MATCHES = (3, 4, 6, 8, 12, 16, 24)
"""What recipes of text and code look up. Longer strings gain more in the first pass over the data and lose it later."""
PIXELS = PredictorConfig(guess="picture", width=32, side=2)
FRAMES = PredictorConfig(guess="picture", width=64, side=2)
SAMPLES = PredictorConfig(guess="mulaw", channels=1, told=True)
"""How pixels and samples are guessed."""
IMAGE: dict[str, Any] = {
    "patch_size": 12,
    "window": 16,
    "offsets": (2, 3, 6, 9, 186, 192),  # in the patch, in the one beside it and in the one above
    "context": 3084,  # a picture and what stands before it
    "modalities": modalities("image", image=PIXELS),
}
"""What recipes of pictures share."""
AUDIO: dict[str, Any] = {
    "patch_size": 4,
    "window": 32,
    "offsets": tuple(range(2, 9)),
    "context": 4096,  # the first 256 samples of a window are guessed from less than a whole filter's past
    "modalities": modalities("audio", audio=SAMPLES),
}
AUDIO16 = AUDIO | {"coding": "pcm16", "modalities": modalities("audio", audio=replace(SAMPLES, guess="pcm16"))}
"""What recipes of sound share, in mu-law and in 16-bit samples."""
VIDEO: dict[str, Any] = {
    "patch_size": 12,
    "window": 16,
    "offsets": (2, 3, 6, 9, 378, 384),  # as in pictures
    "context": 3072,  # a quarter of a frame: at this budget more steps are worth more than the frame before
    "modalities": modalities("video", video=FRAMES),
}
"""What recipes of video share."""
MIXED: dict[str, Any] = {
    "patch_size": 12,
    "window": 32,
    "offsets": (2, 3, 6, 9, 186, 192),
    "context": 3072,
    "modalities": modalities("text", "image", "audio", image=PIXELS, audio=SAMPLES),
    "embedder": EmbedderConfig(kind="specific"),
    "heads": "by_modality",
}
"""What recipes of several modalities share."""


def _samples(
    kind: dict[str, Any], coarse: tuple[int, int], fine: tuple[int, int], batch_size: int, learning_rate: float = 3e-3,
    max_seconds: float = 600,
) -> RunConfig:  # fmt: skip
    """Two stages over media of a kind, each of a width and so many layers."""
    small = max_seconds == 600
    stages = tuple(
        StageConfig(
            dim=dim,
            num_layers=layers,
            num_heads=dim // 64,
            patch_size=None if i else kind["patch_size"],
            window=kind["window"] if i else None,
            offsets=kind["offsets"] if i else (),
            token_shift=True,
        )
        for i, (dim, layers) in enumerate((coarse, fine))
    )
    return RunConfig(
        model=ModelConfig(
            stages=stages,
            context=kind["context"],
            init_std=0.08 if small else 0.02,
            init_waves=32.0,
            modalities=kind["modalities"],
            embedder=kind.get("embedder", EmbedderConfig(kind="universal")),
            heads=kind.get("heads", "shared"),
        ),
        optim=OptimConfig(learning_rate=learning_rate, muon_learning_rate=0.01, warmup=0.05 if small else 0.02),
        train=TrainConfig(batch_size=batch_size, max_seconds=max_seconds),
        media=MediaConfig(
            image=ImageConfig(scan="patch", patch=2, channels="rgb"),
            audio=AudioConfig(coding=kind.get("coding", "mulaw"), mono=True),
            video=VideoConfig(scan="patch", patch=2, channels="rgb"),
        ),
    )


def _million(*sizes: tuple[int, int], patch_sizes: tuple[int, int]) -> RunConfig:
    """Three stages over a million bytes; `sizes` are widths and layers, coarsest first."""
    borders = (*patch_sizes, None)
    stages = tuple(
        StageConfig(
            dim=dim,
            num_layers=layers,
            num_heads=dim // 64,
            patch_size=size,
            window=None if i == 0 else 32 if i == 2 else 64,
        )
        for i, ((dim, layers), size) in enumerate(zip(sizes, borders, strict=True))
    )
    return RunConfig(
        model=ModelConfig(stages=stages, context=1 << 20),
        train=TrainConfig(batch_size=1, max_seconds=3600, valid_bytes=1 << 20, log_every=1),
    )


def _baseline(stage: StageConfig) -> RunConfig:
    return RunConfig(
        model=ModelConfig(stages=(stage,), context=1024),
        optim=OptimConfig(optimizer="adamw", learning_rate=6e-4, weight_decay=0.1, final=0.1),
        train=TrainConfig(batch_size=32, steps=100_000, valid_bytes=1 << 20),
    )


def _paper_stage(
    dim: int, num_layers: int, num_heads: int, positions: int | None = None, patch_size: int | None = None,
    pad: bool = False,
) -> StageConfig:  # fmt: skip
    """A stage in paper mode. `pad`: P does not divide the width, so the patch is projected to it."""
    coarse: dict[str, Any] = {}
    if patch_size is not None:
        coarse = {"patch_size": patch_size, "expand": "linear" if pad else "slice"}
        coarse |= {"embed_dim": -(-dim // patch_size)} if pad else {"embed_dim": dim // patch_size}
    finest = positions is None
    return StageConfig(
        dim=dim,
        num_layers=num_layers,
        num_heads=num_heads,
        position="learned",
        max_positions=None if finest else positions,
        norm="layer",
        norm_eps=1e-5,
        qk_norm=False,
        mlp="relu",
        attention_bias=True,
        mlp_bias=True,
        dropout=0.1,
        zero_init=False,
        **coarse,
    )


def _paper(*stages: StageConfig, context: int, batch_size: int = 2) -> RunConfig:
    """The paper's training: Adam (0.9, 0.98), 500 warm-up steps, decay to 0, clipping at 1, weight decay 0.1."""
    steps = 200_000
    return RunConfig(
        model=ModelConfig(stages=stages, context=context, init_std=0.006),
        optim=OptimConfig(
            optimizer="adamw", learning_rate=2e-4, weight_decay=0.1, warmup=500 / steps, schedule="linear"
        ),
        train=TrainConfig(batch_size=batch_size, steps=steps, valid_bytes=1 << 20),
    )
