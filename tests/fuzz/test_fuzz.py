"""The C interface under sanitizers: a fuzzer of its arguments, and calls from several threads at once."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def has_sanitizers(tmp_path: Path) -> bool:
    source = tmp_path / "empty.cpp"
    source.write_text("int main() { return 0; }\n")
    for sanitizer in ("address,undefined", "thread"):
        command = ["g++", f"-fsanitize={sanitizer}", str(source), "-o", str(tmp_path / "empty")]
        if subprocess.run(command, capture_output=True).returncode != 0:
            return False
        if subprocess.run([str(tmp_path / "empty")], capture_output=True).returncode != 0:
            return False
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs are built."""
    folder = tmp_path_factory.mktemp("fuzz")
    if not has_sanitizers(folder):
        pytest.skip("g++ cannot build or run programs with the address and thread sanitizers here")
    cmake("-S", str(HERE), "-B", str(folder), "-DCMAKE_CXX_COMPILER=g++")
    return folder


def cmake(*arguments: str) -> None:
    program = shutil.which("cmake", path=str(Path(sys.executable).parent)) or "cmake"
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def built(folder: Path, program: str) -> str:
    cmake("--build", str(folder), "--target", program, "--parallel", "2")
    return str(folder / program)


@pytest.mark.parametrize(("seed", "runs"), [(1, 8_000), pytest.param(2, 40_000, marks=pytest.mark.long)])
def test_arguments_of_all_kinds(folder: Path, seed: int, runs: int):
    """No sanitizer speaks, refused calls write nothing, and accepted ones give the same on every instruction set."""
    command = [built(folder, "fuzz_abi"), "--runs", str(runs), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=1200)
    assert done.returncode == 0, done.stderr[-5000:]
    said = re.match(r"runs (\d+), seconds [\d.]+, outcomes (\d+),", done.stdout)
    assert said, done.stdout
    assert int(said[1]) == runs
    assert int(said[2]) > 100


@pytest.mark.parametrize("seed", [1, 2])
def test_extreme_sizes(folder: Path, seed: int):
    """Sizes too large alone or together: nothing crashes, overflows or hangs, and messages name the field."""
    command = [built(folder, "extremes"), str(seed), "20000"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120)
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout == "products 29, calls 20000\n"


@pytest.mark.parametrize(("program", "least"), [("refused", 80), ("wrapper_faults", 6)])
def test_faults_are_refused_by_name(folder: Path, program: str, least: int):
    """Overlapping arrays, sizes, and what the C++ wrapper checks: each with its message, and no sanitizer speaks."""
    done = subprocess.run([built(folder, program)], capture_output=True, text=True, cwd=folder, timeout=120)
    assert done.returncode == 0, done.stderr[-5000:]
    said = re.fullmatch(r"calls (\d+), wrong 0\n", done.stdout)
    assert said, done.stdout
    assert int(said[1]) >= least


def test_the_pool_with_a_team_of_openmp(folder: Path):
    """One team for a call that keeps its threads, several callers at once, and only long waits count as late."""
    done = subprocess.run([built(folder, "team")], capture_output=True, text=True, cwd=folder, timeout=120)
    assert done.returncode == 0, done.stderr[-5000:]
    assert re.fullmatch(r"teams \d+\n", done.stdout), done.stdout


@pytest.mark.long
def test_calls_from_several_threads(folder: Path):
    command = [built(folder, "threads"), "700"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout.startswith(f"calls {4 * 4 * 700}, threads 4,")
