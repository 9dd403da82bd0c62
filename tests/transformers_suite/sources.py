"""Where transformers' own tests are: a folder that is named, or the sdist of the installed version."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import transformers

ROOT = Path(__file__).parents[2]
VARIABLE = "TRANSFORMERS_TESTS"
"""An environment variable with the folder of a checkout of transformers."""


def complete(folder: Path) -> bool:
    return (folder / "tests/generation/test_utils.py").is_file() and (folder / "tests/models/llama").is_dir()


def find(cache: Path = ROOT / "build" / "transformers-sdist") -> tuple[Path | None, str]:
    """A folder with the tests; or None, and why there is none. Downloads the sdist once."""
    if named := os.environ.get(VARIABLE):
        return (Path(named), "") if complete(Path(named)) else (None, f"{VARIABLE}={named} has no tests/generation")
    name = f"transformers-{transformers.__version__}"
    archive = cache / f"{name}.tar.gz"
    if not archive.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        download += ["--no-binary", ":all:", "--dest", str(cache), f"transformers=={transformers.__version__}"]
        ended = subprocess.run(download, capture_output=True, text=True, timeout=300)
        if ended.returncode:
            return None, f"pip cannot download the sdist of {name}: {ended.stderr.strip().splitlines()[-1:]}"
    if not (cache / name).is_dir():
        with tarfile.open(archive) as opened:
            opened.extractall(cache, filter="data")
    if complete(cache / name):
        return cache / name, ""
    return None, f"the sdist of {name} has no tests/generation and tests/models: name a checkout with {VARIABLE}"
