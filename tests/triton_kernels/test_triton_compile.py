"""Every kernel compiled for the GPUs we aim at, without one: what the arithmetic became, and that nothing spills."""

import re

import pytest
from devices import INTERPRETED

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")

if not INTERPRETED:
    from fastdecode.triton_kernels import compile as compiling

    CASES = [pytest.param(case, id=f"{case.name} {case.configuration}") for case in compiling.cases()]
else:
    CASES = []


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("case", CASES)
def test_shipped_configuration(case, arch):
    made = compiling.compile_case(case, arch)
    assert made.stack == 0, "spills"
    assert made.registers * case.options["num_warps"] * 32 <= 65536
    floating = re.findall(r"^\s*(?:@!?%\w+\s+)?(\w+\.[\w.]*f(?:32|64)[\w.]*)", made.ptx, re.MULTILINE)
    assert floating, "no arithmetic found to look at"
    for operation in floating:
        name, *modifiers = operation.split(".")
        assert name not in ("fma", "mad"), f"{operation}: a product and a sum rounded together"
        assert not {"ftz", "approx", "full"} & set(modifiers), f"{operation}: not IEEE arithmetic"
        if name in ("add", "sub", "mul", "div"):
            assert "rn" in modifiers, f"{operation}: left to ptxas to fuse"


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiling, "cases", lambda: [CASES[0].values[0]])
    assert compiling.main(["--arch", "90"]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == ["kernel", "configuration", "arch", "registers", "shared", "spills"]
    assert row.split()[0] == "sample_small"
    assert row.split()[-4] == "90"
