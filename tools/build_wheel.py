"""Builds the sdist and a manylinux wheel, checks them, and tries each in an empty environment.

    python -m tools.build_wheel                     # dist/: sdist and wheel, checked and tried
    python -m tools.build_wheel --no-try            # without the environments, which download torch
    python -m tools.build_wheel --seconds 240       # no trial is begun after so long; those skipped are named
    python -m tools.build_wheel --python python3.13 # the Python that the packages are tried with; repeatable

The wheel is compiled by `zig c++` (a package of the index, `ziglang`) for glibc 2.28, whatever this machine's glibc
is; libc++ is linked statically. Every Python from 3.11 on can use the one wheel: its module has the stable ABI.
Needs the extra `package`; the tests of the sdist need a C++ compiler too.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GLIBC = "2.28"
NEEDED = ("auditwheel", "build.__main__", "setuptools", "twine", "ziglang")
"""``build.__main__``: a folder build/, as a checkout has it, can be imported too, but has no such module."""
TORCH = "torch==2.13.0"
"""The packages are tried with this version: its CPU build is small."""
NOT_SHIPPED = (".ci/", ".gitignore", ".pre-commit-config.yaml")
"""Files of the repository that the sdist need not have."""
TESTS = (
    "tests/test_grammar.py",
    "tests/test_guidance.py",
    "tests/test_imports.py",
    "tests/ops/test_c_abi.py",
    "tests/ops/test_numerics.py",
    "tests/ops/test_sample_cpu.py",
    "tests/models/test_documents.py",
)
"""The part of the sdist's tests that is run from its unpacked folder."""
TRIAL = """
import importlib.metadata, subprocess, sys, tempfile, pathlib
import torch
import fastdecode
from fastdecode import ops
from fastdecode.ops.backends import unavailable
assert "site-packages" in fastdecode.__file__, fastdecode.__file__
assert unavailable("cpu") is None, unavailable("cpu")
from fastdecode.environment import collect
facts = collect()
sets = list(facts["instruction sets"].values())
assert "available" not in sets[sets.index("in use"):], facts["instruction sets"]  # none is wider than the one in use
logits = torch.randn(2, 64)
call = dict(streams=torch.tensor([[0, 1]], dtype=torch.int32), weights=torch.tensor([[3.0, -2.0]]), seed=7)
assert ops.sample(logits, **call).token.equal(ops.sample(logits, **call, backend="reference").token)
assert pathlib.Path(fastdecode.get_include(), "fastdecode", "fastdecode.h").is_file()
command = str(pathlib.Path(sys.executable).parent / "fastdecode")
print(subprocess.run([command, "env"], check=True, capture_output=True, text=True).stdout)
with tempfile.TemporaryDirectory() as folder:
    draw = ["generate", "--prompt", "Draw: In column 2 a red circle.", "--mode", "image-only", "-o", folder]
    subprocess.run([command, *draw], check=True)
    assert pathlib.Path(folder, "picture-1.png").is_file()
"""


INSTALL = ("-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check")


def run(*command: str | Path, **options: Any) -> None:
    """Run a command and show it. RuntimeError if it fails."""
    words = [str(word) for word in command]
    shown = " ".join("…" if "\n" in word else shlex.quote(word) for word in words)
    print(f"\n$ {shown}", flush=True)
    done = subprocess.run(words, check=False, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{shown} failed with exit status {done.returncode}")


def check_tools() -> None:
    """RuntimeError names the tools that are missing."""
    from importlib.util import find_spec

    def there(name: str) -> bool:
        try:
            return find_spec(name) is not None
        except ModuleNotFoundError:  # its package is not there
            return False

    missing = [name.removesuffix(".__main__") for name in NEEDED if not there(name)]
    path = tool_path()
    missing += [name for name in ("cmake", "ninja", "patchelf") if shutil.which(name, path=path) is None]
    if missing:
        raise RuntimeError(f"build_wheel needs {', '.join(missing)}: pip install -e '.[package]'")


def tool_path() -> str:
    """PATH with this Python's commands first."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def build_sdist(output: Path) -> Path:
    """Build the sdist, check that it has every file of the repository, and return it."""
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", output, ROOT)
    [sdist] = output.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    if (ROOT / ".git").exists():
        listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], check=True, capture_output=True, text=True).stdout
        lost = [name for name in listed.splitlines() if name not in held and not name.startswith(NOT_SHIPPED)]
        if lost:
            raise RuntimeError(f"the sdist lacks {len(lost)} files: {', '.join(lost[:8])}; see MANIFEST.in")
    built = [name for name in held if name.endswith((".so", ".o", ".pyc"))]
    if built:
        raise RuntimeError(f"the sdist has built files: {', '.join(built[:8])}; see MANIFEST.in")
    return sdist


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack the sdist into ``folder`` and return the folder of its sources."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [source] = folder.iterdir()
    return source


def compilers(folder: Path) -> dict[str, str]:
    """The environment in which setup.py compiles for the old glibc."""
    target = f"{platform.machine()}-linux-gnu.{GLIBC}"
    made = {}
    for language, variable in (("cc", "CC"), ("c++", "CXX")):
        script = folder / f"zig-{language}"
        call = f"{shlex.quote(sys.executable)} -m ziglang {language} -target {target}"
        script.write_text(f'#!/bin/sh\nexec {call} "$@"\n')
        script.chmod(0o755)
        made[variable] = str(script)
    stripped = "-DCMAKE_SHARED_LINKER_FLAGS=-s -DCMAKE_MODULE_LINKER_FLAGS=-s"
    arguments = f"{os.environ.get('CMAKE_ARGS', '')} {stripped}".strip()
    return {**os.environ, **made, "CMAKE_ARGS": arguments, "PATH": tool_path()}


def build_wheel(source: Path, output: Path, scratch: Path) -> Path:
    """Build a wheel from the sdist's sources, repair and check it, and return it."""
    plain = scratch / "plain"
    tools = scratch / "compilers"
    tools.mkdir()
    environment = compilers(tools)
    tag = f"manylinux_{GLIBC.replace('.', '_')}_{platform.machine()}"
    named = f"--config-setting=--build-option=--plat-name={tag}"  # auditwheel reads there which libc is meant
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", named, "--outdir", plain, source, env=environment)
    [wheel] = plain.glob("*.whl")
    run(sys.executable, "-m", "auditwheel", "show", wheel, env=environment)
    repair = (sys.executable, "-m", "auditwheel", "repair", "--plat", tag, "--only-plat", "--wheel-dir", output, wheel)
    run(*repair, env=environment)
    [repaired] = output.glob(f"*-cp311-abi3-{tag}.whl")
    with zipfile.ZipFile(repaired) as archive:
        grafted = [name for name in archive.namelist() if ".libs/" in name]
    if grafted:
        raise RuntimeError(f"the wheel carries libraries of this machine: {', '.join(grafted)}")
    return repaired


def try_package(package: Path, python: str, folder: Path) -> Path:
    """Install a package and what it depends on in an empty environment and use it. Returns the environment's Python."""
    run(python, "-m", "venv", folder)
    inside = folder / "bin" / "python"
    run(inside, *INSTALL, TORCH, package)
    run(inside, "-c", TRIAL, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return inside


def run_tests(source: Path, python: Path) -> None:
    """Run `TESTS` in the folder of the unpacked sdist, with the compiled parts of the sdist that ``python`` has."""
    where = "import fastdecode; print(fastdecode.__path__[0])"
    found = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True, cwd=python.parent).stdout
    installed = Path(found.strip())
    for built in (*installed.glob("_C.*"), installed / "lib", installed / "include"):
        copy = shutil.copytree if built.is_dir() else shutil.copy2
        copy(built, source / "fastdecode" / built.name)
    run(python, *INSTALL, "pytest", "hypothesis", "scipy")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, cwd=source, env=environment)


def try_all(
    sdist: Path, wheel: Path, source: Path, pythons: list[str], scratch: Path, late: Callable[[], bool]
) -> None:
    """Try the wheel with each Python, then the sdist, then its tests, until it is ``late``; name what is skipped."""
    for number, python in enumerate(pythons):
        if late():
            print(f"\nSKIPPED, for want of time: the wheel in an empty environment of {python}")
        else:
            try_package(wheel, python, scratch / f"wheel-{number}")
    if late():
        print("\nSKIPPED, for want of time: the sdist in an empty environment, and its tests")
        return
    inside = try_package(sdist, sys.executable, scratch / "sdist")
    if late():
        print("\nSKIPPED, for want of time: the tests of the sdist")
        return
    run_tests(source, inside)


def main(arguments: list[str] | None = None) -> int:
    """Build, check and try. Returns 0 on success, 1 if something is wrong: the last line says what."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder for sdist and wheel (dist)")
    parser.add_argument("--no-try", action="store_true", help="build and check only")
    parser.add_argument(
        "--python", action="append", help="Python to try the wheel with; repeatable (default: this one)"
    )
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no trial after so long")
    args = parser.parse_args(arguments)
    begun = time.monotonic()
    try:
        check_tools()
        args.output.mkdir(parents=True, exist_ok=True)
        for old in (*args.output.glob("fastdecode-*.tar.gz"), *args.output.glob("fastdecode-*.whl")):
            old.unlink()
        with tempfile.TemporaryDirectory(prefix="build-wheel-") as name:
            scratch = Path(name)
            sdist = build_sdist(args.output)
            source = unpack(sdist, scratch / "source")
            wheel = build_wheel(source, args.output, scratch)
            run(sys.executable, "-m", "auditwheel", "show", wheel)
            run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
            if not args.no_try:
                pythons = args.python or [sys.executable]
                try_all(sdist, wheel, source, pythons, scratch, lambda: time.monotonic() - begun > args.seconds)
    except (RuntimeError, OSError, ValueError) as error:
        print(f"\nbuild_wheel: {error}", file=sys.stderr)
        return 1
    tried = "" if args.no_try else " and tried"
    print(f"\nbuilt, checked{tried} in {time.monotonic() - begun:.0f} s:")
    for package in (sdist, wheel):
        print(f"  {package} ({package.stat().st_size / 2**20:.1f} MiB)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
