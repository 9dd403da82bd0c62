"""Compiles every kernel for sm_80 and sm_90, on any machine, and reads what ptxas reports.

    python -m fastdecode.triton_kernels.compile [--arch 80 90]

prints kernel, configuration, architecture, registers per thread, bytes of shared memory and bytes of
spills, and fails if a kernel spills registers. A kernel file named in FILES lists its cases in COMPILE_CASES.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastdecode.triton_kernels.case import DIVISIBLE, Case

FILES = (
    *("sample_small", "sample_search", "sample_large", "advance"),
    *("linear", "linear_int4", "parts", "rms_norm", "residual", "swiglu", "embed", "rope_append", "attend"),
)
ARCHITECTURES = (80, 90)


@dataclass(frozen=True)
class Compiled:
    """A compiled case: registers per thread, bytes of shared memory per block, bytes of stack (spills) per thread."""

    case: Case
    arch: int
    registers: int
    shared: int
    stack: int
    ptx: str
    cubin: bytes


def cases() -> Iterator[Case]:
    for name in FILES:
        yield from importlib.import_module(f"fastdecode.triton_kernels.{name}").COMPILE_CASES


def resources_of(cubin: bytes) -> tuple[int, int]:
    """(registers, stack) of the only kernel in a cubin."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [str(tool), "--dump-resource-usage", str(file)]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing of registers: {usage}")
    return int(found[1]), int(found[2])


def compile_case(case: Case, arch: int) -> Compiled:
    kernel = case.kernel
    signature = {name: "constexpr" if name in case.constexprs else case.types[name] for name in kernel.arg_names}
    aligned: dict[tuple[int, ...], Any] = {
        (i,): [["tt.divisibility", 16]]
        for i, type in enumerate(signature.values())
        if type.startswith("*") or type.endswith(DIVISIBLE)
    }
    signature = {name: type.removesuffix(DIVISIBLE) for name, type in signature.items()}
    source = ASTSource(kernel, signature, case.constexprs, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=case.options)
    cubin = made.asm["cubin"]
    registers, stack = resources_of(cubin)
    return Compiled(case, arch, registers, made.metadata.shared, stack, made.asm["ptx"], cubin)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastdecode.triton_kernels.compile", description=__doc__)
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, help="compute capabilities, as 90")
    chosen = parser.parse_args(arguments)
    print(f"{'kernel':18} {'configuration':44} arch  registers  shared  spills")
    spilled = False
    for case in cases():
        for arch in (arch for arch in chosen.arch if arch in case.arches):
            c = compile_case(case, arch)
            spilled |= c.stack > 0
            print(f"{case.name:18} {case.configuration:44} {arch:4}  {c.registers:9}  {c.shared:6}  {c.stack:6}")
    return int(spilled)


if __name__ == "__main__":
    sys.exit(main())
