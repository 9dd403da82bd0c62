"""Compiles the CUDA library's kernels for the GPUs we aim at and reads what ptxas made of them.

    python -m tools.cuda_resources

prints kernel, architecture, registers of a thread, bytes of static shared memory of a block, and bytes of stack and
of spills of a thread. Fails if there is a stack frame or a spill: every kernel is to run from registers. Where nvcc is
not installed it says so, and that is all.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "csrc/cuda/library.cu"
ARCHITECTURES = (80, 90)
OPTIONS = ("-std=c++17", "-O3", "-fmad=false", "-Xptxas", "-v", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/include'}")


@dataclass(frozen=True)
class Function:
    """What ptxas says of a kernel, or of a function that it did not inline, which has a frame and nothing else."""

    name: str
    arch: str
    stack: int
    spills: int
    registers: int | None = None
    shared: int = 0

    @property
    def good(self) -> bool:
        return self.stack == 0 and self.spills == 0 and self.registers is not None


def short(name: str) -> str:
    """`SampleSmall<float>, 512` of a kernel's full name."""
    name = re.sub(r"fastdecode::|\(anonymous namespace\)::", "", name)
    found = re.search(r"kernel<(.*), \w+>\(", name)
    return found[1] if found else name


def parse(log: str) -> list[Function]:
    """The functions in the output of `nvcc -Xptxas -v`, whose names have been demangled."""
    functions = []
    entry = arch = name = ""
    for line in log.splitlines():
        if found := re.search(r"Compiling entry function '(.*)' for '(sm_\w+)'", line):
            entry, arch = found.groups()
        elif found := re.search(r"Function properties for (.*)", line):
            name = found[1]
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, stores, loads = map(int, found.groups())
            functions.append(Function(short(name), arch, stack, stores + loads))
        elif found := re.search(r"Used (\d+) registers", line):
            last = next(f for f in reversed(functions) if f.name == short(entry) and f.arch == arch)
            shared = re.search(r"(\d+) bytes smem", line)
            kernel = Function(last.name, arch, last.stack, last.spills, int(found[1]), int(shared[1]) if shared else 0)
            functions[functions.index(last)] = kernel
    return functions


def table(functions: list[Function]) -> str:
    lines = [f"{'kernel, threads':<28} arch   registers  shared  stack  spills"]
    for f in sorted(functions, key=lambda f: (f.name, f.arch)):
        registers = "-" if f.registers is None else f.registers
        lines.append(f"{f.name:<28} {f.arch}  {registers:>9} {f.shared:>7} {f.stack:>6} {f.spills:>7}")
    return "\n".join(lines)


def compile_log(nvcc: str, arch: int) -> str:
    """ptxas's output for one architecture, names demangled."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "library.o"
        command = [nvcc, *OPTIONS, f"-arch=sm_{arch}", "-c", str(SOURCE), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    demangle = ["c++filt"]  # of binutils, which the host compiler needs too
    return subprocess.run(demangle, input=done.stdout + done.stderr, check=True, capture_output=True, text=True).stdout


def main() -> int:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("nvcc is not installed: the CUDA kernels are not compiled")
        return 0
    logs = {arch: compile_log(nvcc, arch) for arch in ARCHITECTURES}
    functions = [function for log in logs.values() for function in parse(log)]
    print(table(functions))
    wrong = [f for f in functions if not f.good]
    warnings = [line for log in logs.values() for line in log.splitlines() if "warning" in line.lower()]
    missing = [arch for arch in ARCHITECTURES if not any(f.arch == f"sm_{arch}" for f in functions)]
    for function in wrong:
        print(f"{function.name} on {function.arch}: must have no stack frame and no spills", file=sys.stderr)
    for arch in missing:
        print(f"sm_{arch}: ptxas said nothing of any kernel", file=sys.stderr)
    for line in warnings:
        print(line, file=sys.stderr)
    return 1 if wrong or warnings or missing else 0


if __name__ == "__main__":
    sys.exit(main())
