"""examples/server: the client, and the programs of its README."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.serve.serving import Served

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "server"
README = (FOLDER / "README.md").read_text()


def run(served: Served, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, FOLDER / "client.py", *arguments, "--url", f"http://127.0.0.1:{served.port}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_client_streams_a_document(served: Served, tmp_path: Path) -> None:
    done = run(served, "Build a snowman in column 3.", "--seed", "7", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Put a white circle in column 3.\n[")
    assert "seed 7" in done.stdout
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) >= 2
    with Image.open(files[0]) as picture:
        assert picture.size == (64, 64)
    said = run(served, "Describe the picture.", "--image", files[0], "--mode", "text-only")
    assert said.returncode == 0
    assert "column 3" in said.stdout


def test_the_client_tells_what_is_wrong(served: Served, tmp_path: Path) -> None:
    done = run(served, "Build.", "--mode", "pictures", "-o", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("mode = 'pictures'")


def test_the_requests_of_the_readme_are_taken(served: Served) -> None:
    body, with_task = re.findall(r"-d '(.*?)'", README, re.DOTALL)
    status, _, answer = served.post(json.loads(with_task))
    assert (status, [part["type"] for part in answer["document"]]) == (200, ["picture"])
    status, _, answer = served.post(json.loads(body))
    assert status == 200
    [shown] = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    assert set(json.loads(shown)) == set(answer)
    assert answer["document"][0] == json.loads(shown)["document"][0]


@pytest.mark.parametrize("program", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_programs_of_the_readme_run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
