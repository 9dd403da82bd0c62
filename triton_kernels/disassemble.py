"""The instructions that a kernel's loops have on a GPU, without a GPU: nvdisasm comes with Triton."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import triton

NVDISASM = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"

_LABEL = re.compile(r"\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\S.*?)\s*;")
_BRANCH = re.compile(r"BRA\S*\s.*?(\.L_x_\d+)")


def loops(cubin: bytes) -> list[list[str]]:
    """The names of the instructions of each loop, in order: what a branch backwards jumps over."""
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
                found.append([text.split()[0] for text in instructions[labels[branch[1]] :]])
    return [loop for loop in found if len(loop) > 1]
