"""A comparison as one HTML file: a table of all entries, plots, a table by file.

In: a `Comparison`. Out: a page that needs nothing else, its plots inline SVG. Cost: none to speak of.
"""

import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from byteloom import gallery
from byteloom.comparison import Comparison, Entry, columns
from byteloom.pictures import INK, RAISED, canvas, style

COLOURS = ("#fb923c", "#38bdf8", "#a3e635", "#f472b6", "#c084fc", "#facc15", "#2dd4bf", "#f87171")
"""Of models, in turn."""
QUIET_COLOURS = ("#94a3b8", "#a8907c", "#7d93b8", "#8fa382", "#b0a1c4", "#cbd5e1", "#64748b", "#c4a8a8")
"""Of compressors and codecs, in turn."""
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
"""Of their lines, in turn."""
FEW_ITEMS = 40
"""Up to so many items have a dot each."""
SHOWN_FILES = 100
"""The page's table has the first so many files."""


STYLE = """<style>
.wide { overflow-x: auto; margin-top: .6rem; }
table { border-collapse: collapse; }
td, th { padding: .25rem 1.1rem .25rem 0; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums;
  border-bottom: 1px solid var(--line); }
th { color: var(--quiet); font-weight: 400; }
td:first-child, th:first-child { text-align: left; }
tr.model td:first-child { font-weight: 600; }
tr.best td { color: var(--accent); font-weight: 600; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; margin-top: .8rem; }
.plots svg { width: 100%; height: auto; max-width: 36rem; border-radius: .45rem; }
p { color: var(--quiet); margin: .6rem 0 0; }
</style>"""


def page(comparison: Comparison, title: str = "Comparison") -> str:
    """The comparison as HTML that needs no other file."""
    sizes, items = comparison.file_sizes, len(comparison.bytes)
    lead = f"{len(sizes):,} file{'s' * (len(sizes) != 1)}, {sizes.sum():,} bytes. Fewer bits are better."
    sections = [f"<h1>{html.escape(title)}</h1><p>{lead}</p>", STYLE, _section("All data", overview(comparison))]
    plots = "".join(svg(figure) for figure in figures(comparison))
    sections.append(_section("Where the bits go", f'<div class="plots">{plots}</div>'))
    if len(sizes) > 1:
        note = f"The first {SHOWN_FILES} of {len(sizes):,}." if len(sizes) > SHOWN_FILES else ""
        sections.append(_section("By file, bits per byte", file_table(comparison) + (note and f"<p>{note}</p>")))
    models = [entry for entry in comparison.entries if entry.kind == "model"]
    how = "; ".join(
        f"{html.escape(entry.name)}: {entry.details['method']}, context {entry.details['context']:,}"
        + (f", learning on at {entry.details['dynamic']:g}" if entry.details["dynamic"] is not None else "")
        for entry in models
    )
    sections.append(
        _section(
            "How it was measured",
            f"<p>{how}.</p><p>± standard error over {items:,} items: documents, or segments of a file that holds many "
            "of one kind. Models and compressors take the items one after another; the error bars of compressors are "
            "of items that each were compressed alone. Media codecs take each item by itself, and their whole file "
            "counts. Compressors get pictures and video rows first.</p>",
        )
    )
    return gallery.page(title, "\n".join(sections))


def _section(title: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{content}</section>"


def overview(comparison: Comparison) -> str:
    """The table of all entries as HTML."""
    heads, rows = columns(comparison)
    kinds = [entry.kind + " best" * (entry is comparison.entries[0]) for entry in comparison.entries]
    return _table(heads, rows, kinds)


def file_table(comparison: Comparison) -> str:
    """A row for each of the first files, a column for each entry, as HTML."""
    found = [comparison.by_file(entry)[:SHOWN_FILES] for entry in comparison.entries]
    rows = [
        [name, f"{size:,}", *("" if bits is None else f"{bits:.3f}" for bits in row)]
        for name, size, *row in zip(comparison.files, comparison.file_sizes.tolist(), *found)
    ]
    return _table(["", "bytes", *(entry.name for entry in comparison.entries)], rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], kinds: Sequence[str] | None = None) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    lines = [
        f'<tr class="{kind}">' + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row, kind in zip(rows, kinds or [""] * len(rows), strict=True)
    ]
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def figures(comparison: Comparison) -> list[Figure]:
    """All entries; by item and by modality where there are several; and models by position in patch and context."""
    looks = _looks(comparison.entries)
    drawn = [_all_entries(comparison, looks)]
    if len(comparison.bytes) > 1:
        drawn.append(_by_item(comparison, looks))
    if len({name for entry in comparison.entries for name in entry.by_modality}) > 1:
        drawn.append(_by_modality(comparison, looks))
    models = [entry for entry in comparison.entries if entry.kind == "model"]
    if any(len(entry.details["by_position_in_patch"]) > 1 for entry in models):
        drawn.append(_by_position_in_patch(models, looks))
    drawn.append(_by_position_in_context(models, looks))
    return drawn


def svg(figure: Figure) -> str:
    """A figure as SVG that can stand inside HTML."""
    file = io.StringIO()
    figure.savefig(file, format="svg")
    return file.getvalue()[file.getvalue().index("<svg") :]


def _looks(entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
    """How the line of each entry is drawn: models in colours, others in quiet ones."""
    models = [entry.name for entry in entries if entry.kind == "model"]
    others = [entry.name for entry in entries if entry.kind != "model"]
    looks = {name: {"color": COLOURS[i % len(COLOURS)], "lw": 1.8} for i, name in enumerate(models)}
    return looks | {
        name: {"color": QUIET_COLOURS[i % len(QUIET_COLOURS)], "ls": DASHES[i % len(DASHES)], "lw": 1.1}
        for i, name in enumerate(others)
    }


def _axes(title: str, x: str, y: str, height: float = 3.4) -> tuple[Figure, Axes]:
    figure = canvas(5.8, height)
    axes = style(figure.subplots(), title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color=RAISED, lw=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _legend(axes: Axes, beside: bool = False) -> None:
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if beside else {}
    axes.legend(fontsize=8, labelcolor=INK, frameon=False, **place)


def _all_entries(comparison: Comparison, looks: Mapping[str, Mapping[str, Any]]) -> Figure:
    shown = [(entry, entry.bits_per_byte) for entry in comparison.entries if entry.bits_per_byte is not None][::-1]
    figure, axes = _axes("All data", "bits per byte", "", max(2.0, 0.9 + 0.32 * len(shown)))
    errors = [comparison.error(entry) or 0.0 for entry, _ in shown]
    bits = [bits for _, bits in shown]
    colours = [looks[entry.name]["color"] for entry, _ in shown]
    axes.barh(range(len(shown)), bits, 0.62, color=colours, xerr=errors, error_kw={"ecolor": INK, "lw": 1.2})
    for place, (value, error) in enumerate(zip(bits, errors, strict=True)):
        axes.annotate(f"{value:.3f}", (value + error, place), (4, 0), textcoords="offset points", va="center",
                      fontsize=8, color=INK)  # fmt: skip
    axes.set_yticks(range(len(shown)), [entry.name for entry, _ in shown], color=INK)
    axes.set_xlim(0, 1.12 * max(value + error for value, error in zip(bits, errors, strict=True)))
    axes.grid(visible=False, axis="y")
    return figure


def _by_item(comparison: Comparison, looks: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Each entry's items from its cheapest to its dearest."""
    figure, axes = _axes("By item, each by itself", "share of the items", "bits per byte")
    for entry in comparison.entries:
        known = np.isfinite(entry.bits) & (comparison.bytes > 0)
        bits = np.sort(entry.bits[known] / comparison.bytes[known])
        marker = "." if len(bits) <= FEW_ITEMS else ""
        axes.plot((np.arange(len(bits)) + 0.5) / len(bits), bits, marker=marker, label=entry.name, **looks[entry.name])
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    _legend(axes, beside=True)
    return figure


def _by_modality(comparison: Comparison, looks: Mapping[str, Mapping[str, Any]]) -> Figure:
    names = list(dict.fromkeys(name for entry in comparison.entries for name in entry.by_modality))
    figure, axes = _axes("By modality", "", "bits per byte")
    there = [[entry.name for entry in comparison.entries if name in entry.by_modality] for name in names]
    width = 0.85 / max(len(group) for group in there)
    for entry in comparison.entries:
        places = [
            place + (group.index(entry.name) - (len(group) - 1) / 2) * width
            for place, group in enumerate(there)
            if entry.name in group
        ]
        bits = [entry.by_modality[name] for name in names if name in entry.by_modality]
        axes.bar(places, bits, 0.88 * width, color=looks[entry.name]["color"], label=entry.name)
    axes.set_xticks(range(len(names)), names, color=INK)
    axes.grid(visible=False, axis="x")
    _legend(axes, beside=True)
    return figure


def _by_position_in_patch(models: Sequence[Entry], looks: Mapping[str, Mapping[str, Any]]) -> Figure:
    figure, axes = _axes("By position in the patch", "position in a patch of the coarsest stage", "bits per byte")
    for entry in models:
        bits = [math.nan if value is None else value for value in entry.details["by_position_in_patch"]]
        axes.plot(range(len(bits)), bits, "o-", ms=4, label=entry.name, **looks[entry.name])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
    return figure


def _by_position_in_context(models: Sequence[Entry], looks: Mapping[str, Mapping[str, Any]]) -> Figure:
    figure, axes = _axes("By position in the context", "ids before, in the window", "bits per byte")
    for entry in models:
        bins = [found for found in entry.details["by_position_in_context"] if found["bits_per_byte"] is not None]
        middles = [(found["start"] + found["stop"] - 1) / 2 + 1 for found in bins]
        axes.plot(middles, [found["bits_per_byte"] for found in bins], label=entry.name, **looks[entry.name])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    _legend(axes)
    return figure
