"""Datasets of Hugging Face: every format becomes the documents that are in it, and every mistake one clear line."""

import io
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image
from test_cli import TINY

from byteloom import cli, hub
from byteloom.codecs import MARKS, audio, image, media_from_dict
from byteloom.documents import DataError, Document, Segment
from byteloom.hub import HubDataset, open_rows, parse, read_corpus
from byteloom.shards import media_of, open_prepared

LINES = [f"line {i} of a dataset, with a cr\u00e8me br\u00fbl\u00e9e in it\n" * (1 + i % 3) for i in range(24)]


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (6, 4, 3), np.uint8)


def samples(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(-999, 999, 80).astype(np.int16)


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(number)).save(file, "PNG")
    return file.getvalue()


def wav(number: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples(number), 8000, format="WAV")
    return file.getvalue()


def write_parquet(path: Path, columns: dict[str, list[Any]], **features: Any) -> Path:
    """A parquet file; `features` are those of its columns that are media."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if features:
        kinds = datasets.Features({name: features.get(name, datasets.Value("string")) for name in columns})
        table = table.cast(kinds.arrow_schema)
    pq.write_table(table, path, row_group_size=3)
    return path


# -- one maker a format: a folder with LINES, twelve pictures or twelve sounds in it ----------------------------------


def parquet(root: Path) -> Path:
    for shard in range(3):
        rows = LINES[8 * shard : 8 * shard + 8]
        write_parquet(root / f"train-{shard:05d}-of-00003.parquet", {"text": rows, "n": list(range(8))})
    return root


def jsonl(root: Path) -> Path:
    root.mkdir()
    for shard in range(2):
        rows = [{"text": line, "title": "a title"} for line in LINES[12 * shard : 12 * shard + 12]]
        (root / f"part{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return root


def csv(root: Path) -> Path:
    root.mkdir()
    rows = "".join(f'{i},"{line}"\n' for i, line in enumerate(LINES))
    (root / "all.csv").write_text("n,text\n" + rows, "utf-8")
    return root


def texts(root: Path) -> Path:
    root.mkdir()
    for number, line in enumerate(LINES):
        (root / f"{number:02d}.txt").write_text(line, "utf-8")
    return root


def saved(root: Path) -> Path:
    datasets.Dataset.from_dict({"text": LINES}).save_to_disk(root, num_shards=3)
    return root


def saved_splits(root: Path) -> Path:
    whole = datasets.Dataset.from_dict({"text": LINES})
    datasets.DatasetDict(train=whole, test=whole.select(range(2))).save_to_disk(root)
    return root


def imagefolder(root: Path) -> Path:
    for number in range(12):
        path = root / ("cats" if number < 6 else "dogs") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return root


def zipped(root: Path) -> Path:
    root.mkdir()
    with zipfile.ZipFile(root / "pictures.zip", "w") as archive:
        for number in range(12):
            archive.writestr(f"{number:02d}.png", png(number))
    return root


def image_rows(root: Path) -> Path:
    rows = [{"bytes": png(number), "path": f"{number}.png"} for number in range(12)]
    write_parquet(root / "train.parquet", {"image": rows, "caption": ["words"] * 12}, image=datasets.Image())
    return root


def audiofolder(root: Path) -> Path:
    root.mkdir()
    for number in range(12):
        (root / f"{number:02d}.wav").write_bytes(wav(number))
    return root


def audio_rows(root: Path) -> Path:
    rows = [{"bytes": wav(number), "path": None} for number in range(12)]
    write_parquet(root / "train.parquet", {"audio": rows}, audio=datasets.Audio())
    return root


TEXTS = [parquet, jsonl, csv, texts, saved, saved_splits]
IMAGES = [imagefolder, zipped, image_rows]
SOUNDS = [audiofolder, audio_rows]


def documents(spec: HubDataset | str | Path, **options: Any) -> list[Document]:
    corpus = read_corpus(spec if isinstance(spec, HubDataset) else parse(str(spec)), **options)
    return [corpus[i] for i in range(len(corpus))]


def segments(spec: HubDataset | str | Path, **options: Any) -> list[Segment]:
    return [segment for document in documents(spec, **options) for segment in document.segments]


def words(found: list[Segment]) -> list[str]:
    assert all(segment.modality == "text" for segment in found)
    return [segment.data.tobytes().decode("utf-8") for segment in found]


# -- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("make", TEXTS)
def test_every_row_of_text_is_a_document(tmp_path: Path, make: Callable[[Path], Path], streaming: bool) -> None:
    spec = parse(str(make(tmp_path / "data")), streaming)
    assert words(segments(spec)) == LINES
    names = [document.name for document in documents(spec)]
    assert len(set(names)) == len(LINES) and all(name.startswith("data/") for name in names)


@pytest.mark.parametrize("make", IMAGES)
def test_pictures_are_those_that_the_codec_reads(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    media = media_from_dict({"image": {"scan": "raster"}})
    found = segments(make(tmp_path / "data"), media=media)
    assert found == [image.from_array(pixels(number), media.image) for number in range(12)]


@pytest.mark.parametrize("make", SOUNDS)
def test_sounds_are_those_that_the_codec_reads(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    assert segments(make(tmp_path / "data")) == [audio.from_array(samples(number), 8000) for number in range(12)]


@pytest.mark.parametrize("name", ["train-00001-of-00003.parquet", "odd [1] *:name.parquet"])
def test_one_file_is_a_dataset(tmp_path: Path, name: str) -> None:
    (parquet(tmp_path / "data") / "train-00001-of-00003.parquet").rename(tmp_path / name)
    assert words(segments(tmp_path / name)) == LINES[8:16]


def test_binary_columns_are_bytes(tmp_path: Path) -> None:
    content = [bytes(range(256)), b"\xff\0"]
    found = segments(f"{write_parquet(tmp_path / 'a.parquet', {'blob': content})}")
    assert [(part.modality, part.data.tobytes()) for part in found] == [("bytes", part) for part in content]


def test_several_columns_are_one_document(tmp_path: Path) -> None:
    found = documents(f"{image_rows(tmp_path / 'data')}:train:caption+image")
    assert [[part.modality for part in document.segments] for document in found] == [["text", "image"]] * 12
    [first, second] = documents(
        f"{write_parquet(tmp_path / 'a.parquet', {'a+b': ['both', 'x'], 'c': [None, 'y']})}::a+b"
    )
    assert words([*first.segments, *second.segments]) == ["both", "x"], "a column that has this name wins"
    path = write_parquet(tmp_path / "b.parquet", {"a": ["1", "3"], "b": [None, "4"]})
    assert [words(list(document.segments)) for document in documents(f"{path}::b+a")] == [["", "1"], ["4", "3"]]


def test_what_gives_no_document_is_skipped_and_named(tmp_path: Path) -> None:
    rows = [{"bytes": png(0), "path": "0.png"}, {"bytes": png(1)[:40], "path": "1.png"}, None]
    write_parquet(tmp_path / "data" / "train.parquet", {"image": rows}, image=datasets.Image())
    corpus = read_corpus(parse(str(tmp_path / "data")))
    assert len(corpus) == 1
    assert [name for name, _ in corpus.skipped] == ["data/0/1", "data/0/2"]
    assert "cannot be decoded" in corpus.skipped[0][1] and "byteloom-" not in corpus.skipped[0][1]
    assert corpus.skipped[1][1] == "has nothing in column 'image'"
    empty = write_parquet(tmp_path / "empty.parquet", {"text": ["", None]})
    with pytest.raises(DataError, match=r"no file with bytes in it \(2 skipped; the first, .*0/0: holds no bytes"):
        read_corpus(parse(str(empty)))


# -- what is meant ---------------------------------------------------------------------------------------------------


def test_a_path_that_exists_wins_over_split_and_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data", "data:train", "C:\\data"):
        Path(name).mkdir()
    assert parse("data") == HubDataset("data")
    assert parse("data:test") == HubDataset("data", "test")
    assert parse("data:train:text") == HubDataset("data:train", "text")
    assert parse("data::text") == HubDataset("data", "", "text")
    assert parse("C:\\data:train:text", True) == HubDataset("C:\\data", "train", "text", streaming=True)
    assert parse("owner/name:train:a+b") == HubDataset("owner/name", "train", "a+b")
    assert parse("owner/name/config") == HubDataset("owner/name/config")
    assert str(parse("data::text")) == "data::text" and str(parse("owner/name")) == "owner/name"
    for wrong in ("./nowhere", "/no/where:train", "", ":train", "D:\\data", "a b", "https://x/y", "a/b/c/d"):
        with pytest.raises(DataError, match="no path that exists, and no name of a dataset"):
            parse(wrong)


def test_the_split_is_named_or_obvious(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for split, line in (("validation", "v"), ("test", "t")):
        write_parquet(root / f"{split}.parquet", {"text": [line]})
    with pytest.raises(DataError, match=r"data: has the splits \w+, \w+; name one, as in .*data:SPLIT"):
        documents(root)
    assert words(segments(f"{root}:validation")) == ["v"]
    with pytest.raises(DataError, match=r"data:train: has the splits"):
        documents(f"{root}:train")
    write_parquet(root / "train.parquet", {"text": ["l"]})
    assert words(segments(root)) == ["l"]
    assert len(documents(f"{saved_splits(tmp_path / 'saved')}:test")) == 2


def test_the_column_is_named_or_obvious(tmp_path: Path) -> None:
    two = write_parquet(tmp_path / "two.parquet", {"title": ["a"], "body": ["b"], "n": [1]})
    with pytest.raises(
        DataError, match=r"has the columns title \(text\), body \(text\), n \(neither text nor media\); name"
    ):
        documents(two)
    assert words(segments(f"{two}::body")) == ["b"]
    for column in ("n", "author", "body+author"):
        with pytest.raises(DataError, match=r"has no column '(n|author)' of text or media; it has title"):
            documents(f"{two}::{column}")
    both = write_parquet(
        tmp_path / "both.parquet", {"image": [{"bytes": png(0), "path": None}], "text": ["x"]}, image=datasets.Image()
    )
    with pytest.raises(DataError, match=r"has the columns image \(image\), text \(text\); name one, or several"):
        documents(both)


# -- mistakes and malice ---------------------------------------------------------------------------------------------


def test_a_row_cannot_name_a_file_outside_of_its_dataset(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(0))
    root = tmp_path / "data"
    root.mkdir()
    (root / "link.png").symlink_to(secret)
    (root / "inside.png").write_bytes(png(1))
    names = [
        str(secret), str(root / ".." / "secret.png"), str(root / "link.png"), f"file://{secret}",
        "http://localhost:9/x.png", f"simplecache::file://{secret}", f"zip://a.png::{secret}", str(root / "inside.png"),
    ]  # fmt: skip
    rows = [{"bytes": None, "path": name} for name in names]
    write_parquet(root / "train.parquet", {"image": rows}, image=datasets.Image())
    corpus = read_corpus(parse(f"{root / 'train.parquet'}"))
    assert [corpus[i].segments[0] for i in range(len(corpus))] == [image.from_array(pixels(1))]
    assert [reason for _, reason in corpus.skipped] == [
        f"names {name}, which is not in the dataset; put the file into it" for name in names[:-1]
    ]


def test_a_dataset_cannot_be_made_of_files_outside_of_it(tmp_path: Path) -> None:
    write_parquet(tmp_path / "secret.parquet", {"text": ["secret"]})
    root = tmp_path / "data"
    root.mkdir()
    (root / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: ../secret.parquet\n---\n")
    with pytest.raises(DataError, match="data: "):
        documents(root)
    (root / "README.md").unlink()
    (root / "link.parquet").symlink_to(tmp_path / "secret.parquet")
    with pytest.raises(DataError, match=r"names .*link.parquet, which lies outside of it"):
        documents(root)
    saved(tmp_path / "other")
    state = saved(tmp_path / "saved") / "state.json"
    content = json.loads(state.read_text())
    content["_data_files"][0]["filename"] = "../other/data-00000-of-00003.arrow"
    state.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"names .*00000-of-00003.arrow, which lies outside of it"):
        documents(tmp_path / "saved")


def test_formats_that_unpickle_are_not_opened(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / "0.tar").write_bytes(b"\0" * 10240)
    with pytest.raises(DataError, match="data: is webdataset, which is not read from datasets; convert it to parquet"):
        documents(root)
    with pytest.raises(DataError, match=r"is no \.parquet, .* file and no folder; give it as a file of data"):
        documents(folder_file(tmp_path / "x.pkl"))
    with pytest.raises(DataError, match="pandas"):
        documents(HubDataset("pandas"))


def folder_file(path: Path) -> Path:
    path.write_bytes(b"\x80\x04N.")
    return path


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", b"\0" * 2000])
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    root = parquet(tmp_path / "data")
    (root / "train-00001-of-00003.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"data: cannot be read \(.*\); check the files") as error:
        documents(root)
    assert "\n" not in str(error.value)


def test_a_folder_that_looks_like_a_pattern_is_one_line(tmp_path: Path) -> None:
    assert words(segments(f"{parquet(tmp_path / 'a:b')}:train")) == LINES
    with pytest.raises(DataError, match=r"has \[, \? or \* in its path"):
        documents(parquet(tmp_path / "a[1]"))


def test_an_empty_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(.*\); check the files"):
        documents(tmp_path)


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(path: str, name: str | None, **options: Any) -> Any:
        raise ConnectionError(f"Couldn't reach '{path}' ({name}) on the Hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(DataError) as error:
        open_rows(parse("owner/name/small:train"))
    assert str(error.value) == (
        "owner/name/small:train: cannot be read (Couldn't reach 'owner/name' (small) on the Hub); "
        "check the name and the network; a path must exist"
    )


# -- the commands ----------------------------------------------------------------------------------------------------


def test_a_dataset_can_be_prepared(tmp_path: Path) -> None:
    shown, out = image_rows(tmp_path / "shown"), tmp_path / "out"
    arguments = ["--hf-dataset", f"{shown}:train:caption+image", f"{parquet(tmp_path / 'words')}", "--out", f"{out}"]
    cli.main(["prepare", *arguments, "--image.scan", "raster", "--json", f"{tmp_path / 'counts'}"])
    counts = json.loads((tmp_path / "counts").read_text())
    assert counts["documents"] == 36 and counts["segments"] == 48 and counts["skipped"] == []
    assert counts["modalities"] == {"text": 60 + len("".join(LINES).encode()), "image": 12 * 72}
    corpus = open_prepared(out, verify=True)
    assert corpus[0].segments[1] == image.from_array(pixels(0), image.ImageConfig(scan="raster"))
    assert words([corpus[i].segments[0] for i in range(12, 36)]) == LINES
    assert media_of(out) == {"image": media_of(out)["image"] | {"scan": "raster"}}
    assert set(corpus.modalities.items()) == {(MARKS["text"], "text"), (MARKS["image"], "image")}


def test_the_command_line_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, out = str(parquet(tmp_path / "words")), tmp_path / "run"
    train = ["train", "text-small", "--out", str(out), "--steps", "1", *TINY]
    for arguments, code, message in (
        ([*train, "--hf-dataset", words, "--hf-streaming", "--data", words], 2, "--hf-streaming reads --hf-dataset"),
        ([*train, "--data", words, "--hf-streaming"], 2, "--hf-streaming reads --hf-dataset"),
        ([*train, "--hf-dataset", words, words, "--mixture", "1"], 2, "mixture has 1 weights for 2"),
        (["prepare", words, "--out", str(out), "--hf-dataset", words], 2, "--hf-dataset stands alone"),
        ([*train, "--hf-dataset", f"{words}/nowhere"], 1, "nowhere: is no path that exists"),
        ([*train, "--hf-dataset", f"{words}:valid"], 1, "words:valid: has the splits train; name one"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        error = capsys.readouterr().err
        assert stopped.value.code == code and message in error and error.count("\n") == 1
    assert not out.exists()


def test_a_run_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, held = parquet(tmp_path / "words"), tmp_path / "held"
    write_parquet(held / "validation.parquet", {"text": LINES[:3]})
    arguments = ["--hf-dataset", str(words), "--hf-valid", f"{held}:validation", "--hf-streaming", "--steps", "2"]
    cli.main(["train", "text-small", "--out", str(tmp_path / "run"), *arguments, *TINY, "--json", "-"])
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result["step"] == 2 and result["valid_bits_per_byte"] > 0
    assert f"{words}, streamed, to learn from, 0.00 MB held out" in said.err


def test_only_the_command_needs_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError) as error:
        hub.read_corpus(HubDataset(str(tmp_path)))
    assert cli.EXTRA_OF[error.value.name] == "hf"
