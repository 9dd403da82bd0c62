"""What every benchmark does alike: take turns, and write figures down."""

from __future__ import annotations

import csv
import json
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Run = Callable[[], Any]


def take_turns(run: dict[str, Run], seconds: float) -> tuple[dict[str, float], int]:
    """Microseconds of a call of each, and the number of rounds; about ``seconds`` for the slowest.

    All take turns of a few milliseconds; a turn is calls back to back, the first of which is not counted, and the
    figure is the median call.
    """
    once = {name: timed(function) for name, function in run.items() for _ in range(2)}
    rounds = int(min(100, max(5, seconds / max(once.values()))))
    times: dict[str, list[float]] = {name: [] for name in run}
    for _ in range(rounds):
        for name, function in run.items():
            times[name] += _turn(function)
    return {name: statistics.median(t) * 1e6 for name, t in times.items()}, rounds


def _turn(function: Run, seconds: float = 0.002) -> list[float]:
    """Times of calls back to back for so long, of one at least, without the first."""
    function()
    times = [timed(function)]
    while sum(times) < seconds:
        times.append(timed(function))
    return times


def timed(function: Run) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def make_files(files: Iterable[Path | None]) -> None:
    """Raises now, not after everything was measured, where a file cannot be written."""
    for file in files:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()


def show(machine: dict[str, Any]) -> None:
    """One line that says what the figures are of."""
    print(", ".join(f"{key} {value}" for key, value in machine.items()))


def write_rows(
    name: str, rows: list[dict[str, Any]], machine: dict[str, Any], json_file: Path | None, csv_file: Path | None
) -> None:
    """The rows, which have the same columns, and in JSON the machine."""
    if json_file is not None:
        json_file.write_text(json.dumps({"machine": machine, name: rows}, indent=2) + "\n")
    if csv_file is not None:
        with csv_file.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
