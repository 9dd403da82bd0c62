"""The common part of all benchmarks: functions take turns, and their times are written to files."""

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
    """Time functions. Returns the microseconds of one call of each, and the number of rounds.

    The functions take turns of a few milliseconds. In a turn a function is called repeatedly; the first call is not
    counted. The figure is the median call. ``seconds``: about the time that the slowest one gets.
    """
    once = {name: timed(function) for name, function in run.items() for _ in range(2)}
    rounds = int(min(100, max(5, seconds / max(once.values()))))
    times: dict[str, list[float]] = {name: [] for name in run}
    for _ in range(rounds):
        for name, function in run.items():
            times[name] += _turn(function)
    return {name: statistics.median(t) * 1e6 for name, t in times.items()}, rounds


def _turn(function: Run, seconds: float = 0.002) -> list[float]:
    """The times of repeated calls in one turn, at least one, without the first call."""
    function()
    times = [timed(function)]
    while sum(times) < seconds:
        times.append(timed(function))
    return times


def timed(function: Run) -> float:
    """The seconds that one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def make_files(files: Iterable[Path | None]) -> None:
    """Create the files, so that one that cannot be written raises before everything is measured."""
    for file in files:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()


def show(machine: dict[str, Any]) -> None:
    """Print one line that describes the machine."""
    print(", ".join(f"{key} {value}" for key, value in machine.items()))


def write_rows(
    name: str, rows: list[dict[str, Any]], machine: dict[str, Any], json_file: Path | None, csv_file: Path | None
) -> None:
    """Write the rows, which have the same columns, as JSON (with the machine) and CSV."""
    if json_file is not None:
        json_file.write_text(json.dumps({"machine": machine, name: rows}, indent=2) + "\n")
    if csv_file is not None:
        with csv_file.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
