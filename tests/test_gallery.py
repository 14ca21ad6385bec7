"""The gallery: every file is shown by what it is, the folder can be moved, and nothing can be slipped in."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image

from byteloom.gallery import Entry, gallery, page


class Tags(HTMLParser):
    """Every tag with its attributes, and whether each is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name in names]


def filled(folder: Path) -> dict[str, str]:
    (folder / "maps").mkdir()
    Image.new("RGB", (32, 16)).save(folder / "small #1 é.png")
    Image.new("RGB", (640, 480)).save(folder / "maps" / "large.png")
    for name in ("clip.mp4", "sound.wav", "maps/text.html", "tokens.npy"):
        (folder / name).write_bytes(b"x")
    (folder / "written.txt").write_bytes(b"<script>alert(1)</script> \xff")
    names = "small #1 é.png", "maps/large.png", "clip.mp4", "sound.wav", "maps/text.html", "written.txt", "tokens.npy"
    return {f"caption of {name}": name for name in names}


def test_every_file_is_shown_by_what_it_is(tmp_path: Path) -> None:
    files = filled(tmp_path)
    path = gallery(tmp_path, [Entry(title="All", files=files)], title="A run")
    assert path == tmp_path / "index.html"
    tags = Tags(path.read_text(encoding="utf-8"))
    assert not tags.open
    small, large = tags.of("img")
    assert (small["width"], small["height"], small.get("class")) == ("32", "16", "small")
    assert (large["width"], large["height"], large.get("class")) == ("640", "480", None)
    assert [len(tags.of(name)) for name in ("video", "audio", "iframe", "a", "script")] == [1, 1, 1, 1, 0]
    assert tags.of("iframe")[0]["sandbox"] == ""
    assert "<script>alert(1)</script> \N{REPLACEMENT CHARACTER}" in tags.text
    assert [caption for caption in files if caption in tags.text] == list(files)


def test_links_are_relative_and_lead_to_the_files(tmp_path: Path) -> None:
    files = filled(tmp_path)
    text = gallery(tmp_path, [Entry(title="All", files=files)]).read_text(encoding="utf-8")
    links = [a["src"] or "" for a in Tags(text).of("img", "video", "audio", "iframe")]
    links += [a["href"] or "" for a in Tags(text).of("a")]
    assert len(links) == len(files) - 1  # the text is in the page itself
    assert all((tmp_path / unquote(urlsplit(link).path)).is_file() for link in links)
    assert not re.search(r"https?:|//|url\(|@import", text.replace("<!doctype", ""))


def test_entries_keep_their_order_and_their_numbers(tmp_path: Path) -> None:
    entries = [
        Entry(title="first <b>", numbers={"bits per byte": 3.14159, "bytes": 12345, "coding": "mu-law & more"}),
        Entry(title="second"),
    ]
    tags = Tags(gallery(tmp_path, entries, title="<Run>", lead="a & b").read_text(encoding="utf-8"))
    assert "<Run>" in tags.text and "a & b" in tags.text
    assert tags.text.index("first <b>") < tags.text.index("second")
    assert not tags.of("b")
    assert all(shown in tags.text for shown in ("3.142", "12,345", "mu-law & more"))
    assert len(tags.of("dl")) == 1


def test_files_are_absolute_or_relative_to_the_folder_and_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "gallery"
    folder.mkdir()
    (folder / "a.wav").touch()
    (tmp_path / "outside.wav").touch()
    (folder / "link.wav").symlink_to(tmp_path / "outside.wav")
    text = gallery(folder, [Entry(title="a", files={"x": folder / "a.wav", "y": "a.wav"})]).read_text()
    assert [a["src"] for a in Tags(text).of("audio")] == ["a.wav", "a.wav"]
    for wrong in ("missing.wav", "../outside.wav", tmp_path / "outside.wav", "link.wav", "."):
        with pytest.raises(ValueError, match="is no file in"):
            gallery(folder, [Entry(title="a", files={"x": wrong})])


def test_a_page_suits_light_and_dark() -> None:
    text = page("T", "<p>body</p>")
    assert "prefers-color-scheme: dark" in text and 'content="light dark"' in text
    named = set(re.findall(r"var\((--\w+)\)", text))
    light, dark = (set(re.findall(r"(--\w+):", block)) for block in re.findall(r":root \{(.*?)\}", text, re.DOTALL))
    assert named == light == dark
