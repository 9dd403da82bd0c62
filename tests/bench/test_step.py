"""The benchmark of a decode step's operations: rivals do the same work, a wrong result is never timed."""

import json

import pytest
import torch

from fastdecode import cli, ops
from fastdecode.bench import step as bench
from fastdecode.bench import step_cases
from fastdecode.bench.step_cases import OPERATIONS, Case, Size, runner

MEMORY = torch.ones(1 << 16)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_cases, "SIZES", {"289M": Size(64, 96, 4, 2, head_dim=16, vocab=8800)})
    monkeypatch.setattr(step_cases, "COLD_BYTES", 0)
    monkeypatch.setattr(bench, "COLD_BYTES", 1 << 18)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_torch_does_the_same(operation: str, dtype: str):
    case = Case(operation, rows=3, dtype=dtype)
    run = runner(case)
    bench.check(case, run)
    ours, theirs = run.fastdecode(), run.torch()
    for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (ours, theirs)), strict=True):
        if a.is_floating_point():
            assert (a - b.view(a.shape)).abs().max() <= 3 * bench.TOLERANCE[dtype] * a.abs().max()
        else:
            assert torch.equal(a, b)


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    right = ops.swiglu
    monkeypatch.setattr(ops, "swiglu", lambda x, backend=None: right(x, backend=backend) + (backend is None))
    with pytest.raises(RuntimeError, match="is not what the reference returns"):
        bench.measure(Case("swiglu"), MEMORY)


def test_figures():
    row = bench.measure(Case("attend", rows=2), MEMORY, seconds=0.01)
    assert row["bytes"] == 2 * 2 * 2 * step_cases.IDS * 16 * 2
    assert all(row[name] > 0 for name in ("fastdecode", "torch", "read", "floor"))
    head, line = bench.table([row]).splitlines()
    assert len(head) == len(line)
    assert f"{row['fastdecode']:.1f}" in line


def test_the_grid():
    whole, quick = list(bench.cases(False)), list(bench.cases(True))
    assert set(quick) <= set(whole)
    assert {case.rows for case in whole} == {1, 2, 3, 8}
    assert {case.operation for case in quick} == set(OPERATIONS)


def test_the_command_writes_its_figures(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "cases", lambda quick: [Case("swiglu"), Case("embed", rows=2)])
    files = tmp_path / "new" / "a.json", tmp_path / "b.csv"
    assert cli.main(["bench", "step", "--quick", "--json", str(files[0]), "--csv", str(files[1])]) == 0
    written = json.loads(files[0].read_text())
    assert [row["operation"] for row in written["step"]] == ["swiglu", "embed"]
    assert written["machine"]["torch"]
    assert len(files[1].read_text().splitlines()) == 3
    assert "vs torch" in capsys.readouterr().out
    assert cli.main(["bench", "step", "--plot", "c.png"]) == 2
    assert "--compile and --plot are for bench sample" in capsys.readouterr().err
