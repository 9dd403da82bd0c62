"""The kernels under test: their own lines on the CPU, thread by thread, and the library itself where there is a GPU."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kernels import Kernels
from linking import ROOT, moved_build

sys.path.append(str(ROOT / "tests" / "ops"))

FOLDER = Path(__file__).parent
INCLUDE = (f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/include'}")
EXACT = ("-std=c++17", "-O2", "-ffp-contract=off", "-fno-fast-math", "-Wall", "-Wextra", "-Werror")


def build_emulation(folder: Path, *options: str) -> Kernels:
    """The library that g++ makes of the kernels."""
    target = folder / "libemulated.so"
    sources = [FOLDER / "emulate.cpp", ROOT / "csrc/cuda/check.cpp", ROOT / "csrc/cpu/error.cpp"]
    command = ["g++", *EXACT, *options, "-fPIC", "-shared", *INCLUDE, *map(str, sources), "-o", str(target)]
    subprocess.run(command, check=True, timeout=300)
    return Kernels(target, "fastdecode_cuda_")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libfastdecode_cuda.so of the installed package if it has one, else built here."""
    if not shutil.which("nvcc"):
        pytest.skip("nvcc is not installed")
    installed = ROOT / "fastdecode" / "lib" / "libfastdecode_cuda.so"
    return installed if installed.exists() else moved_build(tmp_path_factory) / "lib" / installed.name


@pytest.fixture(scope="session")
def on_device(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    target = tmp_path_factory.mktemp("on_device") / "libon_device.so"
    link = (f"-L{library.parent}", "-lfastdecode_cuda", "-Xlinker", f"-rpath={library.parent}")
    options = ("-std=c++17", "-shared", "-Xcompiler", "-fPIC,-Wall,-Wextra,-Werror")
    command = ["nvcc", *options, *INCLUDE, str(FOLDER / "on_device.cpp"), *link, "-o", str(target)]
    subprocess.run(command, check=True, timeout=300)
    kernels = Kernels(target, "on_device_")
    if kernels.library.on_device_count() < 1:
        pytest.skip("no GPU here")
    return kernels


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return build_emulation(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(scope="session")
def emulated_shared(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """With blocks of 64 ids, among which every set is shared out."""
    options = ("-DFASTDECODE_CUDA_SMALL_SET=0", "-DFASTDECODE_CUDA_CHUNK=64")
    return build_emulation(tmp_path_factory.mktemp("emulated_shared"), *options)


@pytest.fixture(scope="session", params=["emulated", "emulated_shared", "on_device"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return request.getfixturevalue(request.param)
