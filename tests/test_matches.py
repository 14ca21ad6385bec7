"""What followed an earlier match: that of a search by hand, the same after each byte, enough to repeat what was."""

import dataclasses

import configs
import pytest
import torch
from test_linear_prediction import as_ids, sound
from torch import Tensor

from byteloom.layers.matches import LONGEST, Matches, hashes, last_hashes, matches, parts
from byteloom.layers.prediction import TAKEN, PredictorConfig
from byteloom.losses import VOCABULARY
from byteloom.models.config import ModelConfig, StageConfig
from byteloom.models.multiscale import Multiscale

LENGTHS = (2, 3, 5, 9)
STAGES = (
    StageConfig(dim=32, num_layers=1, num_heads=2, patch_size=4),
    StageConfig(dim=32, num_layers=1, num_heads=2, window=8),
)


def by_hand(row: list[int]) -> list[tuple[int, int]]:
    """For each place, which length's match, 0 for none, and the byte after its last occurrence."""
    found = []
    for end in range(len(row)):
        here = (0, 255)
        for level, length in enumerate(LENGTHS, 1):
            ends = [e for e in range(length, end) if row[e - length : e] == row[end - length : end]]
            if end >= length and ends:
                here = (level, row[ends[-1]])
        found.append(here if here[1] < 256 else (0, 255))
    return found


def texts(seed: int = 0, length: int = 90) -> Tensor:
    """Three rows of few ids, one of which is no byte, so that strings come again."""
    torch.manual_seed(seed)
    few = torch.tensor([0, 7, 255, VOCABULARY.bos_id])
    return few[torch.randint(0, 4, (3, length))]


@pytest.mark.parametrize("seed", range(3))
def test_matches_are_those_of_a_search_by_hand(seed: int) -> None:
    ids = texts(seed)
    level, byte = parts(matches(LENGTHS, ids))
    for row in range(3):
        wanted = by_hand(ids[row].tolist())
        assert list(zip(level[row].tolist(), byte[row].tolist(), strict=True)) == wanted
    assert set(range(len(LENGTHS))) <= set(level.flatten().tolist()), "all lengths but perhaps the longest"


def test_matches_see_only_the_past() -> None:
    ids, other = texts(1), texts(2)
    for end in (1, 17, 60):
        changed = torch.cat((ids[:, :end], other[:, end:]), dim=1)
        assert torch.equal(matches(LENGTHS, changed)[:, : end + 1], matches(LENGTHS, ids)[:, : end + 1])
        assert torch.equal(matches(LENGTHS, ids[:, :end]), matches(LENGTHS, ids)[:, :end])


def test_a_hash_is_the_same_from_the_last_bytes_alone() -> None:
    ids = texts(3)
    whole = hashes(LENGTHS, ids)
    for end in (0, 1, 4, 30, 89):
        last = torch.nn.functional.pad(ids[:, :end], (max(LENGTHS), 0))[:, -max(LENGTHS) :]
        assert torch.equal(last_hashes(LENGTHS, last, torch.tensor([end] * 3)), whole[:, :, end])
    assert (whole[:, :, 0] < 0).all() and (whole[:, :, 40] >= 0).all()


def model_of(sounds: bool, **fields: object) -> Multiscale:
    config = ModelConfig(stages=STAGES, context=96, matches=LENGTHS, **fields)
    if sounds:
        predictor = PredictorConfig(guess="mulaw", channels=1, told=True)
        modality = dataclasses.replace(configs.MODALITIES[0], predictor=predictor)
        config = dataclasses.replace(config, modalities=(modality,))
    return configs.build(config).double()


def rows_of(sounds: bool) -> Tensor:
    if not sounds:
        return texts(4)
    data = as_ids("mulaw", sound(40, 1))
    opened = torch.tensor([[VOCABULARY.bos_id, configs.MODALITIES[0].mark]])
    return torch.cat((opened, data, data, opened), dim=1).expand(3, -1)


@pytest.mark.parametrize("sounds", [False, True])
def test_steps_and_prompts_match_what_the_whole_matches(sounds: bool) -> None:
    model, ids = model_of(sounds), rows_of(sounds)
    length = ids.shape[1]
    with torch.no_grad():
        whole = model(ids).log_softmax(-1)
        nats = -whole.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(model.nats(ids, chunk=64).double(), nats, atol=1e-5, rtol=1e-5)
        for lengths in ([0, 0, 0], [40, 9, 71]):
            state, at = model.start(3, 96), list(lengths)
            if max(lengths):
                model.prefill(ids, lengths, state)
            while min(at) < length - 1:
                rows = [row for row in range(3) if at[row] < length - 1]
                for row in rows:
                    found = state.logits[row].log_softmax(-1)
                    torch.testing.assert_close(found, whole[row, at[row]], check_dtype=False, atol=1e-6, rtol=1e-5)
                model.step(ids[rows, [at[row] for row in rows]], state, rows)
                at = [place + (row in rows) for row, place in enumerate(at)]
        chosen = state.select([2, 0])
    assert state.hashes is not None and chosen.hashes is not None
    assert torch.equal(chosen.hashes, state.hashes[[2, 0]])


def test_only_the_byte_that_followed_gets_more() -> None:
    layer, h, logits = Matches(LENGTHS, 8), torch.randn(1, 3, 8), torch.randn(1, 3, 320)
    torch.nn.init.constant_(layer.bias, 0.5)
    followed = torch.tensor([[0, TAKEN * (1 + 65 + 256), 100 + TAKEN * (1 + 65)]])
    change = layer.point(logits, h, followed) - logits
    assert torch.equal(change[0].nonzero(), torch.tensor([[1, 65], [2, (65 - 100) % 256]]))
    torch.testing.assert_close(change[0, 1, 65], h[0, 1] @ layer.weigh.weight[2] + 0.5)


def test_a_model_learns_to_repeat_what_it_has_read() -> None:
    def trained(lengths: tuple[int, ...]) -> float:
        torch.manual_seed(0)
        model = Multiscale(ModelConfig(stages=STAGES, context=48, matches=lengths))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(60):
            ids = torch.randint(0, 256, (8, 24)).repeat(1, 2)
            nats = model.nats(ids)[:, 28:].mean()
            optimizer.zero_grad()
            nats.backward()
            optimizer.step()
        return nats.item()

    assert trained((3,)) < 1.5 < 4 < trained(())


@pytest.mark.parametrize(
    "fields",
    [{"matches": (3, 2)}, {"matches": (0, 2)}, {"matches": (LONGEST + 1,)}, {"matches": (2,), "late_parent": True}],
)
def test_senseless_matches_are_refused(fields: dict) -> None:
    isolated = (STAGES[0], dataclasses.replace(STAGES[1], window=None))
    with pytest.raises(ValueError, match=r"ModelConfig\.matches"):
        ModelConfig(stages=isolated, **fields)


def test_matches_need_one_head() -> None:
    with pytest.raises(ValueError, match=r"ModelConfig\.matches"):
        ModelConfig(
            stages=STAGES, vocab_size=330, modalities=configs.MODALITIES, heads="by_modality", matches=(2,),
            tied_head=False,
        )  # fmt: skip
