"""What a run learns from: sources with weights, nothing both learned from and held out, media as they were prepared."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_corpus import folder_of, text
from test_multiscale import TWO

from byteloom import recipes
from byteloom.codecs import DEFAULT_MEDIA, MediaConfig, audio, image, media_from_dict
from byteloom.corpus import Corpus, split
from byteloom.documents import DataError, Document, Segment
from byteloom.preparation import prepare
from byteloom.shards import open_data
from byteloom.train.data import check_guesses, count, open_run_data, sample, settle_media


def pictures(folder: Path, number: int = 30) -> Path:
    """A folder of so many 4x4 RGB pictures."""
    folder.mkdir()
    for i in range(number):
        Image.fromarray((np.arange(48, dtype=np.uint8) + i).reshape(4, 4, 3)).save(folder / f"{i}.png")
    return folder


def images(**options: object) -> MediaConfig:
    return media_from_dict({"image": options})


def segments_of(corpus: Corpus) -> list[bytes]:
    return [segment.data.tobytes() for i in range(len(corpus)) for segment in corpus[i].segments]


def test_all_paths_are_one_source_by_default(tmp_path: Path) -> None:
    files = {f"{i}.txt": f"line {i}\n".encode() * 50 for i in range(30)}
    paths = [folder_of(tmp_path / name, files) for name in "ab"]
    opened = open_run_data(paths)
    learned, held_out = split(open_data(paths))
    [(corpus, weight)] = opened.sources
    assert weight == 1.0 and corpus.names == learned.names and opened.held_out.names == held_out.names
    assert opened.num_bytes == learned.num_bytes and opened.media == DEFAULT_MEDIA


def test_a_mixture_makes_each_path_a_source_with_its_own_held_out_part(tmp_path: Path) -> None:
    words = folder_of(tmp_path / "words", {f"{i}.txt": f"some words {i}\n".encode() * 20 for i in range(40)})
    shown = pictures(tmp_path / "shown")
    opened = open_run_data([words, shown], mixture=(1.0, 3.0), media=images(scan="raster"))
    assert [weight for _, weight in opened.sources] == [1.0, 3.0]
    assert [list(corpus.modalities.values()) for corpus, _ in opened.sources] == [["text"], ["image"]]
    assert sorted(opened.modalities.values()) == sorted(opened.held_out.modalities.values()) == ["image", "text"]
    assert opened.num_bytes + opened.held_out.num_bytes == open_data([words, shown]).num_bytes
    learned = {name for corpus, _ in opened.sources for name in corpus.names}
    assert learned and not learned & set(opened.held_out.names)


def test_held_out_data_may_be_given(tmp_path: Path) -> None:
    paths = [folder_of(tmp_path / name, {"x.txt": f"{name}\n".encode() * 50}) / "x.txt" for name in "abc"]
    opened = open_run_data(paths[:2], paths[2:], mixture=(1, 2))
    assert [corpus.num_bytes for corpus, _ in opened.sources] == [100, 100] and opened.held_out.num_bytes == 100


@pytest.mark.parametrize("mixture", [(1.0,), (1.0, 2.0, 3.0)])
def test_a_mixture_has_a_weight_for_each_path(tmp_path: Path, mixture: tuple[float, ...]) -> None:
    paths = [folder_of(tmp_path / name, {"x.txt": b"x" * 100}) for name in "ab"]
    with pytest.raises(ValueError, match=f"mixture has {len(mixture)} weights for 2 paths"):
        open_run_data(paths, mixture=mixture)


def test_media_are_read_as_the_prepared_data_were(tmp_path: Path) -> None:
    shown = pictures(tmp_path / "shown")
    prepare([shown], tmp_path / "raster", media=images(scan="raster"))
    prepare([shown], tmp_path / "patch", media=images(scan="patch"))
    prepare([folder_of(tmp_path / "words", {"a.txt": b"words\n" * 40})], tmp_path / "prepared-words")
    opened = open_run_data([tmp_path / "raster", tmp_path / "prepared-words"], [shown])
    assert opened.media == images(scan="raster"), "words say nothing of pictures"
    as_prepared, as_read = opened.sources[0][0][0].segments[0], opened.held_out[0].segments[0]
    assert as_prepared == as_read != open_data([shown])[0].segments[0]
    assert open_run_data([tmp_path / "raster"], media=images(scan="raster")).media == opened.media
    with pytest.raises(DataError, match=r"patch: has image prepared otherwise than .*raster; prepare both alike"):
        open_run_data([tmp_path / "raster"], [tmp_path / "patch"])
    usual = images(channels="grey", size=64)
    assert open_run_data([tmp_path / "raster"], media=usual).media == opened.media, "prepared data are what they are"
    assert settle_media([tmp_path / "raster"], usual, usual) == opened.media
    with pytest.raises(DataError, match=r"raster: was prepared with image\.channels auto, and this run asks for rgb"):
        settle_media([tmp_path / "raster"], images(channels="rgb", size=64), usual)


@pytest.mark.parametrize(
    ("recipe", "segment", "said"),
    [
        ("audio16-small", audio.from_array(np.zeros(9, np.int16), 8000), ""),
        ("audio-small", audio.from_array(np.zeros(9, np.int16), 8000), "--audio.coding mulaw --audio.mono, or take au"),
        ("audio16-small", audio.from_array(np.zeros((9, 2), np.int16), 8000), "modalities.0.predictor.channels 2"),
        ("mixed-small", audio.from_array(np.zeros((9, 2), np.uint8), 8000), "pcm8 with 2 channels, and the model gue"),
        ("mixed-small", image.from_array(np.zeros((4, 9, 3), np.uint8)), ""),
        ("image-small", image.from_array(np.zeros((4, 9), np.uint8)), "prepare it with --image.channels rgb"),
        ("text-small", image.from_array(np.zeros((4, 9), np.uint8)), ""),
    ],
)
def test_media_are_what_the_model_guesses(recipe: str, segment: Segment, said: str) -> None:
    words, model = text(b"words", name="w"), recipes.by_name(recipe).model
    opened = open_run_data(
        Corpus.from_documents([words, Document(segments=(segment,), name="odd")]), Corpus.from_documents([words])
    )
    if not said:
        check_guesses(opened, model)
        return
    with pytest.raises(DataError, match=rf"^odd: is .*{said}"):
        check_guesses(opened, model)


def test_files_that_are_skipped_are_counted_once(tmp_path: Path) -> None:
    files = {f"{i}.txt": f"line {i}\n".encode() * 50 for i in range(30)} | {f"empty{i}": b"" for i in range(7)}
    opened = open_run_data([folder_of(tmp_path / "in", files)])
    assert opened.skipped == [*(f"skipped empty{i}: is empty" for i in range(5)), "skipped 7 in all"]
    as_bytes = open_run_data([tmp_path / "in"], [tmp_path / "in"], modality="bytes")
    assert set(as_bytes.modalities.values()) == {"bytes"} and as_bytes.skipped == opened.skipped


def test_a_sample_has_as_much_of_each_kind_of_document() -> None:
    shown = Segment(modality="image", data=np.zeros(300, np.uint8), header=b"\0\x0a\0\x0a\x31")
    documents = [
        *(text(b"x" * 100, name=f"t{i}") for i in range(50)),
        *(Document(segments=(shown,), name=f"p{i}") for i in range(20)),
        Document(segments=(*text(b"y" * 50, name="").segments, shown), name="page"),
    ]
    corpus = Corpus.from_documents(documents)
    found = sample(corpus, 900, TWO)
    assert found.num_bytes == 900
    assert set(found.names) == {"t0", "t1", "t2", "p0", "page"}
    only = Corpus.from_documents(documents[:50])
    assert segments_of(sample(only, 250, TWO)) == segments_of(only.head(250)), "one kind: simply the first"
    assert sample(corpus, 10**6, TWO).num_bytes == corpus.num_bytes


def test_what_the_loss_counts_is_known_before_it_is_computed() -> None:
    ids = np.array([[257, 260, 256, 256, 7, 8, 330, 258], [1, 2, 3, 4, 256, 256, 256, 256]])
    assert count(ids) == (10, 7)
    assert count(ids, np.array([True, True, False, False] * 2)) == (6, 4)


def test_the_commonest_header_of_each_modality_is_known() -> None:
    def shown(side: int) -> Document:
        header = bytes([0, side, 0, side, 0x12])
        return Document(segments=(Segment(modality="image", data=np.zeros(side * side, np.uint8), header=header),))

    corpus = Corpus.from_documents([shown(4), text(b"words", name="a"), shown(5), shown(5), shown(3)])
    assert open_run_data(corpus, corpus).headers == {"image": "0005000512"}
    words = Corpus.from_documents([text(b"words", name="a")])
    assert open_run_data(words, words).headers == {}
