"""Any byteloom model as a transformers model: the native modules inside, Hugging Face's conventions outside.

`logits[:, t]` is of what follows `input_ids[:, t]`, where the native `logits[:, t]` is of `ids[:, t]` itself; ids are
the compact stream of `byteloom.hf.layout`; generation goes through the native caches (`ByteloomCache`).
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from byteloom.documents import EOS, PAD, VOCAB_SIZE
from byteloom.hf.cache import ByteloomCache
from byteloom.hf.configuration import ByteloomConfig
from byteloom.hf.layout import native_sequences
from byteloom.layers.linear import Linear
from byteloom.losses import marks_in_force
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import CheckpointError

FOUR_BIT_BLOCK = 64
"""Weights that share a scale in 4 bits: kernels want whole ones in a row; quantizers are not shown other matrices."""
IGNORED = -100
"""Labels of this value are not learned, as everywhere in transformers."""
PASSED_ALONG = {"num_items_in_batch", "tokenizer", "assistant_tokenizer", "cache_position"}
"""Further arguments that transformers gives every model."""
OF_GENERATION = (
    "attention_mask",
    "past_key_values",
    "use_cache",
    "logits_to_keep",
    "output_hidden_states",
    "output_attentions",
    "modality_ids",
    "inputs_embeds",
)
"""Arguments of `forward` that `generate` hands on."""


@dataclass
class ByteloomOutput(CausalLMOutputWithPast):
    """What `ByteloomForCausalLM` gives: `loss`, `logits` (B, T, V), `past_key_values`, and where they are asked for
    `hidden_states`: of the finest stage the output of each layer and of its last norm, (B, T, D) each.
    """

    coarse_hidden_states: tuple[Tensor, ...] | None = None
    """The outputs of the coarser stages, coarsest first, (B, positions of the stage, its width) each."""


class ByteloomForCausalLM(PreTrainedModel, GenerationMixin):
    """A multiscale model over bytes for transformers; `model.model` is the native `Multiscale`."""

    config_class = ByteloomConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # A stage reads its caches and weights in more ways than `forward`, so all of it lies on one device.
    _no_split_modules: ClassVar[list[str]] = ["Multiscale"]  # pyrefly: ignore[bad-override]
    _supports_sdpa = True

    def __init__(self, config: ByteloomConfig):
        super().__init__(config)
        self.model = Multiscale(config.model_config)
        if getattr(config, "quantization_config", None) is not None:
            for module in self.model.modules():  # quantizers look for nn.Linear itself; its numbers are the same
                if type(module) is Linear and module.in_features % FOUR_BIT_BLOCK == 0:
                    module.__class__ = nn.Linear  # pyrefly: ignore[bad-argument-type]
        set_generation_defaults(self.generation_config, config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing to do: `Multiscale` draws its weights itself, and a folder that lacks some is refused."""

    # -- from and to other forms -------------------------------------------------------------------------------------

    @classmethod
    def from_native(cls, model: Multiscale, run: dict[str, Any] | None = None) -> "ByteloomForCausalLM":
        """The same model for transformers, sharing its weights; `run` is what config.json says of its training."""
        with torch.device("meta"):
            wrapped = cls(ByteloomConfig.from_model_config(model.config, run))
        wrapped.model = model
        return wrapped.train(model.training)

    @classmethod
    def from_pretrained(cls, name: str | PathLike[str] | None, *args: Any, **options: Any) -> Any:
        """As in transformers. Raises CheckpointError where weights are missing or do not belong to the model."""
        wanted = options.pop("output_loading_info", False)
        options["ignore_mismatched_sizes"] = True  # refused below, by name
        loaded: Any = super().from_pretrained(name, *args, output_loading_info=True, **options)
        model, info = loaded
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info.get(kind):
                first = min(map(str, info[kind]))
                raise CheckpointError(f"{name}: its weights do not match its config.json ({kind}: {first})")
        if model.generation_config._from_model_config:  # the folder, such as a native run, does not say how
            set_generation_defaults(model.generation_config, model.config)
        return (model, info) if wanted else model

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModelForCausalLM") -> None:
        """Nothing to do: a saved folder imports byteloom instead of a copy of its source."""

    def get_input_embeddings(self) -> nn.Module:
        """The finest stage's table of all ids."""
        return self.model.table

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Refused: each stage has a table of its own."""
        raise NotImplementedError(
            "each stage of a byteloom model has a table of its own; make a model with another config"
        )

    def get_output_embeddings(self) -> nn.Module | None:
        """The head, where it is a matrix of its own."""
        return self.model.head

    def resize_token_embeddings(self, *args: Any, **options: Any) -> nn.Embedding:  # pyrefly: ignore[bad-override]
        """Refused: the ids are bytes, and those of structure are fixed."""
        raise NotImplementedError(
            "the ids of a byteloom model are fixed: 256 bytes, 64 of structure, then codes; none is to be added"
        )

    # -- forward -----------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: ByteloomCache | None = None,
        labels: Tensor | None = None,
        modality_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **options: Any,
    ) -> "ByteloomOutput | tuple[Any, ...]":
        """Logits (B, T, V) of what follows each of `input_ids` (B, T).

        Args:
            input_ids: the compact stream; PAD (256) stands for nothing.
            attention_mask: (B, T), or longer by what the cache has seen; ids where it is 0 are passed over, wherever
                they stand, so that a row is what it is alone.
            past_key_values: what was read before, a `ByteloomCache`.
            labels: (B, T), shifted inside; -100 and PAD are not learned.
            modality_ids: (B,) or (B, T), the MARK in force before the first id of a row where ids begin inside a
                document, 0 for none; further columns must say what the MARKs among the ids say.
            inputs_embeds: refused; every stage embeds bytes in its own way.
            use_cache: return a cache; by default only where one is given.
            output_hidden_states: return `hidden_states` and `coarse_hidden_states`; not together with a cache.
            output_attentions: refused.
            logits_to_keep: only the last so many positions, or these; 0 for all.
            return_dict: False gives a tuple.
            options: `num_items_in_batch`, for the loss; what `generate` passes along to every model is ignored.

        Raises:
            ValueError: an argument makes no sense for this model; the message says which.
        """
        unknown = {name for name, value in options.items() if value is not None} - PASSED_ALONG
        if unknown:
            raise TypeError(f"forward() of a byteloom model has no argument {', '.join(sorted(unknown))}")
        if inputs_embeds is not None or input_ids is None:
            raise ValueError(
                "a byteloom model takes input_ids: every stage embeds bytes in its own way (no inputs_embeds)"
            )
        if output_attentions:
            raise ValueError(
                "a byteloom model gives no attention weights: most positions attend within their patch only"
            )
        hidden = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        length = input_ids.shape[1]
        ids = masked(input_ids, attention_mask)
        mark = first_marks(ids, modality_ids)
        if past_key_values is None and use_cache:
            past_key_values = ByteloomCache()
        loss, fine, coarse = None, None, None
        if past_key_values is None:
            with self.watched(bool(hidden)) as layers:
                logits = self.all_logits(ids, mark, logits_to_keep, layers)
            fine, coarse = layers.get("fine"), layers.get("coarse")
        else:
            if not isinstance(past_key_values, ByteloomCache):
                raise ValueError(f"past_key_values is a {type(past_key_values).__name__}; it must be a ByteloomCache")
            if hidden:
                raise ValueError(
                    "output_hidden_states needs use_cache=False: a step does not keep what its layers made"
                )
            if labels is not None:
                raise ValueError("labels and past_key_values exclude each other: a cache keeps no gradients")
            keep = logits_to_keep if isinstance(logits_to_keep, int) and 0 < logits_to_keep <= length else length
            logits = past_key_values.read(self, ids, mark, keep)
            logits = logits[:, logits_to_keep] if isinstance(logits_to_keep, Tensor) else logits
        if labels is not None:
            labels = labels.masked_fill((labels == PAD) | (ids == PAD), IGNORED)
            count = options.get("num_items_in_batch")
            size = self.config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=size, num_items_in_batch=count)
        output = ByteloomOutput(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values,
            hidden_states=fine,
            coarse_hidden_states=coarse,
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def all_logits(
        self,
        ids: Tensor,
        mark: Tensor | None,
        keep: int | Tensor = 0,
        layers: "dict[str, Any] | None" = None,
    ) -> Tensor:
        """Logits (B, keep, V) of what follows the last of ids (B, T), PAD where there is none; 0 for all, or these."""
        native, following = native_sequences(self.model.config, ids)
        places = following[:, keep] if isinstance(keep, Tensor) else following[:, -keep:]
        model = self.model
        model.check_length(native.shape[1])
        tagged = model.tag(model.pad(native), mark)
        h = model.finer(tagged, model.coarsest(tagged))
        if layers is not None and "seen" in layers:
            layers["fine"] = tuple(take(x, following) for x in (*layers["seen"], h))
            layers["coarse"] = tuple(layers["stages"])
        tagged = tagged.map(lambda x: x.gather(1, places))
        return model.logits(take(h, places), tagged.kinds, tagged.predictions)

    @contextlib.contextmanager
    def watched(self, wanted: bool) -> Iterator[dict[str, Any]]:
        """Inside, what the finest stage's layers and the coarser stages give is noted, where wanted."""
        noted: dict[str, Any] = {"seen": [], "stages": []} if wanted else {}
        *coarse, finest = self.model.stacks
        hooks = []
        if wanted:
            hooks = [b.register_forward_hook(lambda *call: noted["seen"].append(call[2][0])) for b in finest.blocks]
            hooks += [s.register_forward_hook(lambda *call: noted["stages"].append(call[2])) for s in coarse]
        try:
            yield noted
        finally:
            for hook in hooks:
                hook.remove()

    # -- generation --------------------------------------------------------------------------------------------------

    def prepare_inputs_for_generation(  # pyrefly: ignore[bad-override]
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The ids that the cache has not read, and what else `forward` takes; the general one looks at far more."""
        ids = input_ids if next_sequence_length is None else input_ids[:, -next_sequence_length:]
        marks, mask, cache = (kwargs.get(name) for name in ("modality_ids", "attention_mask", "past_key_values"))
        if marks is not None and marks.ndim == 2:  # they are of the prompt, and a cache has its own mark
            prompt, marks = input_ids[:, : marks.shape[1]], marks[:, : input_ids.shape[1]]
            mask = None if mask is None else mask[:, : prompt.shape[1]]
            has_read = isinstance(cache, ByteloomCache) and cache.is_initialized
            kwargs["modality_ids"] = None if has_read else first_marks(masked(prompt, mask), marks)
        return {"input_ids": ids.to(self.device)} | {name: kwargs[name] for name in OF_GENERATION if name in kwargs}

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **options: Any
    ) -> Any:
        """A cache of ours with room for what is to be written; "static" compiles its steps."""
        given, kind = model_kwargs.get("past_key_values"), generation_config.cache_implementation
        if given is None and generation_config.use_cache is not False:
            if kind not in (None, "dynamic", "static"):
                raise ValueError(f"cache_implementation {kind!r} is not for byteloom models; use dynamic or static")
            model_kwargs["past_key_values"] = ByteloomCache(generation_config.max_length, compiled=kind == "static")

    # -- training ----------------------------------------------------------------------------------------------------

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] = checkpoint, every_n_layers: int = 1
    ) -> None:
        """What transformers' switches come down to: layers of all stages keep inputs only, and run again later."""
        for i, block in enumerate(self.blocks()):
            block.__dict__.pop("forward", None)
            if enable and i % every_n_layers == 0:
                block.forward = functools.partial(gradient_checkpointing_func, block.forward)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether layers run again in the backward pass."""
        return any("forward" in block.__dict__ for block in self.blocks())

    def blocks(self) -> Sequence[nn.Module]:
        """The layers of all stages."""
        return [block for stack in self.model.stacks for block in stack.blocks]


def set_generation_defaults(generation: GenerationConfig, config: ByteloomConfig) -> None:
    """What generation does unless it is told otherwise: end at EOS, and write no other id of structure.

    So a text goes on as text, as in `byteloom.generate`; `suppress_tokens=None` lets segments of other kinds follow.
    """
    generation.pad_token_id = config.pad_token_id
    generation.bos_token_id, generation.eos_token_id = config.bos_token_id, config.eos_token_id
    if config.vocab_size >= VOCAB_SIZE:
        generation.suppress_tokens = [*range(PAD, EOS), *range(EOS + 1, VOCAB_SIZE)]


def masked(ids: Tensor, mask: Tensor | None) -> Tensor:
    """Ids (B, T) with PAD where mask (B, T or more, the last ones count) is 0. Raises ValueError for other masks."""
    if ids.ndim != 2 or ids.is_floating_point():
        raise ValueError(
            f"input_ids have shape {tuple(ids.shape)} and type {ids.dtype}; integers (batch, length) are wanted"
        )
    if mask is None:
        return ids
    if mask.ndim != 2 or mask.shape[0] != ids.shape[0] or mask.shape[1] < ids.shape[1]:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)} for ids {tuple(ids.shape)}; one number an id is wanted, "
            "1 to read it and 0 to pass it over"
        )
    return ids.masked_fill(mask[:, mask.shape[1] - ids.shape[1] :].to(ids.device) == 0, PAD)


def first_marks(ids: Tensor, modality_ids: Tensor | None) -> Tensor | None:
    """The MARK in force before each row (B,), from (B,) or (B, T). Raises ValueError where the rest says otherwise."""
    if modality_ids is None:
        return None
    modality_ids = modality_ids.to(ids.device)
    if modality_ids.ndim == 1 and modality_ids.shape[0] == ids.shape[0]:
        return torch.where(modality_ids == 0, PAD, modality_ids)
    if modality_ids.shape != ids.shape:
        raise ValueError(
            f"modality_ids have shape {tuple(modality_ids.shape)} for ids {tuple(ids.shape)}; one a row or one an id"
        )
    marks = torch.where(modality_ids == 0, PAD, modality_ids)
    real = ids != PAD
    first = marks.gather(1, real.int().argmax(1, keepdim=True)).squeeze(1)
    said = marks_in_force(ids, first)
    if bool(((said != marks) & real).any()):
        raise ValueError("modality_ids say otherwise than the MARKs among input_ids; leave them out, or give one a row")
    return first


def take(x: Tensor, places: Tensor) -> Tensor:
    """x (B, L, D) at places (B, N) -> (B, N, D)."""
    return x.gather(1, places.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
