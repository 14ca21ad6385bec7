"""Parity with megabyte-pytorch and with transformers' Llama; seeds are drawn anew each run and printed."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from MEGABYTE_pytorch import MEGABYTE
from test_multiscale import TWO, random_ids
from transformers import LlamaConfig, LlamaForCausalLM

from byteloom.interop import (
    export_llama,
    from_megabyte_pytorch,
    import_llama,
    import_megabyte_pytorch,
    megabyte_pytorch_config,
    read_options,
)
from byteloom.layers.continuous import InputConfig
from byteloom.layers.modalities import EmbedderConfig
from byteloom.layers.prediction import PredictorConfig
from byteloom.models.config import ModalityConfig, ModelConfig, StageConfig
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import CheckpointError, load, save

OPTIONS = {"num_tokens": 259, "dim": (32, 16), "depth": (2, 2), "max_seq_len": (6, 4), "dim_head": 8, "heads": 2}


def fresh_seed() -> int:
    seed = torch.seed() % 2**31
    print("seed", seed)
    torch.manual_seed(seed)
    return seed


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found / scale, expected / scale, atol=1e-5, rtol=0)


def original(options: dict[str, object]) -> MEGABYTE:
    model = MEGABYTE(**options).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "start_tokens" not in name:  # gains and biases that hide nothing
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


SHAPES = {
    1: {"dim": (16,), "depth": (2,), "max_seq_len": (24,)},
    2: {"dim": (32, 16), "depth": (2, 1), "max_seq_len": (6, 4)},
    3: {"dim": (32, 24, 16), "depth": (1, 2, 1), "max_seq_len": (4, 3, 2)},
}


@pytest.mark.parametrize("num_stages", [2, 3])
@pytest.mark.parametrize(("rel_pos", "pos_emb"), list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("flash_attn", [False, True])
def test_logits_of_megabyte_pytorch_at_every_length(
    num_stages: int, rel_pos: bool, pos_emb: bool, flash_attn: bool
) -> None:
    fresh_seed()
    options = {**OPTIONS, **SHAPES[num_stages], "rel_pos": rel_pos, "pos_emb": pos_emb, "flash_attn": flash_attn}
    theirs = original(options)
    ours = from_megabyte_pytorch(theirs.state_dict(), options, "test")
    whole = torch.randint(0, 256, (2, 24))
    with torch.no_grad():
        for length in range(1, 25):
            ids = whole[:, :length]
            expected = theirs(ids)
            found = ours(torch.cat((ids, ids[:, :1]), 1))
            close(found[:, 1:], expected)
        shaped = whole.view(2, *SHAPES[num_stages]["max_seq_len"])
        close(ours(torch.cat((whole, whole[:, :1]), 1))[:, 1:], theirs(shaped).flatten(1, -2))


@settings(max_examples=15)
@given(
    num_stages=st.integers(2, 3),
    dims=st.tuples(*[st.sampled_from([16, 24, 32])] * 3),
    depth=st.tuples(*[st.integers(1, 2)] * 3),
    patch_sizes=st.tuples(*[st.integers(1, 5)] * 2),
    heads=st.sampled_from([1, 3]),
    ff_mult=st.sampled_from([1, 4]),
    rel_pos=st.booleans(),
    pos_emb=st.booleans(),
    length=st.integers(1, 20),
)
def test_any_checkpoint_of_megabyte_pytorch(
    num_stages: int,
    dims: tuple[int, ...],
    depth: tuple[int, ...],
    patch_sizes: tuple[int, ...],
    heads: int,
    ff_mult: int,
    rel_pos: bool,
    pos_emb: bool,
    length: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    fresh_seed()
    options = {
        "num_tokens": 300,
        "dim": dims[:num_stages],
        "depth": depth[:num_stages],
        "max_seq_len": (20, *patch_sizes[: num_stages - 1]),
        "dim_head": 8,
        "heads": heads,
        "ff_mult": ff_mult,
        "rel_pos": rel_pos,
        "pos_emb": pos_emb,
    }
    theirs = original(options)
    path = tmp_path_factory.mktemp("megabyte") / "model.pt"
    torch.save(theirs.state_dict(), path)
    ours = import_megabyte_pytorch(path, json.loads(json.dumps(options)))
    ids = torch.randint(1, 256, (2, length))
    with torch.no_grad():
        close(ours(torch.cat((ids, ids[:, :1]), 1))[:, 1:], theirs(ids))
        state = ours.start(2, length)
        state_logits = ours.prefill(ids, [length - 1, length], state).clone()
        close(state_logits[1], theirs(ids)[1, -1])
        stepped = ours.step(torch.stack((ids[0, -1], ids[1, 0])), ours_state(ours, ids, length))
        close(stepped[0], theirs(ids)[0, -1])


def ours_state(model: Multiscale, ids: torch.Tensor, length: int):
    state = model.start(2, length + 1)
    model.prefill(ids, [length - 1, length - 1], state)
    return state


@pytest.mark.parametrize("num_stages", [2, 3])
def test_the_loss_of_megabyte_pytorch(num_stages: int) -> None:
    fresh_seed()
    options = {**OPTIONS, **SHAPES[num_stages], "pos_emb": True}
    theirs = original(options)
    ours = from_megabyte_pytorch(theirs.state_dict(), options, "test")
    ids = torch.randint(1, 256, (3, 24))  # no 0: it is their pad, which their loss leaves out
    loss = ours.loss(ids)
    close(loss.nats / loss.count, theirs(ids, return_loss=True))


def test_an_imported_model_is_kept_and_goes_on(tmp_path: Path) -> None:
    theirs = original(OPTIONS)
    ours = from_megabyte_pytorch(theirs.state_dict(), OPTIONS, "test")
    save(ours, tmp_path)
    ids = random_ids(2, 20, vocab_size=256)
    assert torch.equal(load(tmp_path)(ids), ours(ids))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "colour is not an option"),
        ({"dim": None}, "dim is None"),
        ({"depth": (1, 2, 3)}, "one value a stage"),
        ({"depth": "deep"}, "depth is 'deep'"),
        ({"heads": 0}, "heads is 0"),
        ({"heads": None}, "heads is None"),
        ({"num_tokens": "many"}, "num_tokens is 'many'"),
        ({"ff_mult": 0.5}, r"ff_mult is 0\.5"),
        ({"rel_pos": 2}, "rel_pos is 2"),
    ],
)
def test_bad_options_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        megabyte_pytorch_config({**OPTIONS, **change})
    with pytest.raises(ValueError, match="max_seq_len is missing"):
        megabyte_pytorch_config({name: value for name, value in OPTIONS.items() if name != "max_seq_len"})


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this must never run",))


def test_foreign_and_hostile_checkpoints_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = original(OPTIONS).state_dict()
    path = tmp_path / "model.pt"

    def refusal(content: object) -> str:
        torch.save(content, path)
        with pytest.raises(CheckpointError) as caught:
            import_megabyte_pytorch(path, OPTIONS)
        assert "\n" not in str(caught.value) and "model.pt" in str(caught.value)
        return str(caught.value)

    assert "lacks token_embs.1.0.weight" in refusal({"something": torch.zeros(1)})
    assert "holds extra" in refusal({**weights, "extra": torch.zeros(1)})
    assert "should be shape" in refusal({**weights, "start_tokens.0": torch.zeros(5)})
    assert "no state_dict" in refusal([1, 2])
    assert "more than tensors" in refusal({**weights, "bomb": Hostile()})
    assert "never run" not in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        import_megabyte_pytorch(path, OPTIONS)
    with pytest.raises(CheckpointError, match="cannot be read"):
        import_megabyte_pytorch(tmp_path / "gone.pt", OPTIONS)
    torch.save({"model": weights, "epoch": 3}, path)
    import_megabyte_pytorch(path, OPTIONS)


def test_options_come_as_json_or_file(tmp_path: Path) -> None:
    (tmp_path / "o.json").write_text('{"dim": 4}')
    assert read_options('{"dim": 4}') == read_options(str(tmp_path / "o.json")) == {"dim": 4}
    for text, message in (("gone", "neither JSON nor"), ("{", "not JSON")):
        with pytest.raises(ValueError, match=message):
            read_options(text)


@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_llama_in_and_out(num_kv_heads: int, tied: bool, bias: bool, tmp_path: Path) -> None:
    seed = fresh_seed()
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=num_kv_heads,
        vocab_size=320,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=bias,
        bos_token_id=257,
        rms_norm_eps=1e-5,
    )
    theirs = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "llama")
    ours = import_llama(tmp_path / "llama")
    ids = random_ids(3, 20, seed, vocab_size=256)
    with_bos = torch.cat((torch.full((3, 1), 257), ids), 1)
    with torch.no_grad():
        expected = theirs(with_bos).logits[:, :-1]
        close(ours(ids), expected)
        state = ours.start(3, 64)
        close(ours.prefill(ids, [19, 5, 0], state)[0], expected[0, 19])
    export_llama(ours, tmp_path / "back")
    back = LlamaForCausalLM.from_pretrained(tmp_path / "back")
    assert back.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    assert back.config.bos_token_id == 257 and back.config.tie_word_embeddings == tied


@pytest.mark.parametrize("tied", [False, True])
def test_our_own_model_leaves_as_a_llama(tied: bool, tmp_path: Path) -> None:
    fresh_seed()
    stage = StageConfig(dim=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp="swiglu", qk_norm=False, zero_init=False)
    ours = Multiscale(ModelConfig(stages=(stage,), context=64, tied_head=tied)).eval()
    torch.nn.init.normal_(ours.starts[0])
    export_llama(ours, tmp_path / "llama")
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "llama").eval()
    ids = random_ids(2, 15, vocab_size=256)
    bos = torch.full((2, 1), theirs.config.bos_token_id)
    with torch.no_grad():
        close(theirs(torch.cat((bos, ids), 1)).logits[:, :-1], ours(ids))
        close(import_llama(tmp_path / "llama")(ids), ours(ids))


LIKE_LLAMA = StageConfig(dim=16, num_layers=2, num_heads=2, mlp="swiglu", qk_norm=False)
APART = (ModalityConfig(name="image", mark=261, predictor=PredictorConfig(guess="picture")),)


@pytest.mark.parametrize(
    ("stage", "model", "message"),
    [
        ({}, {"stages": TWO.stages}, "more than one stage"),
        ({"mlp": "relu2", "qk_norm": True}, {}, r"relu2.*qk_norm"),
        ({"offsets": (2,)}, {}, "offsets"),
        ({"ngrams": (2, 3)}, {}, "ngrams"),
        ({}, {"matches": (2,)}, "matches"),
        ({}, {"modalities": APART}, "predictor"),
        ({}, {"modalities": APART, "embedder": EmbedderConfig(kind="universal")}, 'embedder.kind is "universal"'),
        ({}, {"modalities": APART, "heads": "by_modality", "tied_head": False}, 'heads is "by_modality"'),
        ({}, {"inputs": (InputConfig(name="words", width=3),)}, "continuous inputs"),
    ],
)
def test_what_llama_cannot_do_is_said(
    stage: dict[str, object], model: dict[str, object], message: str, tmp_path: Path
) -> None:
    stages = (dataclasses.replace(LIKE_LLAMA, **stage),)
    config = ModelConfig(**{"stages": stages, "context": 32, **model})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        export_llama(Multiscale(config), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_no_tensor_is_left_out_without_a_word(tmp_path: Path) -> None:
    model = Multiscale(ModelConfig(stages=(LIKE_LLAMA,), context=32))
    model.something = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="it has something"):
        export_llama(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "scales its rotary"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"hidden_size": None}, "no complete Llama"),
        ({"bos_token_id": 9999}, "no complete Llama"),
        ({"num_hidden_layers": 1}, "which such a model has not"),
        ({"num_hidden_layers": 3}, "does not match"),
    ],
)
def test_foreign_llamas_are_named(change: dict[str, object], message: str, tmp_path: Path) -> None:
    export_llama(Multiscale(ModelConfig(stages=(LIKE_LLAMA,), context=32)), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=message):
        import_llama(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="lists no files"):
        import_llama(tmp_path)


@pytest.mark.benchmark
@pytest.mark.parametrize("num_stages", [2, 3])
@pytest.mark.parametrize(("rotary", "learned"), list(itertools.product([False, True], repeat=2)))
def test_logits_of_mblm(num_stages: int, rotary: bool, learned: bool) -> None:
    """mblm 0.4.2, whose Transformer stages are a fork of megabyte-pytorch; needs `pip install mblm==0.4.2`."""
    from mblm import MBLM, MBLMModelConfig, MBLMReturnType, TransformerBlock

    fresh_seed()
    shape = SHAPES[num_stages]
    block = TransformerBlock(
        attn_head_dims=8,
        attn_num_heads=2,
        attn_use_rot_embs=rotary,
        ff_multiplier=4,
        pos_emb_type="fixed" if learned else None,
    )
    theirs = MBLM(
        MBLMModelConfig(
            num_tokens=259,
            pad_token_id=256,
            hidden_dims=list(shape["dim"]),
            num_layers=list(shape["depth"]),
            seq_lens=list(shape["max_seq_len"]),
            train_checkpoint_chunks=None,
            block=block,
        )
    ).eval()
    renamed = {}
    for name, tensor in theirs.state_dict().items():
        for old, new in (
            ("token_embs_rev.0.embedding.", "token_embs.0."),
            ("token_embs_rev.", "token_embs."),
            (".embedding.", ".0."),
            *((f"._post.{place}.", f".{place + 1}.") for place in (1, 2, 3)),
            ("stage_models.", "transformers."),
            ("to_next_stage_proj.", "to_next_transformer_projections."),
        ):
            name = name.replace(old, new)
        renamed[name] = tensor
    options = {**OPTIONS, **shape, "rel_pos": rotary, "pos_emb": learned}
    ours = from_megabyte_pytorch(renamed, options, "mblm")
    whole = torch.randint(0, 256, (2, 24))
    with torch.no_grad():
        for length in range(1, 25):
            ids = whole[:, :length]
            expected = theirs(ids, return_type=MBLMReturnType.LOGITS)
            close(ours(torch.cat((ids, ids[:, :1]), 1))[:, 1:], expected[:, :length])
