"""``examples/cpp_server --device cuda`` answers as on the CPU: with the kernels' emulation, and on a GPU."""

from pathlib import Path

import pytest
from kernels import FOLDER, INCLUDE, Kernels
from linking import build_example, config, run
from server_requests import BLOCKS, EXAMPLE, LINES, STRICT, ask, failure

MIXTURES = [("cuda", 1, 8), ("cuda", 2, 3), ("cuda-graph", 1, 64), ("cuda-graph", 3, 5)]


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


def check(server: Path, device: str, workers: int, slots: int) -> None:
    drawn = ask(server, LINES, "--device", device, "--workers", workers, "--slots", slots)
    assert drawn == ask(server, LINES)  # on the CPU; test_cpp_server compares these with Python


@pytest.mark.parametrize(("device", "workers", "slots"), MIXTURES)
def test_emulated(emulated_server: Path, device: str, workers: int, slots: int):
    check(emulated_server, device, workers, slots)


@pytest.mark.parametrize(("device", "workers", "slots"), MIXTURES)
def test_on_device(on_device: Kernels, server: Path, device: str, workers: int, slots: int):
    check(server, device, workers, slots)


@pytest.mark.long
def test_without_a_gpu_it_is_a_sentence(server: Path):
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU")
    assert failure(server, BLOCKS, "--device", "cuda", status=2, given=LINES[0]).startswith("CUDA: ")
