"""What a model foresees of a byte: what it takes from it, by modality, and what followed an earlier match.

In: ids with their kinds and places, or a state. Out: predictions as layers/prediction.py has them, in the state too.
"""

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from byteloom.layers import linear_prediction
from byteloom.layers.linear_prediction import ORDER, Layout
from byteloom.layers.matches import hashes, last_hashes, told
from byteloom.layers.modalities import Tagged
from byteloom.layers.prediction import distances
from byteloom.layers.prediction import predictions as predictions_of
from byteloom.models.config import ModelConfig

if TYPE_CHECKING:
    from byteloom.models.decoding import State
    from byteloom.models.multiscale import Multiscale


def predictions(config: ModelConfig, ids: Tensor, kinds: Tensor, since: Tensor, first: Tensor | int = 0) -> Tensor:
    """What is taken from each byte of ids (B, T), modulo 256, as `layers.prediction.predictions` has it; (B, T)."""
    predicted = torch.zeros_like(ids)
    for kind, predictor in config.predictors.items():
        here = kinds == kind
        # Elsewhere no block of samples may begin: filters would be computed for nothing.
        found = predictions_of(predictor, ids, since.masked_fill(~here, 1), first)
        predicted = torch.where(here, found, predicted)
    return predicted


def sounds(config: ModelConfig) -> dict[int, Layout]:
    """Those modalities whose samples are guessed, by the index of their kind."""
    layouts = ((kind, predictor.sound) for kind, predictor in config.predictors.items())
    return {kind: layout for kind, layout in layouts if layout is not None}


def no_hashes(config: ModelConfig, batch: int, length: int, device: torch.device) -> Tensor | None:
    """Hashes (B, lengths, length) of rows that have read nothing; None where no matches are looked for."""
    none = -1 - torch.arange(length, dtype=torch.int32, device=device)  # hashes are below 2^31
    return none.repeat(batch, len(config.matches), 1) if config.matches else None


def no_filters(config: ModelConfig, batch: int, device: torch.device) -> Tensor | None:
    """Filters (B, channels, ORDER) of rows that have read nothing; None where no samples are guessed."""
    channels = [layout.channels for layout in sounds(config).values()]
    return torch.zeros(batch, max(channels), ORDER, dtype=torch.float64, device=device) if channels else None


def note_prompt(config: ModelConfig, ids: Tensor, read: Tagged, ends: Tensor, state: "State") -> None:
    """What prompts ids (B, T) that end before `ends` (B,), and were read as `read`, say of what follows them."""
    rows = torch.arange(len(ends), device=ids.device)
    cast(Tensor, state.predicted)[:] = cast(Tensor, read.predictions)[rows, ends]
    if state.hashes is not None:
        size = min(ids.shape[1], state.hashes.shape[-1])
        state.hashes[..., :size] = hashes(config.matches, ids)[..., :size]
    for kind, layout in sounds(config).items():
        since = cast(Tensor, read.since)[rows, ends]
        places = ends - since % layout.block
        due = ((cast(Tensor, read.kinds)[rows, ends] == kind) & (places >= 0)).nonzero().squeeze(1)
        values, first = linear_prediction.samples(layout, ids), (ends - since).clamp(min=0)
        found = linear_prediction.filters(layout, values, due, places[due], first[due])
        cast(Tensor, state.filters)[due, : layout.channels] = found


def note_bytes(config: ModelConfig, ids: Tensor, state: "State", rows: Tensor | None) -> None:
    """What the model reads of ids (N,), appended to these rows (None: all), and the prediction of what follows them.

    Twin: `predictions`.
    """
    predicted, device = cast(Tensor, state.predicted), ids.device
    every = torch.arange(predicted.shape[0], device=device) if rows is None else rows
    at = state.lengths.to(device)[every]
    following = torch.zeros_like(ids) if state.hashes is None else followed(config, state, rows, every, at + 1)
    if state.distances is not None:
        state.distances[every, at] = distances(ids, predicted[every])
        following = following + taken(config, state, every, at + 1)
    predicted[every] = following


def note_on_device(model: "Multiscale", _: int, ids: Tensor, state: "State") -> None:
    """`note_bytes` of ids (B,) in all rows, to be compiled where no modality is guessed."""
    note_bytes(model.config, ids, state, None)


def followed(config: ModelConfig, state: "State", rows: Tensor | None, every: Tensor, places: Tensor) -> Tensor:
    """What followed a match that ends before `places` (N,) of these rows (None: all), which are `every` (N,): (N,).

    As `layers.matches.matches` has it.
    """
    kept = cast(Tensor, state.hashes)
    code = last_hashes(config.matches, before(state, every, places, max(config.matches))[0], places).to(kept.dtype)
    kept[every, :, places] = code
    if not torch.compiler.is_compiling():  # there no shape may depend on values
        kept = kept[..., : int(state.lengths.max()) + 1]
    known, ids = (kept, state.ids) if rows is None else (kept[rows], state.ids[rows])
    at = torch.arange(known.shape[-1], dtype=kept.dtype, device=kept.device)
    same = (known == code.unsqueeze(-1)) & (at < places.view(-1, 1, 1))
    return told(ids, torch.where(same, at, -1).amax(-1, keepdim=True).long()).squeeze(1)


def taken(config: ModelConfig, state: "State", rows: Tensor, places: Tensor) -> Tensor:
    """What is taken from the byte at `places` (N,) of rows (N,): (N,)."""
    kinds, since = (cast(Tensor, tag)[rows, places] for tag in (state.kinds, state.since))
    found = torch.zeros_like(places)
    for kind, predictor in config.predictors.items():
        find = of_picture if predictor.sound is None else of_sound
        found = torch.where(kinds == kind, find(config, kind, state, rows, places, kinds, since), found)
    return found


def of_picture(
    config: ModelConfig, kind: int, state: "State", rows: Tensor, places: Tensor, kinds: Tensor, since: Tensor
) -> Tensor:
    """What is taken from the byte at `places` (N,) of rows (N,), where kinds and since (N,) are these: (N,)."""
    predictor = config.predictors[kind]
    ids, known = before(state, rows, places, predictor.reach)
    back = torch.arange(-predictor.reach, 1, device=ids.device)
    ids = torch.nn.functional.pad(ids, (0, 1))  # at the place itself only `since` is read
    return predictions_of(predictor, ids, since.unsqueeze(1) + back, predictor.reach - known)[:, -1]


def of_sound(
    config: ModelConfig, kind: int, state: "State", rows: Tensor, places: Tensor, kinds: Tensor, since: Tensor
) -> Tensor:
    """As `of_picture`; where a block begins, it gets its filter."""
    layout, kept = sounds(config)[kind], cast(Tensor, state.filters)
    due = (kinds == kind) & (since % layout.block == 0)
    if torch.compiler.is_compiling():  # no path may depend on values
        found = fitted(layout, state, rows, places, since)
        kept[rows, : layout.channels] = torch.where(due.view(-1, 1, 1), found, kept[rows, : layout.channels])
    elif bool(due.any()):
        kept[rows[due], : layout.channels] = fitted(layout, state, rows[due], places[due], since[due])
    ids, known = before(state, rows, places, layout.stride * ORDER + layout.size)
    end = torch.full_like(places, ids.shape[1])
    weights = kept[rows, since % layout.stride // layout.size]
    first = end - torch.minimum(since, known)
    values, every = linear_prediction.samples(layout, ids), torch.arange(len(rows), device=ids.device)
    ends = end - since % layout.size + layout.size - 1
    guess = linear_prediction.guesses(layout, values, every, ends, first, weights, 1)
    return linear_prediction.as_predictions(layout, guess, since.unsqueeze(1), ids[:, -1:]).squeeze(1)


def fitted(layout: Layout, state: "State", rows: Tensor, places: Tensor, since: Tensor) -> Tensor:
    """Filters (N, channels, ORDER) for blocks that begin at `places` (N,) of rows (N,)."""
    ids, known = before(state, rows, places, layout.reach)
    end = torch.full_like(places, ids.shape[1])
    values, every = linear_prediction.samples(layout, ids), torch.arange(len(rows), device=ids.device)
    return linear_prediction.filters(layout, values, every, end, end - torch.minimum(since, known))


def before(state: "State", rows: Tensor, places: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """The `reach` ids (N, reach) before `places` (N,) of rows (N,), and how many (N,) of them there are."""
    index = places.unsqueeze(1) + torch.arange(-reach, 0, device=places.device)
    return state.ids[rows.unsqueeze(1), index.clamp(min=0)], places.clamp(max=reach)
