"""The GPU benchmark where there is no GPU: its code runs, its check refuses, its script parses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_sample
from fastdecode import ops
from fastdecode.bench.sample import Case

ROOT = Path(__file__).resolve().parents[2]


def test_a_dry_run_writes_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    files = tmp_path / "a.json", tmp_path / "a.md"
    options = ["gpu_sample", "--dry-run", "--json", str(files[0]), "--markdown", str(files[1])]
    monkeypatch.setattr(sys, "argv", options)
    assert gpu_sample.main() == 0
    written = json.loads(files[0].read_text())
    assert written["machine"]["copy bandwidth"].endswith("GB/s")
    assert all(row["bandwidth_fraction"] > 0 for row in written["sample"])
    lines = files[1].read_text().splitlines()
    columns = {line.count("|") for line in lines if line.startswith("|")}
    assert len(columns) == 1
    assert sum("top_p 0.9" in line for line in lines) == 1


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_sample"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_sample.main() == 2
    assert "torch sees no GPU; --dry-run" in capsys.readouterr().err


def test_a_wrong_draw_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    right = ops.sample

    def wrong(logits, **arguments):
        drawn = right(logits, **arguments)
        return drawn if arguments["backend"] == "reference" else drawn._replace(kept=drawn.kept + 1)

    monkeypatch.setattr(ops, "sample", wrong)
    with pytest.raises(RuntimeError, match="kept is"):
        gpu_sample.check(Case(2, vocab=100), "cpu", None)


def test_the_cases_are_those_of_the_field():
    found = gpu_sample.cases(False)
    assert len(found) == len(set(found))
    assert {case.groups for case in found} >= {1, 64}
    assert {(case.image, case.filter) for case in found} >= {(True, "top_p 0.9"), (False, "top_k 50")}


def test_the_script_parses():
    subprocess.run(["bash", "-n", str(ROOT / "benchmarks" / "gpu_check.sh")], check=True)
