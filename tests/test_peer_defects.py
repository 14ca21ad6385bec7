"""Each known defect of other implementations, and that byteloom does not have it.

Where megabyte-pytorch 0.3.6 has it, the test shows that too, so that the comparison stays honest.
"""

import inspect
import math

import configs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from MEGABYTE_pytorch import MEGABYTE
from test_interop import OPTIONS, original
from test_modalities import fused, modal
from test_multiscale import BY_STAGES, ONE, TWO, random_ids

from byteloom.codecs import MARKS, image
from byteloom.documents import FIRST_MARK, PAD, Document, Segment, from_ids, to_ids
from byteloom.generation import generate
from byteloom.interop import from_megabyte_pytorch
from byteloom.layers.transformer import rope_table, rotate
from byteloom.losses import bits_per_byte
from byteloom.models.multiscale import Multiscale
from byteloom.sampling import SamplingConfig


def test_nul_bytes_are_counted_in_the_loss() -> None:
    zeros = torch.zeros(1, 24, dtype=torch.long)
    assert math.isnan(original(OPTIONS)(zeros, return_loss=True)), "theirs: 0 is the pad id"
    loss = configs.build(TWO).loss(zeros)
    assert int(loss.count) == 24 and math.isfinite(float(loss.nats))


def test_generation_keeps_no_gradients() -> None:
    assert original(OPTIONS)(random_ids(1, 4, vocab_size=256)).requires_grad
    assert "no_grad" not in inspect.getsource(MEGABYTE.generate)
    model = configs.build(TWO)
    state = model.start(1, 16)
    assert not model.step(torch.tensor([1]), state).requires_grad
    assert generate(model, "a", max_bytes=2) is not None


def test_a_prompt_longer_than_the_context_gets_a_clear_answer() -> None:
    with pytest.raises(AssertionError):
        original(OPTIONS)(random_ids(1, 25, vocab_size=256))
    with pytest.raises(ValueError, match="context"):
        generate(configs.build(TWO), "x" * 40)


def test_relative_positions_go_beyond_the_context() -> None:
    with pytest.raises(AssertionError):
        original({**OPTIONS, "rel_pos": True})(random_ids(1, 28, vocab_size=256))
    model = configs.build(TWO)
    assert model(random_ids(1, 200)).shape[1] == 200
    assert len(generate(model, "a", max_bytes=100, max_context=64, sampling=SamplingConfig(temperature=0))) <= 100


def test_a_patchs_first_byte_sees_the_newest_patch() -> None:
    """Theirs predicts the first byte of patch k from the local model of patch k - 1, whose parent is one patch old.

    So only local layers that carry the previous patch's own bytes reach it, and the patch's place in the global
    context does not: with the finest stage's content silenced, nothing of the newest patch is seen.
    """
    theirs = original(OPTIONS)
    ids = random_ids(1, 13, vocab_size=256)
    other = ids.clone()
    other[:, 8:12] = (other[:, 8:12] + 1) % 256
    with torch.no_grad():
        theirs.token_embs[0].weight.zero_()
        assert torch.equal(theirs(ids)[:, 11], theirs(other)[:, 11]), "theirs: blind to the newest patch"
        ours = configs.build(TWO)
        ours.embedders[-1].table.weight[:256] = 0
        ours.head = torch.nn.Linear(16, 320)
        assert not torch.allclose(ours(ids)[:, 12], ours(other)[:, 12])


def test_no_local_position_is_computed_and_thrown_away() -> None:
    rows = []
    model = configs.build(TWO)
    hook = model.stacks[-1].register_forward_hook(lambda module, args, out: rows.append(out.shape[1]))
    model(random_ids(1, 16))
    hook.remove()
    assert rows == [16], "theirs: 5 positions for each patch of 4"


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_a_prompt_does_not_move_patch_borders(num_stages: int) -> None:
    """Generation from a prompt of any length sees the patches that training sees."""
    model = configs.build(BY_STAGES[num_stages])
    ids = random_ids(1, 23, vocab_size=256)
    for length in range(1, 23):
        state = model.start(1, 32)
        torch.testing.assert_close(
            model.prefill(ids[:, :length], [length], state), model(ids)[:, length], atol=2e-5, rtol=1e-5
        )


def test_generation_takes_batches_of_any_lengths() -> None:
    assert len(generate(configs.build(TWO), ["", "ab", "abcdefgh"], max_bytes=4)) == 3


def test_control_ids_lie_outside_the_bytes() -> None:
    """A picture that holds every value, as pixels, comes back from the ids; no pixel is taken for structure."""
    pixels = np.random.default_rng(0).permutation(np.arange(768) % 256).astype(np.uint8).reshape(16, 16, 3)
    picture = Document(segments=(image.from_array(pixels), image.from_array(pixels[::-1])))
    ids = to_ids(picture, MARKS, 12)
    assert PAD >= 256 and FIRST_MARK > 256
    assert (ids < 256).sum() == 2 * 768 and set(ids[ids < 256]) == set(range(256))
    back = from_ids(ids, MARKS)
    assert [s.modality for s in back.segments] == ["image", "image"]
    assert np.array_equal(image.to_array(back.segments[0]), pixels)
    assert np.array_equal(image.to_array(back.segments[1]), pixels[::-1])


def test_rope_is_a_rotation() -> None:
    x = torch.randn(1, 8)
    cos, sin = rope_table(torch.tensor([3]), 8, 10000.0)
    torch.testing.assert_close(rotate(x, cos, sin).norm(), x.norm())


@pytest.mark.parametrize("kind", ["specific", "universal", "fusion"])
def test_the_model_of_several_modalities_is_causal(kind: str) -> None:
    """At every position of a page of text, picture and codes, borders of segments, marks and headers included."""
    model = configs.build(fused() if kind == "fusion" else modal(kind, heads="by_modality", positions=8))
    page = Document(
        segments=(
            Segment(modality="text", data=np.frombuffer(b"a page", np.uint8)),
            Segment(modality="image", data=np.arange(12, dtype=np.uint8), header=b"\0\2\0\2\x32"),
            Segment(modality="codes", data=np.array([320, 329, 325], np.uint16)),
        )
    )
    laid = to_ids(page, {**MARKS, "codes": 280}, 4)
    ids = torch.from_numpy(laid.astype(np.int64)).unsqueeze(0) % model.config.vocab_size
    with torch.no_grad():
        before = model(ids)
        for place in range(ids.shape[1]):
            for value in (7, 260, 261, PAD, 304):
                other = ids.clone()
                other[:, place] = value
                torch.testing.assert_close(model(other)[:, : place + 1], before[:, : place + 1], atol=1e-5, rtol=1e-5)


def test_bits_are_bits() -> None:
    assert bits_per_byte(math.log(2) * 80, 10) == 8.0


def test_position_t_predicts_byte_t_and_not_the_one_after() -> None:
    """A model that has learned a sequence by heart gives each byte its probability at its own position."""
    torch.manual_seed(0)
    model, ids = Multiscale(ONE), torch.tensor([[10, 20, 30, 40, 50, 60]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(ids).nats.backward()
        optimizer.step()
    assert model(ids).argmax(-1).tolist() == ids.tolist()


def test_their_first_logits_depend_on_the_way_they_are_asked_for() -> None:
    """Theirs adds the parent to the start token for an empty prompt and not in training; ours has one way."""
    theirs, nothing = original(OPTIONS), torch.zeros(1, 0, dtype=torch.long)
    ours = from_megabyte_pytorch(theirs.state_dict(), OPTIONS, "test")
    ids = random_ids(1, 24, vocab_size=255) + 1
    with torch.no_grad():
        nats = theirs(ids, return_loss=True) * 24
        rest = F.cross_entropy(theirs(ids)[0, :-1], ids[0, 1:], reduction="sum")
        first_in_training = nats - rest
        asked = F.cross_entropy(theirs(nothing).view(1, -1), ids[:, 0])
        assert abs(float(first_in_training - asked)) > 1e-3
        found = F.cross_entropy(ours(nothing)[:, 0], ids[:, 0])
    torch.testing.assert_close(found, first_in_training, atol=1e-3, rtol=1e-4)
