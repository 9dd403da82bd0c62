"""The bound for top-p's shortcut: the error of the estimated mass never exceeds it."""

import subprocess
from pathlib import Path

import pytest
from isas import ISAS, each, need

HERE = Path(__file__).parent
SOURCES = HERE.parent.parent / "csrc"
FLAGS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-w"],
}


@pytest.mark.parametrize("isa", each(ISAS))
def test_the_estimate_keeps_its_bound(tmp_path: Path, isa: str):
    need(isa)
    program = tmp_path / "estimate"
    exact = ["-std=c++17", "-O2", "-ffp-contract=off", f"-I{SOURCES}", f"-I{SOURCES / 'include'}"]
    source = str(HERE / "mass_estimate.cpp")
    subprocess.run(["g++", *exact, *FLAGS[isa], source, "-o", str(program)], check=True, timeout=120)
    done = subprocess.run([str(program)], check=True, capture_output=True, text=True, timeout=120)
    worst, cases = done.stdout.split()
    assert 0.02 < float(worst) < 0.5
    assert int(cases) > 1000
