"""The chart of bench_llamacpp.py: time of a step over sequences, ours, llama.cpp's, and the floor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LINES: dict[str, dict[str, Any]] = {
    "rival ms per step": {"color": "#b4552d", "label": "llama.cpp"},
    "fastdecode ms per step": {"color": "#1f5fa8", "label": "fastdecode", "linewidth": 2.5},
    "floor ms": {"color": "#8a8a8a", "label": "reading the weights once", "linestyle": ":"},
}


def plot(result: dict[str, Any], file: Path) -> None:
    """Draw the steps of a result into a file, a panel for each kind of weights. ``ImportError`` without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = list(dict.fromkeys((row["weights"], row["rival weights"]) for row in result["steps"]))
    size = (max(6, 4.2 * len(kinds)), 4.2)
    figure, axes = pyplot.subplots(1, len(kinds), figsize=size, squeeze=False, sharex=True, sharey=True)
    for axis, (ours, theirs) in zip(axes.flat, kinds, strict=True):
        rows = sorted((row for row in result["steps"] if row["weights"] == ours), key=lambda row: row["sequences"])
        counts = [row["sequences"] for row in rows]
        for name, style in LINES.items():
            axis.plot(counts, [row[name] for row in rows], marker="o", ms=3, **style)
        axis.set(title=f"{ours} against {theirs}", xscale="log", xlabel="sequences")
        axis.set_xticks(counts, labels=[str(count) for count in counts])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("milliseconds per step")
    machine = result["machine"]
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False, fontsize=9)
    where = f"{machine['processor']}, {machine['threads']} threads, {machine['date']}"
    figure.suptitle(f"A Llama of {result['model']}'s shape: {where}", fontsize=10)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
