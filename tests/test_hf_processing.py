"""The processor for transformers: its ids are those of documents, whatever form media come in, and they come back."""

import base64
import dataclasses
from pathlib import Path
from typing import Any

import configs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_multiscale import TWO

from byteloom import codecs, save
from byteloom.codecs import MARKS, MediaConfig, audio, image, video
from byteloom.codecs.audio import AudioConfig
from byteloom.codecs.image import ImageConfig
from byteloom.codecs.video import VideoConfig
from byteloom.documents import BOS, EOS, PAD, DataError, Document, Segment, to_ids
from byteloom.hf.processing import ByteloomProcessor
from byteloom.hf.tokenization import ByteloomTokenizer

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
SMALL = RNG.integers(0, 256, (2, 2), dtype=np.uint8)
SAMPLES = np.arange(-5, 5, dtype=np.int16) * 1000
FRAMES = RNG.integers(0, 256, (3, 4, 2, 3), dtype=np.uint8)
PICTURE, SOUND, CLIP = Image.fromarray(PIXELS), (SAMPLES, 8000), (FRAMES, 25)
SEGMENTS = {
    "image": image.from_array(PIXELS),
    "audio": audio.from_array(SAMPLES, 8000),
    "video": video.from_array(FRAMES, 25),
}
PROCESSOR = ByteloomProcessor(ByteloomTokenizer())


def text(content: str) -> Segment:
    return Segment(modality="text", data=np.frombuffer(content.encode(), np.uint8))


def ids_of(*segments: Segment) -> list[int]:
    return to_ids(Document(segments=segments), MARKS)[:-1].tolist()


def row(processor: ByteloomProcessor = PROCESSOR, **inputs: Any) -> list[int]:
    (ids,) = processor(**inputs)["input_ids"]
    return ids


@given(
    kinds=st.lists(st.sampled_from(["image", "audio", "video"]), max_size=4),
    data=st.data(),
)
def test_ids_are_those_of_the_document(kinds: list[str], data: st.DataObject) -> None:
    words = [data.draw(st.text("aé<|", max_size=4)) for _ in range(len(kinds) + 1)]
    written, segments = words[0], [text(words[0])] if words[0] else []
    for kind, word in zip(kinds, words[1:], strict=True):
        written += f"<|{kind}|>{word}"
        segments += [SEGMENTS[kind], *([text(word)] if word else [])]
    media = {"image": [PICTURE], "audio": [SOUND], "video": [CLIP]}
    names = {"image": "images", "audio": "audio", "video": "videos"}
    ids = row(text=written, **{names[kind]: media[kind] * kinds.count(kind) for kind in media if kind in kinds})
    if segments:
        assert ids == ids_of(*segments)
        assert PROCESSOR.decode_document(ids) == Document(segments=tuple(segments))
        assert PROCESSOR.decode_document([PAD, PAD, *ids, EOS, 65]) == Document(segments=tuple(segments))
    else:
        assert ids == [BOS, MARKS["text"]]


def test_without_placeholders_media_come_first() -> None:
    ids = row(text="ab", videos=CLIP, audio=SOUND, images=PICTURE)
    assert ids == ids_of(SEGMENTS["image"], SEGMENTS["audio"], SEGMENTS["video"], text("ab"))
    assert row(images=PICTURE) == ids_of(SEGMENTS["image"])
    assert row(images=[PICTURE, PICTURE]) == ids_of(SEGMENTS["image"], SEGMENTS["image"])
    assert row(text=b"<|image|>", images=PICTURE) == ids_of(SEGMENTS["image"], text("<|image|>"))
    split = row(text="<|image|>", images=PICTURE, split_special_tokens=True)
    assert split == ids_of(SEGMENTS["image"], text("<|image|>"))
    ended = ByteloomProcessor(ByteloomTokenizer(add_eos_token=True, add_bos_token=False))
    assert row(ended, text="a<|image|>", images=PICTURE) == [*ids_of(text("a"), SEGMENTS["image"])[1:], EOS]
    assert row(text="a", add_special_tokens=False) == row(text="a", text_kwargs={"add_special_tokens": False}) == [97]


def test_media_come_in_many_forms(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    (tmp_path / "a.wav").write_bytes(audio.decode(SEGMENTS["audio"]))
    (tmp_path / "a.mkv").write_bytes(video.decode(SEGMENTS["video"]))
    content = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    files = [tmp_path / "a.png", str(tmp_path / "a.png"), content, f"data:image/png;base64,{content}"]
    for form in (*files, PIXELS, torch.tensor(PIXELS), [PICTURE], [[PICTURE]]):
        assert row(images=form) == ids_of(SEGMENTS["image"])
    assert row(images=SMALL) == ids_of(image.from_array(SMALL))
    datasets_form = {"array": SAMPLES, "sampling_rate": 8000}
    for form in (SOUND, [SOUND], torch.tensor(SAMPLES), datasets_form, tmp_path / "a.wav", [[SOUND]]):
        assert row(audio=form, sampling_rate=8000) == ids_of(SEGMENTS["audio"])
    assert row(audio=SAMPLES, audio_kwargs={"sampling_rate": 8000}) == ids_of(SEGMENTS["audio"])
    pictures = [Image.fromarray(frame) for frame in FRAMES]
    for form in (CLIP, FRAMES, list(FRAMES), (pictures, 25), [pictures], [CLIP], tmp_path / "a.mkv"):
        assert row(videos=form, fps=25) == ids_of(SEGMENTS["video"])
    assert row(videos=FRAMES, videos_kwargs={"fps": 25}) == ids_of(SEGMENTS["video"])


def test_batches() -> None:
    batch = PROCESSOR(
        text=["a<|image|>", "<|image|>b<|image|>"], images=[PICTURE] * 3, padding=True, return_tensors="pt"
    )
    picture, two = SEGMENTS["image"], ids_of(SEGMENTS["image"], text("b"), SEGMENTS["image"])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, len(two))
    assert batch["input_ids"][1].tolist() == two
    assert batch["input_ids"][0][batch["attention_mask"][0] == 1].tolist() == ids_of(text("a"), picture)
    assert batch["input_ids"][0, 0] == PAD
    nested = PROCESSOR(
        text=["a", "b<|audio|>", ""], images=[[PICTURE], None, [PICTURE, PICTURE]], audio=[[], [SOUND], []]
    )
    assert nested["input_ids"] == [
        ids_of(picture, text("a")),
        ids_of(text("b"), SEGMENTS["audio"]),
        ids_of(picture, picture),
    ]
    assert PROCESSOR(text=["a", "b"], images=[PICTURE, PICTURE])["input_ids"][1] == ids_of(picture, text("b"))
    assert PROCESSOR(images=[[PICTURE], [PICTURE, PICTURE]])["input_ids"][1] == ids_of(picture, picture)
    assert row(text="abc", truncation=True, max_length=3) == [BOS, MARKS["text"], 97]


def test_media_come_back() -> None:
    ids = row(text="é<|image|><|audio|><|video|>", images=PICTURE, audio=SOUND, videos=CLIP)
    word, picture, (samples, rate), (frames, fps) = PROCESSOR.to_media(torch.tensor(ids))
    assert word == "é" and np.array_equal(np.asarray(picture), PIXELS)
    assert np.array_equal(samples[:, 0], SAMPLES) and rate == 8000
    assert np.array_equal(frames, FRAMES) and fps == 25
    assert np.array_equal(np.asarray(PROCESSOR.to_media(row(images=SMALL))[0]), SMALL)
    assert PROCESSOR.to_media([BOS, MARKS["bytes"], 255]) == [b"\xff"]
    assert PROCESSOR.decode(ids[:4], skip_special_tokens=True) == "é"
    assert PROCESSOR.batch_decode([ids[:4]]) == ["<|bos|><|text|>é"]
    voice = ByteloomProcessor(ByteloomTokenizer(vocab_size=330, marks={"voice": 280}))
    (segment,) = voice.to_media([BOS, 280, 320, 329])
    assert segment == Segment(modality="voice", data=np.array([320, 329], np.uint16))
    with pytest.raises(ValueError, match="header of an image segment"):
        PROCESSOR.to_media([BOS, MARKS["image"], 1, 2])
    assert ByteloomProcessor(ByteloomTokenizer(vocab_size=256)).to_media([97]) == ["a"]


def test_options_count_for_media_at_hand_as_for_files(tmp_path: Path) -> None:
    media = MediaConfig(
        image=ImageConfig(size=3, channels="grey", scan="raster"),
        audio=AudioConfig(mono=True, rate=4000, coding="mulaw"),
        video=VideoConfig(channels="grey", max_frames=2, rate=5.0),
    )
    processor = ByteloomProcessor(ByteloomTokenizer(), media=media)
    PICTURE.save(tmp_path / "a.png")
    stereo = np.stack([SAMPLES, SAMPLES[::-1]], axis=1)
    (tmp_path / "a.wav").write_bytes(audio.decode(audio.from_array(stereo, 8000)))
    for kind, name, forms in (("images", "a.png", [PICTURE, PIXELS]), ("audio", "a.wav", [(stereo, 8000)])):
        (segment,) = codecs.read(tmp_path / name, media=media).segments
        for form in forms:
            assert row(processor, **{kind: form}) == ids_of(segment)
    ((frames, rate),) = processor.to_media(row(processor, videos=(np.tile(FRAMES, (5, 1, 1, 1)), 25)))
    assert frames.shape == (2, 4, 2, 1) and rate == 5
    grey = np.asarray(Image.fromarray(FRAMES[0]).convert("L"))
    assert np.array_equal(frames[0, :, :, 0], grey)
    smaller = ByteloomProcessor(ByteloomTokenizer(), media=MediaConfig(video=VideoConfig(size=2)))
    assert smaller.to_media(row(smaller, videos=CLIP))[0][0].shape == (3, 2, 1, 3)


def test_chats_with_media(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    content = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    wanted = ids_of(text("User: "), SEGMENTS["image"], text("What?\n\nAssistant: "))
    for part in (
        {"type": "image", "image": PICTURE},
        {"type": "image", "path": str(tmp_path / "a.png")},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{content}"}},
    ):
        chat: Any = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
        told: Any = PROCESSOR.apply_chat_template(
            chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        assert told["input_ids"].tolist() == [wanted]
    prompt = PROCESSOR.apply_chat_template(chat, add_generation_prompt=True)
    assert row(text=prompt, images=PICTURE) == wanted
    sounds: Any = [
        [{"role": "user", "content": [{"type": "audio", "audio": SOUND}]}],
        [{"role": "user", "content": [{"type": "text", "text": "<|audio|>"}, {"type": "video", "video": CLIP}]}],
    ]
    told = PROCESSOR.apply_chat_template(sounds, tokenize=True, return_dict=True, sanitize_control_tokens=True)
    assert told["input_ids"] == [
        ids_of(text("User: "), SEGMENTS["audio"], text("\n\n")),
        ids_of(text("User: <|audio|>"), SEGMENTS["video"], text("\n\n")),
    ]


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    media = MediaConfig(image=ImageConfig(scan="raster", shape=(1, 2, 3)))
    processor = ByteloomProcessor(ByteloomTokenizer(errors="ignore"), media, chat_template="{{ messages }}")
    processor.save_pretrained(tmp_path)
    names = {"chat_template.jinja", "processor_config.json", "tokenizer_config.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    again = ByteloomProcessor.from_pretrained(tmp_path)
    assert (again.media_config, again.chat_template, again.tokenizer.errors) == (media, "{{ messages }}", "ignore")
    other = ByteloomProcessor.from_pretrained(tmp_path, media={"image": {"patch": 3}})
    assert other.media_config == MediaConfig(image=ImageConfig(patch=3))
    other.save_pretrained(tmp_path)
    assert ByteloomProcessor.from_pretrained(tmp_path).media_config == other.media_config


def test_a_native_folder_says_how_its_run_read_media(tmp_path: Path) -> None:
    media = MediaConfig(image=ImageConfig(size=2))
    save(configs.build(TWO), tmp_path, {"media": dataclasses.asdict(media)})
    processor = ByteloomProcessor.from_pretrained(tmp_path)
    assert processor.media_config == media and processor.tokenizer.vocab_size == TWO.vocab_size


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "nothing is given"),
        ({"text": "<|image|>"}, "1 <|image|> and 0 of image"),
        ({"text": "a<|image|>", "images": [PICTURE] * 2}, "1 <|image|> and 2 of image"),
        ({"text": ["a", "b"], "images": [PICTURE] * 3}, "3 of image for 2 places"),
        ({"text": ["a", "b"], "images": PICTURE}, "given for 1 texts, and there are 2"),
        ({"audio": SAMPLES}, "audio has no rate; give (audio, rate), or sampling_rate="),
        ({"videos": FRAMES}, "video has no rate; give (video, rate), or fps="),
        ({"images": np.zeros((2, 2, 3))}, "must be (H, W, C) uint8"),
        ({"images": "gone.png"}, "gone.png: is no file"),
        ({"images": "https://example.org/a.png"}, "is an address"),
        ({"text": 3}, "text is of type int"),
    ],
)
def test_what_does_not_fit_is_named(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as told:
        PROCESSOR(**inputs)
    assert message in str(told.value)


def test_what_would_lose_something_is_refused() -> None:
    with pytest.raises(DataError, match="the picture: has more than 8 bits"):
        PROCESSOR(images=Image.fromarray(np.zeros((2, 2), np.uint16)))
    with pytest.raises(DataError, match="cannot be decoded"):
        PROCESSOR(images="data:image/png;base64,AAAA")
    with pytest.raises(ValueError, match="knows bytes of text only"):
        ByteloomProcessor(ByteloomTokenizer(vocab_size=256))(images=PICTURE)
    with pytest.raises(ValueError, match=r"media\.image\.sice"):
        ByteloomProcessor(ByteloomTokenizer(), media={"image": {"sice": 3}})
