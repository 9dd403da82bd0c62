"""The versions of other packages that fastdecode was tried with, and what to say of others.

The oldest ones are in the package's metadata (`dependencies` and extras in pyproject.toml): pip refuses older ones.
"""

from __future__ import annotations

from importlib import metadata

TRIED = {"torch": "2.13", "transformers": "5.24", "triton": "3.9", "torchao": "0.18"}
"""The newest release series that the tests were run with."""


def oldest(package: str) -> str | None:
    """The oldest version of ``package`` that fastdecode's metadata allows; None if any is allowed."""
    from packaging.requirements import InvalidRequirement, Requirement

    for line in metadata.requires("fastdecode") or ():
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.name == package:
            floors = [bound.version for bound in requirement.specifier if bound.operator in (">=", "~=", "==")]
            if floors:
                return floors[0]
    return None


def remark(package: str, version: str) -> str:
    """What is to be said of that version of a package, in plain words; "" if nothing is.

    remark("torch", "2.1.0")   "too old: fastdecode needs 2.11 or newer"
    remark("torch", "9.0")     "newer than 2.13, the newest that fastdecode was tried with"
    """
    from packaging.version import InvalidVersion, Version

    try:
        found = Version(version)
    except InvalidVersion:
        return "a version number that cannot be compared"
    least = oldest(package)
    if least is not None and found < Version(least):
        return f"too old: fastdecode needs {least} or newer"
    newest = TRIED.get(package)
    if newest is not None:
        series = Version(newest).release
        if found.release[: len(series)] > series:
            return f"newer than {newest}, the newest that fastdecode was tried with"
    return ""
