"""``fastdecode bench step``: times each operation of a decode step, torch's equivalent, and the read of its memory.

Every case is checked against the reference before it is timed. All functions take turns (`fastdecode.bench.turns`), so
a ratio compares figures of one run. ``floor`` is the time to read the bytes that the operation must read, at the
bandwidth of torch's sum over more memory than the caches hold. An operation can be faster if its inputs are in a cache;
weights, keys and values never are. Torch's equivalent has activations in the weights' dtype, and attends to contiguous
keys and values. For ``sample_advance`` it is `fastdecode.ops.sample` and torch operations that record the tokens.
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
"""The tolerance, relative to the largest number of a result."""


def cases(quick: bool) -> Iterator[Case]:
    """Every operation in each size with 1, 2, 3 and 8 rows in bfloat16, and the linear layers also in float32."""
    for size in ("289M",) if quick else SIZES:
        for operation in OPERATIONS:
            for rows in (1, 3) if quick else (1, 2, 3, 8):
                yield Case(operation, size, rows)
                if operation.startswith("linear") and not quick:
                    yield Case(operation, size, rows, "float32")


def check(case: Case, run: Runner) -> None:
    """``RuntimeError`` if the result of a case differs from the reference."""
    got, expected = (found if isinstance(found, tuple) else (found,) for found in run.results())
    for a, b in zip(got, expected, strict=True):
        if not _alike(a, b, TOLERANCE[case.dtype]):
            raise RuntimeError(f"{case}: {a} is not what the reference returns: {b}; nothing was timed")


def _alike(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max())


def measure(case: Case, memory: Tensor, seconds: float = 0.3) -> dict[str, Any]:
    """`check` a case, then time its functions in microseconds. ``memory``: what is read to measure the floor."""
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
    """The rows as text: microseconds, how many times faster than torch, and the ratio to the floor."""
    lines = [f"{'operation':16} {'size':>6} {'rows':>4} {'dtype':>8}   {'us':>9} {'vs torch':>8} {'/floor':>7}"]
    for row in rows:
        ours = row["fastdecode"]
        lines.append(
            f"{row['operation']:16} {row['size']:>6} {row['rows']:>4} {row['dtype']:>8}   {ours:>9.1f} "
            f"{row['torch'] / ours:>8.2f} {ours / row['floor']:>7.2f}"
        )
    return "\n".join(lines)


def run_step_bench(quick: bool, json_file: Path | None, csv_file: Path | None) -> None:
    """Measure all cases, print each when it is done, and write the requested files."""
    make_files((json_file, csv_file))
    machine, memory = describe(), torch.ones(2 * COLD_BYTES // 4)
    show(machine)
    rows: list[dict[str, Any]] = []
    for case in cases(quick):
        rows.append(measure(case, memory))
        lines = table(rows[-1:]).splitlines()
        print("\n".join(lines if len(rows) == 1 else lines[1:]), flush=True)
    write_rows("step", rows, machine, json_file, csv_file)
