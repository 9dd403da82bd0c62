"""Runs the generation tests of one model twice and compares the outcomes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

MODELS = ("chameleon", "llama", "mistral", "qwen2", "qwen3")
ROOT = Path(__file__).parents[2]
CALLS = ("decoded by fastdecode", "handed to transformers", "raised before decoding")


@dataclass
class Comparison:
    """The outcomes of one model's tests. ``lost``: those that pass only without fastdecode, with their messages."""

    model: str
    tests: int
    passed_plain: int
    passed_enabled: int
    not_counted: list[str]
    lost: dict[str, str]
    calls: dict[str, int]
    reasons: dict[str, int]
    messages: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict:
        return asdict(self)


def run(folder: Path, model: str, enabled: bool) -> dict:
    """The report of `fastdecode_suite` on the generation tests of ``model`` in ``folder``."""
    file = f"tests/models/{model}/test_modeling_{model}.py"
    if not (folder / file).is_file():
        raise FileNotFoundError(
            f"{folder} has no {file}: give a checkout of transformers (its sdist has no such tests)"
        )
    with tempfile.TemporaryDirectory() as made:
        report = Path(made) / "report.json"
        environment = os.environ | {
            "FASTDECODE_SUITE_ENABLED": str(int(enabled)),
            "FASTDECODE_SUITE_REPORT": str(report),
            "FASTDECODE_SUITE_ROOT": str(ROOT),
            "PYTHONPATH": str(Path(__file__).parent),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "fastdecode_suite", "-p", "no:cacheprovider", file]
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if not report.is_file():
            raise RuntimeError(f"pytest did not run {file}:\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}")
        found = json.loads(report.read_text())
        if not found["outcomes"]:
            raise RuntimeError(f"pytest found no tests of generation in {file}:\n{ended.stdout[-3000:]}")
        return found


def compare(folder: Path, model: str) -> Comparison:
    """Run the generation tests of ``model`` without fastdecode and with it."""
    plain, enabled = (run(folder, model, with_us) for with_us in (False, True))
    passed = {name for name, outcome in plain["outcomes"].items() if outcome == "passed"}
    passed_enabled = {name for name, outcome in enabled["outcomes"].items() if outcome == "passed"}
    calls: Counter[str] = sum((Counter(calls) for calls in enabled["calls"].values()), Counter())
    lost = {name: enabled["messages"].get(name, "no message") for name in sorted(passed - passed_enabled)}
    return Comparison(
        model=model,
        tests=len(plain["outcomes"]),
        passed_plain=len(passed),
        passed_enabled=len(passed_enabled),
        not_counted=sorted(set(plain["outcomes"]) - passed),
        lost=lost,
        calls={kind: calls[kind] for kind in CALLS},
        reasons=enabled["reasons"],
        messages=plain["messages"] | enabled["messages"],
    )


def table(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as lines of text."""
    heads = ("model", "tests", "pass without", "pass enabled", "lost", *CALLS)
    rows = [heads] + [
        (c.model, c.tests, c.passed_plain, c.passed_enabled, len(c.lost), *(c.calls[kind] for kind in CALLS))
        for c in comparisons
    ]
    return "\n".join("  ".join(f"{cell!s:>{len(head)}}" for cell, head in zip(row, heads, strict=True)) for row in rows)
