"""Joins the figures of all parts: one JSON file with every configuration, and Markdown tables.

    python -m benchmarks.gpu_report FOLDER

It reads the newest ``PART-DEVICE-DATE.json`` of each part, for the device that was measured last, and ``parts.tsv``,
which says how each part of ``gpu_check.sh`` ended. It writes ``DEVICE-DATE.json`` and ``DEVICE-DATE.md`` to the same
folder, and prints the most important tables.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_results import rounded, slug

PARTS = ("threads", "kernels", "step", "sample", "rivals")

WHO = ("fastdecode", "transformers", "torch", "torch compiled", "flashinfer", "softmax")

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], Any]]


def read_parts(folder: Path) -> dict[str, Any]:
    """By part; those of the device whose file was written last, and of a part with several the last of them."""
    written = sorted(folder.glob("*-*.json"), key=lambda file: file.stat().st_mtime)
    every = [found for found in map(_read, written) if found.get("part") in PARTS]
    device = every[-1]["machine"]["device"] if every else None
    last = {found["part"]: found for found in every if found["machine"]["device"] == device}
    return {part: last[part] for part in PARTS if part in last}


def _read(file: Path) -> dict[str, Any]:
    found = json.loads(file.read_text())
    return found if isinstance(found, dict) else {}


def read_checks(folder: Path) -> list[Row]:
    """What `gpu_check.sh` recorded for every part: name, exit status, seconds, last line."""
    file = folder / "parts.tsv"
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines, ["part", "status", "seconds", "last line"], delimiter="\t"))


def configurations(parts: dict[str, Any]) -> list[Row]:
    """All rows with a `bandwidth_fraction`, with their part and table."""
    return [
        {"part": part, "table": table, **row}
        for part, found in parts.items()
        for table, rows in found.items()
        if isinstance(rows, list)
        for row in rows
        if isinstance(row, dict) and "bandwidth_fraction" in row
    ]


def whole(folder: Path) -> dict[str, Any]:
    """All parts in one, with the machine of the first of them. ``ValueError`` if there are none."""
    parts = read_parts(folder)
    if not parts:
        raise ValueError(f"{folder} has no figures: no file PART-DEVICE-DATE.json of {', '.join(PARTS)}")
    machines = {part: found["machine"] for part, found in parts.items()}
    facts = next(iter(machines.values()))
    return {
        "machine": facts,
        "other machines": {part: other for part, other in machines.items() if other != facts},
        "checks": read_checks(folder),
        "configurations": configurations(parts),
        "parts": parts,
    }


# --- Markdown ---------------------------------------------------------------------------------------------------


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def table(rows: Iterable[Row], columns: Sequence[Column]) -> str:
    """The rows as Markdown, without columns that are empty in all rows. A row with an error shows it."""
    cells = []
    for row in rows:
        line = [_cell(value(row)) for _, value in columns]
        if "error" in row:
            line[-1] = _cell(f"failed: {row['error']}"[:160])
        cells.append(line)
    kept = [i for i in range(len(columns)) if any(line[i] for line in cells)]
    lines = [[columns[i][0] for i in kept], ["---"] * len(kept), *([line[i] for i in kept] for line in cells)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def field(name: str, scale: float = 1.0) -> Callable[[Row], Any]:
    def value(row: Row) -> Any:
        found = row.get(name)
        return found * scale if isinstance(found, (int, float)) and scale != 1.0 else found

    return value


def _not_captured(row: Row) -> str | None:
    """Who was timed as it is, in a run where others were captured."""
    timed = [name for name in row if name in WHO or name.startswith("fastdecode, ")]
    return ", ".join(name for name in timed if row.get("captured") and name not in row["captured"]) or None


def percent(name: str) -> Callable[[Row], Any]:
    return lambda row: f"{row[name]:.1%}" if name in row else None


def times(name: str, ours: str = "fastdecode") -> Callable[[Row], Any]:
    return lambda row: f"{row[name] / row[ours]:.2f}×" if name in row and ours in row else None


SMALL: list[Column] = [("greedy ids of a small model, as on the CPU", field("ids compared"))]
STEP: list[Column] = [
    ("model", field("model")),
    ("sequences", field("sequences")),
    ("streams", field("streams")),
    ("same ids as not captured", field("same ids captured and not")),
    ("ms per step", field("ms per step")),
    ("of bandwidth", percent("bandwidth_fraction")),
    ("tokens/s", field("tokens/s")),
    ("not captured, ms", field("ms per step, not captured")),
    ("capture, s", field("capture seconds")),
    ("picture, s", field("picture seconds")),
    ("its share of bandwidth", percent("picture bandwidth_fraction")),
    ("next picture, s", field("next picture seconds")),
    ("peak memory, GB", field("peak memory GB")),
]
RIVALS: list[Column] = [
    ("rival", field("rival")),
    ("sequences", field("sequences")),
    ("streams", field("streams")),
    ("ms per step", field("ms per step")),
    ("of bandwidth", percent("bandwidth_fraction")),
    ("fastdecode, ms", field("fastdecode ms per step")),
    ("fastdecode is faster by", lambda row: f"{row['ratio']:.2f}×" if "ratio" in row else None),
    ("picture, s (extrapolated)", field("picture seconds, extrapolated")),
    ("compilation, s", field("compile seconds")),
    ("graphs skipped", field("cudagraph skips")),
]
OPERATIONS: list[Column] = [
    ("operation", field("operation")),
    ("rows", field("rows")),
    ("MB", field("bytes", 1e-6)),
    ("backend", field("backend")),
    ("µs", field("fastdecode")),
    ("of bandwidth", percent("bandwidth_fraction")),
    ("calls per step", field("calls per step")),
    ("µs per step", field("per step")),
    ("triton, µs", field("fastdecode, triton")),
    ("cuda, µs", field("fastdecode, cuda")),
    ("torch, µs", field("torch")),
    ("torch's share", percent("torch bandwidth_fraction")),
    ("torch takes", times("torch")),
]
DRAWS: list[Column] = [
    ("filter", field("filter")),
    ("groups", field("groups")),
    ("streams", field("streams")),
    ("ids", lambda row: 8192 if row["image"] else row["vocab"]),
    ("dtype", field("dtype")),
    ("fastdecode, µs", field("fastdecode")),
    ("triton, µs", field("fastdecode, triton")),
    ("cuda, µs", field("fastdecode, cuda")),
    ("of bandwidth", percent("bandwidth_fraction")),
    ("transformers takes", times("transformers")),
    ("torch", times("torch")),
    ("compiled", times("torch compiled")),
    ("FlashInfer", times("flashinfer")),
    ("torch's softmax alone", times("softmax")),
    ("not captured", lambda row: _not_captured(row)),
    ("failed", lambda row: ", ".join(key for key in row if key.endswith(" failed")) or None),
]
THREADS: list[Column] = [
    ("thread", field("thread")),
    ("groups drawn", field("groups")),
    ("filter", field("filter")),
    ("sequences decoded", field("sequences")),
    ("streams", field("streams of a step")),
    ("numbers as of one thread", field("numbers compared")),
]
KERNELS: list[Column] = [
    ("kernel", field("kernel")),
    ("calls per step", field("calls per step")),
    ("µs per step", field("us per step")),
]
CHECKS: list[Column] = [(name, field(name)) for name in ("part", "status", "seconds", "last line")]
LINEAR = [OPERATIONS[0], ("weights", field("weights")), *(c for c in OPERATIONS[1:] if "step" not in c[0])]

PRINTED = 4
"""The first tables, which are printed too."""

TABLES: tuple[tuple[str, str, str, list[Column]], ...] = (
    ("step", "configurations", "Steps and pictures", STEP),
    ("step", "small model", "Correctness", SMALL),
    ("threads", "threads", "Eight threads at once", THREADS),
    ("rivals", "rivals", "Rivals, in the same run", RIVALS),
    ("kernels", "operations", "Operations of a step", OPERATIONS),
    ("kernels", "linear", "The product of few rows beside torch's", LINEAR),
    ("sample", "draws", "Draws", DRAWS),
    ("step", "kernels of a step", "Kernels of a replayed step, by the profiler", KERNELS),
)


def markdown(found: dict[str, Any], tables: Sequence[tuple[str, str, str, list[Column]]] = TABLES) -> str:
    """The machine, how the parts ended, and each of the tables that has rows."""
    facts = found["machine"]
    keys = [key for key in facts if key not in ("date", "commit")]
    lines = [
        f"# {facts['device']}, {facts['date']}, commit {facts['commit']}\n",
        table([facts], [(key, field(key)) for key in keys]),
    ]
    speeds = {part: other["bandwidth"] for part, other in found["parts"].items() if "bandwidth" in other}
    lines += [
        "Bandwidth in TB/s, in the run of each part; shares are of the best.\n",
        table(
            ({"part": part, **speed} for part, speed in speeds.items()),
            [("part", field("part")), *((name, field(name, 1e-12)) for name in next(iter(speeds.values()), {}))],
        ),
    ]
    if found["checks"]:
        lines += ["## Parts\n", table(found["checks"], CHECKS)]
    for part, name, title, columns in tables:
        rows = found["parts"].get(part, {}).get(name)
        if rows:
            lines += [f"## {title}\n", table(rows, columns)]
    left = {part: other["left out"] for part, other in found["parts"].items() if "left out" in other}
    if left:
        lines += [
            "## Left out for want of time\n",
            *(f"- {part}: {', '.join(what)}" for part, what in left.items()),
            "",
        ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Put the figures of all parts together.")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    try:
        found = whole(folder)
    except ValueError as error:
        print(f"gpu_report: {error}", file=sys.stderr)
        return 2
    name = f"{slug(found['machine']['device'])}-{found['machine']['date']}"
    (folder / f"{name}.json").write_text(json.dumps(rounded(found), indent=1) + "\n")
    (folder / f"{name}.md").write_text(markdown(found))
    print(markdown(found, TABLES[:PRINTED]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
