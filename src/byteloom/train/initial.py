"""The first weights of a run from those of another one, which may know other modalities: a model folder in, a model
filled, and a line that says what came from where.
"""

import re
from collections.abc import Collection
from pathlib import Path

from byteloom.models.config import NONE, ModelConfig
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import CheckpointError, read_model_config, read_run, read_weights
from byteloom.train.checkpoint import check_same

MAY_DIFFER = ("context", "embedder", "heads", "inputs", "modalities", "vocab_size")
"""Fields in which a model may differ from the one whose weights it begins with."""
NUMBERED = re.compile(r"(?:embedders\.\d+\.(?:parts|modality\.vectors|positions\.vectors|absent|gates)|heads)\.(\d+)")
"""Names of tensors of which there is one for each modality or stream, by its number."""


def begin_with(source: Path, model: Multiscale) -> str:
    """Puts the weights of a model folder into a model; returns a line that says how many.

    A tensor is taken where the other model has it for the same modality, whatever the order of the modalities, or, if
    it knew that modality, for all of them alike. What is new, as the embedder and head of a new modality, stays as it
    is.

    Raises:
        CheckpointError: the folder cannot be read, the models differ in more than their modalities and context, or a
            tensor that both have has another shape.
    """
    saved, path = read_model_config(source), source / "model.safetensors"
    check_same(saved, model.config, source, but=MAY_DIFFER)
    theirs = {named(name, saved): tensor for name, tensor in read_weights(source).items()}
    known = {kind.name for kind in saved.kinds} or {NONE.name, *map(str, read_run(source).get("modalities", ()))}
    taken, used, new = {}, set(), []
    for name, tensor in model.state_dict().items():
        own = named(name, model.config)
        common = of_all(own, known)
        if own in theirs:
            if theirs[own].shape != tensor.shape:
                raise CheckpointError(
                    f"{path}: {name} has shape {list(theirs[own].shape)} and here {list(tensor.shape)}; "
                    "give both models the same size, or begin without --init"
                )
            taken[name] = theirs[own]
            used.add(own)
        elif common in theirs and theirs[common].shape == tensor.shape:
            taken[name] = theirs[common]
            used.add(common)
        else:
            new.append(name)
    model.load_state_dict(taken, strict=False)
    unused = sorted(theirs.keys() - used)
    return (
        f"{len(taken)} tensors begin as those of {source}"
        + (f", {len(new)} anew, such as {new[0]}" if new else "")
        + (f"; {len(unused)} of its own are left out, such as {unused[0]}" if unused else "")
    )


def named(name: str, config: ModelConfig) -> str:
    """A tensor's name with that of its modality or stream in place of the number, which depends on their order."""
    if config.embedder.kind == "universal":  # one for all, as in a plain model
        name = re.sub(r"^(embedders\.\d+)\.parts\.0\.", r"\1.", name)
    match = NUMBERED.match(name)
    if match is None:
        return name
    return f"{name[: match.start(1)]}{config.kinds[int(match[1])].name}{name[match.end(1) :]}"


def of_all(name: str, known: Collection[str]) -> str:
    """The name, in a model that treats modalities alike, of what `named` calls one modality's, if that is known."""
    for modality in known:
        name = name.replace(f".parts.{modality}.", ".").replace(f"heads.{modality}.", "head.")
    return name
