"""Runs this folder's kernel tests in Triton's interpreter, which must be selected before Triton is imported."""

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


KERNELS = sorted(str(file) for file in HERE.glob("test_triton_*.py") if file.name not in COMPILING)
FUZZ = f"{HERE.parent / 'ops' / 'test_sample_fuzz.py'}::test_same_bits_in_tritons_interpreter"
STEP, SAMPLE = str(HERE / "test_triton_step.py"), str(HERE / "test_triton_sample.py")
PROCESSES = {"step": [STEP], "sample": [SAMPLE, FUZZ], "others": [f for f in KERNELS if f not in (STEP, SAMPLE)]}
"""What takes about as long, together: a process takes seconds to begin."""


@pytest.mark.alone
@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs already")
@pytest.mark.skipif(TOO_OLD, reason="Triton 3.6 interprets nothing with numpy 2.4")
@pytest.mark.parametrize("name", PROCESSES)
def test_in_the_interpreter(name: str, request: pytest.FixtureRequest):
    """The tests that this run selects, long ones too if it does."""
    chosen = ["-m", request.config.getoption("markexpr")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, *PROCESSES[name]]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 20
