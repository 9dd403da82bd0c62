"""Runs this folder's kernel tests in Triton's interpreter, which has to be chosen before Triton is imported."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

triton = pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HERE = Path(__file__).parent
COMPILING = {"test_triton_backend.py", "test_triton_compile.py"}
"""Run where Triton compiles."""


# Its interpreter makes an int of an array of one element, which numpy no longer does.
TOO_OLD = triton.__version__.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0"


KERNELS = sorted(file for file in HERE.glob("test_triton_*.py") if file.name not in COMPILING)
FUZZ = HERE.parent / "ops" / "test_sample_fuzz.py"


@pytest.mark.alone
@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs already")
@pytest.mark.skipif(TOO_OLD, reason="Triton 3.6 interprets nothing with numpy 2.4")
@pytest.mark.parametrize(
    ("file", "options", "least"),
    [*((file, [], 5) for file in KERNELS), (FUZZ, ["-k", "test_same_bits_in_tritons_interpreter"], 1)],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_in_the_interpreter(file: Path, options: list[str], least: int, request: pytest.FixtureRequest):
    """The tests that this run selects, long ones too if it does."""
    chosen = ["-m", request.config.getoption("markexpr")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, str(file), *options]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= least
