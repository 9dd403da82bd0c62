"""What is installed, what works, and why something does not. It survives broken imports."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from fastdecode import versions

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pillow",
    "tqdm",
    "triton",
    "torchao",
    "fastapi",
    "uvicorn",
    "prometheus_client",
    "matplotlib",
)
MODULES = {"pillow": "PIL"}
OPTIONAL = {
    "triton": "extra gpu",
    "torchao": "quantised weights",
    "fastapi": "extra serve",
    "uvicorn": "extra serve",
    "prometheus_client": "extra serve",
    "matplotlib": "plots",
}
VARIABLES = {
    "FASTDECODE_BACKEND": "sampling backend where none is named: reference, cpu, triton",
    "FASTDECODE_CPU_ISA": "most that the kernels may use: portable, avx2, avx512, avx512bf16",
    "OMP_NUM_THREADS": "threads of torch's operations",
    "TRITON_INTERPRET": "1: Triton's kernels run in Python on the CPU, for tests",
}
_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl")
INSTRUCTION_SETS = {"portable": (), "avx2": _AVX2, "avx512": _AVX512, "avx512bf16": (*_AVX512, "avx512_bf16")}
"""Those that the C++ kernels are compiled for, the narrowest first, and what each needs of the processor."""


def _attempt(find: Callable[[], Any]) -> Any:
    """``find()``, or what stopped it, as text. A broken installation is what this command is for."""
    try:
        return find()
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        return f"broken: {type(error).__name__}: {first}"


def _too_old(name: str, version: str) -> str | None:
    """Why a version that the extras in the metadata exclude may not work; None if they do not exclude it."""
    for line in metadata.requires("fastdecode") or ():
        found = re.match(rf"{re.escape(name)}\b[^;]*>=\s*([\d.]+)", line)
        if found is not None and versions.numbers(version) < versions.numbers(found[1]):
            return f"too old: fastdecode needs {found[1]} or newer"
    return None


def _package(name: str) -> str:
    """The version, and in words what is wrong with it."""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"not installed (optional: {OPTIONAL[name]})" if name in OPTIONAL else "not installed"
    module = MODULES.get(name, name)
    if name in OPTIONAL:  # not imported: only some commands need it, and it takes its time
        broken = _attempt(lambda: "" if importlib.util.find_spec(module) else "broken: its files are missing")
    else:
        broken = _attempt(lambda: importlib.import_module(module) and "")
    if broken:
        return f"{version} {broken}"
    said = _attempt(lambda: versions.untried(name, version) or _too_old(name, version))
    return f"{version} ({said})" if said else version


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _backends() -> dict[str, str]:
    from fastdecode.ops.backends import BACKENDS, BY_NAME, unavailable

    found = {name: unavailable(name) or "available" for name in BACKENDS}
    return {name: f"{said} (only where it is named)" if name in BY_NAME else said for name, said in found.items()}


def _library() -> str:
    from fastdecode.build_info import get_library

    return get_library()


def _instruction_set() -> str:
    from fastdecode.ops.backends import core

    isa: str = core().cpu_isa()
    return isa


def _instruction_sets() -> dict[str, str]:
    """For each, whether the kernels use it, could use it, or what the processor lacks."""
    used = _attempt(_instruction_set)
    flags = _flags()
    found = {}
    for name, needed in INSTRUCTION_SETS.items():
        lacking = [flag for flag in needed if flag not in flags]
        if name == used:
            found[name] = "in use"
        elif lacking:
            found[name] = f"this processor lacks {', '.join(lacking)}"
        else:
            found[name] = "available"
    return found


def _flags() -> set[str]:
    """What the processor says it can do."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()


def _interface() -> int:
    from fastdecode.ops.backends import core

    version: int = core().abi_version()
    return version


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _embedded() -> str:
    folder = Path(__file__).parent / "assets" / "blocks"
    size = sum(f.stat().st_size for f in folder.glob("*") if f.is_file())
    return f"{folder} ({size / 2**20:.1f} MiB)" if size else f"missing at {folder}"


WRONG = ("broken: ", "too old: ", "untried: ")


def problems(facts: Any, name: str = "") -> list[str]:
    """One sentence for each collected fact that is wrong, and for each version that was not tried."""
    if isinstance(facts, dict):
        return [found for key, fact in facts.items() for found in problems(fact, key)]
    if facts == "not installed":
        return [f"{name} is not installed"]
    if isinstance(facts, str) and any(word in facts for word in WRONG):
        return [f"{name}: {facts}"]
    return []


def collect() -> dict[str, Any]:
    """All facts as plain data. A fact that could not be found out is a text that begins with ``broken:``. ``problems``
    lists what is wrong, in sentences.
    """
    from fastdecode import __version__

    facts = {
        "fastdecode": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": _attempt(_threads),
        "gpu": _attempt(_gpu),
        "packages": {name: _package(name) for name in PACKAGES},
        "library": _attempt(_library),
        "C interface": _attempt(_interface),
        "sampling backends": _attempt(_backends),
        "instruction set": _attempt(_instruction_set),
        "instruction sets": _attempt(_instruction_sets),
        "embedded model": _attempt(_embedded),
        "environment": {name: f"{os.environ.get(name, 'not set')} ({meaning})" for name, meaning in VARIABLES.items()},
    }
    return {**facts, "problems": problems(facts)}
