"""Floors and ceilings of torch and transformers: what was tried, what pyproject.toml says, and what is installed."""

import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from fastdecode.versions import TRIED, numbers, untried

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())


@pytest.mark.parametrize("package", TRIED)
def test_the_project_says_what_was_tried(package: str):
    """Up to the next minor version, of which the tried one is the last that is known."""
    lowest, highest = TRIED[package]
    major, minor, _ = numbers(highest)
    extras = PROJECT["project"]["optional-dependencies"].values()
    lines = [*PROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)]
    said = [line for line in lines if line.startswith(f"{package}>")]
    bare = lowest.removesuffix(".0")
    assert said
    assert set(said) == {f"{package}>={bare},<{major}.{minor + 1}"}


@pytest.mark.parametrize("package", TRIED)
def test_what_is_installed_was_tried(package: str):
    assert untried(package, metadata.version(package)) is None


def test_what_is_told():
    lowest, highest = TRIED["torch"]
    assert untried("torch", "2.1") == f"too old: {lowest} is the lowest that was tried"
    assert untried("torch", "99.0.0+cu") == f"untried: {highest} is the highest that was tried"
    assert untried("torch", highest + "+cpu") is None
    assert untried("numpy", "0.1") is None
    with pytest.raises(ValueError, match="version 'none' must begin with a number"):
        untried("torch", "none")
