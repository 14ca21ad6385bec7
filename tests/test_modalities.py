"""Embedders of many modalities: each kind in its own way, and what a batch lacks is left alone."""

import dataclasses

import configs
import pytest
import torch
from test_multiscale import TWO, random_ids
from torch import Tensor

from byteloom.layers.modalities import EmbedderConfig, Kind, StreamConfig, through_kinds
from byteloom.models.config import ModalityConfig, ModelConfig
from byteloom.models.multiscale import Multiscale

TEXT, IMAGE, CODES = 260, 261, 280
STREAMS = (
    StreamConfig(name="grey", size=1, role="given"),
    StreamConfig(name="colour", size=2),
    StreamConfig(name="sound", size=1, role="past"),
)


def modal(kind: str, **fields: object) -> ModelConfig:
    """TWO with three modalities and an embedder of this kind, whose options are fields."""
    options = {name: fields.pop(name) for name in list(fields) if name in configs.VARIED_EMBEDDER}
    return dataclasses.replace(
        TWO,
        vocab_size=330,
        modalities=configs.MODALITIES,
        embedder=EmbedderConfig(kind=kind, **options),
        **({"tied_head": False} | fields),
    )


def fused(**options: object) -> ModelConfig:
    """TWO over three streams in patches of 4."""
    return dataclasses.replace(
        TWO, embedder=EmbedderConfig(kind="fusion", streams=STREAMS, **options), heads="by_modality"
    )


def document(mark: int, data: list[int], patch_size: int = 4) -> Tensor:
    """A document of one segment without a header, as ids (1, T)."""
    head = [257, mark]
    return torch.tensor([[*head, *[256] * (-len(head) % patch_size), *data]])


# -- kinds -------------------------------------------------------------------------------------------------------------


def test_rows_go_through_the_part_of_their_kind() -> None:
    kinds = torch.tensor([2, 0, 2, 1, 0])
    parts = [lambda x: x, lambda x: 10 * x, lambda x: -x]
    assert through_kinds(kinds, parts, torch.arange(1.0, 6.0)).tolist() == [-1, 2, -3, 40, 5]
    assert through_kinds(kinds[:0], parts, torch.zeros(0, 2)).shape == (0, 2)


def test_a_part_that_no_row_has_is_not_run() -> None:
    def fail(x: Tensor) -> Tensor:
        raise AssertionError("an absent part was run")

    for kinds in ([0, 0], [0, 2]):
        through_kinds(torch.tensor(kinds), [torch.neg, fail, torch.neg], torch.ones(2))


def test_compiled_code_gives_the_same() -> None:
    kinds, x = torch.tensor([2, 0, 2, 1]), torch.randn(4, 3)
    parts = [torch.neg, torch.square, lambda x: x + 1]
    compiled = torch.compile(lambda kinds, x: through_kinds(kinds, parts, x), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(kinds, x), through_kinds(kinds, parts, x))


def test_a_kind_knows_its_own_ids() -> None:
    kind = Kind("codes", 320, 10)
    ids = torch.tensor([320, 329, 330, 0, 256, 319])
    assert kind.own(ids).tolist() == [0, 9, 10, 10, 10, 73]  # what is foreign counts as PAD
    everywhere = kind.ids(ids.device)
    assert len(everywhere) == kind.rows == 74
    assert torch.equal(kind.own(everywhere), torch.arange(74))
    assert torch.equal(Kind("bytes").own(torch.arange(320)), torch.arange(320))


# -- modalities --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["specific", "universal"])
@pytest.mark.parametrize("heads", ["shared", "by_modality"])
def test_an_absent_modality_gets_no_gradient(kind: str, heads: str) -> None:
    model = configs.build(modal(kind, heads=heads, positions=8))
    ids = document(TEXT, list(range(20)))
    model.loss(ids).nats.backward()
    names = [kind.name for kind in model.config.kinds]
    for name, parameter in model.named_parameters():
        of_one = any(part in name for part in (".modality.", ".positions.", "heads.")) or (
            kind == "specific" and ".parts." in name
        )
        if of_one:
            index = int(name.split("vectors.")[-1] if "vectors." in name else name.split("s.")[-1].split(".")[0])
            index = int(name.split(".parts.")[1].split(".")[0]) if ".parts." in name else index
            present = names[index] in ("none", "text")
            assert (parameter.grad is not None) == present, name


@pytest.mark.parametrize("kind", ["specific", "universal"])
def test_the_mark_decides_what_the_same_bytes_are(kind: str) -> None:
    model = configs.build(modal(kind))
    data = list(range(12))
    with torch.no_grad():
        text, image = (model(document(mark, data))[:, 8:] for mark in (TEXT, IMAGE))
        assert (text - image).abs().max() > 1e-2
        # By the tags alone: a window that begins inside the data has no mark in it.
        ids = torch.tensor([data])
        a, b = (model(ids, mark=torch.tensor([mark]), since=torch.tensor([0])) for mark in (TEXT, IMAGE))
        assert (a - b).abs().max() > 1e-2


def test_switching_the_vector_of_a_modality_moves_its_bytes_only() -> None:
    model = configs.build(modal("universal"))
    text, image = document(TEXT, list(range(12))), document(IMAGE, list(range(12)))
    with torch.no_grad():
        before = model(text), model(image)
        for embedder in model.embedders:
            embedder.modality.vectors[2] += 1.0
        after = model(text), model(image)
    torch.testing.assert_close(after[0], before[0])
    assert (after[1] - before[1]).abs().max() > 1e-2
    torch.testing.assert_close(after[1][:, :3], before[1][:, :3])  # nothing after the mark was read yet


def test_a_window_inside_a_document_reads_as_it_reads_in_the_document() -> None:
    """One stage with a window of one position: what a position sees is its own tags."""
    stage = dataclasses.replace(TWO.stages[1], window=1)
    config = dataclasses.replace(modal("specific", positions=7, heads="by_modality"), stages=(stage,))
    model = configs.build(config)
    ids = document(IMAGE, list(range(20)), patch_size=1)
    with torch.no_grad():
        whole = model(ids)[:, 9:]
        part = model(ids[:, 8:], mark=torch.tensor([IMAGE]), since=torch.tensor([6]))[:, 1:]
        other = model(ids[:, 8:], mark=torch.tensor([IMAGE]), since=torch.tensor([5]))[:, 1:]
    torch.testing.assert_close(part, whole)
    assert not torch.allclose(other, whole)


def test_positions_tell_a_place_in_the_segment() -> None:
    with_places, without = (configs.build(modal("universal", positions=rows)) for rows in (16, 0))
    same = document(IMAGE, [7] * 24)
    with torch.no_grad():
        vectors = [m.embed(0, m.tag(same))[0, 1:] for m in (with_places, without)]
    # Rows repeat after 16 bytes, 4 patches.
    assert torch.equal(vectors[0][0], vectors[0][4]) and not torch.allclose(vectors[0][0], vectors[0][1])
    assert torch.equal(vectors[1][0], vectors[1][1])


def test_a_head_gives_its_own_ids_and_the_reserved_ones_alone() -> None:
    model = configs.build(modal("specific", heads="by_modality"))
    ids = document(CODES, [320, 321, 329, 322, 323])
    logits = model(ids)[0]
    finite = logits.isfinite()
    assert finite[0, :320].all() and not finite[0, 320:].any()  # before any mark
    assert not finite[4:, :256].any() and finite[4:, 256:330].all()
    nats = model.nats(ids)[0]
    expected = -logits.log_softmax(-1)[torch.arange(ids.shape[1]), ids[0]]
    torch.testing.assert_close(nats, expected)


def test_tokens_count_as_data_and_each_modality_has_its_sum() -> None:
    model = configs.build(modal("specific", heads="by_modality"))
    ids = torch.cat((document(CODES, [320, 321, 322, TEXT]), torch.tensor([[1, 2, 3, 258]])), dim=1)
    loss = model.loss(ids)
    by = loss.by_modality
    assert {mark: int(part.bytes) for mark, part in by.items()} == {256: 0, CODES: 3, TEXT: 3}
    assert int(loss.bytes) == 6
    torch.testing.assert_close(sum(part.nats for part in by.values()), loss.nats)


@pytest.mark.parametrize("kind", ["specific", "universal"])
def test_a_state_that_begins_inside_a_document_goes_on_like_forward(kind: str) -> None:
    model = configs.build(modal(kind, heads="by_modality", positions=8))
    ids = torch.randint(0, 256, (2, 14))
    mark, since = torch.tensor([TEXT, IMAGE]), torch.tensor([8, 4])
    with torch.no_grad():
        whole = model(ids, mark=mark, since=since)
        state = model.start(2, 16, mark=mark, since=since)
        torch.testing.assert_close(state.logits, whole[:, 0], atol=1e-5, rtol=1e-5)
        logits = model.prefill(ids, [5, 9], state)
        torch.testing.assert_close(logits, whole[[0, 1], [5, 9]], atol=1e-5, rtol=1e-5)
        for t in range(3):
            logits = model.step(ids[[0, 1], [5 + t, 9 + t]], state)
            torch.testing.assert_close(logits, whole[[0, 1], [6 + t, 10 + t]], atol=1e-5, rtol=1e-5)


# -- fusion ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fuse", ["sum", "attention"])
def test_a_missing_stream_is_a_trained_vector_and_its_embedder_gets_no_gradient(fuse: str) -> None:
    model = configs.build(fused(fuse=fuse))
    ids = torch.randint(0, 256, (2, 16))
    ids.view(2, 4, 4)[:, :, 3] = 256  # sound is missing
    model.loss(ids).nats.backward()
    embedder = model.embedders[0]
    assert embedder.absent[2].grad.abs().max() > 0
    assert embedder.parts[2].table.weight.grad is None
    assert embedder.absent[1].grad is None and embedder.parts[1].table.weight.grad is not None


def test_only_predicted_streams_are_counted() -> None:
    model = configs.build(fused())
    ids = torch.randint(0, 256, (2, 16))
    loss = model.loss(ids)
    assert int(loss.count) == int(loss.bytes) == 2 * 4 * 2
    assert set(loss.by_modality) == {260}  # the row of stream 1: 259 + 1
    nats = model.nats(ids).view(2, 4, 4)
    torch.testing.assert_close(loss.nats, nats[:, :, 1:3].sum())
    assert model.counted_places(6, ids.device).tolist() == [False, True, True, False, False, True]
    assert Multiscale(TWO).counted_places(6, ids.device) is None


def test_given_reaches_the_patch_that_is_predicted_and_past_does_not() -> None:
    model = configs.build(fused())
    ids = torch.randint(0, 256, (1, 16))
    with torch.no_grad():
        before = model(ids).view(1, 4, 4, -1)
        for place, first in ((0, 1), (3, 2)):  # a byte of grey and one of sound, both in patch 1
            other = ids.clone()
            other[0, 4 + place] ^= 1
            after = model(other).view(1, 4, 4, -1)
            predicted = (after - before)[..., :256].abs().amax(-1)[0, :, 1:3]
            assert not predicted[:first].any() and (predicted[first] > 1e-5).all()


def test_streams_are_left_out_in_training_only() -> None:
    model = configs.build(fused(stream_dropout=0.9))
    ids = torch.randint(0, 256, (8, 16))
    ids[:, 0] = 257
    dropped = model.drop_streams(ids).view(8, 4, 4)
    left = dropped == 256
    assert not left[:, :, 1:3].any()  # the first predicted stream stays
    assert left[:, 1:, 0].any() and left[:, :, 3].any() and not left[:, 0, 0].any()  # structure stays
    for row in left[:, :, 3].tolist():
        assert len(set(row)) == 1  # a stream of a row is left out whole
    model.eval()
    torch.testing.assert_close(model.loss(ids).nats, model.loss(ids).nats)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"bottleneck": 0}, "bottleneck"),
        ({"dropout": 1.0}, "dropout"),
        ({"positions": -1}, "positions"),
        ({"positions": 8}, "positions"),
        ({"kind": "fusion"}, "streams"),
        ({"streams": STREAMS}, "streams"),
        ({"kind": "fusion", "streams": STREAMS[::-1]}, "order"),
        ({"kind": "fusion", "streams": STREAMS[:1]}, "none that is predicted"),
        ({"kind": "fusion", "streams": (STREAMS[1], STREAMS[1])}, "same name"),
        ({"stream_dropout": 0.5}, "stream_dropout"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        EmbedderConfig(**options)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"embedder": EmbedderConfig(kind="universal")}, "modalities is empty"),
        ({"heads": "by_modality"}, "heads"),
        ({"modalities": configs.MODALITIES, "vocab_size": 320}, "vocab_size"),
        ({"modalities": configs.MODALITIES[:1] * 2}, "same name"),
        ({"modalities": configs.MODALITIES[:1], "embedder": EmbedderConfig(kind="specific")}, "tied_head"),
        ({"embedder": EmbedderConfig(kind="fusion", streams=STREAMS), "modalities": configs.MODALITIES[:1]}, "exclude"),
        ({"embedder": EmbedderConfig(kind="fusion", streams=STREAMS[1:]), "tied_head": False}, "3 bytes a patch"),
        ({"embedder": EmbedderConfig(kind="fusion", streams=STREAMS)}, "tied_head"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(TWO, **fields)
    with pytest.raises(ValueError, match="mark"):
        ModalityConfig(name="smell", mark=400)
    with pytest.raises(ValueError, match="bytes"):
        ModalityConfig(name="smell", mark=300, first_id=250)
    with pytest.raises(ValueError, match="size"):
        StreamConfig(name="smell", size=0)


def test_an_embedder_without_tags_says_so() -> None:
    with pytest.raises(ValueError, match="kind of each position"):
        configs.build(modal("universal")).embedders[0](random_ids(1, 8))
