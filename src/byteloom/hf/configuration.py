"""A model's config for transformers: the native config.json with transformers' own fields beside it."""

import dataclasses
from os import PathLike
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from byteloom import __version__
from byteloom.documents import BOS, EOS, PAD, VOCAB_SIZE
from byteloom.hf.remote import AUTO_MAP, write_code
from byteloom.models.config import ModelConfig
from byteloom.models.store import config_from_dict


class ByteloomConfig(PreTrainedConfig):
    """What `config.json` says: `model` are the fields of `ModelConfig`, `run` how the model came to be.

    Raises ValueError, naming the field, where `model` is no complete config of a model.
    """

    model_type = "byteloom"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    """What `Trainer` leaves out when it gathers a model's outputs."""

    byteloom: str = __version__
    """The version that wrote it."""
    model: dict[str, Any] | None = None
    """The fields of `ModelConfig`."""
    run: dict[str, Any] | None = None
    """What training wrote about the run; None for a model that was not trained by byteloom."""
    auto_map: dict[str, Any] = dataclasses.field(default_factory=lambda: dict(AUTO_MAP))
    """Where the Auto classes find the classes if byteloom.hf has not been imported."""

    def __post_init__(self, **kwargs: Any) -> None:
        if self.model is not None:
            self.model = dataclasses.asdict(config_from_dict(ModelConfig, self.model, "model"))
        super().__post_init__(**kwargs)

    @classmethod
    def from_model_config(cls, config: ModelConfig, run: dict[str, Any] | None = None) -> "ByteloomConfig":
        """The config of a native model."""
        return cls(model=dataclasses.asdict(config), run=run or None)

    def save_pretrained(self, save_directory: str | PathLike[str], push_to_hub: bool = False, **options: Any) -> None:
        """As in transformers, and the file that opens the folder with `trust_remote_code=True`."""
        write_code(save_directory)
        super().save_pretrained(save_directory, push_to_hub, **options)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing to do: a saved folder imports byteloom instead of a copy of its source."""

    @property
    def model_config(self) -> ModelConfig:
        """The native config. Raises ValueError where there is none."""
        if self.model is None:
            raise ValueError("ByteloomConfig.model is not set; use ByteloomConfig.from_model_config(ModelConfig(...))")
        return config_from_dict(ModelConfig, self.model, "model")

    # What other libraries ask a config for. A config without a model, which transformers makes to compare with, has 0.

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.model["vocab_size"] if self.model else 0

    @property
    def hidden_size(self) -> int:
        """Width of the finest stage, that of the last hidden state."""
        return self.model["stages"][-1]["dim"] if self.model else 0

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the finest stage."""
        return self.model["stages"][-1]["num_layers"] if self.model else 0

    @property
    def num_attention_heads(self) -> int:
        """Heads of the finest stage."""
        return self.model["stages"][-1]["num_heads"] if self.model else 0

    @property
    def max_position_embeddings(self) -> int:
        """Ids in a sequence that the model is meant for."""
        return self.model["context"] if self.model else 0

    @property
    def pad_token_id(self) -> int:
        """PAD; only batches hold it, so a model need not know it."""
        return PAD

    @property
    def bos_token_id(self) -> int | None:
        """BOS; None where the model knows bytes only."""
        return BOS if self.vocab_size >= VOCAB_SIZE else None

    @property
    def eos_token_id(self) -> int | None:
        """EOS; None where the model knows bytes only."""
        return EOS if self.vocab_size >= VOCAB_SIZE else None
