"""Versions of torch and transformers that were tried: the lowest and the highest with which the tests pass."""

from __future__ import annotations

import re

TRIED: dict[str, tuple[str, str]] = {
    "torch": ("2.8.0", "2.13.0"),
    "transformers": ("5.4.0", "5.24.0"),
}
"""By package: the lowest and the highest version that were tried. pyproject.toml has the same."""


def numbers(version: str) -> tuple[int, ...]:
    """The numbers that ``version`` begins with: (2, 13, 0) of 2.13.0+cpu. ValueError if it begins with none."""
    found = re.match(r"\d+(\.\d+)*", version)
    if found is None:
        raise ValueError(f"version {version!r} must begin with a number")
    return tuple(map(int, found[0].split(".")))


def untried(package: str, version: str) -> str | None:
    """Why ``version`` of ``package`` may not work, as a clause; None if it lies between versions that were tried, or if
    the package is not in `TRIED`.
    """
    if package not in TRIED:
        return None
    lowest, highest = TRIED[package]
    if numbers(version) < numbers(lowest):
        return f"too old: {lowest} is the lowest that was tried"
    if numbers(version) > numbers(highest):
        return f"untried: {highest} is the highest that was tried"
    return None
