"""Tokenizers of transformers: tiny models with random weights, saved and loaded, codes in and codes out."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

from byteloom import codecs, tokenizers  # noqa: E402
from byteloom.documents import DataError, Segment  # noqa: E402
from byteloom.tokenizers import audio_tokenizer, image_tokenizer, text_segment, text_tokenizer  # noqa: E402
from byteloom.vocabularies import Block, Tokenizer, blocks  # noqa: E402

TEXT = "Ein Bär, naïve 漢字 🎈\n\tbrown  fox ; a fox , the fox . <|end|> do n't"


def block(tokenizer: Tokenizer) -> Block:
    """The vocabulary alone."""
    return blocks({"tokens": tokenizer})[0]


def codes_of(segment: Segment) -> list[int]:
    """A segment's ids as codes of the only vocabulary."""
    return (segment.data.astype(int) - 320).tolist()


# --- text -----------------------------------------------------------------------------------------------------------


def trained(kind: str) -> Any:
    """A tokenizer of the `tokenizers` library, trained on a little text, that would add ends, cut and fill up."""
    from tokenizers import Tokenizer as JsonTokenizer
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    if kind == "bpe":
        tokenizer = JsonTokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    else:  # as SentencePiece's
        tokenizer = JsonTokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
        trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<unk>", "<|end|>"], unk_token="<unk>")
    tokenizer.train_from_iterator([TEXT, "the brown fox, the brown bear"] * 20, trainer)
    end = ("<|end|>", tokenizer.token_to_id("<|end|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<|end|> $A <|end|>", special_tokens=[end])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    return tokenizer


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("form", ["file", "folder"])
def test_text_becomes_tokens_and_text_again(tmp_path: Path, kind: str, form: str) -> None:
    reference = trained(kind)
    place, size = tmp_path / form, reference.get_vocab_size()
    if form == "folder":
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=reference, eos_token="<|end|>")
        fast.save_pretrained(place)
        size = len(fast)  # with a token for padding
    else:
        reference.save(str(place))
    tokenizer = text_tokenizer(place)
    reference.no_truncation()
    reference.no_padding()
    tokens = block(tokenizer).encode(text_segment(TEXT))
    assert codes_of(tokens) == reference.encode(TEXT, add_special_tokens=False).ids
    assert tokens.header == b"" and tokenizer.sizes == (size,)
    assert block(tokenizer).decode(tokens) == text_segment(TEXT)
    (tmp_path / "a.txt").write_text(TEXT, "utf-8")
    assert block(tokenizer).encode(tmp_path / "a.txt") == tokens
    assert len(block(tokenizer).encode(text_segment("")).data) == 0
    assert block(tokenizer).decode(Segment(modality="tokens", data=np.zeros(0, np.uint16))) == text_segment("")


@settings(max_examples=25)
@given(codes=st.lists(st.integers(0, 400), max_size=12))
def test_any_tokens_are_text(codes: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "bpe.json"
    if not path.exists():
        trained("bpe").save(str(path))
    decoded = block(text_tokenizer(path)).decode(Segment(modality="tokens", data=np.array(codes, np.uint16) + 320))
    assert decoded.data.tobytes().decode("utf-8") is not None


def test_bytes_that_are_no_text_do_not_stop_a_tokenizer(tmp_path: Path) -> None:
    trained("bpe").save(str(tmp_path / "tokenizer.json"))
    tokenizer = text_tokenizer(tmp_path / "tokenizer.json")
    broken = Segment(modality="text", data=np.frombuffer(b"fox \xff fox", np.uint8))
    assert block(tokenizer).decode(block(tokenizer).encode(broken)) == text_segment("fox � fox")


def test_a_tokenizer_that_is_not_there_or_damaged_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing: is no folder; name one with a model in it, or hub:OWNER/NAME"):
        text_tokenizer(tmp_path / "missing")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(DataError, match=r"broken.json: cannot be loaded as a tokenizer \("):
        text_tokenizer(tmp_path / "broken.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: cannot be loaded as a tokenizer \("):
        text_tokenizer(tmp_path / "empty")


# --- sound ----------------------------------------------------------------------------------------------------------


def sound_model(kind: str, **options: Any) -> Any:
    """A tiny codec: 3 codebooks of 16, frames of 8 samples (16 with Mimi), 16 kHz."""
    torch.manual_seed(0)
    if kind == "encodec":
        fields = {
            "sampling_rate": 16000, "target_bandwidths": [8.0, 24.0], "upsampling_ratios": [4, 2], "hidden_size": 16,
            "num_filters": 4, "codebook_size": 16, "num_lstm_layers": 1,
        }  # fmt: skip
        return transformers.EncodecModel(transformers.EncodecConfig(**{**fields, **options}))
    if kind == "dac":
        fields = {
            "sampling_rate": 16000, "downsampling_ratios": [2, 4], "encoder_hidden_size": 8, "decoder_hidden_size": 16,
            "n_codebooks": 3, "codebook_size": 16, "codebook_dim": 4,
        }  # fmt: skip
        return transformers.DacModel(transformers.DacConfig(**{**fields, **options}))
    fields = {
        "sampling_rate": 16000, "upsampling_ratios": [4, 2], "hidden_size": 16, "num_filters": 4, "codebook_size": 16,
        "codebook_dim": 8, "vector_quantization_hidden_dimension": 8, "num_quantizers": 3, "upsample_groups": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16,
    }  # fmt: skip
    return transformers.MimiModel(transformers.MimiConfig(**{**fields, **options}))


KINDS = ["encodec", "dac", "mimi"]
FRAMES = {"encodec": 8, "dac": 8, "mimi": 16}


def saved_sound_model(kind: str, folder: Path, **options: Any) -> Any:
    """A tiny codec saved to a folder, its codebooks such that codes differ."""
    model = sound_model(kind, **options).eval()
    with torch.no_grad():
        if kind == "encodec":
            residual = model.encoder(torch.randn(1, model.config.audio_channels, 8 * 48))  # (1, D, 48)
            for i, layer in enumerate(model.quantizer.layers):
                layer.codebook.embed.copy_(residual[0, :, 16 * i : 16 * (i + 1)].T)
                residual = residual - layer.decode(layer.encode(residual))
        for name, tensor in model.named_buffers():
            if kind == "mimi" and "embed_sum" in name:
                tensor.normal_()
    model.save_pretrained(folder)
    return model


def wave(length: int, rate: int = 16000, channels: int = 1) -> Segment:
    """Noise over a tone."""
    time = np.arange(length)[:, None]
    samples = 8000 * np.sin(time / 9) + np.random.default_rng(0).normal(0, 2000, (length, channels))
    return codecs.by_modality("audio").from_array(samples.astype(np.int16), rate)


def reference_codes(kind: str, model: Any, sound: Segment) -> torch.Tensor:
    """What the model itself makes of a sound of whole frames: (codebooks, frames)."""
    samples = torch.from_numpy(codecs.by_modality("audio").to_array(sound)[:, 0] / np.float32(32768))[None, None]
    with torch.no_grad():
        if kind == "encodec":
            return model.encode(samples, bandwidth=24.0).audio_codes[0, 0]
        return model.encode(samples).audio_codes[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("codebooks", [None, 2])
def test_sound_becomes_frames_of_codes_and_sound_again(tmp_path: Path, kind: str, codebooks: int | None) -> None:
    model = saved_sound_model(kind, tmp_path)
    tokenizer = audio_tokenizer(tmp_path, codebooks)
    count, hop = codebooks or 3, FRAMES[kind]
    assert tokenizer.sizes == (16,) * count and block(tokenizer).frame == count
    sound = wave(12 * hop)
    tokens = block(tokenizer).encode(sound)
    expected = reference_codes(kind, model, sound)[:count]  # coarsest first
    assert len(expected.unique()) > 2
    assert codes_of(tokens) == (expected.T + 16 * torch.arange(count)).flatten().tolist()
    assert tokens.header == (16000).to_bytes(3, "big")
    decoded = block(tokenizer).decode(tokens)
    with torch.no_grad():
        inside = expected[None, None] if kind == "encodec" else expected[None]
        values = (model.decode(inside, [None]) if kind == "encodec" else model.decode(audio_codes=inside)).audio_values
    samples = codecs.by_modality("audio").to_array(decoded)
    assert samples.shape == (12 * hop, 1)
    assert np.abs(samples[:, 0] - (values.flatten().numpy() * 32768).clip(-32768, 32767)).max() <= 0.51
    assert codecs.by_modality("audio").decode(decoded)[:4] == b"RIFF"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [0, 1, 17])
def test_sounds_of_any_length_are_filled_up_to_frames(tmp_path: Path, kind: str, length: int) -> None:
    saved_sound_model(kind, tmp_path)
    vocabulary = block(audio_tokenizer(tmp_path))
    tokens = vocabulary.encode(wave(length))
    frames = -(-length // FRAMES[kind])
    assert len(tokens.data) == 3 * frames
    samples = codecs.by_modality("audio").to_array(vocabulary.decode(tokens))
    assert samples.shape == (frames * FRAMES[kind], 1)


def test_samples_of_any_width_are_taken(tmp_path: Path) -> None:
    saved_sound_model("dac", tmp_path)
    vocabulary, audio = block(audio_tokenizer(tmp_path)), codecs.by_modality("audio")
    sound = wave(80)
    tokens = vocabulary.encode(sound)
    for coding in ("pcm24", "float32"):
        wide = audio.from_array(audio.to_array(sound), 16000, audio.AudioConfig(coding=coding))
        assert wide != sound and vocabulary.encode(wide) == tokens


@pytest.mark.parametrize("kind", KINDS)
def test_any_codes_are_sound(tmp_path: Path, kind: str) -> None:
    saved_sound_model(kind, tmp_path)
    vocabulary = block(audio_tokenizer(tmp_path))
    ids = np.random.default_rng(0).integers(0, 400, 300).astype(np.uint16)
    assert vocabulary.decode(Segment(modality="tokens", data=ids)).modality == "audio"
    wrong = Segment(modality="tokens", data=ids, header=(8000).to_bytes(3, "big"))
    with pytest.raises(ValueError, match="the header says 8000 Hz"):
        vocabulary.decode(wrong)


def test_sound_files_are_resampled_and_segments_are_not(tmp_path: Path) -> None:
    saved_sound_model("dac", tmp_path / "model")
    vocabulary = block(audio_tokenizer(tmp_path / "model"))
    stereo = wave(4000, 8000, 2)
    (tmp_path / "a.wav").write_bytes(codecs.by_modality("audio").decode(stereo))
    assert abs(len(vocabulary.encode(tmp_path / "a.wav").data) - 3 * 1000) <= 3
    with pytest.raises(ValueError, match="2 channels at 8000 Hz, and its codec takes 1 at 16000; give its file"):
        vocabulary.encode(stereo)
    with pytest.raises(ValueError, match="2 channels at 16000 Hz"):
        vocabulary.encode(wave(64, 16000, 2))


def test_codecs_that_need_more_than_codes_are_refused(tmp_path: Path) -> None:
    saved_sound_model("encodec", tmp_path / "a", audio_channels=2)
    saved_sound_model("encodec", tmp_path / "b", chunk_length_s=1.0, overlap=0.01, normalize=True)
    for name in "ab":
        with pytest.raises(ValueError, match="a mono one"):
            audio_tokenizer(tmp_path / name)
    saved_sound_model("dac", tmp_path / "c")
    for codebooks in (0, 4):
        with pytest.raises(ValueError, match=f"codebooks is {codebooks}; .*c has 3"):
            audio_tokenizer(tmp_path / "c", codebooks)


# --- pictures -------------------------------------------------------------------------------------------------------


def picture_config(family: str) -> Any:
    """A tiny VQ: 32 codes, each for 2 x 2 pixels."""
    fields: dict[str, Any] = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "embed_dim": 4}
    if family == "emu3":
        fields |= {"codebook_size": 32, "latent_channels": 4, "attn_resolutions": [], "hidden_size": 32}
        fields |= {"temporal_downsample_factor": 2}
    elif family == "janus":
        fields |= {"num_embeddings": 32, "latent_channels": 32, "num_patches": 4, "projection_dim": 8}
    else:
        fields |= {"num_embeddings": 32, "latent_channels": 32, "resolution": 16}
    return getattr(transformers.models, family), fields


def picture_model(family: str) -> Any:
    """The VQ model of a family, its codebook such that codes differ."""
    package, fields = picture_config(family)
    name = {"chameleon": "ChameleonVQVAE", "emu3": "Emu3VQVAE", "janus": "JanusVQVAE"}[family]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(package, f"{name}Config")(**fields)).eval()
    with torch.no_grad():
        if family != "emu3":
            latents = model.quant_conv(model.encoder(torch.randn(1, 3, 16, 16)))  # (1, D, 8, 8)
            model.quantize.embedding.weight.copy_(latents[0].flatten(1)[:, :32].T)
    return model


FAMILIES = ["chameleon", "emu3", "janus"]


def pixels(height: int, width: int) -> Segment:
    """Noise in colour."""
    array = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return codecs.by_modality("image").from_array(array)


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_become_codes_row_by_row_and_pictures_again(tmp_path: Path, family: str) -> None:
    model = picture_model(family)
    model.save_pretrained(tmp_path)
    tokenizer = image_tokenizer(tmp_path)
    vocabulary = block(tokenizer)
    assert tokenizer.sizes == (32,) and tokenizer.factor == 2
    picture = pixels(8, 12)
    tokens = vocabulary.encode(picture)
    array = codecs.by_modality("image").to_array(picture)
    values = torch.from_numpy(array.transpose(2, 0, 1)[None] / np.float32(127.5) - 1)
    with torch.no_grad():
        sizes = {"image_sizes": torch.tensor([[8, 12]])} if family == "emu3" else {}
        expected = model.encode(values, **sizes).image_tokens
    expected = (expected[0] if family == "emu3" else expected).flatten()
    assert codes_of(tokens) == expected.tolist() and len(expected.unique()) > 2
    assert tokens.header == b"\0\4\0\6" and vocabulary.payload_size(tokens.header) == 24
    if family == "chameleon":
        with pytest.raises(ValueError, match="no decoder of Chameleon's VQ"):
            vocabulary.decode(tokens)
        return
    decoded = vocabulary.decode(tokens)
    if family == "janus":
        model.quantize.quant_state_dims = [4, 6]
    with torch.no_grad():
        values = model.decode(expected.view(1, 4, 6) if family == "emu3" else expected.view(1, 24))
    found = codecs.by_modality("image").to_array(decoded)
    assert found.shape == (8, 12, 3)
    assert np.abs(found.transpose(2, 0, 1) - ((values[0].numpy() + 1) * 127.5).clip(0, 255)).max() <= 0.51
    assert codecs.by_modality("image").decode(decoded)[1:4] == b"PNG"


@pytest.mark.parametrize("family", ["emu3", "janus"])
def test_any_codes_are_a_picture(tmp_path: Path, family: str) -> None:
    picture_model(family).save_pretrained(tmp_path)
    vocabulary = block(image_tokenizer(tmp_path))
    to_array = codecs.by_modality("image").to_array
    garbage = np.random.default_rng(0).integers(0, 400, 500).astype(np.uint16)
    for header, shape in ((b"\0\3\0\5", (6, 10, 3)), (b"\0\x28\0\x0a", (80, 20, 3))):
        assert to_array(vocabulary.decode(Segment(modality="tokens", data=garbage, header=header))).shape == shape
    without = np.full(17, 321, np.uint16)
    assert to_array(vocabulary.decode(Segment(modality="tokens", data=without))).shape == (8, 8, 3)
    for header in (b"\0\0\0\5", b"\xff\xff\xff\xff", b"\0\1\0", b"\0"):
        with pytest.raises(ValueError, match="codes cannot be; it has 1 to 16384"):
            vocabulary.decode(Segment(modality="tokens", data=garbage, header=header))
    with pytest.raises(ValueError, match="without codes"):
        vocabulary.decode(Segment(modality="tokens", data=without[:0]))


def test_pictures_are_resized_to_whole_codes_and_files_to_a_size(tmp_path: Path) -> None:
    picture_model("emu3").save_pretrained(tmp_path / "model")
    vocabulary = block(image_tokenizer(tmp_path / "model", size=20))
    assert vocabulary.encode(pixels(7, 1)).header == b"\0\4\0\1"
    (tmp_path / "a.png").write_bytes(codecs.by_modality("image").decode(pixels(40, 30)))
    assert vocabulary.encode(tmp_path / "a.png").header == b"\0\x0a\0\x08"  # 20 x 15
    grey = codecs.by_modality("image").from_array(np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="give it in RGB"):
        vocabulary.encode(grey)
    (tmp_path / "grey.png").write_bytes(codecs.by_modality("image").decode(grey))
    assert vocabulary.encode(tmp_path / "grey.png").header == b"\0\2\0\2"
    with pytest.raises(ValueError, match="150 x 150 codes, more than 16384; reduce it with size"):
        vocabulary.encode(pixels(300, 300))


def test_pixel_values_are_normalised_as_the_folder_says(tmp_path: Path) -> None:
    model = picture_model("emu3")
    model.save_pretrained(tmp_path)
    options = {"rescale_factor": 0.01, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(options))
    picture = pixels(8, 8)
    array = codecs.by_modality("image").to_array(picture)
    values = torch.from_numpy(((array * 0.01 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]).astype(np.float32))
    with torch.no_grad():
        expected = model.encode(values.permute(2, 0, 1)[None], image_sizes=torch.tensor([[8, 8]])).image_tokens[0]
        painted = model.decode(expected[None])[0].permute(1, 2, 0).numpy()
    vocabulary = block(image_tokenizer(tmp_path))
    tokens = vocabulary.encode(picture)
    assert codes_of(tokens) == expected.flatten().tolist()
    found = codecs.by_modality("image").to_array(vocabulary.decode(tokens))
    wanted = (painted * [0.5, 0.6, 0.7] + [0.1, 0.2, 0.3]) / 0.01
    assert np.abs(found - wanted.clip(0, 255)).max() <= 0.51


@pytest.mark.parametrize("family", FAMILIES)
def test_a_vq_model_is_found_in_a_whole_model(tmp_path: Path, family: str) -> None:
    package, fields = picture_config(family)
    small = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }  # fmt: skip
    options: dict[str, Any] = {"vq_config": fields}
    if family == "janus":
        vision = {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 16,
        }
        options |= {"text_config": {**small, "model_type": "llama"}, "vision_config": {**vision, "projection_dim": 32}}
    elif family == "emu3":
        options |= {"text_config": {**small, "pad_token_id": 0}, "vocabulary_map": {"<image>": 3}}
    else:
        options |= {**small, "vocabulary_map": {"<image>": 3}}
    name = family.capitalize()
    whole = getattr(transformers, f"{name}ForConditionalGeneration")(getattr(package, f"{name}Config")(**options))
    whole.save_pretrained(tmp_path)
    tokenizer = image_tokenizer(tmp_path)
    assert type(tokenizer.model).__name__ == f"{name}VQVAE" and tokenizer.sizes == (32,)
    inside = whole.model.vqmodel.state_dict()
    assert inside.keys() == tokenizer.model.state_dict().keys()
    assert all(torch.equal(inside[key], tensor) for key, tensor in tokenizer.model.state_dict().items())


# --- loading --------------------------------------------------------------------------------------------------------


def test_models_that_are_no_tokenizers_are_refused(tmp_path: Path) -> None:
    saved_sound_model("dac", tmp_path)
    with pytest.raises(DataError, match="is a model of type dac; known: chameleon, emu3, janus"):
        image_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(DataError, match="is a model of type gpt2; known: encodec, dac, mimi"):
        audio_tokenizer(tmp_path)
    for load in (audio_tokenizer, image_tokenizer):
        with pytest.raises(DataError, match="missing: is no folder"):
            load(tmp_path / "missing")


def test_weights_are_safetensors_and_complete(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved_sound_model("dac", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"cannot be loaded as a model \(.*model.safetensors"):
        audio_tokenizer(tmp_path)
    name, _ = weights.popitem()
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=f"lacks 1 of the model's weights, such as {name}"):
        audio_tokenizer(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10")
    with pytest.raises(DataError, match="cannot be loaded as a model"):
        audio_tokenizer(tmp_path)


def test_no_code_of_a_model_is_run(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("raise SystemExit('code of a model was run')")
    own = {"auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoTokenizer": ["own.T", None]}}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", **own}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T", **own}))
    for load in (audio_tokenizer, image_tokenizer, text_tokenizer):
        with pytest.raises(DataError, match="cannot be loaded as"):
            load(tmp_path)


def test_the_hub_is_asked_only_by_name() -> None:
    assert tokenizers._place("hub:facebook/encodec_24khz") == {
        "pretrained_model_name_or_path": "facebook/encodec_24khz",
        "trust_remote_code": False,
    }
    with pytest.raises(DataError, match="is no folder"):
        audio_tokenizer("facebook/encodec_24khz")


def test_loading_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    saved_sound_model("dac", tmp_path)
    capfd.readouterr()
    audio_tokenizer(tmp_path)
    assert capfd.readouterr() == ("", "")
    from transformers.utils import logging

    assert logging.is_progress_bar_enabled()
