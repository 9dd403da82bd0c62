"""What is installed, what works, and why something does not. It survives broken imports."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pillow",
    "tqdm",
    "triton",
    "fastapi",
    "uvicorn",
)
MODULES = {"pillow": "PIL"}
OPTIONAL = {"triton", "fastapi", "uvicorn"}
VARIABLES = {
    "FASTDECODE_BACKEND": "sampling backend where none is named: reference, cpu",
    "FASTDECODE_CPU_ISA": "most that the kernels may use: portable, avx2, avx512",
    "OMP_NUM_THREADS": "threads of torch's operations",
}


def _attempt(find: Callable[[], Any]) -> Any:
    """``find()``, or what stopped it, as text. A broken installation is what this command is for."""
    try:
        return find()
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        return f"broken: {type(error).__name__}: {first}"


def _package(name: str) -> str:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed" + (" (optional)" if name in OPTIONAL else "")
    module = MODULES.get(name, name)
    if name in OPTIONAL:  # not imported: only some commands need it, and it takes its time
        found = _attempt(lambda: "" if importlib.util.find_spec(module) else "broken: its files are missing")
        return f"{version} {found}".strip()
    imported = _attempt(lambda: importlib.import_module(module) and "")
    return f"{version} {imported}".strip()


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
    from fastdecode.ops.backends import BACKENDS, unavailable

    return {name: unavailable(name) or "available" for name in BACKENDS}


def _library() -> str:
    from fastdecode.build_info import get_library

    return get_library()


def _instruction_set() -> str:
    from fastdecode.ops.backends import core

    isa: str = core().cpu_isa()
    return isa


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _embedded() -> str:
    folder = Path(__file__).parent / "assets" / "blocks"
    size = sum(f.stat().st_size for f in folder.glob("*") if f.is_file())
    return f"{folder} ({size / 2**20:.1f} MiB)" if size else f"missing at {folder}"


def collect() -> dict[str, Any]:
    """All facts as plain data. A fact that could not be found out is a text that begins with ``broken:``."""
    from fastdecode import __version__

    return {
        "fastdecode": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": _attempt(_threads),
        "gpu": _attempt(_gpu),
        "packages": {name: _package(name) for name in PACKAGES},
        "library": _attempt(_library),
        "sampling backends": _attempt(_backends),
        "instruction set": _attempt(_instruction_set),
        "embedded model": _attempt(_embedded),
        "environment": {name: f"{os.environ.get(name, 'not set')} ({meaning})" for name, meaning in VARIABLES.items()},
    }
