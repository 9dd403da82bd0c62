"""Programs in C and C++ built against the library: from the installed package, and from a plain CMake build."""

import contextlib
import functools
import io
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastdecode import cli

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, **options) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=1800, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def config(*options: str) -> list[str]:
    """The words that ``fastdecode config`` prints, as a shell reads them after ``eval``."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert cli.main(["config", *options]) == 0
    return shlex.split(printed.getvalue())


def cmake(*arguments: str | Path) -> None:
    tool = shutil.which("cmake", path=f"{Path(sys.executable).parent}:/usr/bin:/usr/local/bin")
    assert tool, "cmake is one of the test extra's packages"
    run(tool, *arguments)


def build_example(source: Path, build: Path, prefix: str | Path, *options: str) -> None:
    """Builds ``source``, which finds the package under ``prefix``, in ``build``."""
    cmake("-S", source, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}", *options)
    cmake("--build", build)


@functools.cache
def _moved_build(folder: Path) -> Path:
    first, moved = folder / "first", folder / "moved"
    # Where there is nvcc the CUDA library is built too: as PTX, which takes less time and runs on every GPU.
    ptx = "-DCMAKE_CUDA_ARCHITECTURES=80-virtual"
    cmake("-S", ROOT, "-B", folder / "build", ptx)
    cmake("--build", folder / "build", "-j2")
    cmake("--install", folder / "build", "--prefix", first)
    first.rename(moved)
    return moved


def moved_build(factory: pytest.TempPathFactory) -> Path:
    """A plain CMake build, installed to one folder and moved to the one returned; made once in a session."""
    return _moved_build(factory.getbasetemp() / "moved_build")
