"""Weights of other libraries, in and out: megabyte-pytorch 0.3.6 and Llama.

In: a checkpoint or a folder. Out: a `Multiscale` whose logits are the original's, or a folder that the other library
opens. Cost: one copy of the weights. Nothing is unpickled but tensors.
"""

import json
from collections.abc import Mapping, Sequence
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from byteloom.files import write_json
from byteloom.losses import VOCABULARY
from byteloom.models.config import ModelConfig, StageConfig
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import CheckpointError, listed_files, load_weights, read_json, read_tensors, write_tensors

MEGABYTE_OPTIONS: dict[str, Any] = {
    "dim_head": 64,
    "heads": 8,
    "ff_mult": 4,
    "rel_pos": False,
    "pos_emb": False,
    "attn_dropout": 0.0,
    "ff_dropout": 0.0,
    "flash_attn": False,
    "pad_id": 0,
}
"""The options of its constructor that have a default; num_tokens, dim, depth and max_seq_len have none."""


def megabyte_pytorch_config(options: Mapping[str, Any]) -> ModelConfig:
    """The config that computes what `MEGABYTE(**options)` of megabyte-pytorch 0.3.6 computes.

    Its logits at t are ours at t + 1 (ours at 0 are its start logits). A parent's vector reaches a patch one position
    late there, and its first byte is predicted from the patch before: that is `late_parent`.

    Raises:
        ValueError: an option is unknown, missing or of a wrong type.
    """
    required = ("num_tokens", "dim", "depth", "max_seq_len")
    for name in options.keys() - MEGABYTE_OPTIONS.keys() - set(required):
        raise ValueError(f"{name} is not an option of megabyte-pytorch's MEGABYTE")
    for name in required:
        if name not in options:
            raise ValueError(f"{name} is missing; give what the model was built with: {', '.join(required)}, ...")
    given = {**MEGABYTE_OPTIONS, **options}
    for name in ("num_tokens", "dim_head", "heads", "ff_mult"):
        if type(given[name]) is not int or given[name] < 1:
            raise ValueError(f"{name} is {given[name]!r:.40}; it must be a whole number above 0")
    for name in ("rel_pos", "pos_emb"):
        if given[name] not in (False, True):
            raise ValueError(f"{name} is {given[name]!r:.40}; it must be true or false")
    depth, lengths = _whole_numbers(given["depth"], "depth"), _whole_numbers(given["max_seq_len"], "max_seq_len")
    wanted = [given["dim"]] * len(depth) if isinstance(given["dim"], int) else given["dim"]
    dims = _whole_numbers(wanted, "dim")
    if not len(dims) == len(depth) == len(lengths):
        raise ValueError("depth, max_seq_len and dim must have one value a stage")
    position = {(0, 0): "none", (1, 0): "rope", (0, 1): "learned", (1, 1): "rope+learned"}
    stages = []
    for i, (dim, num_layers) in enumerate(zip(dims, depth, strict=True)):
        finest = i == len(dims) - 1
        coarse: dict[str, Any] = {
            "patch_size": None if finest else lengths[i + 1],
            "embed_dim": dims[-1],
            "projection": True,
            "patch_norm": "layer",
            "embed_bias": True,
            "expand_bias": True,
        }
        stages.append(
            StageConfig(
                dim=dim,
                num_layers=num_layers,
                num_heads=given["heads"],
                head_dim=given["dim_head"],
                position=position[int(given["rel_pos"]), int(given["pos_emb"])],  # type: ignore[arg-type]
                max_positions=lengths[0] + 1 if given["pos_emb"] and i == 0 else None,
                norm_eps=1e-16,
                qk_norm=False,
                mlp="gelu",
                mlp_ratio=float(given["ff_mult"]),
                mlp_bias=True,
                token_shift=True,
                zero_init=False,
                **({} if finest else coarse),
            )
        )
    return ModelConfig(
        stages=tuple(stages),
        vocab_size=given["num_tokens"],
        context=prod(lengths),
        tied_head=False,
        head_bias=True,
        late_parent=len(stages) > 1,
    )


def from_megabyte_pytorch(weights: Mapping[str, Tensor], options: Mapping[str, Any], source: Path | str) -> Multiscale:
    """A model with the weights of a `MEGABYTE(**options).state_dict()`.

    Raises:
        ValueError: the options make no sense.
        CheckpointError: the weights are not those of such a model; the message names `source`.
    """
    config = megabyte_pytorch_config(options)
    last = len(config.stages) - 1
    taken: dict[str, Tensor] = {}
    left = {name: tensor for name, tensor in weights.items() if not name.endswith("rotary_emb.inv_freq")}

    def take(name: str) -> Tensor:
        if name not in left:
            raise CheckpointError(f"{source}: lacks {name}; is it of megabyte-pytorch, and are the options right?")
        return left.pop(name)

    for i, stage in enumerate(config.stages):
        theirs = f"token_embs.{last - i}."
        if i == last:
            taken[f"embedders.{i}.table.weight"] = take(theirs + "weight")
        else:
            taken[f"embedders.{i}.table.weight"] = take(theirs + "0.weight")
            for ours, place in (("norm_in", 2), ("project", 3), ("norm_out", 4)):
                for part in ("weight", "bias"):
                    taken[f"embedders.{i}.{ours}.{part}"] = take(f"{theirs}{place}.{part}")
            for part in ("weight", "bias"):
                taken[f"expanders.{i}.project.{part}"] = take(f"to_next_transformer_projections.{i}.1.{part}")
        taken[f"starts.{i}"] = take(f"start_tokens.{i}")
        if stage.has_table:
            table = take(f"pos_embs.{i}.weight")  # their row 0 is for the first content, which is our position 1
            rows = stage.max_positions or config.siblings(i) + (i == last)
            taken[f"stacks.{i}.positions"] = torch.cat((torch.zeros_like(table[:1]), table))[:rows]
        for layer in range(stage.num_layers):
            ours, theirs = f"stacks.{i}.blocks.{layer}.", f"transformers.{i}.layers.{layer}."
            key, value = take(theirs + "0.to_kv.weight").chunk(2)
            taken |= {
                ours + "attention_norm.weight": take(theirs + "0.norm.g"),
                ours + "attention.query.weight": take(theirs + "0.to_q.weight"),
                ours + "attention.key.weight": key,
                ours + "attention.value.weight": value,
                ours + "attention.out.weight": take(theirs + "0.to_out.weight"),
                ours + "mlp_norm.weight": take(theirs + "1.0.g"),
                ours + "mlp.up.weight": take(theirs + "1.1.weight"),
                ours + "mlp.up.bias": take(theirs + "1.1.bias"),
                ours + "mlp.down.weight": take(theirs + "1.4.weight"),
                ours + "mlp.down.bias": take(theirs + "1.4.bias"),
            }
        taken[f"stacks.{i}.norm.weight"] = take(f"transformers.{i}.norm.g")
    taken |= {"head.weight": take("to_logits.weight"), "head_bias": take("to_logits.bias")}
    return _assembled(config, taken, left, source)


def import_megabyte_pytorch(path: str | PathLike[str], options: Mapping[str, Any]) -> Multiscale:
    """A model from a file that `torch.save` or safetensors wrote of megabyte-pytorch's weights.

    Raises:
        ValueError: the options make no sense.
        CheckpointError: the file is missing, damaged, or of another model.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return from_megabyte_pytorch(read_tensors(path), options, path)
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # torch has many ways to say that a file is damaged
        reason = str(error).splitlines()[0][:100]
        raise CheckpointError(f"{path}: is damaged or holds more than tensors ({reason}); save a state_dict") from error
    for key in ("model", "state_dict"):
        if isinstance(weights, Mapping) and isinstance(weights.get(key), Mapping):
            weights = weights[key]
    if not isinstance(weights, Mapping) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise CheckpointError(f"{path}: holds no state_dict; save the model's state_dict")
    return from_megabyte_pytorch(weights, options, path)


LLAMA_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
"""Our module of a layer and theirs."""


def import_llama(folder: str | PathLike[str]) -> Multiscale:
    """A one-stage model from a folder that `LlamaForCausalLM.save_pretrained` wrote.

    The embedding of its BOS becomes our start vector: our logits at t for ids are its at t for BOS and ids.

    Raises:
        CheckpointError: the folder is no Llama, is damaged, or uses what a stage cannot do.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    if config.get("model_type") != "llama":
        raise CheckpointError(f"{folder}/config.json: is of model_type {config.get('model_type')!r} and not 'llama'")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise CheckpointError(f"{folder}/config.json: scales its rotary positions, which a stage cannot do")
    if config.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"{folder}/config.json: has activation {config['hidden_act']!r}; a stage has silu")
    weights: dict[str, Tensor] = {}
    index = folder / "model.safetensors.index.json"
    for name in listed_files(index) if index.exists() else ["model.safetensors"]:
        weights |= read_tensors(folder / name)
    try:
        dim = config["hidden_size"]
        stage = StageConfig(
            dim=dim,
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            num_kv_heads=config.get("num_key_value_heads"),
            head_dim=config.get("head_dim"),
            rope_base=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
            norm_eps=config.get("rms_norm_eps", 1e-6),
            qk_norm=False,
            mlp="swiglu",
            mlp_ratio=config["intermediate_size"] / dim,
            attention_bias=config.get("attention_bias", False),
            mlp_bias=config.get("mlp_bias", False),
            zero_init=False,
        )
        tied = bool(config.get("tie_word_embeddings", False))
        model_config = ModelConfig(
            stages=(stage,),
            vocab_size=config["vocab_size"],
            context=config.get("max_position_embeddings", 2048),
            tied_head=tied,
        )
        bos = int(config["bos_token_id"])
        table = weights["model.embed_tokens.weight"]
        start = table[bos]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: is no complete Llama: {error}") from error
    names = _llama_names(model_config)
    taken = {ours: weights.pop(theirs) for ours, theirs in names.items() if theirs in weights}
    taken["starts.0"] = start.clone()
    if tied:
        weights.pop("lm_head.weight", None)
    left = {name: tensor for name, tensor in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    return _assembled(model_config, taken, left, folder)


def export_llama(model: Multiscale, folder: str | PathLike[str]) -> None:
    """Writes a one-stage model as a folder that `LlamaForCausalLM.from_pretrained` opens.

    The start vector becomes the embedding of BOS. Where no row of the table is that vector, it is written over PAD's
    row, which a sequence without patches never holds, and the head is written by itself.

    Raises:
        ValueError: Llama cannot do what the model does; the message says what.
    """
    config, folder = model.config, Path(folder)
    stage = config.stages[0]
    reasons = {
        "it has more than one stage": len(config.stages) > 1,
        f'position is "{stage.position}" and not "rope"': stage.position != "rope",
        f'norm is "{stage.norm}" and not "rms"': stage.norm != "rms",
        f'mlp is "{stage.mlp}" and not "swiglu"': stage.mlp != "swiglu",
        "it has qk_norm": stage.qk_norm,
        "it has token_shift": stage.token_shift,
        "it has a window": stage.window is not None,
        "it has residual_scalars": stage.residual_scalars,
        "it has conv_kernels": bool(stage.conv_kernels),
        "it has offsets": bool(stage.offsets),
        "it has ngrams": bool(stage.ngrams),
        "it has matches": bool(config.matches),
        "it has patch_norm or a projection": config.projection(0),
        f'embedder.kind is "{config.embedder.kind}" and not "plain"': config.embedder.kind != "plain",
        f'heads is "{config.heads}" and not "shared"': config.heads != "shared",
        "it guesses bytes (predictor)": bool(config.predictors),
        "it has continuous inputs": bool(config.inputs),
        "it has a head_bias": config.head_bias,
        "it has a logit_cap": config.logit_cap is not None,
    }
    refused = [reason for reason, holds in reasons.items() if holds]
    weights, names = model.state_dict(), _llama_names(config)
    if not refused:  # what no reason names is never left out without a word
        refused = [f"it has {name}" for name in sorted(weights.keys() - names.keys() - {"starts.0"})]
    if refused:
        raise ValueError(f"Llama cannot do what this model does: {', '.join(refused)}")
    start, table = weights["starts.0"], weights["embedders.0.table.weight"].clone()
    rows = (table == start).all(-1).nonzero().flatten().tolist()
    tied, bos = config.tied_head, rows[0] if rows else VOCABULARY.pad_id
    exported = {theirs: weights[ours] for ours, theirs in names.items()}
    if not rows:
        if bos >= config.vocab_size:
            raise ValueError(f"the vocabulary of {config.vocab_size} ids has no room for a start vector")
        tied = False
        exported["lm_head.weight"] = table.clone() if config.tied_head else exported["lm_head.weight"]
        table[bos] = start
        exported["model.embed_tokens.weight"] = table
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", exported, {"format": "pt"})
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": stage.dim,
            "intermediate_size": round(stage.dim * stage.mlp_ratio),
            "num_hidden_layers": stage.num_layers,
            "num_attention_heads": stage.num_heads,
            "num_key_value_heads": stage.groups,
            "head_dim": stage.width_of_head,
            "hidden_act": "silu",
            "rms_norm_eps": stage.norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": stage.rope_base},
            "attention_bias": stage.attention_bias,
            "mlp_bias": stage.mlp_bias,
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.context + 1,
            "tie_word_embeddings": tied,
            "bos_token_id": bos,
            "eos_token_id": 258 if config.vocab_size > 258 else None,
            "dtype": str(start.dtype).removeprefix("torch."),
        },
    )


def _llama_names(config: ModelConfig) -> dict[str, str]:
    """Our names of all tensors but the start vector, and theirs."""
    stage = config.stages[0]
    names = {"embedders.0.table.weight": "model.embed_tokens.weight", "stacks.0.norm.weight": "model.norm.weight"}
    if not config.tied_head:
        names["head.weight"] = "lm_head.weight"
    for layer in range(stage.num_layers):
        for ours, theirs in LLAMA_LAYER.items():
            has_bias = stage.attention_bias if ours.startswith("attention.") else stage.mlp_bias and ours[:4] == "mlp."
            for part in ("weight", "bias") if has_bias else ("weight",):
                names[f"stacks.0.blocks.{layer}.{ours}.{part}"] = f"model.layers.{layer}.{theirs}.{part}"
    return names


def _assembled(
    config: ModelConfig, taken: Mapping[str, Tensor], left: Mapping[str, Tensor], source: Path | str
) -> Multiscale:
    if left:
        raise CheckpointError(f"{source}: holds {next(iter(left))}, which such a model has not; are the options right?")
    with torch.device("meta"):
        model = Multiscale(config)
    weights = {name: tensor.clone().contiguous() for name, tensor in taken.items()}
    load_weights(model, weights, Path(source), assign=True)
    return model.eval()


def _whole_numbers(values: object, name: str) -> list[int]:
    if not isinstance(values, Sequence) or not all(isinstance(value, int) and value > 0 for value in values):
        raise ValueError(f"{name} is {values!r:.40}; it must be a list of whole numbers, one a stage")
    return list(values)


def read_options(text: str) -> dict[str, Any]:
    """Options as JSON, or from a JSON file. Raises ValueError where they are neither."""
    try:
        values = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"{text:.60}: is neither JSON nor a file ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{text:.60}: is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f'{text:.60}: must be an object such as {{"num_tokens": 256, ...}}')
    return values
