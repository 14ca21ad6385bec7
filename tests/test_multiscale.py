"""The model: causality, step against forward, any length, refusals."""

import dataclasses
import json

import configs
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from byteloom.layers.modalities import EmbedderConfig
from byteloom.models.config import ModelConfig, StageConfig
from byteloom.models.multiscale import Multiscale

TWO = ModelConfig(
    stages=(
        StageConfig(dim=32, num_layers=2, num_heads=2, patch_size=4),
        StageConfig(dim=16, num_layers=2, num_heads=2),
    ),
    context=32,
)
THREE = ModelConfig(
    stages=(
        StageConfig(dim=32, num_layers=1, num_heads=2, patch_size=3),
        StageConfig(dim=16, num_layers=1, num_heads=2, patch_size=2),
        StageConfig(dim=16, num_layers=1, num_heads=2),
    ),
    context=32,
)
ONE = ModelConfig(stages=(StageConfig(dim=16, num_layers=2, num_heads=2),), context=32)
BY_STAGES = {1: ONE, 2: TWO, 3: THREE}


def random_ids(rows: int, length: int, seed: int = 0, vocab_size: int = 320) -> torch.Tensor:
    return torch.randint(0, vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def walk(model: Multiscale, ids: torch.Tensor, max_length: int) -> torch.Tensor:
    """Logits (B, T, V) of all positions, one step at a time."""
    state = model.start(ids.shape[0], max_length)
    logits = [state.logits.clone()]
    logits += [model.step(ids[:, t], state).clone() for t in range(ids.shape[1] - 1)]
    return torch.stack(logits, dim=1)


def test_the_strategy_draws_every_option() -> None:
    assert {field.name for field in dataclasses.fields(StageConfig)} == configs.VARIED_STAGE
    assert {field.name for field in dataclasses.fields(ModelConfig)} == configs.VARIED_MODEL
    assert {field.name for field in dataclasses.fields(EmbedderConfig)} == configs.VARIED_EMBEDDER


@settings(max_examples=60)
@given(config=configs.models(), seed=st.integers(0, 2**31), data=st.data())
def test_changing_a_byte_moves_no_logit_at_or_before_it(config: ModelConfig, seed: int, data: st.DataObject) -> None:
    model = configs.build(config, seed)
    length = data.draw(st.integers(1, configs.CONTEXT - 3))
    place = data.draw(st.integers(0, length - 1))
    ids = random_ids(2, length, seed, config.vocab_size)
    other = ids.clone()
    other[:, place] = (other[:, place] + 1 + data.draw(st.integers(0, 300))) % config.vocab_size
    with torch.no_grad():
        a, b = model(ids), model(other)
    torch.testing.assert_close(a[:, : place + 1], b[:, : place + 1], atol=2e-5, rtol=1e-5)


@settings(max_examples=60)
@given(config=configs.models(), seed=st.integers(0, 2**31), data=st.data())
def test_step_and_ragged_prefill_equal_forward(config: ModelConfig, seed: int, data: st.DataObject) -> None:
    model = configs.build(config, seed)
    length = data.draw(st.integers(2, configs.CONTEXT - 3))
    ids = random_ids(3, length, seed, config.vocab_size)
    with torch.no_grad():
        whole = model(ids)
        scale = max(1.0, float(whole[whole.isfinite()].abs().max()))
        stepped = walk(model, ids, configs.CONTEXT - 2)
        torch.testing.assert_close(stepped / scale, whole / scale, atol=1e-5, rtol=0)
        lengths = [data.draw(st.integers(0, length - 1)) for _ in range(3)]
        state = model.start(3, configs.CONTEXT - 2)
        logits = model.prefill(ids, lengths, state)
        while True:
            for row, t in enumerate(state.lengths.tolist()):
                torch.testing.assert_close(logits[row] / scale, whole[row, t] / scale, atol=1e-5, rtol=0)
            if int(state.lengths.max()) == length - 1:
                break
            logits = model.step(ids[torch.arange(3), state.lengths], state)


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_a_byte_moves_later_logits(num_stages: int) -> None:
    """The twin of the causality test: it would pass on a model that looks at nothing."""
    model = configs.build(BY_STAGES[num_stages])
    ids = random_ids(1, 12)
    for place in range(11):
        other = ids.clone()
        other[:, place] = (other[:, place] + 1) % 320
        moved = (model(ids) - model(other)).abs().amax((0, 2)) > 1e-6
        assert moved[place + 1] and not moved[: place + 1].any()


@pytest.mark.parametrize("num_stages", [1, 2, 3])
@pytest.mark.parametrize("length", [0, 1, 2, 5, 6, 7, 12, 13])
def test_any_length_gives_the_same_logits_as_a_longer_one(num_stages: int, length: int) -> None:
    model = configs.build(BY_STAGES[num_stages])
    ids = random_ids(2, 13)
    logits = model(ids[:, :length])
    assert logits.shape == (2, max(length, 1), 320)
    torch.testing.assert_close(logits, model(ids)[:, : max(length, 1)], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_a_row_gives_alone_what_it_gives_in_a_batch(num_stages: int) -> None:
    model = configs.build(BY_STAGES[num_stages])
    ids, lengths = random_ids(4, 20), [0, 5, 13, 20]
    state = model.start(4, 32)
    together = model.prefill(ids, lengths, state)
    more = random_ids(4, 6, seed=1)
    steps = [together.clone()] + [model.step(more[:, t], state).clone() for t in range(6)]
    for row, length in enumerate(lengths):
        alone = model.start(1, 32)
        logits = model.prefill(ids[row : row + 1], [length], alone)
        for t in range(7):
            torch.testing.assert_close(logits[0], steps[t][row], atol=1e-5, rtol=1e-5)
            logits = model.step(more[row : row + 1, t], alone) if t < 6 else logits


def test_selected_rows_go_on_as_before() -> None:
    model = configs.build(TWO)
    ids = random_ids(3, 15)
    state = model.start(3, 32)
    model.prefill(ids, [3, 9, 14], state)
    part = state.select([2, 0, 2])
    following = torch.tensor([7, 8, 9])
    model.step(following, state)
    logits = model.step(following[[2, 0, 2]], part)
    torch.testing.assert_close(logits, state.logits[[2, 0, 2]], atol=1e-6, rtol=1e-6)


def test_the_global_stage_runs_once_a_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = configs.build(TWO)
    calls = [0, 0]
    for i, stack in enumerate(model.stacks):
        step = stack.step

        def counting(*args: object, i: int = i, step: object = step) -> torch.Tensor:
            calls[i] += 1
            return step(*args)

        monkeypatch.setattr(stack, "step", counting)
    state = model.start(1, 32)
    for value in range(16):
        model.step(torch.tensor([value]), state)
    assert calls == [5, 17]


def test_byte_zero_is_a_byte_like_any_other() -> None:
    model = configs.build(TWO)
    zeros = torch.zeros(1, 16, dtype=torch.long)
    loss = model.loss(zeros)
    assert loss.count == 16 and loss.bytes == 16 and torch.isfinite(loss.nats)
    logits = model(zeros)
    torch.testing.assert_close(loss.nats, F.cross_entropy(logits[0], zeros[0], reduction="sum"))
    other = zeros.clone()
    other[0, 3] = 1
    assert not torch.allclose(model(other)[:, 4:], logits[:, 4:])


def test_the_loss_counts_marks_but_not_as_bytes_and_no_pad() -> None:
    model = configs.build(TWO)
    ids = torch.tensor([[257, 256, 256, 256, 260, 1, 2, 258]])
    loss = model.loss(ids)
    assert (int(loss.count), int(loss.bytes)) == (5, 2)
    nats = F.cross_entropy(model(ids)[0], ids[0], reduction="none")
    torch.testing.assert_close(loss.nats, nats[[0, 4, 5, 6, 7]].sum())
    by = loss.by_modality
    assert set(by) == {256, 260} and int(by[260].bytes) == 2 and int(by[256].bytes) == 0
    torch.testing.assert_close(sum(part.nats for part in by.values()), loss.nats)
    counted = torch.tensor([[0, 0, 0, 0, 0, 1, 0, 0]])
    torch.testing.assert_close(model.loss(ids, counted=counted).nats, nats[5])


def test_dropout_acts_in_training_only() -> None:
    config = dataclasses.replace(ONE, stages=(dataclasses.replace(ONE.stages[0], dropout=0.5),))
    model, ids = configs.build(config), random_ids(1, 8)
    torch.testing.assert_close(model(ids), model(ids))
    model.train()
    assert not torch.allclose(model(ids), model(ids))


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_bf16_autocast_is_near_fp32(num_stages: int) -> None:
    torch.manual_seed(0)
    model, ids = Multiscale(BY_STAGES[num_stages]).eval(), random_ids(2, 24)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(ids)
        state = model.start(2, 32)
        stepped = model.prefill(ids, [23, 23], state)
    torch.testing.assert_close(low.float(), model(ids), atol=3e-2, rtol=3e-2)
    torch.testing.assert_close(stepped.float(), model(ids)[:, 23], atol=3e-2, rtol=3e-2)


def test_the_meta_device_builds_without_memory() -> None:
    with torch.device("meta"):
        model = Multiscale(ModelConfig(stages=(StageConfig(dim=8192, num_layers=40, num_heads=64),)))
    assert sum(p.numel() for p in model.parameters()) > 2e10


def test_a_config_is_json_and_hashable() -> None:
    assert json.loads(json.dumps(dataclasses.asdict(THREE)))["stages"][1]["patch_size"] == 2
    assert hash(THREE) == hash(dataclasses.replace(THREE))


def test_learned_positions_limit_the_length_and_relative_ones_do_not() -> None:
    stage = StageConfig(dim=16, num_layers=1, num_heads=2, position="learned", max_positions=10)
    model = configs.build(ModelConfig(stages=(stage,), context=10))
    model(random_ids(1, 10))
    with pytest.raises(ValueError, match="11 bytes are more than the 10"):
        model(random_ids(1, 11))
    assert configs.build(ONE)(random_ids(1, 100)).shape == (1, 100, 320)


def test_a_full_state_says_so() -> None:
    model = configs.build(TWO)
    state = model.start(1, 4)
    for value in range(4):
        model.step(torch.tensor([value]), state)
    with pytest.raises(ValueError, match="room for 4 bytes"):
        model.step(torch.tensor([4]), state)
    with pytest.raises(ValueError, match="fresh"):
        model.prefill(random_ids(1, 2), [2], state)
    with pytest.raises(ValueError, match="longer than"):
        model.prefill(random_ids(1, 9), [9], model.start(1, 4))
    with pytest.raises(ValueError, match="as many prompts"):
        model.prefill(random_ids(1, 2), [2, 2], model.start(1, 4))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_ids_of_any_integer_type_say_the_same(dtype: torch.dtype) -> None:
    stages = (dataclasses.replace(TWO.stages[0], ngrams=(2, 3), ngram_rows=101), TWO.stages[1])
    model = configs.build(dataclasses.replace(TWO, stages=stages, matches=(1, 3)))
    ids = random_ids(2, 20, vocab_size=256)
    narrow = ids.to(dtype)
    assert torch.equal(model(narrow), model(ids))
    assert torch.equal(model.nats(narrow), model.nats(ids))
    assert torch.equal(model.loss(narrow).table, model.loss(ids).table)
    assert torch.equal(walk(model, narrow, 20), walk(model, ids, 20))
    prefilled = [model.prefill(x, [20, 7], model.start(2, 20)) for x in (narrow, ids)]
    assert torch.equal(*prefilled)


@pytest.mark.parametrize("ids", [torch.zeros(3, dtype=torch.long), torch.zeros(1, 3), torch.ones(1, 3) > 0])
def test_what_are_no_ids_is_said(ids: torch.Tensor) -> None:
    model = configs.build(TWO)
    for call in (model, model.loss, model.nats, lambda x: model.prefill(x, [3], model.start(1, 8))):
        with pytest.raises(ValueError, match=r"ids have shape .* give integers \(B, T\)"):
            call(ids)
    with pytest.raises(ValueError, match=r"give integers \(N,\)"):
        model.step(torch.zeros(1, 1, dtype=torch.long), model.start(1, 8))


GOOD = {"dim": 16, "num_layers": 1, "num_heads": 2}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"dim": 0}, "dim"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_heads": 3}, "num_heads"),
        ({"num_kv_heads": 3}, "num_kv_heads"),
        ({"head_dim": 0}, "head_dim"),
        ({"head_dim": 5}, "head_dim"),
        ({"rope_base": 1.0}, "rope_base"),
        ({"max_positions": 8}, "max_positions"),
        ({"position": "learned", "max_positions": 0}, "max_positions"),
        ({"dim": 15, "num_heads": 1, "position": "none", "token_shift": True}, "dim"),
        ({"dropout": 1.0}, "dropout"),
        ({"window": 0}, "window"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"patch_size": 0}, "patch_size"),
        ({"embed_dim": 0}, "embed_dim"),
        ({"conv_kernels": (0,)}, "conv_kernels"),
        ({"offsets": (1,)}, "offsets"),
        ({"ngrams": (1, 2)}, "ngrams"),
        ({"ngrams": (3, 2)}, "ngrams"),
        ({"ngram_rows": 0}, "ngram_rows"),
        ({"ngram_dim": 0}, "ngram_dim"),
        ({"patch_size": 3, "expand": "slice"}, "expand"),
        ({"projection": False, "patch_norm": "rms"}, "patch_norm"),
        ({"projection": False, "embed_bias": True}, "embed_bias"),
        ({"cross_patch": -1}, "cross_patch"),
        ({"cross_patch": 1, "window": 2}, "cross_patch"),
    ],
)
def test_a_bad_stage_is_refused_by_name(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=rf"StageConfig\.{named}"):
        StageConfig(**{**GOOD, **fields})


COARSE, FINE = StageConfig(**GOOD, patch_size=4), StageConfig(**GOOD)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"stages": ()}, "stages"),
        ({"stages": (FINE, FINE)}, r"stages\[0\].patch_size"),
        ({"stages": (COARSE, COARSE)}, r"stages\[1\].patch_size"),
        ({"stages": (StageConfig(**GOOD, cross_patch=1),)}, r"stages\[0\].cross_patch"),
        ({"stages": (COARSE, StageConfig(**GOOD, cross_patch=5))}, r"stages\[1\].cross_patch"),
        ({"stages": (StageConfig(**GOOD, position="learned"),)}, r"stages\[0\].max_positions"),
        ({"stages": (StageConfig(**GOOD, patch_size=4, projection=False, embed_dim=5), FINE)}, "projection"),
        ({"stages": (COARSE, StageConfig(**GOOD, embed_dim=8)), "tied_head": True}, "tied_head"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"context": 0}, "context"),
        ({"logit_cap": 0.0}, "logit_cap"),
        ({"init_std": 0.0}, "init_std"),
        ({"init_waves": 0.0}, "init_waves"),
        ({"stages": (FINE,), "late_parent": True}, "late_parent"),
        ({"stages": (StageConfig(**GOOD, position="learned", max_positions=9),), "context": 10}, "context"),
    ],
)
def test_a_bad_model_is_refused_by_name(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ModelConfig(**{"stages": (COARSE, FINE), **fields})


@settings(max_examples=60)
@given(config=configs.models(), seed=st.integers(0, 2**31), data=st.data())
def test_a_loss_in_chunks_is_the_loss_at_once(config: ModelConfig, seed: int, data: st.DataObject) -> None:
    """Its gradients too: what is recomputed is what was computed."""
    model = configs.build(config, seed)
    ids = random_ids(2, data.draw(st.integers(1, configs.CONTEXT - 3)), seed, config.vocab_size)
    weights = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed))
    found = []
    for chunk in (None, data.draw(st.integers(1, 2 * configs.CONTEXT))):
        nats = model.nats(ids, chunk)
        model.zero_grad(set_to_none=False)
        (nats * weights).sum().backward()
        found.append((nats.detach(), [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]))
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-4, rtol=1e-4)
    for chunked, whole in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(chunked, whole, atol=1e-3 * (1 + float(whole.abs().max())), rtol=1e-3)
