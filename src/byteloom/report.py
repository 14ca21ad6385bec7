"""A run as one HTML file: curves, bits per byte by position, compressors beside it, a sample tinted by surprise.

In: metrics, an `Evaluation`'s JSON, baselines, and a sample with the bits of each byte. Out: a page that needs nothing
else, its pictures inline SVG.
"""

import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

INK, ACCENT, QUIET = "#1d2433", "#c2410c", "#94a3b8"

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1d2433; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ margin-bottom: 0; }} h2 {{ margin: 2.2rem 0 .4rem; }} p {{ margin: .4rem 0; }} .lead {{ color: #475569; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .2rem .9rem .2rem 0; text-align: right; }}
td:first-child, th:first-child {{ text-align: left; }} tr.ours {{ font-weight: 700; color: #c2410c; }}
.plots {{ display: flex; flex-wrap: wrap; gap: 1rem; }} .plots svg {{ width: 100%; height: auto; max-width: 29rem; }}
pre {{ background: #f8fafc; padding: 1rem; overflow-x: auto; white-space: pre-wrap; word-break: break-word; }}
pre .prompt {{ font-weight: 700; }}
</style></head><body>
<h1>{title}</h1><p class="lead">{lead}</p>
<h2>Held-out bytes, compressed</h2>{table}{modalities}
<h2>What was learned</h2><div class="plots">{plots}</div>
<h2>A sample</h2><p>{sample_note}</p><pre>{sample}</pre>
</body></html>
"""


def page(
    *,
    title: str,
    lead: str,
    metrics: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any],
    baselines: Mapping[str, Mapping[str, float]],
    prompt: bytes,
    continuation: bytes,
    bits: Sequence[float],
) -> str:
    """The report as HTML.

    Args:
        title: heading.
        lead: a sentence below it.
        metrics: lines of metrics.jsonl.
        evaluation: what `Evaluation.to_json` gives.
        baselines: what `evaluation.baselines` gives for the same bytes.
        prompt: shown in bold before the continuation.
        continuation: what the model wrote.
        bits: surprise of each byte of prompt and continuation, in bits.
    """
    plots = [
        curve(metrics, {name: entry["bits_per_byte"] for name, entry in baselines.items()}),
        by_position_in_patch(evaluation["by_position_in_patch"]),
        by_position_in_context(evaluation["by_position_in_context"]),
    ]
    return PAGE.format(
        title=html.escape(title),
        lead=html.escape(lead),
        table=comparison(evaluation, baselines),
        modalities=by_modality(evaluation["by_modality"]),
        plots="".join(plots),
        sample_note="The prompt is bold; the darker a character, the more bits it cost the model.",
        sample=tinted(prompt, bits[: len(prompt)], "prompt") + tinted(continuation, bits[len(prompt) :]),
    )


def comparison(evaluation: Mapping[str, Any], baselines: Mapping[str, Mapping[str, float]]) -> str:
    """A table, best first: bits per byte of the model, with its standard error, and of each compressor on the same."""
    rows = [(entry["bits_per_byte"], name) for name, entry in baselines.items()]
    rows.append((evaluation["bits_per_byte"], "this model"))
    error = evaluation["standard_error"]
    cells = "".join(
        f"<tr{' class=ours' if name == 'this model' else ''}><td>{html.escape(name)}</td><td>{bits:.3f}"
        f"{f' ± {error:.3f}' if error is not None and name == 'this model' else ''}</td>"
        f"<td>{bits / 8:.1%}</td></tr>"
        for bits, name in sorted(rows)
    )
    return f"<table><tr><th></th><th>bits per byte</th><th>of the original size</th></tr>{cells}</table>"


def by_modality(parts: Mapping[str, Mapping[str, float]]) -> str:
    """A table of each modality's bytes and bits per byte, and bits per sample where a sample is wider than a byte.

    Nothing where there is one modality, whose numbers are those of the whole.
    """
    if len(parts) < 2:
        return ""
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{sums['bytes']:,}</td><td>{sums['bits_per_byte']:.3f}</td>"
        f"<td>{format(sums['bits_per_sample'], '.3f') if 'bits_per_sample' in sums else ''}</td></tr>"
        for name, sums in parts.items()
    )
    heads = "<tr><th></th><th>bytes</th><th>bits per byte</th><th>bits per sample</th></tr>"
    return f"<h2>By modality</h2><table>{heads}{cells}</table>"


def curve(metrics: Sequence[Mapping[str, Any]], levels: Mapping[str, float]) -> str:
    """Bits per byte, in training and held out, against bytes seen, with a line for each compressor."""
    figure, axes = _figure("Bits per byte against bytes seen", "million bytes seen", "bits per byte")
    axes.plot(
        [row["bytes"] / 1e6 for row in metrics],
        [row["bits_per_byte"] for row in metrics],
        color=QUIET,
        lw=1,
        label="training",
    )
    held_out = [row for row in metrics if "valid_bits_per_byte" in row]
    x = [row["bytes"] / 1e6 for row in held_out]
    axes.plot(x, [row["valid_bits_per_byte"] for row in held_out], "o-", color=ACCENT, label="held out")
    labels: list[tuple[list[str], float]] = []
    for name, level in sorted(levels.items(), key=lambda entry: entry[1]):
        axes.axhline(level, color=INK, lw=0.7, ls=":")
        if labels and level - labels[-1][1] < 0.25:  # one label for lines that would hide each other's
            labels[-1] = ([*labels[-1][0], name], level)
        else:
            labels.append(([name], level))
    for names, level in labels:
        place = {"xycoords": ("axes fraction", "data"), "ha": "left", "va": "bottom", "fontsize": 8}
        axes.annotate(", ".join(names), (0.01, level), **place)
    lowest = [row["bits_per_byte"] for row in metrics] + list(levels.values())
    axes.set_ylim(max(0.0, min(lowest, default=0) - 0.5), max([5.0, *levels.values()]))
    axes.legend(frameon=False)
    return _svg(figure)


def by_position_in_patch(bits: Sequence[float]) -> str:
    """A bar for each position in a patch."""
    figure, axes = _figure("By position in the patch", "position in the patch", "bits per byte")
    axes.bar(range(len(bits)), bits, color=ACCENT)
    if len(bits) <= 16:
        axes.set_xticks(range(len(bits)))
    return _svg(figure)


def by_position_in_context(bins: Sequence[Mapping[str, Any]]) -> str:
    """Bits per byte against how many bytes came before."""
    figure, axes = _figure("By position in the context", "bytes before (log scale)", "bits per byte")
    known = [entry for entry in bins if entry["bits_per_byte"] is not None]
    axes.plot(
        [(entry["start"] + entry["stop"]) / 2 for entry in known], [e["bits_per_byte"] for e in known], color=ACCENT
    )
    axes.set_xscale("log")
    return _svg(figure)


def tinted(data: bytes, bits: Sequence[float], kind: str = "") -> str:
    """Bytes as HTML, each character tinted by the bits that it cost; bytes that are no UTF-8 as \\xNN."""
    parts, start = [], 0
    while start < len(data):
        stop = next((end for end in range(start + 1, min(start + 4, len(data)) + 1) if _is_utf8(data[start:end])), None)
        shown = html.escape(data[start:stop].decode()) if stop else f"\\x{data[start]:02x}"
        stop = stop or start + 1
        cost = sum(bits[start:stop])
        tint = min(cost / 10, 1) * 0.75
        parts.append(f'<span style="background:rgba(194,65,12,{tint:.2f})" title="{cost:.2f} bits">{shown}</span>')
        start = stop
    text = "".join(parts)
    return f'<span class="{kind}">{text}</span>' if kind else text


def _is_utf8(data: bytes) -> bool:
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False


def _figure(title: str, x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=11, color=INK)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]
