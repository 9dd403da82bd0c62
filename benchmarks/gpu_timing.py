"""Timing on a GPU: by events on the device, with many calls in one captured graph, and medians of many rounds.

In dry runs on the CPU a graph is a series of calls and an event reads the clock: the same code, without meaningful
figures.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import torch
from torch import Tensor

CALLS = 20
"""In a graph, at least."""

MOST_COPIES = 256
ROUNDS = (5, 100)
DRY_ROUNDS = 2

Run = Callable[[], Any]


class Timing(NamedTuple):
    """``seconds`` of a call, and whether the calls were captured in a graph."""

    seconds: float
    captured: bool


class Mark:
    """A point in time on the device. `since` waits for both."""

    def __init__(self, device: str) -> None:
        self.event: Any = None
        self.time = 0.0
        if device == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()
        else:
            self.time = time.perf_counter()

    def since(self, earlier: Mark) -> float:
        """Seconds."""
        if self.event is None:
            return self.time - earlier.time
        self.event.synchronize()
        return float(earlier.event.elapsed_time(self.event)) / 1e3


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def cache_bytes(device: str) -> int:
    """The size of the GPU's second-level cache; 0 for a CPU, in a dry run."""
    return int(torch.cuda.get_device_properties(0).L2_cache_size) if device == "cuda" else 0


def copies_to_exceed_cache(size: int, device: str) -> int:
    """The number of copies of inputs of ``size`` bytes: enough to exceed the cache four times, at most `MOST_COPIES`;
    2 on the CPU.
    """
    return min(MOST_COPIES, max(2, math.ceil(4 * cache_bytes(device) / max(size, 1))))


def in_turns(inputs: Sequence[Tensor]) -> Iterator[Tensor]:
    return cycle(inputs)


def seconds_of(run: Run, device: str, calls: int = CALLS, seconds: float = 0.1, graph: bool = True) -> Timing:
    """The median time of a call of ``run``, after calls that are not counted, in rounds of ``calls`` that take about
    ``seconds`` together. With ``graph`` the calls of a round are captured and replayed, if they can be.

    If ``run`` rotates through inputs, a round reads all of them if ``calls`` is a multiple of their number.
    """
    if device == "cpu":
        run()
        times = []
        for _ in range(DRY_ROUNDS):
            begun = Mark(device)
            run()
            times.append(Mark(device).since(begun))
        return Timing(statistics.median(times), False)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    replay = _captured(run, calls) if graph and not _waits(run) else None

    def whole() -> None:
        if replay is not None:
            replay()
        else:
            for _ in range(calls):
                run()

    once = _time(whole, device)
    rounds = int(min(ROUNDS[1], max(ROUNDS[0], seconds / max(once, 1e-6))))
    found = statistics.median(_time(whole, device) for _ in range(rounds))
    return Timing(found / calls, replay is not None)


def _time(whole: Run, device: str) -> float:
    begun = Mark(device)
    whole()
    return Mark(device).since(begun)


def _waits(run: Run) -> bool:
    """Whether ``run`` waits for the device. It is asked before a capture, which such a call would break off: torch's
    random numbers do not survive that.
    """
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def _captured(run: Run, calls: int) -> Run | None:
    """Capture ``calls`` calls of ``run`` as a graph; None if they cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(calls):
                run()
    except Exception:  # the operation may raise anything; the row says that it was not captured
        torch.cuda.synchronize()
        return None
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay
