"""The benchmark of jobs runs, checks what it times, and reports ratios."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_of_jobs_reports_ratios_of_each_turn(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "bench_jobs.py"), "--rows", "2", "--turns", "1"]
    subprocess.run([*command, "--json", str(tmp_path / "figures.json")], check=True, capture_output=True)
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert [row["mode"] for row in rows] == ["image-only", "interleaved-text-image"]
    for row in rows:
        for name in ("folders", "tars"):
            assert row[f"{name}, of the turns"] == [round(row[f"throughput of {name}"], 3)]
            assert 0 < row[f"throughput of {name}"] < 100
            assert 0 < row[f"{name}, share of time beside the engine"] < 1
