"""Continuous inputs: shapes, the formula, several at once, and what stands after them."""

import dataclasses

import configs
import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from test_multiscale import ONE, THREE, TWO, random_ids

from byteloom.layers.continuous import InputConfig, UniversalPatchEmbedder

INPUTS = (
    InputConfig(name="words", width=6),
    InputConfig(name="picture", width=3, patch=(2, 4)),
    InputConfig(name="depth", width=1, patch=(2, 4)),
    InputConfig(name="sound", width=5, patch=(2,)),
    InputConfig(name="clip", width=1, patch=(2, 2, 2)),
)


def embedder(dim: int = 8) -> UniversalPatchEmbedder:
    torch.manual_seed(0)
    return UniversalPatchEmbedder(INPUTS, dim, init_std=0.2)


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("words", (2, 7, 6), 7),
        ("picture", (2, 4, 8, 3), 4),
        ("picture", (2, 3, 5, 3), 4),  # edges are filled
        ("depth", (2, 4, 8), 4),
        ("depth", (2, 4, 8, 1), 4),
        ("sound", (2, 9, 5), 5),
        ("clip", (2, 4, 4, 6), 12),
        ("clip", (1, 2, 2, 2, 1), 1),
        ("words", (2, 0, 6), 0),
    ],
)
def test_every_shape_gives_its_vectors(name: str, shape: tuple[int, ...], count: int) -> None:
    assert embedder()(torch.randn(shape), name).shape == (shape[0], count, 8)


def test_it_is_a_linear_map_of_a_patch_plus_the_vector_of_its_modality() -> None:
    layer, x = embedder(), torch.randn(2, 4, 8, 3)
    patches = rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=2, q=4)
    expected = patches @ layer.project[1].weight.T + layer.project[1].bias + layer.modality[1]
    torch.testing.assert_close(layer(x, "picture"), expected)
    torch.testing.assert_close(layer(x, 1), expected)
    clip = torch.randn(1, 4, 4, 2)
    cubes = rearrange(clip, "b (n p) (h q) (w r) -> b (n h w) (p q r)", p=2, q=2, r=2)
    torch.testing.assert_close(layer(clip, 4), layer.project[4](cubes) + layer.modality[4])


def test_rows_of_a_batch_may_differ_in_modality() -> None:
    inputs = (InputConfig(name="a", width=4), InputConfig(name="b", width=4), InputConfig(name="c", width=4))
    layer, x = UniversalPatchEmbedder(inputs, 8), torch.randn(4, 3, 4)
    modality = torch.tensor([1, 0, 1, 0])
    mixed = layer(x, modality)
    for row, index in enumerate(modality.tolist()):
        torch.testing.assert_close(mixed[row], layer(x[row : row + 1], index)[0])
    mixed.sum().backward()
    assert layer.modality[2].grad is None and layer.project[2].weight.grad is None  # no row had it
    torch.testing.assert_close(layer(x, torch.tensor([2, 2, 2, 2])), layer(x, "c"))


def test_what_does_not_fit_is_refused_by_name() -> None:
    layer = embedder()
    for x, modality, message in (
        (torch.zeros(1, 3, 6), "smell", "'smell' is unknown; known: words"),
        (torch.zeros(1, 3, 6), 9, "9 is unknown"),
        (torch.zeros(1, 3, 7), "words", "words has shape"),
        (torch.zeros(1, 3, 4, 4), "picture", "picture has shape"),
        (torch.zeros(1, 3), "sound", "sound has shape"),
        (torch.zeros(2, 3, 6), torch.tensor([0]), "one index for each of 2 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(x, modality)
    with pytest.raises(ValueError, match="patch"):
        InputConfig(name="x", width=1, patch=())
    with pytest.raises(ValueError, match="width"):
        InputConfig(name="x", width=0)
    with pytest.raises(ValueError, match="same name"):
        UniversalPatchEmbedder(INPUTS[:1] * 2, 4)
    two_sizes = (InputConfig(name="a", width=4), InputConfig(name="b", width=4, patch=(2,)))
    with pytest.raises(ValueError, match="different numbers"):
        UniversalPatchEmbedder(two_sizes, 4)(torch.zeros(2, 4, 4), torch.tensor([0, 1]))


# -- as a prefix -------------------------------------------------------------------------------------------------------


def conditioned(base: object) -> object:
    return dataclasses.replace(base, inputs=INPUTS)


@pytest.mark.parametrize("base", [ONE, TWO, THREE])
def test_a_prefix_moves_every_logit_and_bytes_stay_causal(base: object) -> None:
    model, ids = configs.build(conditioned(base)), random_ids(2, 13)
    x = torch.randn(2, 3, 6)
    with torch.no_grad():
        plain, given, other = model(ids), *(model(ids, inputs=[("words", y)]) for y in (x, x + 1))
        assert given.shape == plain.shape
        for a, b in ((plain, given), (given, other)):
            assert ((a - b).abs().amax(-1) > 1e-6).all()
        for place in range(13):
            changed = ids.clone()
            changed[:, place] = (changed[:, place] + 1) % 320
            moved = (model(changed, inputs=[("words", x)]) - given).abs().amax((0, 2))
            assert not (moved[: place + 1] > 1e-5).any()


@given(length=st.integers(0, 13), count=st.integers(0, 4), stages=st.sampled_from([ONE, TWO, THREE]), data=st.data())
def test_steps_after_a_prefix_are_those_of_forward(
    length: int, count: int, stages: object, data: st.DataObject
) -> None:
    model = configs.build(conditioned(stages))
    ids = random_ids(3, 14)
    inputs = [("sound", torch.randn(3, count, 5)), ("picture", torch.randn(3, 2, 5, 3))]
    with torch.no_grad():
        whole = model(ids, inputs=inputs)
        state = model.start(3, 16, inputs=inputs)
        torch.testing.assert_close(state.logits, whole[:, 0], atol=1e-5, rtol=1e-5)
        lengths = [data.draw(st.integers(0, length)) for _ in range(3)]
        logits = model.prefill(ids, lengths, state)
        while True:
            for row, t in enumerate(state.lengths.tolist()):
                torch.testing.assert_close(logits[row], whole[row, t], atol=1e-5, rtol=1e-5)
            if int(state.lengths.max()) >= 13:
                break
            logits = model.step(ids[torch.arange(3), state.lengths], state)
        torch.testing.assert_close(
            model.loss(ids, inputs=inputs, chunk=8).nats, model.loss(ids, inputs=inputs).nats, atol=1e-3, rtol=1e-4
        )


def test_the_path_on_the_device_reads_a_prefix_too() -> None:
    model, ids = configs.build(conditioned(TWO)), random_ids(2, 9)
    inputs = [("words", torch.randn(2, 3, 6))]
    with torch.no_grad():
        whole = model(ids, inputs=inputs)
        state = model.start(2, 16, True, inputs=inputs)
        for t in range(8):
            torch.testing.assert_close(state.logits, whole[:, t], atol=1e-4, rtol=1e-4)
            model.step(ids[:, t], state)


def test_a_model_without_inputs_says_so() -> None:
    with pytest.raises(ValueError, match="no continuous inputs"):
        configs.build(TWO)(random_ids(1, 4), inputs=[("words", torch.zeros(1, 1, 6))])
    stage = dataclasses.replace(ONE.stages[0], position="learned", max_positions=10)
    model = configs.build(dataclasses.replace(conditioned(ONE), stages=(stage,), context=10))
    with pytest.raises(ValueError, match="11 bytes are more than the 10"):
        model(random_ids(1, 8), inputs=[("words", torch.zeros(1, 3, 6))])
