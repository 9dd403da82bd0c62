"""Every command and program in the README runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fastdecode.cli.demo import run_demo

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


QUICK = ("make", "fastdecode env")
COMMANDS = [line.split("    #")[0].strip() for block in blocks("bash") for line in block.splitlines() if line.strip()]


def test_there_is_something_to_run() -> None:
    assert len(blocks("python")) >= 3
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize(
    "program",
    [pytest.param(block, marks=pytest.mark.long if number else []) for number, block in enumerate(blocks("python"))],
)
def test_programs(program: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize(
    "command",
    [pytest.param(line, marks=[] if line.startswith(QUICK) else pytest.mark.long) for line in COMMANDS],
)
def test_commands(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    if words[0] == "make":  # what make would do here is what this test run is part of; the target must exist
        done = subprocess.run(["make", "-n", words[1]], cwd=ROOT, capture_output=True, text=True, check=False)
    elif words[0] in (".", "gcc", "g++", "cmake"):
        (tmp_path / "examples").symlink_to(ROOT / "examples")
        (tmp_path / ".venv").symlink_to(sys.prefix)
        command = f"{command}; fastdecode --version" if words[0] == "." else command
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-ec", command], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
    elif words[:2] == ["fastdecode", "serve"]:  # tests/serve starts it; here, its options must be ones that it has
        done = subprocess.run(
            [sys.executable, "-m", *words, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
    else:
        assert words[0] == "fastdecode", f"no way to test {command!r}"
        if "demo/" in command:  # what an earlier command made
            run_demo(tmp_path / "demo")
        done = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_files_that_are_named_exist() -> None:
    for name in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in name:
            assert (ROOT / name).exists(), name
    for name in re.findall(r"python (benchmarks/\S+\.py)", README):
        assert (ROOT / name).exists(), name
