"""Writes the figures of a GPU: one JSON file per part of the measurements, complete after every row."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_bandwidth import bandwidth
from fastdecode.bench.machine import describe


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except OSError:
        return "none"
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def machine(device: str, commit: str | None = None) -> dict[str, Any]:
    """What was measured: device, driver, versions, date and commit (``commit`` outside a checkout)."""
    facts = describe()
    cuda = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else f"dry run on {facts['processor']}",
        "driver": _driver() if cuda else "none",
        "cuda": torch.version.cuda or "none",
        "memory GB": round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1) if cuda else 0,
        "python": facts["python"],
        "torch": facts["torch"],
        "triton": _version("triton"),
        "transformers": facts["transformers"],
        "flashinfer": _version("flashinfer-python"),
        "fastdecode": facts["fastdecode"],
        "date": facts["date"],
        "commit": commit or facts["commit"] or "unknown",
    }


def slug(device: str) -> str:
    """A device's name as part of a file's: "NVIDIA H200" is h200."""
    name = "dry" if device.startswith("dry run") else device.lower().removeprefix("nvidia ")
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


class Results:
    """One part's figures in ``FOLDER/PART-DEVICE-DATE.json``, rewritten after every row, so that none is lost."""

    def __init__(self, part: str, folder: Path, facts: dict[str, Any], seconds: float) -> None:
        self.found: dict[str, Any] = {"part": part, "machine": facts}
        self.file = folder / f"{part}-{slug(facts['device'])}-{facts['date']}.json"
        self.begun, self.seconds = time.monotonic(), seconds
        folder.mkdir(parents=True, exist_ok=True)

    def out_of_time(self, what: Any, needed: float = 0.0) -> bool:
        """Whether the time is over, or fewer than ``needed`` seconds are left. If so, ``what`` is recorded as left
        out.
        """
        if time.monotonic() - self.begun + needed < self.seconds:
            return False
        self.found.setdefault("left out", []).append(str(what))
        self._write()
        return True

    def set(self, name: str, value: Any) -> None:
        self.found[name] = value
        self._write()
        print(f"{name}: {json.dumps(rounded(value))}", flush=True)

    def add(self, name: str, row: dict[str, Any]) -> None:
        """Add a row under ``name``. After a row with an ``error`` the part continues, and fails at its end."""
        self.found.setdefault(name, []).append(row)
        self._write()
        print(f"{name}: {json.dumps(rounded(row))}", flush=True)

    def _write(self) -> None:
        whole = self.file.with_suffix(".tmp")
        whole.write_text(json.dumps(self.found, indent=2) + "\n")
        whole.replace(self.file)


def rounded(value: Any) -> Any:
    """Numbers in a readable format."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


class Part:
    """The start of a part's ``main``: its options, its device, and the bandwidth for its floors."""

    def __init__(self, name: str, description: str, seconds: float) -> None:
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="a folder (%(default)s)")
        parser.add_argument("--seconds", type=float, default=seconds, help="begin nothing after so long (%(default)s)")
        parser.add_argument("--commit", help="of the source, where it is no checkout")
        parser.add_argument("--dry-run", action="store_true", help="on the CPU, small; no figures worth keeping")
        self.options = parser.parse_args()
        self.dry: bool = self.options.dry_run
        self.device = "cpu" if self.dry else "cuda"
        if not self.dry and not torch.cuda.is_available():
            print(f"{name}: torch sees no GPU; --dry-run runs the same code on the CPU", file=sys.stderr)
            raise SystemExit(2)
        facts = machine(self.device, self.options.commit)
        print(", ".join(f"{key} {value}" for key, value in facts.items()), flush=True)
        self.results = Results(name, self.options.out, facts, self.options.seconds)
        self.bandwidth = bandwidth(self.device)
        self.results.set("bandwidth", self.bandwidth)

    def end(self) -> int:
        """Print the number of rows. Returns the exit status."""
        found = self.results.found
        rows = [row for table in found.values() if isinstance(table, list) for row in table if isinstance(row, dict)]
        failed, left = sum("error" in row for row in rows), len(found.get("left out", []))
        print(f"{len(rows) - failed} rows, {failed} failed, {left} left out for want of time: {self.results.file}")
        return 1 if failed else 0
