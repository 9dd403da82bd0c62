"""block.cuh on real threads, all blocks of a launch at once: ThreadSanitizer sees no race, but those that are made."""

import os
import platform
import re
import subprocess
from pathlib import Path

import pytest
from kernels import EXACT, FOLDER, INCLUDE
from linking import ROOT, config

BLOCK = ROOT / "csrc/cuda/block.cuh"
SIZES = ("-DFASTDECODE_CUDA_SMALL_SET=48", "-DFASTDECODE_CUDA_CHUNK=64")
RACE = """#include <thread>
int x;
int main() {
  std::thread other([] { x = 1; });
  x = 2;
  other.join();
}
"""
REPORTED = 66


def compiled(target: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["g++", "-std=c++17", "-fsanitize=thread", "-pthread", *map(str, arguments), "-o", str(target)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def watched(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Ends at the first race, with the status REPORTED."""
    environment = {**os.environ, "TSAN_OPTIONS": f"halt_on_error=1 exitcode={REPORTED} history_size=7"}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a watched program is started with. ThreadSanitizer cannot run where addresses are too random."""
    folder = tmp_path_factory.mktemp("race")
    source, program = folder / "race.cpp", folder / "race"
    source.write_text(RACE)
    built = compiled(program, source)
    if built.returncode != 0:
        pytest.skip(f"g++ -fsanitize=thread builds nothing here: {built.stderr.strip()[-200:]}")
    starts: list[list[str]] = [[], ["setarch", platform.machine(), "-R"]]
    for start in starts:
        try:
            done = watched(*start, program)
        except FileNotFoundError:
            continue
        if done.returncode == REPORTED and "data race" in done.stderr:
            return start
    pytest.skip(f"ThreadSanitizer does not run here: {done.stderr.strip()[-200:]}")


@pytest.fixture(scope="module")
def program(launcher: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    target = tmp_path_factory.mktemp("concurrent") / "concurrent"
    options = [*EXACT, "-O1", "-g", "-fno-strict-aliasing", "-Wno-unknown-pragmas", *SIZES]
    include = [*INCLUDE, f"-I{FOLDER / 'fake_cuda'}"]
    own = [FOLDER / "concurrent/main.cpp", FOLDER / "concurrent/library.cpp", FOLDER / "fake_cuda/fake_cuda.cpp"]
    sources = [*own, ROOT / "csrc/core/error.cpp"]
    built = compiled(target, *options, *include, *sources, *config("--cflags", "--libs"))
    assert built.returncode == 0, built.stderr
    return [*launcher, target]


def barriers() -> dict[str, list[int]]:
    """The lines of block.cuh with a barrier, by function."""
    found: dict[str, list[int]] = {}
    function = ""
    for number, line in enumerate(BLOCK.read_text().splitlines(), 1):
        defined = re.search(r"__device__ .*?(\w+)\(.*\{$", line)
        function = defined.group(1) if defined else function
        if "__syncthreads();" in line:
            found.setdefault(function, []).append(number)
    return found


@pytest.mark.parametrize("cases", [16, pytest.param(48, marks=pytest.mark.long)])
def test_no_race_and_the_answers_of_the_cpu_library(program: list[str | Path], cases: int):
    done = watched(*program, cases)
    assert done.returncode == 0, done.stdout + done.stderr[:4000]
    said = re.fullmatch(r"(\d+) drawn, (\d+) without an answer, (\d+) calls shared out\n", done.stdout)
    assert said is not None
    drawn, without_answer, shared_out = map(int, said.groups())
    assert drawn >= 10
    assert without_answer >= 3
    assert cases / 4 < shared_out < cases


def assert_reported(done: subprocess.CompletedProcess[str]) -> None:
    assert "WARNING: ThreadSanitizer: data race" in done.stderr, done.stdout + done.stderr[:4000]
    assert done.returncode == REPORTED


def test_blocks_that_count_without_fences_are_reported(program: list[str | Path]):
    assert_reported(watched(*program, 16, "fences"))


@pytest.mark.parametrize(
    ("function", "which"),
    [
        ("last", 0),
        ("prefix", 1),
        ("over_threads", 1),
        *(pytest.param(*case, marks=pytest.mark.long) for case in (("once", 0), ("prefix", 0))),
        pytest.param("over_threads", 0, marks=pytest.mark.long),
    ],
)
def test_a_missing_barrier_is_reported(program: list[str | Path], function: str, which: int):
    """Not each one: what begins a function and what ends the one before it often stand for each other; and without the
    last one of `prefix` threads may wait for ever before a race is reported."""
    assert_reported(watched(*program, 16, "barrier", barriers()[function][which]))
