"""The kernels under test: their own lines on the CPU, thread by thread, and the library itself where there is a GPU."""

import ctypes
import shutil
import sys
from pathlib import Path

import pytest
from kernels import EXACT, FOLDER, INCLUDE, Kernels
from linking import ROOT, moved_build, run

sys.path.append(str(ROOT / "tests" / "ops"))


def build_emulation(folder: Path, *options: str) -> Path:
    """The library that g++ makes of the kernels, with the runtime that it needs instead of CUDA's."""
    target = folder / "libemulated.so"
    sources = [FOLDER / "emulate.cpp", FOLDER / "fake_cuda/fake_cuda.cpp"]
    hidden = (f"-I{FOLDER / 'fake_cuda'}", "-fPIC", "-shared", "-fvisibility=hidden", "-DFASTDECODE_CUDA_BUILDING")
    run(
        "g++",
        "-std=c++17",
        "-O2",
        *EXACT,
        *options,
        *hidden,
        *INCLUDE,
        *sources,
        ROOT / "csrc/core/error.cpp",
        "-o",
        target,
    )
    return target


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libfastdecode_cuda.so of the installed package if it has one, else built here."""
    if not shutil.which("nvcc"):
        pytest.skip("nvcc is not installed")
    installed = ROOT / "fastdecode" / "lib" / "libfastdecode_cuda.so.2"  # beside it is a text file for linkers
    return installed if installed.exists() else moved_build(tmp_path_factory) / "lib" / installed.name


def build_on_device(folder: Path, library: Path, *compiler: str) -> Kernels:
    """The library behind functions that take memory of the host."""
    target = folder / "libon_device.so"
    link = ("-Xlinker", str(library), "-Xlinker", f"-rpath={library.parent}")
    run(*compiler, "-std=c++17", "-shared", *INCLUDE, FOLDER / "on_device.cpp", *link, "-o", target)
    return Kernels(target, "on_device_")


@pytest.fixture(scope="session")
def gpu() -> None:
    """Skips where there is none, before anything is built for it."""
    try:
        driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(0)
    except OSError:
        pytest.skip("no driver of a GPU here")
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value < 1:
        pytest.skip("no GPU here")


@pytest.fixture(scope="session")
def on_device(gpu: None, library: Path, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    options = ("-Xcompiler", "-fPIC,-Wall,-Wextra,-Werror")
    return build_on_device(tmp_path_factory.mktemp("on_device"), library, "nvcc", *options)


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_emulation(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(scope="session")
def emulated(emulation: Path) -> Kernels:
    return Kernels(emulation, "fastdecode_cuda_")


@pytest.fixture(scope="session")
def emulated_on_device(emulation: Path, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """As `on_device`, whose copies and graphs are so tested without a GPU."""
    options = ("-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{FOLDER / 'fake_cuda'}")
    return build_on_device(tmp_path_factory.mktemp("emulated_on_device"), emulation, "g++", *options)


@pytest.fixture(scope="session")
def emulated_shared(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """With blocks of 64 ids, among which every set is shared out."""
    options = ("-DFASTDECODE_CUDA_SMALL_SET=0", "-DFASTDECODE_CUDA_CHUNK=64")
    return Kernels(build_emulation(tmp_path_factory.mktemp("emulated_shared"), *options), "fastdecode_cuda_")


@pytest.fixture(scope="session", params=["emulated_on_device", "emulated_shared", "on_device"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return request.getfixturevalue(request.param)
