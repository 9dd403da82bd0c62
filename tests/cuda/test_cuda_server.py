"""``examples/cpp_server --device cuda`` answers as on the CPU: with the kernels' emulation, and on a GPU."""

import subprocess
from pathlib import Path

import pytest
from kernels import FOLDER, INCLUDE, Kernels
from linking import build_example, config, run
from test_cpp_server import EXAMPLE, STRICT, decode

REQUESTS = 60
MIXTURES = [("cuda", 1, 8), ("cuda", 2, 3), ("cuda-graph", 1, 64), ("cuda-graph", 3, 5)]


@pytest.fixture(scope="module")
def expected() -> list[str]:
    return decode(list(range(REQUESTS)), "cpu")


@pytest.fixture(scope="module")
def emulated_server(emulation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("server") / "server"
    cuda = ["-DSERVER_CUDA", *INCLUDE, f"-I{FOLDER / 'fake_cuda'}", emulation, f"-Wl,-rpath,{emulation.parent}"]
    flags = [*STRICT, *cuda, *config("--cflags", "--libs")]
    run("g++", "-std=c++17", "-O2", "-pthread", EXAMPLE / "server.cpp", *flags, "-o", program)
    return program


@pytest.fixture(scope="module")
def server(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("server")
    build_example(EXAMPLE, folder, library.parents[1], f"-DCMAKE_CXX_FLAGS={' '.join(STRICT)}")
    return folder / "server"


def lines(server: Path, device: str, workers: int, slots: int) -> list[str]:
    return run(server, "--requests", REQUESTS, "--device", device, "--workers", workers, "--slots", slots).splitlines()


@pytest.mark.parametrize(("device", "workers", "slots"), MIXTURES)
def test_emulated(emulated_server: Path, expected: list[str], device: str, workers: int, slots: int):
    assert lines(emulated_server, device, workers, slots) == expected


@pytest.mark.parametrize(("device", "workers", "slots"), MIXTURES)
def test_on_device(on_device: Kernels, server: Path, expected: list[str], device: str, workers: int, slots: int):
    assert lines(server, device, workers, slots) == expected


@pytest.mark.long
def test_without_a_gpu_it_is_a_sentence(server: Path):
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU")
    done = subprocess.run([server, "--device", "cuda"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("server: CUDA: ")
    assert done.stderr.count("\n") == 1
