"""``fastdecode env``: what is installed, what works, and what is wrong in plain words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from fastdecode import cli, environment, versions


def facts_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert cli.main(["env", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_env_tells_versions_backends_and_instruction_sets(capsys: pytest.CaptureFixture[str]) -> None:
    facts = facts_of(capsys)
    assert facts["packages"]["torch"].startswith("2.")
    assert set(facts["packages"]) >= {"torch", "transformers", "triton", "torchao", "fastapi"}
    backends = facts["sampling backends"]
    assert list(backends) == ["reference", "cpu", "triton", "cuda"]
    assert backends["reference"] == backends["cpu"] == "available"
    assert backends["cuda"].endswith("(only where it is named)")
    assert list(facts["instruction sets"]) == ["portable", "avx2", "avx512", "avx512bf16"]
    assert [name for name, fact in facts["instruction sets"].items() if fact == "in use"] == [facts["instruction set"]]
    assert facts["problems"] == []
    assert cli.main(["env"]) == 0
    said = capsys.readouterr().out
    assert "avx512bf16" in said
    assert "nothing is wrong" in said


@pytest.mark.skipif("FASTDECODE_CPU_ISA" in os.environ, reason="FASTDECODE_CPU_ISA chooses the instruction set")
def test_the_library_uses_the_widest_instruction_set_that_the_system_says_there_is() -> None:
    flags = environment._flags()
    there = [name for name, needed in environment.INSTRUCTION_SETS.items() if flags.issuperset(needed)]
    assert environment._instruction_set() == there[-1]


def test_an_instruction_set_that_the_processor_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "_flags", lambda: {"avx2", "fma", "f16c", "avx512f", "avx512bw"})
    monkeypatch.setattr(environment, "_instruction_set", lambda: "avx2")
    assert facts_of(capsys)["instruction sets"] == {
        "portable": "available",
        "avx2": "in use",
        "avx512": "this processor lacks avx512dq, avx512vl",
        "avx512bf16": "this processor lacks avx512dq, avx512vl, avx512_bf16",
    }


def test_the_instruction_sets_are_those_of_the_library() -> None:
    library = (Path(environment.__file__).parents[1] / "csrc" / "cpu" / "isa.cpp").read_text()
    names = ", ".join(f'"{name}"' for name in environment.INSTRUCTION_SETS)
    assert f"kNames[] = {{{names}}}" in library


@pytest.mark.parametrize(
    ("package", "version", "words"),
    [
        ("torch", "2.1.0+cu118", "too old: "),
        ("torch", "99.0", f"untried: {versions.TRIED['torch'][1]} is the highest that was tried"),
        ("torch", f"{versions.TRIED['torch'][1]}+cpu", ""),
        ("transformers", "4.57.0", "too old: "),
        ("transformers", "9.0.0.dev0", f"untried: {versions.TRIED['transformers'][1]}"),
        ("triton", "2.0", "too old: fastdecode needs "),
        ("fastapi", "0.9", "too old: fastdecode needs "),
        ("numpy", "99.0", ""),
        ("torch", "main", "broken: ValueError: version 'main' must begin with a number"),
    ],
)
def test_versions_that_are_too_old_or_untried_are_named(
    package: str, version: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: version if name == package else real(name))
    facts = facts_of(capsys)
    if not words:
        assert facts["packages"][package] == version
        assert facts["problems"] == []
        return
    assert facts["packages"][package].startswith(f"{version} (")
    assert words in facts["packages"][package]
    [problem] = facts["problems"]
    assert problem.startswith(f"{package}: {version} (")
    assert cli.main(["env"]) == 0
    assert f"to look at:\n  {problem}\n" in capsys.readouterr().out


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name in ("triton", "tqdm"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    facts = facts_of(capsys)
    assert facts["packages"]["triton"] == "not installed (optional: extra gpu)"
    assert facts["packages"]["tqdm"] == "not installed"
    assert facts["problems"] == ["tqdm is not installed"]


@pytest.mark.parametrize("broken", ["torch", "transformers", "PIL"])
def test_env_works_when_an_import_is_broken(broken: str) -> None:
    code = (
        "import sys\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {broken!r}: raise ImportError('libsomething.so: undefined symbol')\n"
        "sys.meta_path.insert(0, Broken())\n"
        "from fastdecode.cli import main\n"
        "raise SystemExit(main(['env', '--json']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    package = {"PIL": "pillow"}.get(broken, broken)
    assert "broken: ImportError: libsomething.so" in json.loads(done.stdout)["packages"][package]


def test_environment_variables_are_listed() -> None:
    assert "FASTDECODE_BACKEND" in environment.collect()["environment"]
