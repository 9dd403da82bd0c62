"""The instructions that a kernel's loops have on a GPU, without a GPU: nvdisasm comes with Triton."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import triton

NVDISASM = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"

_LABEL = re.compile(r"\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\S.*?)\s*;")
_BRANCH = re.compile(r"BRA\S*\s.*?(\.L_x_\d+)")


@dataclass(frozen=True)
class Listing:
    """The instructions of a kernel in order, and the range of each loop: what a branch backwards jumps over."""

    instructions: list[str]
    loops: list[range]

    @property
    def names(self) -> list[str]:
        return [text.split()[0] for text in self.instructions]

    def runs(self, trips: Sequence[float]) -> list[float]:
        """How often a warp runs each instruction, if loop i runs ``trips[i]`` times.

        What holds other loops runs once: ptxas jumps backwards to code that it has moved, too, and that is no loop.
        """
        if len(trips) != len(self.loops):
            raise ValueError(
                f"trips: {len(trips)} numbers, and the kernel has {len(self.loops)} loops; must be as many"
            )
        times = [1.0] * len(self.instructions)
        for loop, count in zip(self.loops, trips, strict=True):
            if not any(loop.start <= other.start and other.stop <= loop.stop and other != loop for other in self.loops):
                for i in loop:
                    times[i] = count
        return times


def listing(cubin: bytes) -> Listing:
    """Without what follows the last EXIT and is not reached: a jump to itself, and padding."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        text = subprocess.run([str(NVDISASM), "-c", str(file)], check=True, capture_output=True, text=True).stdout
    instructions: list[str] = []
    labels: dict[str, int] = {}
    found = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif instruction := _INSTRUCTION.match(line):
            instructions.append(instruction[1])
            branch = _BRANCH.match(instruction[1])
            if branch and branch[1] in labels:
                found.append(range(labels[branch[1]], len(instructions)))
    while instructions and instructions[-1].split()[0] in ("NOP", "BRA"):
        instructions.pop()
    return Listing(instructions, [loop for loop in found if len(loop) > 1 and loop.stop <= len(instructions)])


def loops(cubin: bytes) -> list[list[str]]:
    """The names of the instructions of each loop, in order."""
    found = listing(cubin)
    return [found.names[loop.start : loop.stop] for loop in found.loops]
