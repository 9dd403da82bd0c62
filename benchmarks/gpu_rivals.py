"""Times a guided step on a GPU: fastdecode and its alternatives with the same weights, in the same run.

    python -m benchmarks.gpu_rivals --out FOLDER
    python -m benchmarks.gpu_rivals --dry-run --out FOLDER    # on the CPU, a tiny model, traced but not compiled

The rivals (benchmarks/rivals.py): transformers' ``generate`` with its guidance processor, eager, as its users run it;
and its layers over a static cache, both streams in a batch, each step one function under ``torch.compile``, which fuses
norms, activations, residuals and the draw into few kernels. Compiled twice: with ``mode="reduce-overhead"``, which
replays CUDA graphs; and with ``mode="max-autotune-no-cudagraphs"``, which tries many kernels for each product and fuses
what follows into it, but launches them one by one. All are timed over a few dozen steps after a warm-up. The time of
their whole picture is extrapolated from that: set-up, and one step for each of its tokens.
"""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import ExitStack
from typing import Any

import torch

from benchmarks.bench_decode import SAMPLED, SCALE, Clock, check_drawn, greedy_agreement, ours, theirs
from benchmarks.gpu_results import Part
from benchmarks.gpu_step import Configuration, as_on_a_gpu, measure, release
from benchmarks.gpu_timing import Mark, synchronize
from benchmarks.models import IMAGE_IDS, random_model
from benchmarks.rivals import StaticChameleon
from fastdecode.models.families import vocabulary_of

EAGER_TOKENS = 28
STATIC_STEPS = 64
REPEATS = 3

MODES = {"static, compiled": "reduce-overhead", "static, autotuned": "max-autotune-no-cudagraphs"}
"""Of torch.compile, for the rivals over a static cache."""

AUTOTUNING = 50.0
"""Seconds that must be left for the autotuned rival, which compiles for long."""

OTHERS = (Configuration(4), Configuration(16), Configuration(1, 1))
DRY_OTHERS = (Configuration(1, 1),)
"""Beside one guided sequence."""


def eager(model: Any, configuration: Configuration, device: str, tokens: int) -> dict[str, Any]:
    """transformers' own loop: the steps between its fifth new token and the last of ``tokens``."""
    prompts = configuration.prompts(model).to(device)
    run = theirs(model, prompts, SCALE if configuration.streams == 2 else 1.0)
    for _ in range(2):  # the first warms up
        clock = Clock(tokens)
        check_drawn(run(clock, 0, **SAMPLED), prompts, tokens, "transformers")
    return {"ms per step": clock.per_token * 1e3, "set-up seconds": clock.set_up, "timed steps": tokens - 4}


def static(model: Any, configuration: Configuration, device: str, steps: int, mode: str) -> dict[str, Any]:
    """The step over a static cache, compiled in ``mode``. The first tokens, with the compilation, are timed apart."""

    def compiler(step: Any) -> Any:
        if device == "cpu":
            return torch.compile(step, backend="eager", fullgraph=True)
        return torch.compile(step, mode=mode, fullgraph=True)

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    prompts = configuration.prompts(model).to(device)
    rival = StaticChameleon(model, prompts, SCALE, SAMPLED, compiler)
    begun = time.perf_counter()
    drawn = rival.run(4)  # compiles, warms up, captures, replays
    synchronize(device)
    compiling = time.perf_counter() - begun
    times: dict[int, list[float]] = {1: [], 1 + steps: []}
    for _ in range(REPEATS):
        for count, found in times.items():
            begin = Mark(device)
            drawn = rival.run(count)
            found.append(Mark(device).since(begin))
    if not ((drawn >= IMAGE_IDS.start) & (drawn < IMAGE_IDS.stop)).all():
        raise RuntimeError(f"the compiled rival drew {drawn.tolist()}: not all of them image ids")
    prefill, whole = (statistics.median(found) for found in times.values())
    return {
        "ms per step": (whole - prefill) / steps * 1e3,
        "set-up seconds": prefill,
        "timed steps": steps * REPEATS,
        "mode": mode,
        "compile seconds": compiling,
        "cudagraph skips": int(torch._dynamo.utils.counters["inductor"].get("cudagraph_skips", 0)),
        "cache slots": rival.slots,
    }


def compare(part: Part, model: Any, name: str, configuration: Configuration, who: str, needed: float = 0.0) -> None:
    """A row of ``rivals``: a rival, and fastdecode measured just before. If it fails, a row with the error. Nothing if
    fewer than ``needed`` seconds are left.
    """
    where = {"model": name, "sequences": configuration.sequences, "streams": configuration.streams, "rival": who}
    if part.results.out_of_time(f"rival {where}", 0.0 if part.dry else needed):
        return
    row, best, device = dict[str, Any](where), part.bandwidth["best"], part.device
    try:
        mine = measure(model, configuration, device, best, blocks=2)
        if "error" in mine:
            raise RuntimeError(f"fastdecode, {mine['error']}")
        release(device)
        if who == "transformers":
            found = eager(model, configuration, device, 8 if part.dry else EAGER_TOKENS)
        else:
            found = static(model, configuration, device, 6 if part.dry else STATIC_STEPS, MODES[who])
        length = vocabulary_of(model).image_length
        row |= found
        row["picture seconds, extrapolated"] = found["set-up seconds"] + length * found["ms per step"] / 1e3
        row["fastdecode ms per step"] = mine["ms per step"]
        row["ratio"] = found["ms per step"] / mine["ms per step"]
        row["bandwidth_fraction"] = mine["floor ms"] / found["ms per step"]
    except Exception as error:  # the compiler may raise anything, and the other rows are worth having
        row["error"] = f"{type(error).__name__}: {error}"[:400]
    part.results.add("rivals", row)
    release(device)


def agree(part: Part, model: Any) -> None:
    """How many greedy tokens fastdecode and transformers have in common: all in float32, some in bfloat16."""
    prompts = Configuration(1).prompts(model).to(part.device)
    try:
        mine, other = ours(model, prompts, Configuration(1).guidance), theirs(model, prompts, SCALE)
        part.results.set("greedy ids until they part", greedy_agreement(model, prompts, mine, other))
    except RuntimeError as error:
        part.results.add("greedy ids", {"error": str(error)[:400]})


def main() -> int:
    part = Part("rivals", "Time a guided step on a GPU beside transformers.", 120)
    name = "tiny" if part.dry else "7B"
    with as_on_a_gpu() if part.dry else ExitStack():
        model = random_model(name, device=part.device)
        agree(part, model)
        compare(part, model, name, Configuration(1), "static, compiled")
        compare(part, model, name, Configuration(1), "transformers")
        compare(part, model, name, Configuration(1), "static, autotuned", AUTOTUNING)
        for configuration in DRY_OTHERS if part.dry else OTHERS:
            compare(part, model, name, configuration, "transformers")
    return part.end()


if __name__ == "__main__":
    sys.exit(main())
