"""Programs with a chosen FASTDECODE_CPU_ISA. Each runs in its own process, because the variable is read once."""

import os
import subprocess
import sys

import pytest

from fastdecode.ops.backends import core

ISAS = ("portable", "avx2", "avx512")
"""Of the sampler."""

DECODE_ISAS = (*ISAS, "avx512bf16")


def each(isas: tuple[str, ...]) -> list:
    """As parameters of a test. The best that the processor has is what all other tests run with."""
    return [pytest.param(isa, marks=[] if isa == "portable" else pytest.mark.long) for isa in isas]


def need(isa: str) -> None:
    """Skips where the processor lacks ``isa``, by what the library found when it was loaded."""
    if DECODE_ISAS.index(isa) > DECODE_ISAS.index(core().cpu_isa()):
        pytest.skip(f"this processor has no {isa}")


def run_with(isa: str, code: str) -> subprocess.CompletedProcess[str]:
    """``code`` with ``tests`` and its folders on the path."""
    code = f"import sys; sys.path[:0] = ['tests', 'tests/ops', 'tests/decoder']\n{code}"
    environment = {**os.environ, "FASTDECODE_CPU_ISA": isa}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)


def assert_runs_with(isa: str, code: str) -> None:
    """``code`` must run to its end; skips where the processor lacks ``isa``."""
    need(isa)
    check = f"from fastdecode.ops.backends import core\nassert core().cpu_isa() == {isa!r}\n"
    done = run_with(isa, f"{check}{code}print('same')\n")
    assert done.stdout == "same\n", done.stderr
