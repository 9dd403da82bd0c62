"""Eight host threads of one process draw and decode on a GPU at once, each with sizes and sets of its own.

    python -m benchmarks.gpu_threads --out FOLDER
    python -m benchmarks.gpu_threads --dry-run --out FOLDER    # on the CPU

Each thread calls `fastdecode.ops.sample` and `fastdecode.generate`, which captures steps, over a small model of its
own. All begin together, with nothing compiled. Later one thread makes the same calls, one after the other, and every
result must be the same, bit for bit.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import fastdecode
from benchmarks.bench_decode import SAMPLED
from benchmarks.gpu_results import Part
from benchmarks.gpu_sample import arguments
from benchmarks.gpu_step import Configuration, as_on_a_gpu
from benchmarks.models import random_model
from fastdecode import ops
from fastdecode.bench.sample import Case

ROUNDS, DRY_ROUNDS = 2, 1


@dataclass(frozen=True)
class Work:
    """What a thread draws and decodes. The decoded rows are at most 16, whose bits do not depend on each other."""

    case: Case
    configuration: Configuration


WORK = (
    Work(Case(1, image=True), Configuration(1)),
    Work(Case(3, streams=1, filter="top_k 50"), Configuration(2, 1)),
    Work(Case(8, streams=3, image=True), Configuration(1, 3)),
    Work(Case(2, vocab=131072), Configuration(3)),
    Work(Case(5, dtype="bfloat16", filter="greedy"), Configuration(5)),
    Work(Case(16, vocab=300, filter="top_p 0.9"), Configuration(4, 3)),
    Work(Case(4, streams=5, image=True, filter="top_k 50"), Configuration(6, 1)),
    Work(Case(32, vocab=8192), Configuration(8)),
)


def results_of(work: Work, model: Any, device: str, rounds: int) -> list[Tensor]:
    """On the CPU: the columns of a draw and the tokens of pictures, for each round."""
    logits, found = work.case.logits().to(device), list[Tensor]()
    prompts = work.configuration.prompts(model).to(device)
    for number in range(rounds):
        drawn = ops.sample(logits, **arguments(work.case, device) | {"step": number})
        pictures = fastdecode.generate(
            model,
            prompts,
            attention_mask=torch.ones_like(prompts),
            multimodal_generation_mode="image-only",
            guidance=work.configuration.guidance,
            seed=[number + i for i in range(len(prompts))],
            **SAMPLED,
        )
        found += [column.cpu() for column in (*drawn, pictures)]
    return found


def at_once(works: tuple[Work, ...], models: list[Any], device: str, rounds: int) -> list[list[Tensor] | Exception]:
    """What each has found in a thread of its own, or the error that ended it."""
    found: list[list[Tensor] | Exception] = [RuntimeError("the thread has not ended")] * len(works)
    begin = threading.Barrier(len(works))

    def run(number: int) -> None:
        begin.wait()
        try:
            found[number] = results_of(works[number], models[number], device, rounds)
        except Exception as error:  # whatever it is, it is told in the row
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def compared(found: list[Tensor] | Exception, alone: list[Tensor]) -> dict[str, Any]:
    """How many numbers were the same; an ``error`` if not all were, or if the thread failed."""
    if isinstance(found, Exception):
        return {"error": f"{type(found).__name__}: {found}"[:400]}
    count = sum(t.numel() for t in alone)
    for place, (mine, its) in enumerate(zip(alone, found, strict=True)):
        if not torch.equal(mine, its):
            return {"error": f"result {place} of {len(alone)} is {its.tolist()}, alone {mine.tolist()}"[:400]}
    return {"numbers compared": count}


def main() -> int:
    part = Part("threads", "Draw and decode in eight threads on a GPU.", 40)
    rounds = DRY_ROUNDS if part.dry else ROUNDS
    faulthandler.dump_traceback_later(part.options.seconds)  # should threads wait for each other for ever
    with as_on_a_gpu() if part.dry else ExitStack():
        models = [random_model("tiny", seed=number).to(part.device) for number in range(len(WORK))]
        every = at_once(WORK, models, part.device, rounds)
        for number, (work, found) in enumerate(zip(WORK, every, strict=True)):
            row = {"thread": number, **asdict(work.case), "sequences": work.configuration.sequences}
            row |= {"streams of a step": work.configuration.streams}
            part.results.add("threads", row | compared(found, results_of(work, models[number], part.device, rounds)))
    faulthandler.cancel_dump_traceback_later()
    return part.end()


if __name__ == "__main__":
    sys.exit(main())
