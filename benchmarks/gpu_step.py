"""Steps and whole pictures of a model on a GPU, against the floor: the time to read weights, keys and values once.

    python -m benchmarks.gpu_step --out FOLDER [--models 7B 34B]
    python -m benchmarks.gpu_step --dry-run --out FOLDER    # on the CPU, a tiny model, plain calls for graphs

The model has Chameleon's shape and random weights in bfloat16. A configuration is a number of sequences with the same
streams; all draw with `fastdecode.generate`. Events around the blocks of steps in which the host reads no token measure
the time of steps. The first block, which captures, is not counted. Captured and uncaptured steps must sample the same
tokens, except where a captured step has more than 16 rows, some of which only fill it up: there cuBLAS may choose
another kernel, which rounds otherwise. A whole picture is timed from the call to its tokens, unless it takes too long.
``floor``: bytes over the best bandwidth measured in the same run.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import fastdecode
from benchmarks.bench_decode import SAMPLED, SCALE, check_drawn, weight_bytes
from benchmarks.gpu_results import Part
from benchmarks.gpu_timing import Mark, synchronize
from benchmarks.models import IMAGE_IDS, SIZES, edit_prompts, random_model, text_prompts
from fastdecode import Guidance
from fastdecode.decoder import Decoder
from fastdecode.decoder.cuda_graph import CapturedSteps, bucket
from fastdecode.decoder.step_operations import FEW_ROWS
from fastdecode.decoder.triton_step import TritonStep
from fastdecode.engine.runner import Runner
from fastdecode.kv.page_pool import PAGE_SLOTS, PagePool
from fastdecode.models.families import vocabulary_of

PROMPT = 32
"""The number of tokens in a text prompt."""

UNCAPTURED_BLOCK = 16
"""Uncaptured steps between two reads of the tokens: it does not change their time, and shortens the run."""

DRY_BLOCK = 4
"""The same in a dry run, whose pictures have 16 tokens."""

PROFILED_BLOCK = 8

FEW = 4
"""Sequences, whose pictures are drawn twice, and more of whose steps are timed."""

LONGEST_PICTURE = 12.0
"""The maximum expected seconds of a picture; pictures that take longer are not finished."""


@dataclass(frozen=True)
class Configuration:
    sequences: int
    streams: int = 2

    @property
    def guidance(self) -> Guidance:
        return {1: Guidance.none(), 2: Guidance.two_way(SCALE), 3: Guidance.instruct(SCALE, 1.2)}[self.streams]

    def prompts(self, model: Any) -> Tensor:
        """(sequences, length) int64, of text; with a small picture for three streams, which are two without one."""
        if self.streams == 3:
            return edit_prompts(model, self.sequences, PROMPT - 12, 8)
        return text_prompts(model, self.sequences, PROMPT)


CONFIGURATIONS = [
    Configuration(1),
    Configuration(1, 1),
    Configuration(1, 3),
    *(Configuration(n) for n in (4, 10, 16, 32, 64)),
]
"""Ten guided sequences have 20 rows, which are captured as 24; all others as they are."""

DRY_CONFIGURATIONS = [Configuration(1), Configuration(1, 1), Configuration(1, 3), Configuration(4), Configuration(10)]
LARGE_CONFIGURATIONS = [Configuration(1), Configuration(4)]
"""Of a model that fills the GPU."""


@dataclass(frozen=True)
class Block:
    """A block of steps in which the host reads no token: its time, the rows' lengths before it, its tokens."""

    steps: int
    seconds: float
    lengths: list[int]
    ids: list[list[int]]

    def kv_ids(self) -> float:
        """The number that a step reads, of all rows, on average."""
        return sum(self.lengths) + len(self.lengths) * (self.steps + 1) / 2


@dataclass
class Watch:
    """What `watched` sees. Ends a run, by `Enough`, after ``most`` blocks; None: never. ``before`` is called before
    every block, with its number.
    """

    device: str
    most: int | None = None
    before: Callable[[int], Any] = lambda number: None
    blocks: list[Block] = field(default_factory=list)
    captures: list[float] = field(default_factory=list)
    captured_blocks: int = 0


class Enough(Exception):
    """Ends a run."""


@contextmanager
def watched(device: str, capture: bool = True, most: int | None = None, steps: int | None = None) -> Iterator[Watch]:
    """What `fastdecode.generate` does inside the block: with ``capture`` off without captured steps, in blocks of
    ``steps`` at most.
    """
    watch, run, get = Watch(device, most), Runner.run, CapturedSteps.get
    seen: list[Any] = []

    def run_watched(self: Runner, plan: Any, running: Any) -> Iterator[Any]:
        if not plan.unseen:
            yield from run(self, plan, running)
            return
        lengths = [self.cache.length(row) for row in range(self.cache.rows)]
        watch.before(len(watch.blocks))
        begun = Mark(device)
        block = list(run(self, plan, running))
        watch.blocks.append(
            Block(plan.steps, Mark(device).since(begun), lengths, [step.drawn.tokens for step in block])
        )
        if watch.most is not None and len(watch.blocks) >= watch.most:
            raise Enough
        yield from block

    def get_captured(self: CapturedSteps, *args: Any) -> Any:
        if not capture:
            return None
        synchronize(device)
        begun = time.perf_counter()
        found = get(self, *args)
        synchronize(device)
        watch.captured_blocks += found is not None
        if found is not None and all(found is not known for known in seen):
            seen.append(found)
            watch.captures.append(time.perf_counter() - begun)
        return found

    with ExitStack() as stack:
        stack.enter_context(patch.object(Runner, "run", run_watched))
        stack.enter_context(patch.object(CapturedSteps, "get", get_captured))
        if steps is not None:
            stack.enter_context(patch("fastdecode.engine.scheduler.MOST_STEPS", steps))
        yield watch


def call_again(step: Callable[[], None]) -> Callable[[], None]:
    """In place of a capture: runs the step, which is called again in place of a replay."""
    step()
    return step


@contextmanager
def as_on_a_gpu(capture: Callable[[Callable[[], None]], Callable[[], None]] = call_again) -> Iterator[None]:
    """Decoders on the CPU use the code of a GPU; ``capture`` takes the place of a graph."""
    init = Decoder.__init__

    def of_operations(self: Decoder, model: Any, deterministic: bool = False) -> None:
        init(self, model, deterministic)
        self._fast_step = TritonStep(model.model, self.swin)
        self.captured = CapturedSteps(self, capture)

    with patch.object(Decoder, "__init__", of_operations):
        yield


def kv_bytes_per_id(model: Any) -> int:
    config = model.config
    head_dim = config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * int(model.lm_head.weight.itemsize)


def pool_for(model: Any, configuration: Configuration, prompts: Tensor) -> PagePool:
    """The pages for whole pictures of all sequences, without which `fastdecode.generate` starts none together."""
    most = prompts.shape[1] + 2 + vocabulary_of(model).image_length
    return fastdecode.new_pool(model, pages=len(prompts) * configuration.streams * (-(-most // PAGE_SLOTS) + 1) + 4)


def draw(
    model: Any, configuration: Configuration, watch: Watch, prompts: Tensor, pool: PagePool | None = None
) -> tuple[Tensor | None, float]:
    """The result of `fastdecode.generate`, or None if the watch ended it, and its seconds."""
    pool = pool or pool_for(model, configuration, prompts)
    synchronize(watch.device)
    begun = time.perf_counter()
    try:
        drawn = fastdecode.generate(
            model,
            prompts,
            attention_mask=torch.ones_like(prompts),
            multimodal_generation_mode="image-only",
            guidance=configuration.guidance,
            seed=list(range(len(prompts))),
            kv_pool=pool,
            **SAMPLED,
        )
    except Enough:
        drawn = None
    synchronize(watch.device)
    return drawn, time.perf_counter() - begun


def release(device: str) -> None:
    """Free the memory of graphs and pools that are not used any more."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def steps_of(watch: Watch) -> list[float]:
    """Seconds per step, for each block except the first."""
    return [block.seconds / block.steps for block in watch.blocks[1:]]


def floor_of(model: Any, blocks: Sequence[Block], best: float) -> float:
    """Seconds that a step of these blocks takes at least, to read its bytes."""
    steps = sum(block.steps for block in blocks)
    read = sum(block.steps * block.kv_ids() for block in blocks) / steps * kv_bytes_per_id(model)
    return (weight_bytes(model) + read) / best


def same_bits(rows: int) -> bool:
    """Whether a captured step of ``rows`` rows rounds as one that is not captured."""
    return bucket(rows) in (rows, *range(FEW_ROWS + 1))


def check_captured(plain: Watch, captured: Watch) -> int:
    """The number of compared steps, all with the same tokens; where steps may round otherwise, of those with the same
    tokens before the first other one. ``RuntimeError`` unless all were captured and sampled image tokens, and the same.
    """
    if captured.captured_blocks != len(captured.blocks):
        raise RuntimeError(f"{captured.captured_blocks} of {len(captured.blocks)} blocks were captured")
    one, other = ([ids for block in watch.blocks for ids in block.ids] for watch in (plain, captured))
    for row in (*one, *other):
        if any(i not in IMAGE_IDS for i in row):
            raise RuntimeError(f"{row} are not all image ids")
    compared = min(len(one), len(other))
    for step in range(compared):
        if one[step] != other[step]:
            if not same_bits(len(plain.blocks[0].lengths)):
                return step
            raise RuntimeError(f"step {step} drew {other[step]}, and without a capture {one[step]}")
    return compared


def measure(model: Any, configuration: Configuration, device: str, best: float, blocks: int = 4) -> dict[str, Any]:
    """Steps of a configuration, not captured, and captured: ``blocks`` of them after the first. If captured
    steps fail, or sample other tokens, an ``error`` replaces their figures.
    """
    prompts = configuration.prompts(model).to(device)
    release(device)
    dry = DRY_BLOCK if device == "cpu" else None
    with watched(device, capture=False, most=2, steps=dry or UNCAPTURED_BLOCK) as plain:
        draw(model, configuration, plain, prompts)
    row: dict[str, Any] = {
        "rows": len(plain.blocks[0].lengths),
        "rows, captured": bucket(len(plain.blocks[0].lengths)),
        "prompt": prompts.shape[1],
        "weight bytes": weight_bytes(model),
        "ms per step, not captured": statistics.median(steps_of(plain)) * 1e3,
    }
    release(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        with watched(device, most=blocks + 1, steps=dry) as watch:
            draw(model, configuration, watch, prompts)
        row["same ids captured and not"] = check_captured(plain, watch)
    except RuntimeError as error:
        return row | {"error": f"captured: {type(error).__name__}: {error}"[:400]}
    step, floor = statistics.median(steps_of(watch)), floor_of(model, watch.blocks[1:], best)
    return row | {
        "timed steps": sum(block.steps for block in watch.blocks[1:]),
        "ms per step": step * 1e3,
        "ms per step, by block": [seconds * 1e3 for seconds in steps_of(watch)],
        "capture seconds": sum(watch.captures),
        "captures": len(watch.captures),
        "tokens/s": configuration.sequences / step,
        "floor ms": floor * 1e3,
        "bandwidth_fraction": floor / step,
        "peak memory GB": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0,
    }


def picture(model: Any, configuration: Configuration, device: str, best: float) -> dict[str, Any]:
    """Time a whole picture for every sequence, from the call to the tokens: prefill, capture, every step, copy to the
    host. With few sequences also a second one over the same pages, which replays the steps that the first one captured.
    """
    prompts = configuration.prompts(model).to(device)
    release(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    length, found = vocabulary_of(model).image_length, dict[str, Any]()
    with watched(device, steps=DRY_BLOCK if device == "cpu" else None) as watch:
        pool = pool_for(model, configuration, prompts)
        for what in ("picture", "next picture") if configuration.sequences <= FEW else ("picture",):
            watch.blocks, watch.captures = [], []
            drawn, seconds = draw(model, configuration, watch, prompts, pool)
            assert drawn is not None
            check_drawn(drawn[:, :-1].cpu(), prompts.cpu(), length + 1, "fastdecode")
            floor = floor_of(model, watch.blocks, best) * length
            found |= {
                f"{what} seconds": seconds,
                f"{what} floor seconds": floor,
                f"{what} bandwidth_fraction": floor / seconds,
                f"{what} capture seconds": sum(watch.captures),
            }
    found["picture ids"] = length
    found["picture peak memory GB"] = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
    return found


def kernels_of_a_step(model: Any, configuration: Configuration, device: str, most: int = 30) -> list[dict[str, Any]]:
    """Profile `PROFILED_BLOCK` replayed steps with torch's profiler: every kernel's calls and microseconds per step,
    longest first.
    """
    profile = torch.profiler.profile(activities=[getattr(torch.profiler.ProfilerActivity, device.upper())])
    prompts = configuration.prompts(model).to(device)
    with watched(device, most=2, steps=PROFILED_BLOCK) as watch:
        watch.before = lambda number: profile.start() if number == 1 else None
        draw(model, configuration, watch, prompts)
    profile.stop()
    steps = watch.blocks[1].steps
    spent = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    found = sorted(profile.key_averages(), key=lambda event: -getattr(event, spent))
    return [
        {"kernel": event.key[:80], "calls per step": event.count / steps, "us per step": getattr(event, spent) / steps}
        for event in found[:most]
    ]


def same_as_on_the_cpu(device: str) -> dict[str, Any]:
    """The number of greedy tokens of a small model in float32, with one, two and three streams, that equal those of the
    C++ step on the CPU; an ``error`` unless all do.
    """
    found, compared = {}, 0
    for configuration in (Configuration(2, 1), Configuration(2), Configuration(2, 3)):
        drawn = []
        for where in ("cpu", device):
            with as_on_a_gpu() if device == "cpu" and drawn else ExitStack():
                model = random_model("tiny").to(where)  # random numbers of a device would be another model
                prompts = configuration.prompts(model).to(where)
                ids = fastdecode.generate(
                    model,
                    prompts,
                    attention_mask=torch.ones_like(prompts),
                    multimodal_generation_mode="image-only",
                    guidance=configuration.guidance,
                    do_sample=False,
                )
                drawn.append(ids[:, prompts.shape[1] :].cpu())
        compared += drawn[0].numel()
        same = (drawn[0] == drawn[1]).all(0).cumprod(0).sum().item()
        if same < drawn[0].shape[1]:
            found["error"] = f"{configuration}: {device} draws as the CPU does for {same} ids of {drawn[0].shape[1]}"
    return {"ids compared": compared, **found}


def fits(name: str, device: str) -> bool:
    """Whether a model of this size and some keys and values fit on the device."""
    size = SIZES[name]
    kv = size.hidden // size.heads * (size.kv_heads or size.heads)
    layer = 2 * size.hidden * (size.hidden + kv) + 3 * size.hidden * size.mlp
    needed = (size.layers * layer + 2 * size.vocab * size.hidden) * size.dtype.itemsize
    return device == "cpu" or needed + 6e9 < torch.cuda.mem_get_info()[0]


def attempt(part: Part, model: Any, name: str, configuration: Configuration, pictures: bool) -> None:
    """A row of ``configurations``; if it fails, a row with the error."""
    where = {"model": name, "sequences": configuration.sequences, "streams": configuration.streams}
    if part.results.out_of_time(f"configuration {where}"):
        return
    row: dict[str, Any] = dict(where)
    best = part.bandwidth["best"]
    try:
        row |= measure(model, configuration, part.device, best, blocks=4 if configuration.sequences <= FEW else 2)
        expected = row.get("ms per step", torch.inf) / 1e3 * vocabulary_of(model).image_length
        if pictures and expected < LONGEST_PICTURE:
            row |= picture(model, configuration, part.device, best)
    except (RuntimeError, ValueError) as error:  # out of memory too
        row["error"] = f"{type(error).__name__}: {error}"[:400]
    part.results.add("configurations", row)


def main() -> int:
    part = Part("step", "Time steps and pictures of a model on a GPU.", 150)
    names = ["tiny bfloat16"] if part.dry else ["7B", "34B"]
    try:
        part.results.add("small model", same_as_on_the_cpu(part.device))
    except RuntimeError as error:
        part.results.add("small model", {"error": f"{type(error).__name__}: {error}"[:400]})
    with as_on_a_gpu() if part.dry else ExitStack():
        for name in names:
            if not fits(name, part.device):
                part.results.add("left out for want of memory", {"model": name})
                continue
            if part.results.out_of_time(f"model {name}"):
                break
            begun = time.perf_counter()
            model = random_model(name, device=part.device)
            synchronize(part.device)
            part.results.add("models", {"model": name, "seconds to make": time.perf_counter() - begun})
            usual = DRY_CONFIGURATIONS if part.dry else CONFIGURATIONS
            for configuration in LARGE_CONFIGURATIONS if name == "34B" else usual:
                attempt(part, model, name, configuration, pictures=name != "34B")
            if name == names[0] and not part.results.out_of_time("kernels of a step"):
                try:
                    part.results.set("kernels of a step", kernels_of_a_step(model, Configuration(1), part.device))
                except RuntimeError as error:
                    part.results.add("profiles", {"model": name, "error": str(error)[:400]})
            del model
            release(part.device)
    return part.end()


if __name__ == "__main__":
    sys.exit(main())
