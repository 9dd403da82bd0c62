"""``examples/slurm.sh``, as tasks of Slurm's array run it: with its variables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

ROOT = Path(__file__).resolve().parent.parent


def test_the_tasks_of_an_array_share_the_rows(tmp_path):
    rows = [{"id": f"r{n}", "prompt": f"Draw: In column {n + 1} a red circle."} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for task in ("0", "1"):
        given = {"PATH": path, "SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": "2"}
        command = ["bash", str(ROOT / "examples" / "slurm.sh"), "rows.jsonl", "drawings", "--mode", "image-only"]
        done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **given}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    made = {file.parent.name: file.parts[-4] for file in tmp_path.rglob("item.json")}
    assert made == {"r0": "shard-1-of-2", "r2": "shard-1-of-2", "r1": "shard-2-of-2"}
