"""What a model is made of, as data: enough to rebuild it. Senseless combinations are refused here, by name.

Stage 0 is the coarsest. One position of stage s stands for `span` bytes, the product of the patch sizes from s on.
"""

from dataclasses import dataclass, field
from math import prod
from typing import Literal

from byteloom.layers.continuous import InputConfig
from byteloom.layers.matches import LONGEST
from byteloom.layers.modalities import EmbedderConfig, Kind
from byteloom.layers.patching import PatchConfig
from byteloom.layers.prediction import PredictorConfig
from byteloom.layers.transformer import BlockConfig
from byteloom.losses import VOCABULARY

NONE = Kind("none")
"""What stands before the first mark of a document."""


@dataclass(frozen=True, kw_only=True)
class ModalityConfig:
    """One modality that a model tells apart."""

    name: str
    """The modality of its segments."""
    mark: int
    """The id that opens its segments."""
    first_id: int = 0
    """The first id of its data: 0 for bytes, the block of its vocabulary for tokens."""
    num_ids: int = VOCABULARY.num_bytes
    """How many ids its data have."""
    header_bytes: int = 0
    """Length of the headers of tokens, so that generation writes them; a codec says that of its own modality."""
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    """How bytes are guessed; what is read and predicted is then their distance from the guess."""

    def __post_init__(self) -> None:
        if not VOCABULARY.first_mark <= self.mark < VOCABULARY.end_of_marks:
            raise ValueError(f"ModalityConfig.mark of {self.name} is {self.mark}; it must be from 259 to 303")
        if self.header_bytes < 0:
            raise ValueError(
                f"ModalityConfig.header_bytes of {self.name} is {self.header_bytes}; it must be at least 0"
            )
        if self.predictor.guess != "none" and self.first_id:
            raise ValueError(f"ModalityConfig.predictor of {self.name} is for bytes, and its data are tokens")
        outside = self.first_id >= VOCABULARY.end_of_reserved or self.first_id + self.num_ids <= VOCABULARY.num_bytes
        if self.first_id < 0 or self.num_ids < 1 or not outside:
            raise ValueError(
                f"ModalityConfig.first_id and num_ids of {self.name} are {self.first_id} and {self.num_ids}; "
                "data are bytes (0 to 255) or tokens (320 and more)"
            )


@dataclass(frozen=True, kw_only=True)
class StageConfig(BlockConfig, PatchConfig):
    """One stage: its layers, how bytes come into it, and how vectors go out to the next finer stage."""

    cross_patch: int = 0
    """Attention also sees the last so many positions of the patch before (finer stages only)."""

    def __post_init__(self) -> None:
        BlockConfig.__post_init__(self)
        self.check_patches(self.dim)
        if self.cross_patch < 0:
            raise ValueError(f"StageConfig.cross_patch is {self.cross_patch}; it must be at least 0")
        if self.cross_patch and self.window is not None:
            raise ValueError("StageConfig.cross_patch and window are two reaches across patch borders; set one of them")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole model: its stages, coarsest first, and what they share."""

    stages: tuple[StageConfig, ...]
    """The stages, coarsest first; one alone is a plain decoder-only Transformer."""
    vocab_size: int = 320
    """Number of ids: 256 bytes, 64 reserved, then the codec tokens."""
    context: int = 8192
    """Ids in a sequence that the model is meant for: the default of training, evaluation and generation."""
    tied_head: bool = True
    """Logits through the transposed byte table of the finest stage; else through a matrix of their own."""
    head_bias: bool = False
    """A bias on the logits."""
    logit_cap: float | None = None
    """Squash logits softly into (-cap, cap): cap * tanh(logits / cap)."""
    init_std: float = 0.02
    """Standard deviation of the truncated normal that weights start from, cut at 2 sigma (paper: 0.006)."""
    init_waves: float | None = None
    """Vectors of bytes start as waves over their value, of up to so many periods: for samples, where near values mean
    nearly the same. None: at random."""
    modalities: tuple[ModalityConfig, ...] = ()
    """The modalities that it tells apart; none: every position is treated alike."""
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    """How patches of different modalities, or of several streams, become vectors."""
    heads: Literal["shared", "by_modality"] = "shared"
    """One head over all ids, or one for each modality over the ids of its data and the reserved ones alone."""
    inputs: tuple[InputConfig, ...] = ()
    """Continuous inputs that the coarsest stage can read before the bytes."""
    matches: tuple[int, ...] = ()
    """Lengths of strings. Where one that ends before a byte stood earlier in the sequence, the finest stage reads and
    points to what followed the longest of them last time."""
    late_parent: bool = False
    """Add a parent's vector one position late, and predict a patch's first byte from the patch before, as
    megabyte-pytorch does. For imported weights only: it hides the newest patch from that byte."""

    def __post_init__(self) -> None:
        for name in ("stages", "modalities", "inputs", "matches"):
            if not isinstance(getattr(self, name), tuple):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.stages:
            raise ValueError("ModelConfig.stages is empty; a model has at least one stage")
        *coarse, finest = self.stages
        for i, stage in enumerate(coarse):
            if stage.patch_size is None:
                raise ValueError(f"ModelConfig.stages[{i}].patch_size is not set; only the finest stage has none")
        if finest.patch_size is not None:
            raise ValueError(f"ModelConfig.stages[{len(coarse)}].patch_size is set; the finest stage has none")
        if self.stages[0].cross_patch:
            raise ValueError("ModelConfig.stages[0].cross_patch is set; the coarsest stage has no patch borders")
        for i, stage in enumerate(self.stages):
            siblings = self.siblings(i)
            isolated = i > 0 and stage.window is None and not stage.cross_patch
            if i and stage.cross_patch > siblings:
                raise ValueError(
                    f"ModelConfig.stages[{i}].cross_patch is {stage.cross_patch}; at most the {siblings} of a patch"
                )
            if stage.has_table and stage.max_positions is None and not isolated:
                raise ValueError(f'ModelConfig.stages[{i}].max_positions must be set for position "learned"')
            reshaped = self.span(i) > 1 and (self.embedder.bottleneck or self.embedder.pooling == "attention")
            if stage.projection is False and reshaped:
                raise ValueError(f"ModelConfig.stages[{i}].projection is off, but the embedder's options need it")
            if self.projection(i) is False and self.embed_dim(i) * self.span(i) != stage.dim:
                raise ValueError(
                    f"ModelConfig.stages[{i}] has no projection, so {self.span(i)} bytes x embed_dim "
                    f"{self.embed_dim(i)} must be its dim {stage.dim}"
                )
        if self.tied_head and (self.embed_dim(-1) != finest.dim):
            raise ValueError("ModelConfig.tied_head needs the finest stage's embed_dim to be its dim")
        if self.vocab_size < 1:
            raise ValueError(f"ModelConfig.vocab_size is {self.vocab_size}; it must be at least 1")
        if self.context < 1:
            raise ValueError(f"ModelConfig.context is {self.context}; it must be at least 1")
        if self.logit_cap is not None and self.logit_cap <= 0:
            raise ValueError(f"ModelConfig.logit_cap is {self.logit_cap}; it must be above 0, or None")
        if self.init_std <= 0:
            raise ValueError(f"ModelConfig.init_std is {self.init_std}; it must be above 0")
        if self.init_waves is not None and not self.init_waves > 0:
            raise ValueError(f"ModelConfig.init_waves is {self.init_waves}; it must be above 0, or None")
        if self.late_parent and (len(self.stages) == 1 or any(s.window or s.cross_patch for s in self.stages[1:])):
            raise ValueError("ModelConfig.late_parent needs two stages or more, with isolated patches")
        self.check_modalities()
        self.check_matches()
        if self.max_length is not None and self.context > self.max_length:
            raise ValueError(
                f"ModelConfig.context is {self.context}, but the learned positions end at {self.max_length} bytes"
            )

    def check_modalities(self) -> None:
        """Raise ValueError, naming the field, where modalities, embedder and heads do not fit each other."""
        kind, streams = self.embedder.kind, self.embedder.streams
        for field_name in ("name", "mark"):
            values = [getattr(modality, field_name) for modality in self.modalities]
            if len(set(values)) < len(values):
                raise ValueError(f"ModelConfig.modalities has two of the same {field_name}")
        if kind in ("specific", "universal") and not self.modalities:
            raise ValueError(f'ModelConfig.modalities is empty; embedder.kind "{kind}" needs at least one')
        if self.heads == "by_modality" and not self.kinds:
            raise ValueError('ModelConfig.heads "by_modality" needs modalities, or the streams of a fused model')
        needed = max(
            [VOCABULARY.end_of_reserved if self.kinds else 0, *(m.first_id + m.num_ids for m in self.modalities)]
        )
        if self.vocab_size < needed:
            raise ValueError(f"ModelConfig.vocab_size is {self.vocab_size}; its modalities need {needed}")
        if kind == "specific" and self.tied_head and self.heads == "shared":
            raise ValueError('ModelConfig.tied_head with embedder.kind "specific" needs heads "by_modality"')
        if self.kinds and self.late_parent:
            raise ValueError("ModelConfig.late_parent is for imported weights, which know no modalities or streams")
        if kind != "fusion":
            return
        if self.modalities:
            raise ValueError('ModelConfig.modalities and embedder.kind "fusion" exclude each other; name its streams')
        if len(self.stages) == 1 or self.span(0) != sum(stream.size for stream in streams):
            raise ValueError(
                f"EmbedderConfig.streams have {sum(stream.size for stream in streams)} bytes a patch, and a position "
                f"of ModelConfig.stages[0] stands for {self.span(0)}; they must be equal, in two stages or more"
            )
        for i, stage in enumerate(self.stages):
            for name in ("conv_kernels", "offsets", "ngrams"):
                if getattr(stage, name):
                    raise ValueError(f"ModelConfig.stages[{i}].{name} are for one stream; a fused model has several")
            if i and any(stream.size % self.span(i) for stream in streams):
                raise ValueError(f"EmbedderConfig.streams must have sizes that are multiples of {self.span(i)}")
        if self.tied_head and self.heads == "shared":
            raise ValueError('ModelConfig.tied_head with embedder.kind "fusion" needs heads "by_modality"')

    def check_matches(self) -> None:
        """Raise ValueError, naming the field, where matches make no sense or cannot be told."""
        rising = list(self.matches) == sorted(set(self.matches))
        if not rising or any(not 1 <= length <= LONGEST for length in self.matches):
            raise ValueError(f"ModelConfig.matches is {self.matches}; they must be lengths from 1 to {LONGEST}, rising")
        if self.matches and (self.heads == "by_modality" or self.embedder.kind == "fusion" or self.late_parent):
            raise ValueError(
                'ModelConfig.matches point to bytes of one sequence; they need heads "shared", no late_parent, and an '
                'embedder that is not "fusion"'
            )

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What is embedded and predicted apart: the streams of a fused model, or "none" and the modalities."""
        if self.embedder.streams:
            return tuple(Kind(stream.name) for stream in self.embedder.streams)
        if not self.modalities:
            return ()
        return (NONE, *(Kind(modality.name, modality.first_id, modality.num_ids) for modality in self.modalities))

    @property
    def predictors(self) -> dict[int, PredictorConfig]:
        """How bytes are guessed, by the index of their kind."""
        return {i: m.predictor for i, m in enumerate(self.modalities, 1) if m.predictor.guess != "none"}

    @property
    def told(self) -> bool:
        """Whether the finest stage reads guesses."""
        return any(predictor.told for predictor in self.predictors.values())

    def span(self, stage: int) -> int:
        """Bytes that one position of this stage stands for."""
        return prod(s.patch_size or 1 for s in self.stages[stage:]) if stage != -1 else 1

    def siblings(self, stage: int) -> int:
        """How many positions of this stage share a parent; 0 in the coarsest stage, which has none."""
        return (self.stages[stage - 1].patch_size or 0) if stage else 0

    def embed_dim(self, stage: int) -> int:
        """Width of a byte's vector in this stage's embedder."""
        config = self.stages[stage]
        return config.embed_dim or (config.dim if self.span(stage) == 1 else max(16, config.dim // self.span(stage)))

    def projection(self, stage: int) -> bool:
        """Whether this stage's embedder has a matrix after the concatenation."""
        config = self.stages[stage]
        if config.projection is not None:
            return config.projection
        if self.span(stage) > 1 and (self.embedder.bottleneck or self.embedder.pooling == "attention"):
            return True
        return config.patch_norm != "none" or self.embed_dim(stage) * self.span(stage) != config.dim

    @property
    def max_length(self) -> int | None:
        """The most bytes that learned positions allow; None: no limit."""
        limits = [
            stage.max_positions * self.span(i)
            for i, stage in enumerate(self.stages)
            if stage.max_positions is not None and (i == 0 or stage.window is not None or stage.cross_patch)
        ]
        return min(limits, default=None)
