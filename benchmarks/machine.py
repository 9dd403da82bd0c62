"""What a figure was measured on."""

from __future__ import annotations

import subprocess
from datetime import date
from importlib import metadata
from typing import Any

from fastdecode.env import collect


def describe() -> dict[str, Any]:
    """Processor, cores, threads, GPU, versions, date and commit."""
    facts = collect()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=False)
    return {
        **{key: facts[key] for key in ("processor", "cores", "threads", "gpu", "python", "fastdecode")},
        "torch": metadata.version("torch"),
        "transformers": metadata.version("transformers"),
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip() + (" with changes" if changed.stdout.strip() else ""),
    }
