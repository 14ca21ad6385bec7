"""A page that shows what a run made: pictures, clips, sounds and texts, each with its numbers.

In: entries that name files below a folder. Out: index.html in that folder, which needs nothing from outside the folder,
so that it can be moved or zipped as a whole. Cost: the head of each image is read for its size.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from urllib.parse import quote

from PIL import Image

IMAGES = frozenset(".png .jpg .jpeg .gif .webp .bmp".split())
CLIPS = frozenset(".mp4 .webm".split())
SOUNDS = frozenset(".wav .flac .ogg .mp3".split())
SMALL_PIXELS = 128
"""An image with shorter sides than this is enlarged, its pixels as squares."""
MAX_TEXT_BYTES = 1 << 16
"""Of a longer text file the beginning is shown."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}</title>
<style>
:root {{ --ink: #1d2433; --quiet: #5b6780; --ground: #f5f6f8; --card: #fff; --line: #dfe3ea; --accent: #c2410c; }}
@media (prefers-color-scheme: dark) {{ :root {{
  --ink: #e2e8f0; --quiet: #94a3b8; --ground: #0b0e14; --card: #151a24; --line: #2a3242; --accent: #fb923c; }} }}
* {{ box-sizing: border-box; }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); margin: 0 auto;
  max-width: 78rem; padding: 1.5rem 1rem 3rem; }}
h1 {{ margin: 0; font-size: 1.7rem; }} h2 {{ margin: 0; font-size: 1.1rem; overflow-wrap: anywhere; }}
.lead {{ color: var(--quiet); margin: .2rem 0 0; }}
section {{ background: var(--card); border: 1px solid var(--line); border-radius: .7rem; padding: 1rem 1.2rem 1.2rem;
  margin-top: 1.2rem; }}
dl {{ display: flex; flex-wrap: wrap; gap: .2rem 1.6rem; margin: .3rem 0 0; }}
dl div {{ display: flex; gap: .45rem; }} dt {{ color: var(--quiet); }}
dd {{ margin: 0; font-variant-numeric: tabular-nums; font-weight: 600; color: var(--accent); }}
.files {{ display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; margin-top: .8rem; }}
figure {{ margin: 0; min-width: 0; }} figure.wide {{ flex: 1 1 100%; }}
figcaption {{ color: var(--quiet); font-size: .875rem; margin-bottom: .25rem; }}
img, video, iframe, pre {{ display: block; max-width: 100%; border-radius: .45rem; }}
img, video {{ height: auto; }} img.small {{ width: 12rem; image-rendering: pixelated; }}
audio {{ display: block; width: 22rem; max-width: 100%; }}
iframe, pre {{ width: 100%; border: 1px solid var(--line); }} iframe {{ height: 22rem; }}
pre {{ margin: 0; padding: .8rem 1rem; max-height: 22rem; overflow: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; font: .875rem/1.6 ui-monospace, monospace; }}
pre.whole {{ max-height: none; border: 0; padding: .4rem 0 0; }}
a {{ color: var(--accent); }}
</style></head><body>
{body}
</body></html>
"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What belongs together on the page: a file and what a model made of it, say."""

    title: str
    """Its heading."""
    numbers: Mapping[str, float | str] = field(default_factory=dict)
    """What was measured, by name; floats are shown with three decimals."""
    files: Mapping[str, str | PathLike[str]] = field(default_factory=dict)
    """Files in the order shown, by caption: images, clips, sounds, pages (.html) and texts (.txt) by their suffix,
    anything else as a link. Each is absolute, or relative to the folder of the gallery."""


def gallery(folder: str | PathLike[str], entries: Sequence[Entry], title: str = "Gallery", lead: str = "") -> Path:
    """Writes index.html, which shows all entries, and returns its path.

    Raises:
        ValueError: a file is not there, or not in the folder.
    """
    folder = Path(folder)
    sections = [
        f"<section><h2>{html.escape(entry.title)}</h2>{_numbers(entry.numbers)}"
        f'<div class="files">{"".join(_figure(folder, *file) for file in entry.files.items())}</div></section>'
        for entry in entries
    ]
    head = f"<h1>{html.escape(title)}</h1>" + (f'<p class="lead">{html.escape(lead)}</p>' if lead else "")
    path = folder / "index.html"
    path.write_text(page(title, "\n".join([head, *sections])), encoding="utf-8")
    return path


def page(title: str, body: str) -> str:
    """A page around HTML, in the style of the gallery."""
    return PAGE.format(title=html.escape(title), body=body)


def _numbers(numbers: Mapping[str, float | str]) -> str:
    def shown(value: float | str) -> str:
        return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value

    pairs = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(shown(value))}</dd></div>"
        for name, value in numbers.items()
    )
    return f"<dl>{pairs}</dl>" if pairs else ""


def _figure(folder: Path, caption: str, file: str | PathLike[str]) -> str:
    root = folder.resolve()
    path = (root / file).resolve()
    if not path.is_relative_to(root) or not path.is_file():
        raise ValueError(f"{file} is no file in {folder}; write it there before the gallery")
    link = html.escape(quote(path.relative_to(root).as_posix()))
    suffix = path.suffix.lower()
    if suffix in IMAGES:
        with Image.open(path) as image:
            width, height = image.size
        small = ' class="small"' if max(width, height) < SMALL_PIXELS else ""
        content = f'<img src="{link}"{small} width="{width}" height="{height}" alt="{html.escape(caption)}">'
    elif suffix in CLIPS:
        content = f'<video src="{link}" controls loop muted playsinline></video>'
    elif suffix in SOUNDS:
        content = f'<audio src="{link}" controls preload="metadata"></audio>'
    elif suffix == ".html":
        content = f'<iframe src="{link}" sandbox="" loading="lazy" title="{html.escape(caption)}"></iframe>'
    elif suffix == ".txt":
        with open(path, "rb") as text:
            head = text.read(MAX_TEXT_BYTES)
        content = f"<pre>{html.escape(head.decode(errors='replace'))}</pre>"
    else:
        content = f'<a href="{link}">{html.escape(path.name)}</a>'
    wide = ' class="wide"' if suffix in (".html", ".txt") else ""
    return f"<figure{wide}><figcaption>{html.escape(caption)}</figcaption>{content}</figure>"
