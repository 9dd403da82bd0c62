"""Times one draw on a GPU beside what one would run otherwise, after checking it against the reference on the CPU.

    python -m benchmarks.gpu_sample --json FILE --markdown FILE
    python -m benchmarks.gpu_sample --dry-run      # the same code on the CPU, a few cases, no figures worth keeping

Everything that can be is captured in a CUDA graph and replayed, several draws to a graph, so that launches cost what
they cost inside a captured step; what cannot be captured is timed by events as it is and marked. The floor is the bytes
of the logits over the bandwidth of a large copy, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fastdecode import ops
from fastdecode.bench.machine import describe
from fastdecode.bench.sample import FILTERS, IMAGE_SPAN, WEIGHTS, Case
from fastdecode.bench.sample_rivals import Torch, Transformers

DRAWS = 20
"""Draws in a graph."""


def cases(dry: bool) -> list[Case]:
    if dry:
        return [Case(2, vocab=300, filter=name) for name in ("greedy", "top_p 0.9", "top_k 50")]
    found = [Case(n, image=image) for image in (True, False) for n in (1, 4, 16, 64)]
    found += [Case(n, image=True, filter=name) for name in FILTERS for n in (1, 32) if name != "top_p 0.9"]
    found += [Case(n, filter=name) for name in FILTERS for n in (1, 32) if name != "top_p 0.9"]
    found += [Case(n, dtype="bfloat16", image=image) for image in (True, False) for n in (1, 32)]
    found += [Case(8, streams=streams, image=True) for streams in (1, 3, 5)]
    return [*found, Case(8, vocab=131072)]


def arguments(case: Case, device: str) -> dict[str, Any]:
    groups = case.groups
    return {
        "streams": torch.arange(groups * case.streams, dtype=torch.int32, device=device).view(groups, case.streams),
        "weights": torch.tensor([WEIGHTS[case.streams]] * groups, device=device),
        "allowed": ops.TokenSets([[case.span]], case.vocab, device),
        "seed": torch.arange(groups, device=device),
        "step": torch.full((groups,), 5, device=device),
        **FILTERS[case.filter],
    }


def check(case: Case, device: str, backend: str | None) -> None:
    """``RuntimeError`` if a draw is not what the reference draws on the CPU, bit for bit."""
    logits = case.logits()
    got = ops.sample(logits.to(device), **arguments(case, device), backend=backend)
    expected = ops.sample(logits, **arguments(case, "cpu"), backend="reference")
    for name, a, b in zip(got._fields, got, expected, strict=True):
        if not torch.equal(a.cpu(), b):
            raise RuntimeError(f"{case}: {name} is {a.tolist()}, the reference's {b.tolist()}; nothing was timed")


def seconds_of(function: Callable[[], Any], device: str, rounds: int) -> tuple[float, bool]:
    """(median seconds of a call, whether it was captured)."""
    if device == "cpu":
        times = []
        for _ in range(rounds):
            begun = time.perf_counter()
            function()
            times.append(time.perf_counter() - begun)
        return statistics.median(times), False
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    side.synchronize()
    calls, captured = 1, False
    run: Callable[[], Any] = function
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(DRAWS):
                function()
        run, calls, captured = graph.replay, DRAWS, True
    except RuntimeError:
        torch.cuda.synchronize()
    for _ in range(3):
        run()
    times = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / calls)
    return statistics.median(times), captured


def bandwidth(device: str, rounds: int) -> float:
    """Bytes per second, read and written, of a copy that no cache holds."""
    source = torch.empty(2**20 if device == "cpu" else 2**30, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    seconds, _ = seconds_of(lambda: target.copy_(source), device, rounds)
    return 2 * source.numel() / seconds


def measure(case: Case, device: str, rounds: int, bytes_per_second: float, compiled: bool) -> dict[str, Any]:
    """Microseconds of everyone for a case."""
    logits, options = case.logits().to(device), FILTERS[case.filter]
    lo, hi = case.span
    rival = (case.vocab, case.span, WEIGHTS[case.streams], options)
    ours, torch_by_hand, theirs = arguments(case, device), Torch(*rival), Transformers(*rival)
    if theirs.mask is not None:
        theirs.mask = theirs.mask.to(device)
    run: dict[str, Callable[[], Any]] = {
        "fastdecode": lambda: ops.sample(logits, **ours),
        "transformers": lambda: theirs(logits),
        "torch": lambda: torch_by_hand(logits),
        "softmax": lambda: torch.softmax(logits[:, lo:hi], -1),
    }
    if compiled:
        torch._dynamo.reset()
        chain = torch.compile(Torch(*rival))
        run["torch compiled"] = lambda: chain(logits)
    floor = case.groups * case.streams * (hi - lo) * logits.element_size() / bytes_per_second
    row: dict[str, Any] = {**asdict(case), "floor": floor * 1e6, "captured": []}
    for name, function in run.items():
        seconds, captured = seconds_of(function, device, rounds)
        row[name] = seconds * 1e6
        row["captured"] += [name] if captured else []
    row["bandwidth_fraction"] = floor * 1e6 / row["fastdecode"]
    return row


def markdown(machine: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    head = ", ".join(f"{key} {value}" for key, value in machine.items())
    lines = [
        head,
        "",
        "| filter | groups | streams | ids | dtype | fastdecode, µs | transformers | torch | compiled | of bandwidth |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ids = IMAGE_SPAN[1] - IMAGE_SPAN[0] if row["image"] else row["vocab"]
        ratios = [f"{row[name] / row['fastdecode']:.1f}×" if name in row else "" for name in
                  ("transformers", "torch", "torch compiled")]  # fmt: skip
        what = [row["filter"], row["groups"], row["streams"], ids, row["dtype"], f"{row['fastdecode']:.1f}", *ratios]
        lines.append("| " + " | ".join(map(str, [*what, f"{row['bandwidth_fraction']:.3f}"])) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Time fastdecode.ops.sample on a GPU beside its rivals.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--seconds", type=float, default=200.0, help="begin no case after so long (%(default)s)")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile of the torch chain")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, a few small cases")
    args = parser.parse_args()
    device = "cpu" if args.dry_run else "cuda"
    if not args.dry_run and not torch.cuda.is_available():
        print("gpu_sample: torch sees no GPU; --dry-run runs the same code on the CPU", file=sys.stderr)
        return 2
    rounds = 3 if args.dry_run else 50
    begun = time.monotonic()
    copy = bandwidth(device, rounds)
    machine = {**describe(), "copy bandwidth": f"{copy / 1e9:.0f} GB/s"}
    rows = []
    for case in cases(args.dry_run):
        if time.monotonic() - begun > args.seconds:
            print(f"out of time before {case}")
            break
        check(case, device, None if args.dry_run else "triton")
        row = measure(case, device, rounds, copy, compiled=not (args.no_compile or args.dry_run or rows[4:]))
        rows.append(row)
        print({name: round(value, 2) if isinstance(value, float) else value for name, value in row.items()}, flush=True)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "sample": rows}, indent=2) + "\n")
    if args.markdown:
        args.markdown.write_text(markdown(machine, rows))
    print(markdown(machine, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
