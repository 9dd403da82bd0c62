"""A description of the machine that a figure was measured on."""

from __future__ import annotations

import subprocess
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from fastdecode.environment import collect


def describe() -> dict[str, Any]:
    """Processor, cores, threads, GPU, versions, date and, in a git checkout, commit."""
    facts = collect()
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changes = " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    keys = ("processor", "cores", "threads", "gpu", "instruction set", "python", "fastdecode")
    return {
        **{key: facts[key] for key in keys},
        "torch": metadata.version("torch"),
        "transformers": metadata.version("transformers"),
        "date": date.today().isoformat(),
        "commit": git("rev-parse", "--short", "HEAD") + changes,
    }
