"""The model for transformers against the native one: logits, masks, labels, generation, saving, what is refused."""

import dataclasses
from pathlib import Path

import configs
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from test_hf_cache import close
from test_hf_layout import FUSED
from test_multiscale import BY_STAGES, TWO
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from byteloom import generate, load, save
from byteloom.codecs import MARKS
from byteloom.documents import BOS, EOS, PAD
from byteloom.hf.cache import ByteloomCache
from byteloom.hf.configuration import ByteloomConfig
from byteloom.hf.modeling import ByteloomForCausalLM
from byteloom.layers.modalities import EmbedderConfig
from byteloom.models.config import ModelConfig
from byteloom.models.multiscale import Multiscale
from byteloom.models.store import CheckpointError
from byteloom.sampling import SamplingConfig

TEXT = MARKS["text"]
LONG = {n: dataclasses.replace(config, context=128) for n, config in BY_STAGES.items()}
PROMPTS = [b"a", b"some longer prompt", b"", b"xyz\xff"]


def wrapped(num_stages: int = 2) -> ByteloomForCausalLM:
    return ByteloomForCausalLM.from_native(configs.build(LONG[num_stages]))


def left_padded(prompts: list[bytes]) -> dict[str, torch.Tensor]:
    rows = [[BOS, TEXT, *prompt] for prompt in prompts]
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def written(output: torch.Tensor, start: int) -> list[bytes]:
    return [bytes(value for value in row[start:].tolist() if value < 256) for row in output]


@given(configs.models(), st.data())
def test_logits_are_those_of_the_native_model(config: ModelConfig, data: st.DataObject) -> None:
    assume(not config.embedder.streams)
    native = configs.build(config)
    model = ByteloomForCausalLM.from_native(native)
    text = data.draw(st.lists(st.integers(0, 255), min_size=1, max_size=8))
    span = config.span(0)
    start = -(-2 // span) * span
    laid = torch.tensor([[BOS, TEXT, *[PAD] * (start - 2), *text, 0]])
    with torch.no_grad():
        try:
            wanted = native(laid)[0, [1, *range(start, start + len(text) + 1)]]
        except ValueError:
            assume(False)
        found = model(torch.tensor([[BOS, TEXT, *text]])).logits[0]
    assert torch.equal(found[1:], wanted[1:]) or close(found[1:], wanted[1:])
    assert close(found[:1], wanted[:1])


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_a_row_is_what_it_is_alone_however_it_is_padded(num_stages: int) -> None:
    model = wrapped(num_stages)
    batch = left_padded(PROMPTS)
    longest = batch["input_ids"].shape[1]
    with torch.no_grad():
        left = model(**batch).logits
        for i, prompt in enumerate(PROMPTS):
            row = torch.tensor([[BOS, TEXT, *prompt]])
            alone = model(row).logits[0]
            assert close(left[i, longest - row.shape[1] :], alone)
            right = torch.cat((row, torch.tensor([[7, 8, 9]])), dim=1)
            mask = torch.tensor([[1] * row.shape[1] + [0] * 3])
            assert close(model(right, attention_mask=mask).logits[0, : row.shape[1]], alone)
            inside = torch.cat((row[:, :2], torch.tensor([[7]]), row[:, 2:]), dim=1)
            mask = torch.tensor([[1, 1, 0, *[1] * len(prompt)]])
            assert close(model(inside, attention_mask=mask).logits[0, [0, 1, *range(3, 3 + len(prompt))]], alone)
        kept = model(**batch, logits_to_keep=2).logits
        assert torch.equal(kept, left[:, -2:])
        assert torch.equal(model(**batch, logits_to_keep=torch.tensor([0, 3])).logits, left[:, [0, 3]])


def test_labels_are_shifted_inside_and_padding_is_not_learned() -> None:
    model = wrapped()
    batch = left_padded(PROMPTS)
    output = model(**batch, labels=batch["input_ids"])
    nats = torch.nn.functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten(), reduction="none"
    )
    counted = (batch["input_ids"][:, 1:] != PAD).flatten()
    assert output.loss.item() == pytest.approx(nats[counted].mean().item(), rel=1e-5)
    ignored = batch["input_ids"].clone()
    ignored[1] = -100
    other = model(**batch, labels=ignored).loss
    assert other != output.loss
    assert model(**batch, labels=ignored, num_items_in_batch=7).loss.item() == pytest.approx(
        other.item() * int(((ignored[:, 1:] != -100) & (ignored[:, 1:] != PAD)).sum()) / 7, rel=1e-5
    )
    output.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    as_tuple = model(**batch, labels=batch["input_ids"], return_dict=False)
    assert torch.equal(as_tuple[0], output.loss) and torch.equal(as_tuple[1], output.logits)


def test_hidden_states_lead_to_the_logits() -> None:
    model = wrapped(3)
    batch = left_padded(PROMPTS)
    output = model(**batch, output_hidden_states=True)
    finest = model.config.model_config.stages[-1]
    assert len(output.hidden_states) == finest.num_layers + 1
    assert all(h.shape == (*batch["input_ids"].shape, finest.dim) for h in output.hidden_states)
    assert torch.equal(model.model.logits(output.hidden_states[-1]), output.logits)
    assert [h.shape[-1] for h in output.coarse_hidden_states] == [s.dim for s in LONG[3].stages[:-1]]
    assert model(**batch).hidden_states is None


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model, batch = wrapped(3).train(), left_padded(PROMPTS)
    plain = torch.autograd.grad(model(**batch, labels=batch["input_ids"]).loss, list(model.parameters()))
    model.activation_checkpointing_enable()
    model.activation_checkpointing_enable()
    assert model.is_gradient_checkpointing
    again = torch.autograd.grad(model(**batch, labels=batch["input_ids"]).loss, list(model.parameters()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, again, strict=True))
    model.activation_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    assert close(model.eval()(**batch).logits, model(**batch, logits_to_keep=0).logits)


def test_modality_ids_say_what_came_before() -> None:
    config = dataclasses.replace(
        TWO, modalities=configs.MODALITIES, vocab_size=330, embedder=EmbedderConfig(kind="universal")
    )
    native = configs.build(config)
    model = ByteloomForCausalLM.from_native(native)
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]])
    marks = torch.tensor([260, 261, 0])
    with torch.no_grad():
        found = model(ids, modality_ids=marks).logits
        wanted = native(torch.nn.functional.pad(ids, (0, 1)), mark=torch.tensor([260, 261, PAD]))[:, 1:]
        assert close(found, wanted)
        assert not close(found[:1], found[1:2])
        assert torch.equal(model(ids, modality_ids=marks[:, None].expand(3, 4)).logits, found)
        cache = ByteloomCache()
        model(ids[:, :2], modality_ids=marks, past_key_values=cache)
        assert close(model(ids[:, 2:], past_key_values=cache).logits, found[:, 2:])
    greedy = model.generate(ids, modality_ids=marks, max_new_tokens=6)
    assert torch.equal(greedy, model.generate(ids, modality_ids=marks, max_new_tokens=6, use_cache=False))
    for options in ({}, {"use_cache": False}, {"prefill_chunk_size": 3}):
        one_an_id = marks[:, None].expand(3, 4)
        assert torch.equal(greedy, model.generate(ids, modality_ids=one_an_id, max_new_tokens=6, **options))
    with pytest.raises(ValueError, match="say otherwise than the MARKs"):
        model(torch.tensor([[BOS, 260, 1]]), modality_ids=torch.tensor([[0, 0, 261]]))
    with pytest.raises(ValueError, match="one a row or one an id"):
        model(ids, modality_ids=torch.tensor([1]))


# -- generation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_greedy_is_what_byteloom_writes_row_by_row(num_stages: int) -> None:
    model = wrapped(num_stages)
    batch = left_padded(PROMPTS)
    start = batch["input_ids"].shape[1]
    native = [generate(model.model, prompt, max_bytes=25, sampling=SamplingConfig(temperature=0)) for prompt in PROMPTS]
    assert written(model.generate(**batch, max_new_tokens=25), start) == native
    assert written(model.generate(**batch, max_new_tokens=25, cache_implementation="dynamic"), start) == native
    for prompt, wanted in zip(PROMPTS, native, strict=True):
        ids = left_padded([prompt])["input_ids"]
        assert written(model.generate(ids, max_new_tokens=25), ids.shape[1]) == [wanted]


@pytest.mark.parametrize(
    "how",
    [
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5, "early_stopping": True},
        {"num_beams": 2, "do_sample": True},
        {"do_sample": True, "num_return_sequences": 3, "temperature": 0.8, "top_k": 30, "top_p": 0.9},
        {"do_sample": True, "min_p": 0.01, "typical_p": 0.9, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
        {
            "do_sample": True,
            "epsilon_cutoff": 1e-4,
            "eta_cutoff": 1e-4,
            "min_new_tokens": 5,
            "renormalize_logits": True,
        },
        {"bad_words_ids": [[65], [66, 67]], "forced_eos_token_id": EOS, "begin_suppress_tokens": [1, 2]},
        {"suppress_tokens": None},
    ],
    ids=str,
)
def test_the_cache_changes_nothing(how: dict) -> None:
    model, batch = wrapped(), left_padded(PROMPTS[:3])
    found = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        found.append(
            model.generate(
                **batch, **how, max_new_tokens=12, use_cache=use_cache, return_dict_in_generate=True, output_scores=True
            )
        )
    assert torch.equal(found[0].sequences, found[1].sequences)
    assert len(found[0].scores) == len(found[1].scores) > 0
    assert all(close(a, b) for a, b in zip(found[0].scores, found[1].scores, strict=True))
    if how.get("num_beams"):
        assert torch.allclose(found[0].sequences_scores, found[1].sequences_scores, atol=1e-4)


def test_speculation_changes_nothing() -> None:
    model, other = wrapped(), wrapped(1)
    ids = left_padded([b"abcabcabcabc"])["input_ids"]
    plain = model.generate(ids, max_new_tokens=30)
    assert torch.equal(model.generate(ids, max_new_tokens=30, prompt_lookup_num_tokens=4), plain)
    assert torch.equal(model.generate(ids, max_new_tokens=30, assistant_model=other), plain)
    assert torch.equal(model.generate(ids, max_new_tokens=30, assistant_model=wrapped(2)), plain)


def test_scores_and_logits_come_back() -> None:
    model = wrapped()
    ids = left_padded([b"abc"])["input_ids"]
    output = model.generate(
        ids,
        max_new_tokens=6,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        suppress_tokens=None,
    )
    count = output.sequences.shape[1] - ids.shape[1]
    assert len(output.scores) == len(output.logits) == count
    with torch.no_grad():
        forward = model(output.sequences).logits[0, ids.shape[1] - 1 : -1]
    assert close(torch.cat(list(output.logits)), forward)
    assert isinstance(output.past_key_values, ByteloomCache)
    transitions = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
    assert torch.allclose(
        transitions[0],
        forward.log_softmax(-1).gather(1, output.sequences[0, ids.shape[1] :, None]).squeeze(1),
        atol=1e-3,
    )


def test_a_conversation_goes_on_from_its_cache() -> None:
    model = wrapped()
    first = model.generate(left_padded([b"abc"])["input_ids"], max_new_tokens=5, return_dict_in_generate=True)
    longer = torch.cat((first.sequences, torch.tensor([[65, 66]])), dim=1)
    again = model.generate(longer, max_new_tokens=5, past_key_values=first.past_key_values)
    assert torch.equal(again, model.generate(longer, max_new_tokens=5))
    chunked = model.generate(longer, max_new_tokens=5, prefill_chunk_size=3)
    assert torch.equal(again, chunked)


def test_criteria_processors_and_configs_of_the_user_are_heard() -> None:
    class After(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: object, **options: object) -> torch.Tensor:
            return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 9)

    class OnlyA(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return torch.full_like(scores, -1e9).index_fill(1, torch.tensor([65]), 0.0)

    model = wrapped()
    ids = left_padded([b"abc"])["input_ids"]
    found = model.generate(
        ids,
        generation_config=GenerationConfig(max_new_tokens=50, pad_token_id=PAD),
        stopping_criteria=StoppingCriteriaList([After()]),
        logits_processor=LogitsProcessorList([OnlyA()]),
    )
    assert found[0].tolist() == [BOS, TEXT, *b"abc", *b"AAAA"]
    assert model.generate(max_new_tokens=3).shape[0] == 1  # BOS alone


def test_bytes_alone_are_generated_too() -> None:
    config = dataclasses.replace(LONG[2], vocab_size=256)
    model = ByteloomForCausalLM.from_native(configs.build(config))
    ids = torch.tensor([[PAD, PAD, 1], [1, 2, 3]])
    found = model.generate(ids, attention_mask=(ids != PAD).long(), max_new_tokens=6)
    native = generate(model.model, [b"\x01", b"\x01\x02\x03"], max_bytes=6, sampling=SamplingConfig(temperature=0))
    assert written(found, 3) == native
    assert model.generation_config.eos_token_id is None


# -- saving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["5GB", "20KB"])
def test_saved_and_loaded_it_is_the_same_here_and_there(tmp_path: Path, size: str) -> None:
    model = wrapped()
    ids = left_padded([b"abc"])["input_ids"]
    with torch.no_grad():
        wanted = model(ids).logits
        model.save_pretrained(tmp_path, max_shard_size=size)
        assert (tmp_path / "model.safetensors.index.json").exists() == (size == "20KB")
        back = ByteloomForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(back(ids).logits, wanted)
        assert torch.equal(ByteloomForCausalLM.from_native(load(tmp_path))(ids).logits, wanted)
    assert back.generation_config.eos_token_id == EOS and back.generation_config.suppress_tokens[:2] == [PAD, BOS]
    assert not back.training


def test_a_native_folder_opens_in_any_type_and_place(tmp_path: Path) -> None:
    model = wrapped()
    save(model.model, tmp_path)
    ids = left_padded([b"abc"])["input_ids"]
    back = ByteloomForCausalLM.from_pretrained(
        tmp_path, dtype=torch.bfloat16, device_map="auto", low_cpu_mem_usage=True
    )
    assert back.dtype == torch.bfloat16
    assert (back(ids).logits.float() - model(ids).logits).abs().max() < 0.5
    assert torch.equal(
        ByteloomForCausalLM.from_pretrained(tmp_path, device_map="cpu").generate(ids, max_new_tokens=9),
        model.generate(ids, max_new_tokens=9),
    )
    with torch.device("meta"):
        meta = ByteloomForCausalLM(ByteloomConfig.from_pretrained(tmp_path))
    assert all(p.is_meta for p in meta.parameters())
    assert meta.num_parameters() == model.num_parameters()


def test_a_model_from_a_config_has_weights_like_a_native_one() -> None:
    torch.manual_seed(3)
    made = ByteloomForCausalLM(ByteloomConfig.from_model_config(TWO))
    torch.manual_seed(3)
    native = Multiscale(TWO)
    assert all(torch.equal(made.model.state_dict()[name], value) for name, value in native.state_dict().items())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_layers": 3}, r"missing_keys: model\.stacks"),
        ({"mlp_ratio": 2.0}, r"mismatched_keys: .*mlp\.down\.weight"),
    ],
)
def test_a_folder_whose_weights_are_not_its_configs_is_refused(
    change: dict[str, int], named: str, tmp_path: Path
) -> None:
    model = wrapped()
    model.save_pretrained(tmp_path)
    other = tuple(dataclasses.replace(stage, **change) for stage in LONG[2].stages)
    ByteloomConfig.from_model_config(dataclasses.replace(LONG[2], stages=other)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=rf"do not match its config\.json \({named}"):
        ByteloomForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"does not match its config\.json"):
        load(tmp_path)


# -- what is refused -------------------------------------------------------------------------------------------------


def test_what_makes_no_sense_is_said_in_one_line() -> None:
    model = wrapped()
    ids = left_padded([b"abc"])["input_ids"]
    for message, call in {
        "no inputs_embeds": lambda: model(inputs_embeds=torch.zeros(1, 2, 3)),
        "no attention weights": lambda: model(ids, output_attentions=True),
        "one number an id": lambda: model(ids, attention_mask=torch.ones(1, 1, 5, 5)),
        "needs use_cache=False": lambda: model(ids, output_hidden_states=True, use_cache=True),
        "keeps no gradients": lambda: model(ids, labels=ids, use_cache=True),
        "must be a ByteloomCache": lambda: model(ids, past_key_values=object()),
        "integers": lambda: model(ids.float()),
        "use dynamic or static": lambda: model.generate(ids, max_new_tokens=2, cache_implementation="quantized"),
        "side by side": lambda: ByteloomForCausalLM.from_native(configs.build(FUSED))(ids),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="no argument position_ids"):
        model(ids, position_ids=ids)
    with pytest.raises(NotImplementedError, match="ids of a byteloom model are fixed"):
        model.resize_token_embeddings(400)
    with pytest.raises(NotImplementedError, match="table of its own"):
        model.set_input_embeddings(torch.nn.Embedding(3, 3))
    for name in ("penalty_alpha", "dola_layers"):  # gone from transformers itself
        with pytest.raises(ValueError, match="trust_remote_code"):
            model.generate(ids, max_new_tokens=2, **{name: 0.6 if name == "penalty_alpha" else "low"})
