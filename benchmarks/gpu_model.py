"""A model of the GPU decode step, not a measurement: what a captured step would take, from its compiled kernels.

    python benchmarks/gpu_model.py [--device h200] [--model 7b] [--rows 2] [--weights bf16] [--tokens 210] [-o FILE]

It needs no GPU. `benchmarks.recorded_step` records what a real step launches. Every kernel is compiled for the device
as a launch compiles it; registers, shared memory and instructions come from the compiled code, and bytes from the
arguments (benchmarks/gpu_work.py). A launch takes its launch cost and the longest of these:

    bytes         a read's latency, then its bytes at the device's bandwidth, or at what the bytes in flight allow
    instructions  those of all warps, issued by four schedulers of the busiest multiprocessor
    tensor cores  their products, likewise
    latency       reads that wait for each other, and the instructions of one warp, one round of programs after another

`START` and `GAP` come from one profile on an H200, and the rule of `cycles_of` was chosen with a look at its products;
everything else is from specifications, other measurements, or assumed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu_devices import DEVICES, KB, Device
from benchmarks.gpu_report import Column, field, table
from benchmarks.gpu_results import rounded
from benchmarks.gpu_step import PROMPT
from benchmarks.gpu_work import Work, work_of
from benchmarks.models import SIZES
from benchmarks.recorded_step import WEIGHTS, Launch, Step, compiled, step_of
from fastdecode.triton_kernels.compile import resources_of
from fastdecode.triton_kernels.disassemble import Listing, listing

HEADING = "A model, not a measurement"

START = 1.1e-6
"""Seconds of a kernel that does nearly nothing. Measured: the shortest kernels of the H200's profile."""

GAP = 0.58e-6
"""Seconds between two kernels of a graph. Measured: the H200's step less its profiled kernels, over the launches."""

CYCLES = 2.0
"""Cycles between two instructions of a warp. An assumption: 4 if each needed the one before, 1 if none did."""

SLOW_CYCLES = 25.0
"""The same after an instruction that waits: shared memory, shuffle, barrier, special function. An assumption."""

SLOW = ("LDS", "LDSM", "SHFL", "BAR", "MUFU", "HMMA", "REDUX", "WARPSYNC")

CACHE_LATENCY = 0.25e-6
"""Seconds of a read of the L2 cache. An assumption."""

ISSUE = 0.8
"""The share of cycles in which a busy scheduler issues an instruction. An assumption."""

DEPENDENT = 0.5
"""The share of `START` + `GAP` that a kernel with ``launch_pdl`` still takes. An assumption: nobody measured it."""

MEASURED = Path(__file__).with_name("results") / "h200-2026-11-26.json"


@dataclass(frozen=True)
class Code:
    """A kernel compiled for a device."""

    registers: int
    shared: int
    stack: int
    warps: int
    listing: Listing

    def residents(self, device: Device) -> int:
        """Programs that a multiprocessor holds at once."""
        of_warp = ceil(self.registers * 32 / 256) * 256
        return min(
            device.registers // (of_warp * self.warps),
            device.shared // (self.shared + KB),  # the driver takes one
            device.warps // self.warps,
            device.programs,
        )

    def trips(self, work: Work) -> list[float]:
        names, loops = self.listing.names, self.listing.loops
        barriers = [any(name.startswith("BAR") for name in names[loop.start : loop.stop]) for loop in loops]
        return [max(work.trips if barrier else work.plain_trips, 1) for barrier in barriers]


@cache
def code_of(launch: Launch, arch: int) -> Code:
    made = compiled(launch, arch)
    registers, stack = resources_of(made.asm["cubin"])
    return Code(registers, made.metadata.shared, stack, made.metadata.num_warps, listing(made.asm["cubin"]))


@dataclass(frozen=True)
class Time:
    """Seconds of one launch. ``parts``: by what could bound it; ``launch`` is added to the longest of the others."""

    parts: dict[str, float]
    work: Work
    code: Code | None = None

    @property
    def seconds(self) -> float:
        return self.parts["launch"] + max(value for name, value in self.parts.items() if name != "launch")

    @property
    def bound(self) -> str:
        return max(self.parts, key=lambda name: self.parts[name])


def cycles_of(names: Sequence[str]) -> list[float]:
    """Of each instruction in turn, until the warp issues the next one. Slow ones of a kind, one after another, overlap:
    without that rule products came out 12% too slow.
    """
    found, last = [], ""
    for name in names:
        kind = next((slow for slow in SLOW if name.startswith(slow)), "")
        found.append(SLOW_CYCLES if kind and kind != last else CYCLES)
        last = kind or last
    return found


def bytes_time(work: Work, device: Device, residents: int) -> float:
    """``residents``: programs on a multiprocessor. By Little's law no more is read than is in flight, per latency."""
    rate = device.reads
    if work.flight is not None:
        rate = min(rate, residents * work.flight * min(device.multiprocessors, work.programs) / device.latency)
    return _first_latency(work, device) + work.bytes / rate


def _first_latency(work: Work, device: Device) -> float:
    return device.latency if work.stored and not work.prefetched else CACHE_LATENCY


def time_of(launch: Launch, device: Device, tokens: int) -> Time:
    work = work_of(launch, tokens)
    cost = (START + GAP) * (DEPENDENT if dict(launch.options).get("launch_pdl") else 1)
    if launch.kernel is None:
        return Time({"launch": cost, "bytes": bytes_time(work, device, 1)}, work)
    code = code_of(launch, device.arch)
    runs = code.listing.runs(code.trips(work))
    names = code.listing.names
    multiplied = sum(count for count, name in zip(runs, names, strict=True) if name.startswith("HMMA"))
    waiting = sum(count * cycles for count, cycles in zip(runs, cycles_of(names), strict=True)) * work.taken
    residents = code.residents(device)
    busiest = ceil(work.programs / device.multiprocessors)
    of_scheduler = busiest * ceil(code.warps / 4) if busiest == 1 else busiest * code.warps / 4
    rounds = ceil(busiest / residents)
    latency = work.waits * CACHE_LATENCY + (_first_latency(work, device) if work.stored else 0)
    return Time(
        {
            "launch": cost,
            "bytes": bytes_time(work, device, min(residents, busiest)),
            "instructions": of_scheduler * sum(runs) * work.taken / ISSUE / device.clock,
            "tensor cores": of_scheduler * multiplied * device.multiply / device.clock,
            "latency": rounds * (latency + waiting / device.clock),
        },
        work,
        code,
    )


def _described(launch: Launch) -> str:
    """The name, of a product with its size."""
    if launch.name in ("linear", "linear_parts"):
        return f"{launch.name} {sum(launch[f'features{i}'] for i in range(3))} × {launch['K']}"
    return launch.name


def rows_of(step: Step, device: Device, tokens: int) -> list[dict[str, Any]]:
    """A row for each kernel (of a product, for each size), the longest first."""
    found: dict[str, dict[str, Any]] = {}
    for launch, count in step.whole.items():
        time, name = time_of(launch, device, tokens), _described(launch)
        row = found.setdefault(
            name,
            {"kernel": name, "launches": 0, "launches of a layer": 0, "us per step": 0.0, "bytes": 0.0, "longest": 0.0},
        )
        row["launches"] += count
        row["launches of a layer"] += step.layer[launch]
        row["us per step"] += count * time.seconds * 1e6
        row["bytes"] += count * time.work.bytes
        if count * time.seconds > row["longest"]:
            row |= {"longest": count * time.seconds, "bound by": time.bound, "programs": time.work.programs}
            if time.code is not None:
                row |= {
                    "warps": time.code.warps,
                    "registers": time.code.registers,
                    "shared": time.code.shared,
                    "stack": time.code.stack,
                    "residents": time.code.residents(device),
                    "waves": time.work.programs / device.multiprocessors / time.code.residents(device),
                    "instructions of a warp": sum(time.code.listing.runs(time.code.trips(time.work))),
                }
    for row in found.values():
        del row["longest"]
        row["us"] = row["us per step"] / row["launches"]
    return sorted(found.values(), key=lambda row: -row["us per step"])


def model(device: Device, name: str, rows: int, weights: str, tokens: int) -> dict[str, Any]:
    """Everything that is printed and written."""
    step = step_of(name, rows, weights, device, PROMPT if tokens <= 2 * PROMPT + 128 else tokens)
    found = rows_of(step, device, tokens)
    total = sum(row["us per step"] for row in found)
    floor = sum(time_of(launch, device, tokens).work.stored * n for launch, n in step.whole.items()) / device.best * 1e6
    return {
        "what": HEADING,
        "device": device.name,
        "arch": device.arch,
        "model": name,
        "rows": rows,
        "weights": weights,
        "tokens": tokens,
        "layers": step.layers,
        "launches": step.whole.total(),
        "launches of a layer": step.layer.total(),
        "ms per step": total / 1e3,
        "us per layer": sum(time_of(launch, device, tokens).seconds * 1e6 * n for launch, n in step.layer.items()),
        "floor ms": floor / 1e3,
        "bandwidth_fraction": floor / total,
        "kernels": found,
        "assumptions": assumptions(device),
    }


def assumptions(device: Device) -> list[str]:
    return [
        f"{HEADING}: no device ran for this table.",
        f"{device.name}: a kernel reads {device.reads / 1e12:.2f} TB/s at most ({device.achieved:.0%} of the vendor's "
        f"figure); shares are of {device.best / 1e12:.2f} TB/s. {device.multiprocessors} multiprocessors at "
        f"{device.clock / 1e9:.2f} GHz; memory answers in {device.latency * 1e6:.1f} µs: assumed.",
        f"A launch costs {START * 1e6:.1f} µs and {GAP * 1e6:.2f} µs between kernels, as in one profile of an H200, on "
        "every device.",
        f"Programmatic dependent launches cost {DEPENDENT:.0%} of that, and products launched so find in the cache "
        "what they read first: assumed.",
        f"A warp issues every {CYCLES:g} cycles, and waits {SLOW_CYCLES:g} for shared memory, tensor cores, shuffles, "
        "barriers and special functions: assumed. That several of a kind in turn wait once was chosen with a look at "
        "the products of that profile.",
        f"A scheduler issues in {ISSUE:.0%} of the cycles; the cache answers in {CACHE_LATENCY * 1e6:.2f} µs: assumed.",
        "All branches of a kernel count as taken. Loops of the sampler run as often as they may.",
        "torch's operations take their bytes and a launch; its products (cuBLAS) read at full bandwidth.",
    ]


def measured(found: dict[str, Any]) -> dict[str, Any] | None:
    """The row of the H200's run for the same model and rows, with its kernels where they were profiled."""
    if (found["device"], found["weights"]) != (DEVICES["h200"].name, "bf16"):
        return None
    run = json.loads(MEASURED.read_text())
    rows = [r for r in run["configurations"] if r["part"] == "step" and r["model"] == found["model"]]
    row = next((r for r in rows if r["rows"] == found["rows"]), None)
    if row is None:
        return None
    profiled = {r["kernel"]: r["us per step"] for r in run["parts"]["step"]["kernels of a step"]}
    return {
        "ms per step": row["ms per step"],
        "commit": run["machine"]["commit"],
        "kernels": profiled if found["rows"] == 2 else {},
    }


COLUMNS: list[Column] = [
    ("kernel", field("kernel")),
    ("launches a step", field("launches")),
    ("a layer", lambda row: row["launches of a layer"] or None),
    ("µs each", lambda row: f"{row['us']:.2f}"),
    ("µs a step", lambda row: f"{row['us per step']:.0f}"),
    ("bound by", field("bound by")),
    ("programs", field("programs")),
    ("warps", field("warps")),
    ("registers", field("registers")),
    ("shared, KB", lambda row: round(row["shared"] / KB) if "shared" in row else None),
    ("waves", lambda row: f"{row['waves']:.2f}" if "waves" in row else None),
]


def beside(found: dict[str, Any], run: dict[str, Any]) -> str:
    """The model beside the measurement, for each profiled kernel. Profiled times have no gaps between kernels."""
    rows = []
    for name, theirs in run["kernels"].items():
        ours = [row for row in found["kernels"] if row["kernel"].split()[0] == name]
        if ours:
            mine = sum(row["us per step"] - row["launches"] * GAP * 1e6 for row in ours)
            rows.append({"kernel": name, "model": mine, "measured": theirs, "off": mine / theirs - 1})
    columns: list[Column] = [
        ("kernel", field("kernel")),
        ("model, µs a step", lambda row: f"{row['model']:.0f}"),
        ("measured, µs a step", lambda row: f"{row['measured']:.0f}"),
        ("off by", lambda row: f"{row['off']:+.0%}"),
    ]
    error = found["ms per step"] / run["ms per step"] - 1
    head = (
        f"The same step took {run['ms per step']:.2f} ms on an H200 at commit {run['commit']}; the model of this "
        f"checkout says {found['ms per step']:.2f} ms: {error:+.1%}.\n"
    )
    return head + ("\n" + table(rows, columns) if rows else "")


def markdown(found: dict[str, Any]) -> str:
    run = measured(found)
    return "\n".join(
        [
            f"# {HEADING}: {found['model']}, {found['weights']}, {found['rows']} rows of {found['tokens']} tokens, "
            f"{found['device']}\n",
            table(found["kernels"], COLUMNS),
            f"A step: {found['launches']} launches, {found['ms per step']:.2f} ms, {found['bandwidth_fraction']:.0%} "
            f"of the bandwidth. A layer: {found['launches of a layer']} launches, {found['us per layer']:.1f} µs.\n",
            *([] if run is None else [beside(found, run)]),
            *(f"- {line}" for line in found["assumptions"]),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A model of the GPU decode step, not a measurement. Needs no GPU.")
    parser.add_argument("--device", choices=DEVICES, default="h200")
    names = {name.lower(): name for name in SIZES}
    parser.add_argument("--model", choices=names, default="7b", type=str.lower)
    parser.add_argument("--rows", type=int, default=2, help="sequences times streams; even: two streams")
    parser.add_argument("--weights", choices=WEIGHTS, default="bf16")
    parser.add_argument("--tokens", type=int, default=210, help="that each row attends to; 210 as in the H200's run")
    parser.add_argument("-o", "--out", type=Path, help="a JSON file to write the figures to")
    chosen = parser.parse_args(arguments)
    for name in ("rows", "tokens"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name} {getattr(chosen, name)}: must be at least 1")
    found = model(DEVICES[chosen.device], names[chosen.model], chosen.rows, chosen.weights, chosen.tokens)
    print(markdown(found))
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(rounded(found), indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
