"""Charts and tables of the documentation, from the newest committed results: ``python -m tools.report``.

Writes ``docs/speed.png`` and ``docs/sampling.png``, and puts the tables between their marks in ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
PAGE = DOCS / "benchmarks.md"

BLUE, RUST, GREY = "#1f5fa8", "#b4552d", "#8a8a8a"
MODELS = {"37M": "37M, float32", "289M": "289M, bfloat16", "7B-2": "two layers of a 7B, bfloat16"}


def newest(kind: str, folder: Path = RESULTS) -> dict[str, Any]:
    """The results ``KIND-cpu-DATE.json`` of the last date. ``FileNotFoundError`` if there are none."""
    files = sorted(folder.glob(f"{kind}-cpu-*.json"))
    if not files:
        raise FileNotFoundError(f"there is no {kind}-cpu-DATE.json in {folder}")
    found: dict[str, Any] = json.loads(files[-1].read_text())
    return found


def measured_on(machine: dict[str, Any]) -> str:
    """One line on where and when something was measured."""
    versions = f"torch {machine['torch'].split('+')[0]}, transformers {machine['transformers']}"
    where = f"{machine['processor']}, {machine['threads']} threads, no GPU"
    return f"{where}, {versions}, commit {machine['commit']}, {machine['date']}"


# --- from a prompt to its last token, against transformers ------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """How many times as fast fastdecode is as transformers at ``what``: the median of turns, the least and the most."""

    what: str
    ratio: float
    least: float
    most: float
    times: str


def speed_bars() -> list[Bar]:
    """One bar for each kind of work, from the results of ``generate``, ``decode`` and ``serving``."""
    bars = []
    generate, decode, serving = newest("generate"), newest("decode"), newest("serving")["documents"]
    for row in generate["guided pictures"]:
        count = row["pictures at once"]
        if count in (1, 16) and row["weights"] == "float32":
            what = "blocks: one guided picture" if count == 1 else f"blocks: {count} guided pictures at once"
            times = f"{row['fastdecode s per batch']:.3f} s against {row['transformers s per batch']:.3f} s"
            bars.append(Bar(what, row["ratio"], *_range(row["ratios of the repeats"]), times))
    turns = serving["engine over transformers one at a time, turns"]
    times = f"{serving['engine s']:.2f} s against {serving['transformers one at a time s']:.2f} s"
    what = f"blocks: {serving['documents']} illustrated documents"
    bars.append(Bar(what, serving["engine over transformers one at a time"], *_range(turns), times))
    for row in [*decode["guided tokens"], *decode["batches"]]:
        many = row["sequences"] > 1
        what = f"{MODELS[row['model']]}: {row['sequences']} sequences" if many else MODELS[row["model"]]
        times = f"{row['fastdecode ms per step']:.3g} ms against {row['transformers ms per step']:.3g} ms"
        bars.append(Bar(what, row["ratio"], *_range(row["ratios of the repeats"]), f"{times} a step"))
    return bars


def _range(turns: Sequence[float]) -> tuple[float, float]:
    return min(turns), max(turns)


def draw_speed(file: Path) -> None:
    """The chart of `speed_bars`."""
    pyplot = _pyplot()
    bars = speed_bars()[::-1]
    figure, axis = pyplot.subplots(figsize=(9, 4.1))
    spread = [[bar.ratio - bar.least for bar in bars], [bar.most - bar.ratio for bar in bars]]
    axis.barh([bar.what for bar in bars], [bar.ratio for bar in bars], xerr=spread, color=BLUE, ecolor=GREY, height=0.6)
    for place, bar in enumerate(bars):
        at = {"xy": (bar.most, place), "textcoords": "offset points", "va": "center"}
        axis.annotate(f"{bar.ratio:.1f}×", **at, xytext=(6, 0), fontweight="bold", fontsize=10)
        axis.annotate(bar.times, **at, xytext=(44, 0), fontsize=8.5, color="#444")
    axis.axvline(1, color=RUST, linewidth=1.5)
    axis.text(1.4, len(bars) - 0.45, "transformers' own loop", color=RUST, fontsize=8.5)
    axis.set(
        xlim=(0, 70), ylim=(-0.6, len(bars) - 0.1), xlabel="times as fast as transformers' own loop (grey: all repeats)"
    )
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    dates = sorted({measured_on(newest(kind)["machine"]) for kind in ("generate", "decode", "serving")})
    figure.text(0.01, 0.01, "\n".join(dates), fontsize=7, color="#555", va="bottom")
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


# --- sampling one token -----------------------------------------------------------------------------------------

PANELS = (
    ("top_p 0.9", 2, False, "top-p 0.9, after guidance"),
    ("top_p 0.9", 1, False, "top-p 0.9, flat distribution"),
    ("top_k 50", 2, False, "top-k 50, after guidance"),
    ("greedy", 2, False, "greedy, after guidance"),
    ("none", 2, False, "no filter, after guidance"),
    ("top_p 0.9", 2, True, "top-p 0.9 over image tokens"),
)
LINES = {
    "transformers": {"color": RUST, "label": "transformers' processors"},
    "torch": {"color": "#c99a2e", "label": "torch, written by hand"},
    "fastdecode": {"color": BLUE, "label": "fastdecode", "linewidth": 2.5},
    "read": {"color": GREY, "label": "reading the logits once", "linestyle": ":"},
}


def sampling_rows(kind: str, streams: int, image: bool) -> list[dict[str, Any]]:
    """The float32 rows over 65,536 tokens of one filter, by the number of samples at once."""
    wanted = {"filter": kind, "streams": streams, "image": image, "vocab": 65536, "dtype": "float32"}
    rows = [row for row in newest("sample")["sample"] if all(row[key] == value for key, value in wanted.items())]
    return sorted(rows, key=lambda row: row["groups"])


def draw_sampling(file: Path) -> None:
    """Time over the number of samples at once, for six filters."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(2, 3, figsize=(10, 6), sharex=True, sharey=True)
    for axis, (kind, streams, image, title) in zip(axes.flat, PANELS, strict=True):
        rows = sampling_rows(kind, streams, image)
        for name, style in LINES.items():
            axis.plot([row["groups"] for row in rows], [row[name] for row in rows], marker="o", ms=3, **style)
        axis.set(xscale="log", yscale="log")
        axis.set_title(title, fontsize=10)
        axis.set_xticks([1, 4, 16, 64], labels=["1", "4", "16", "64"])
        axis.set_yticks([10, 100, 1e3, 1e4, 1e5], labels=["10 µs", "100 µs", "1 ms", "10 ms", "100 ms"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("samples at once")
    figure.legend(
        *axes.flat[0].get_legend_handles_labels(),
        loc="lower center",
        bbox_to_anchor=(0.5, 0.025),
        ncols=4,
        frameon=False,
        fontsize=9,
    )
    figure.text(0.01, 0.008, measured_on(newest("sample")["machine"]), fontsize=7, color="#555")
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


# --- tables -----------------------------------------------------------------------------------------------------


def tables() -> dict[str, str]:
    """The tables of ``docs/benchmarks.md`` in Markdown, by name."""
    found = {
        "pictures": _pictures(),
        "tokens": _tokens(),
        "documents": _documents(),
        "load": _load(),
        "sampling": _sampling(),
        "families": _families(),
    }
    if any(RESULTS.glob("llamacpp-cpu-*.json")):  # it needs llama.cpp, so not every machine can measure it
        found["llamacpp"] = _llamacpp(newest("llamacpp"))
    return found


def _llamacpp(results: dict[str, Any]) -> str:
    lines = [
        (
            f"{row['weights']} against {row['rival weights']}",
            str(row["sequences"]),
            f"{row['fastdecode ms per step']:.3g} ms",
            f"{row['rival ms per step']:.3g} ms",
            f"{row['ratio']:.2f}",
            f"{100 * row['bandwidth_fraction']:.0f}%",
            f"{100 * row['rival bandwidth_fraction']:.0f}%",
        )
        for row in results["steps"]
    ]
    head = (
        "weights",
        "sequences",
        "fastdecode",
        "llama.cpp",
        "ratio",
        "our share of the read bandwidth",
        "llama.cpp's",
    )
    return _table(head, lines, results["machine"])


def _pictures() -> str:
    results = newest("generate")
    lines = [
        (
            str(row["pictures at once"]),
            row["weights"],
            f"{row['fastdecode s per batch']:.3f} s",
            f"{row['transformers s per batch']:.3f} s in {row['rival weights']}",
            f"{row['ratio']:.1f}",
        )
        for row in results["guided pictures"]
    ]
    return _table(("pictures at once", "our weights", "fastdecode", "transformers", "ratio"), lines, results["machine"])


def _tokens() -> str:
    results = newest("decode")
    lines = []
    for row in [*results["guided tokens"], *results["batches"]]:
        many = f", {row['sequences']} sequences at once" if row["sequences"] > 1 else ""
        lines.append(
            (
                MODELS[row["model"]] + many,
                f"{row['fastdecode ms per step']:.3g} ms",
                f"{row['transformers ms per step']:.3g} ms",
                f"{row['ratio']:.1f}",
                f"{100 * row['bandwidth_fraction']:.0f}% of {row['read bandwidth GB/s']:.0f} GB/s",
            )
        )
    share = "share of the read bandwidth" + ("" if "floor" in results else " (torch's sum)")
    return _table(("model", "fastdecode", "transformers", "ratio", share), lines, results["machine"])


def _families() -> str:
    results = newest("families")
    lines = [
        (
            row["model"] + ("" if row["layers"] == "all" else f", {row['layers']} layers"),
            str(row["image tokens"]),
            str(row["pictures at once"]),
            f"{row['fastdecode ms per token']:.3g} ms",
            f"{row['rival ms per token']:.3g} ms",
            f"{row['ratio']:.1f}",
            _turns(row["ratios of the turns"]),
        )
        for row in results["rows"]
    ]
    head = (
        "model",
        "tokens of a picture",
        "pictures at once",
        "fastdecode, per token",
        "rival, per token",
        "ratio",
        "of the turns",
    )
    return _table(head, lines, results["machine"])


def _turns(ratios: list[float]) -> str:
    """The smallest and the largest ratio; of one turn nothing."""
    return "one turn" if len(ratios) == 1 else f"{min(ratios)} to {max(ratios)}"


def _documents() -> str:
    results = newest("serving")
    row = results["documents"]
    lines = [
        ("`Engine`, all at once", f"{row['engine tokens/s']:,.0f}", ""),
        (
            "`fastdecode.generate`, one at a time",
            f"{row['fastdecode one at a time tokens/s']:,.0f}",
            f"{row['engine over fastdecode one at a time']:.1f}",
        ),
        (
            "transformers' layers, one at a time",
            f"{row['transformers one at a time tokens/s']:,.0f}",
            f"{row['engine over transformers one at a time']:.1f}",
        ),
    ]
    return _table(("", "tokens per second", "the engine is faster by"), lines, results["machine"])


def _load() -> str:
    results = newest("serving")
    names = {"engine": "`Engine`", "generate, queued": "`generate` in a queue", "continuous batching": "transformers"}
    lines = []
    for load, title in (("mixed", "text and pictures"), ("text", "text")):
        part = results["load"][load]
        for name in names:
            if name in part:
                cells = [_pair(part[name], key) for key in ("first token", "per token", "per picture", "whole request")]
                lines.append((f"{title}, {part['requests/s']:.0f} a second: {names[name]}", *cells))
    return _table(("requests", "first token", "per token", "per picture", "whole request"), lines, results["machine"])


def _pair(row: dict[str, Any], key: str) -> str:
    values = [row[f"{key} {share} ms"] for share in ("p50", "p99")]
    return "" if None in values else ", ".join(f"{v:.1f}" if v < 10 else f"{v:,.0f}" for v in values)


def _sampling() -> str:
    lines = []
    for kind, streams, groups in (
        ("top_p 0.9", 2, (1, 8, 32)),
        ("top_k 50", 2, (1, 32)),
        ("top_p 0.9", 1, (1, 32)),
    ):
        for row in sampling_rows(kind, streams, False):
            if row["groups"] in groups:
                name = kind.replace("_", "-") + (", flat" if streams == 1 else "")
                ratios = [f"{row[rival] / row['fastdecode']:.3g} times that" for rival in ("transformers", "torch")]
                lines.append((name, str(streams), str(row["groups"]), f"{row['fastdecode']:,.0f} µs", *ratios))
    head = ("filter", "streams", "samples at once", "fastdecode", "transformers", "torch by hand")
    return _table(head, lines, newest("sample")["machine"])


def _table(head: Sequence[str], lines: Iterable[Sequence[str]], machine: dict[str, Any]) -> str:
    rows = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)]
    return "\n".join(rows) + f"\n\n*{measured_on(machine)}*"


def with_tables(text: str) -> str:
    """``text`` with every table put between its marks, ``<!-- table NAME -->`` and ``<!-- end -->``.

    ``ValueError`` if a table has no marks, or marks name no table.
    """
    left = tables()

    def put(mark: re.Match[str]) -> str:
        name = mark[1]
        if name not in left:
            raise ValueError(f"there is no table {name!r}, or its marks stand twice; tables: {', '.join(tables())}")
        return f"<!-- table {name} -->\n\n{left.pop(name)}\n\n<!-- end -->"

    text = re.sub(r"<!-- table (\w+) -->.*?<!-- end -->", put, text, flags=re.DOTALL)
    if left:
        raise ValueError(f"no marks for the tables {', '.join(left)}: write <!-- table NAME --><!-- end -->")
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the charts and the tables; with ``--check`` only say if the tables are not those of the results."""
    parser = argparse.ArgumentParser(description="Write the charts and tables of the documentation.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a table is out of date")
    page = with_tables(PAGE.read_text())
    if parser.parse_args(arguments).check:
        if page != PAGE.read_text():
            raise SystemExit(f"the tables in {PAGE.name} are not those of the newest results: python -m tools.report")
        return
    draw_speed(DOCS / "speed.png")
    draw_sampling(DOCS / "sampling.png")
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
