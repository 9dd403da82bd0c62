"""The speed at which this machine's threads can read memory: what the floors of the benchmarks are computed with.

    python -m benchmarks.read_bandwidth [--threads 2]     # the fastest ways to read, and how fast they are

A floor that a plain loop is measured with flatters: prefetching, several streams, and large pages read faster. So this
tries many ways (`ways`) over memory that is much larger than the caches, by the C++ in ``read_bandwidth.cpp``, and
measures with the best of them. It needs g++.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.compiling import compiled
from fastdecode.bench.machine import describe

METHOD = "best of many ways to read (benchmarks/read_bandwidth.py)"
HUGE_PAGE = 2 << 20
NEVER, NON_TEMPORAL, SECOND_LEVEL, FIRST_LEVEL = -1, 0, 2, 3
HINTS = {NEVER: "no prefetch", NON_TEMPORAL: "non-temporal", SECOND_LEVEL: "second level", FIRST_LEVEL: "first level"}


class Way(NamedTuple):
    """``huge``: pages of 2 MB, where the system gives them. ``streams``: that a thread reads side by side. ``hint``:
    where to lines are prefetched, ``ahead`` bytes ahead. ``stretch``: bytes that a thread takes at a time; 0: a part of
    its own for each.
    """

    huge: bool
    streams: int
    hint: int
    ahead: int
    stretch: int

    def __str__(self) -> str:
        pages, streams = "2 MB pages" if self.huge else "4 KB pages", f"{self.streams} stream{'s' * (self.streams > 1)}"
        how = HINTS[self.hint] + (f" {self.ahead} bytes ahead" if self.ahead else "")
        taken = f"stretches of {self.stretch >> 10} KB" if self.stretch else "a part for each thread"
        return f"{pages}, {streams}, {how}, {taken}"


def ways() -> Iterator[Way]:
    """Those that are tried."""
    for huge in (False, True):
        for streams in (1, 2, 4, 8):
            for stretch in (0, HUGE_PAGE // 2):
                yield Way(huge, streams, NEVER, 0, stretch)
                for hint in (NON_TEMPORAL, SECOND_LEVEL, FIRST_LEVEL):
                    for ahead in (512, 1024, 2048, 4096, 8192):
                        yield Way(huge, streams, hint, ahead, stretch)


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(compiled(Path(__file__).with_suffix(".cpp"), ("-shared", "-fPIC", "-pthread"))))
    library.memory_new.restype, library.memory_new.argtypes = ctypes.c_void_p, (ctypes.c_size_t, ctypes.c_int)
    numbers = (ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t)
    library.memory_read.restype = ctypes.c_double
    library.memory_read.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *numbers)
    return library


def last_level_bytes() -> int:
    """Bytes of all caches of the highest level together; 0 where the system does not say."""
    found: dict[tuple[int, str], int] = {}
    for index in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*"):
        try:
            level, shared, size = ((index / name).read_text().strip() for name in ("level", "shared_cpu_list", "size"))
        except OSError:
            continue
        found[int(level), shared] = int(size.removesuffix("K")) << 10
    highest = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == highest)


class Memory:
    """Memory to read: ``size`` bytes, rounded up to whole huge pages; None: 512 MB, or four times the highest caches
    where that is more. ``threads``: None: as many as torch's.

    All `ways` are tried once in each of ``rounds`` rounds; ``best`` are the fastest of them, which `read` uses.
    ``RuntimeError`` without g++, ``MemoryError`` if there is no room.
    """

    KEPT = 6

    def __init__(self, size: int | None = None, threads: int | None = None, rounds: int = 2) -> None:
        size = max(2**29, 4 * last_level_bytes()) if size is None else size
        self.size = -(-size // HUGE_PAGE) * HUGE_PAGE
        self.threads = torch.get_num_threads() if threads is None else threads
        if size < 1 or self.threads < 1 or rounds < 1:
            raise ValueError(f"size {size}, threads {self.threads}, rounds {rounds}: must all be 1 or more")
        self._buffers = {}
        for huge in (False, True):
            self._buffers[huge] = _library().memory_new(self.size, huge)
            if not self._buffers[huge]:
                raise MemoryError(f"there is no room for {self.size} bytes to read")
        self.speeds = {way: 0.0 for way in ways()}
        for _ in range(rounds):
            for way, speed in self.speeds.items():
                self.speeds[way] = max(speed, self._read(way))
        self.best = sorted(self.speeds, key=self.speeds.__getitem__, reverse=True)[: self.KEPT]

    def _read(self, way: Way) -> float:
        where, how = self._buffers[way.huge], (way.streams, way.hint, way.ahead, way.stretch)
        seconds = _library().memory_read(where, self.size, self.threads, *how)
        assert seconds > 0
        return self.size / seconds

    def read(self, repeats: int = 3) -> float:
        """Bytes per second now: the best of so many rounds of the best ways."""
        return max(self._read(way) for _ in range(repeats) for way in self.best)


@dataclass
class Floors:
    """The time to read ``weights`` bytes, while something that reads them once is timed. The memory of a shared machine
    is not always as fast, so each time is compared with the mean of the bandwidths just before and after it.
    """

    memory: Memory
    weights: int
    floors: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    before: float = 0.0

    def begin(self) -> None:
        """Call it just before what is timed."""
        self.before = self.memory.read()

    def end(self, seconds: float) -> None:
        """Call it just after; ``seconds`` is the time that was measured."""
        floor = self.weights / statistics.mean((self.before, self.memory.read()))
        self.floors.append(floor)
        self.shares.append(floor / seconds)

    def row(self) -> dict[str, Any]:
        """Medians, and each time's share of the bandwidth."""
        floor = statistics.median(self.floors)
        return {
            "weight bytes": self.weights,
            "read bandwidth GB/s": self.weights / floor / 1e9,
            "floor ms": 1000 * floor,
            "bandwidth_fraction": statistics.median(self.shares),
            "shares of the repeats": sorted(self.shares),
        }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--rounds", type=int, default=5)
    options: Any = parser.parse_args(arguments)
    memory = Memory(threads=options.threads, rounds=options.rounds)
    print(", ".join(f"{key} {value}" for key, value in describe().items()))
    plain = max(memory.speeds[way] for way in memory.speeds if way.hint == NEVER and way.streams == 1)
    for way in memory.best:
        print(f"{memory.speeds[way] / 1e9:6.1f} GB/s  {way}")
    print(f"{plain / 1e9:6.1f} GB/s  the best with one stream and no prefetch")


if __name__ == "__main__":
    main()
