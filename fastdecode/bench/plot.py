"""A plot of `fastdecode bench sample`: time over groups, of fastdecode, its rivals and a read of the logits."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LINES: dict[str, dict[str, Any]] = {
    "transformers": {"color": "#b4552d", "label": "transformers' processors"},
    "torch": {"color": "#c99a2e", "label": "torch by hand"},
    "torch compiled": {"color": "#8c6d1f", "label": "torch by hand, compiled"},
    "softmax": {"color": "#8a8a8a", "label": "torch softmax of the logits", "linestyle": "--"},
    "fastdecode": {"color": "#1f5fa8", "label": "fastdecode", "linewidth": 2.5},
    "read": {"color": "#8a8a8a", "label": "reading the logits once", "linestyle": ":"},
}


FORMATS = (".pdf", ".png", ".svg")


def check_file(file: Path) -> None:
    """ValueError if a plot cannot be written into a file of that name, or matplotlib is missing."""
    if file.suffix.lower() not in FORMATS:
        raise ValueError(f"--plot {file}: the name must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install matplotlib")


def panels(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows that differ only in their number of groups, by what they sample from; at least three points each."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        tokens = "image tokens" if row["image"] else f"{row['vocab']:,} tokens"
        title = f"{row['filter']}, {tokens}, {row['streams']} stream{'s' * (row['streams'] > 1)}, {row['dtype']}"
        found.setdefault(title, []).append(row)
    return {title: part for title, part in found.items() if len(part) >= 3}


def plot(rows: Sequence[dict[str, Any]], machine: dict[str, Any], file: Path) -> None:
    """Plot the rows of `run_bench` into a file. ``ImportError`` without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = panels(rows)
    if not drawn:
        raise ValueError("nothing to plot: no case was measured at three numbers of groups")
    columns = min(3, len(drawn))
    lines = -(-len(drawn) // columns)
    size = (4.6 * columns, 3.4 * lines + 0.8)
    figure, axes = pyplot.subplots(lines, columns, figsize=size, squeeze=False, sharex=True, sharey=True)
    for axis in axes.flat[len(drawn) :]:
        axis.remove()
    for axis, (title, part) in zip(axes.flat, drawn.items(), strict=False):
        part = sorted(part, key=lambda row: row["groups"])
        for name, style in LINES.items():
            if all(name in row for row in part):
                axis.plot([row["groups"] for row in part], [row[name] for row in part], marker="o", ms=3, **style)
        axis.set(title=title, xscale="log", yscale="log", xlabel="groups", ylabel="microseconds")
        axis.title.set_size(9)
        axis.set_xticks([1, 2, 4, 8, 16, 32, 64], labels=["1", "2", "4", "8", "16", "32", "64"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(f"One draw per group: {machine['processor']}, {machine['threads']} threads, {machine['date']}")
    figure.tight_layout(rect=(0, 0.6 / size[1], 1, 1 - 0.1 / size[1]))
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
