"""``fastdecode bench step``: each operation of a decode step beside torch's equivalent and the floor of memory.

Every case is checked against the reference before it is timed; all take turns (`fastdecode.bench.turns`), so that
ratios are of one run. ``floor`` is the time that reading takes, of as many bytes as the operation must read, at the
speed of torch's sum over more than caches hold, which takes turns with the others. What an operation reads may lie in a
cache, and then it can be faster: weights, keys and values never do. Torch's equivalent has activations of the weights'
dtype and attends to rows that lie side by side in memory; of ``sample_advance`` it is `fastdecode.ops.sample`, and
torch operations for what is to be noted of the drawn tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdecode.bench.machine import describe
from fastdecode.bench.step_cases import COLD_BYTES, OPERATIONS, SIZES, Case, Runner, runner
from fastdecode.bench.turns import make_files, show, take_turns, write_rows

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-3}
"""Of the largest number of a result."""


def cases(quick: bool) -> Iterator[Case]:
    """Every operation of each size for 1, 2, 3 and 8 rows, bfloat16, and the linear layers also in float32."""
    for size in ("289M",) if quick else SIZES:
        for operation in OPERATIONS:
            for rows in (1, 3) if quick else (1, 2, 3, 8):
                yield Case(operation, size, rows)
                if operation.startswith("linear") and not quick:
                    yield Case(operation, size, rows, "float32")


def check(case: Case, run: Runner) -> None:
    """``RuntimeError`` if what a case gives is not what the reference returns."""
    got, expected = (found if isinstance(found, tuple) else (found,) for found in run.results())
    for a, b in zip(got, expected, strict=True):
        if not _alike(a, b, TOLERANCE[case.dtype]):
            raise RuntimeError(f"{case}: {a} is not what the reference returns: {b}; nothing was timed")


def _alike(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max())


def measure(case: Case, memory: Tensor, seconds: float = 0.3) -> dict[str, Any]:
    """Microseconds of everything that runs for ``case``, after `check`; ``memory`` is read for the floor."""
    run = runner(case)
    check(case, run)
    size = min(len(memory), max(1 << 20, run.bytes // 4))
    parts = cycle(memory.split(size)[: len(memory) // size])
    runs = {"fastdecode": run.fastdecode, "torch": run.torch, "read": lambda: next(parts).sum()}
    with torch.inference_mode():
        times, rounds = take_turns(runs, seconds)
    floor = times["read"] * run.bytes / (4 * size)
    return {**asdict(case), "bytes": run.bytes, "rounds": rounds, **times, "floor": floor}


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The rows as text: microseconds, how many times faster than torch, and how many times the floor."""
    lines = [f"{'operation':16} {'size':>6} {'rows':>4} {'dtype':>8}   {'us':>9} {'vs torch':>8} {'/floor':>7}"]
    for row in rows:
        ours = row["fastdecode"]
        lines.append(
            f"{row['operation']:16} {row['size']:>6} {row['rows']:>4} {row['dtype']:>8}   {ours:>9.1f} "
            f"{row['torch'] / ours:>8.2f} {ours / row['floor']:>7.2f}"
        )
    return "\n".join(lines)


def run_step_bench(quick: bool, json_file: Path | None, csv_file: Path | None) -> None:
    """Measure all cases, print them as they come, and write the files that were asked for."""
    make_files((json_file, csv_file))
    machine, memory = describe(), torch.ones(2 * COLD_BYTES // 4)
    show(machine)
    rows: list[dict[str, Any]] = []
    for case in cases(quick):
        rows.append(measure(case, memory))
        lines = table(rows[-1:]).splitlines()
        print("\n".join(lines if len(rows) == 1 else lines[1:]), flush=True)
    write_rows("step", rows, machine, json_file, csv_file)
