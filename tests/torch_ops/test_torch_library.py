"""libfastdecode_torch.so: torch.ops.fastdecode.* in C++ is what Python registers, and runs without Python."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from linking import ROOT, build_example, cmake, run

import fastdecode.ops  # noqa: F401, registers the operations

HERE = Path(__file__).parent
HEADERS = Path(torch.__file__).parent / "include" / "torch" / "csrc"
SIZES = ("6", "64", "12")
"""Rows, vocab and steps of the package's run."""


def test_the_schemas_are_those_of_python():
    text = run("gcc", "-E", "-P", "-x", "c++", ROOT / "csrc" / "torch" / "schemas.h")
    found = {}
    for definition in re.findall(r"\w+\[\] =\s*(.*?);", text, re.DOTALL):
        schema = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', definition)).replace('\\"', '"')
        found[schema.partition("(")[0]] = str(torch._C.parse_schema(f"fastdecode::{schema}"))
    names = {name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if "fastdecode::" in name}
    assert found == {name: str(getattr(torch.ops.fastdecode, name).default._schema) for name in names}
    assert len(found) == 10


def python(*arguments: str | Path) -> str:
    """Standard output of a Python program that sees this source and the tests' helpers."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "ops")))
    return run(sys.executable, *arguments, env={**os.environ, "PYTHONPATH": path})


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build with libfastdecode_torch.so, installed."""
    if not (HEADERS / "stable" / "library.h").exists():
        pytest.skip("this torch has no headers of its stable interface (torch/csrc/stable/library.h)")
    folder = tmp_path_factory.mktemp("torch_library")
    options = ("-DFASTDECODE_PYTHON=OFF", "-DFASTDECODE_CUDA=OFF", "-DFASTDECODE_TORCH=ON")
    cmake("-S", ROOT, "-B", folder / "build", f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}", *options)
    cmake("--build", folder / "build", "-j2")
    cmake("--install", folder / "build", "--prefix", folder / "installed")
    return folder / "installed"


@pytest.fixture(scope="module")
def library(prefix: Path) -> Path:
    return prefix / "lib" / "libfastdecode_torch.so"


@pytest.mark.long
def test_every_operation_is_that_of_python(library):
    assert python(HERE / "compare_calls.py", library) == "all equal\n"


@pytest.mark.long
def test_a_package_runs_without_python(prefix, tmp_path):
    package = tmp_path / "step.pt2"
    expected = python(HERE / "make_package.py", package, *SIZES)
    build_example(HERE, tmp_path / "build", f"{prefix};{torch.utils.cmake_prefix_path}")
    program = tmp_path / "build" / "run_package"
    assert run(program, package, *SIZES) == expected
    assert len(set(re.findall("^token .*", expected, re.MULTILINE))) > 6  # it does sample
    linked = run("ldd", program)
    assert "libfastdecode_torch.so" in linked
    assert "libpython" not in linked


@pytest.mark.long
def test_beside_the_registration_of_python(library):
    """The C++ library leaves everything as it is, and says so."""
    program = (
        "import ctypes, sys, torch, fastdecode.ops as ops\n"
        "torch.ops.load_library(sys.argv[1])\n"
        "assert ctypes.CDLL(sys.argv[1]).fastdecode_torch_registered() == 0\n"
        "logits = torch.randn(3, 40)\n"
        "drawn = torch.ops.fastdecode.sample(logits, backend='reference', seed_value=1)\n"
        "assert ops.last_backend() == 'reference'\n"
        "assert torch.equal(drawn[0], ops.sample(logits, seed=1).token)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, library],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "torch.ops.fastdecode is registered already" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.long
def test_only_what_libtorch_keeps_stable_is_used(library):
    """One binary for every libtorch from 2.10 on: its symbols are the C functions of the stable interface."""
    names = re.findall(r" U (\S+)", run("nm", "-D", "--undefined-only", library))
    theirs = {name for name in names if "torch" in name or "c10" in name or "2at" in name}
    assert "torch_library_impl" in theirs
    assert {name for name in theirs if not re.match(r"(aoti_)?torch_", name)} == set()


def test_another_schema_is_refused():
    """As of a library of another version."""
    program = (
        "import torch\n"
        "library = torch.library.Library('fastdecode', 'FRAGMENT')\n"
        "library.define('sample(Tensor logits) -> Tensor')\n"
        "import fastdecode.ops\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 1
    assert "torch.ops.fastdecode.sample is registered already as fastdecode::sample(Tensor logits) -> Tensor" in (
        done.stderr
    )
    assert "Load libraries of one version" in done.stderr
