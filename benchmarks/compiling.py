"""C++ beside the benchmarks, compiled when it is needed: for this processor, by g++, into ``build/benchmarks``."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "benchmarks"
USUAL = ("-std=c++17", "-O3", "-march=native", "-Wall", "-Wextra")


def _processor() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return os.uname().machine
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def compiled(source: Path, flags: Sequence[str] = (), folder: Path = BUILD) -> Path:
    """The program or library made of ``source`` with `USUAL` and ``flags``; made before: as it was.

    ``RuntimeError`` if there is no g++, or it fails; the message then has what it said.
    """
    text = "\0".join((source.read_text(), *USUAL, *flags, _processor()))
    made = folder / f"{source.stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if made.exists():
        return made
    if shutil.which("g++") is None:
        raise RuntimeError(f"{source.name} must be compiled, and there is no g++ on the PATH: install it")
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = made.with_suffix(f".{os.getpid()}")
    command = ["g++", *USUAL, str(source), "-o", str(unfinished), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"g++ cannot compile {source.name}:\n{done.stderr.strip()}")
    unfinished.replace(made)  # at once, so that another process finds all of it or nothing
    return made
