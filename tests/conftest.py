"""For all tests: torch.empty returns poisoned memory, so that an unwritten output cannot look plausible.

torch uses one thread, so that two test processes do not slow each other down; tests of threads set their own number.
pytest-xdist keeps the tests of a file in one process, and also the tests that build the same programs.
"""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in the processes that tests start

import pytest
import torch
from hypothesis import HealthCheck, settings

_INTEGER_POISON = 0x5A
_EVERY_PROFILE = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}

with torch.device("meta"):
    torch.empty(0)  # before the poison: torch would otherwise remember our functions as its constructors


def _poisoned(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_floating_point() or tensor.is_complex():
        return tensor.fill_(float("nan"))
    if tensor.dtype == torch.bool:
        return tensor.fill_(True)
    return tensor.fill_(_INTEGER_POISON)


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoning(function):
        return lambda *args, **kwargs: _poisoned(function(*args, **kwargs))

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoning(getattr(torch, name)))


FIRST = ("tests/cuda", "tests/triton_kernels/test_interpreter.py", "tests/fuzz", "tests/ray")
"""The longest tests start first, so that two processes end at about the same time."""

BUILDS = ("tests/cuda", "tests/test_linkers.py", "tests/cpp_server")
"""These share programs that are built once per process."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def path(item: pytest.Item) -> str:
        return item.path.relative_to(Path(__file__).parents[1]).as_posix()

    def turn(item: pytest.Item) -> int:
        return next((number for number, first in enumerate(FIRST) if path(item).startswith(first)), len(FIRST))

    if not config.pluginmanager.hasplugin("xdist"):
        return
    items.sort(key=turn)
    for item in items:
        if item.get_closest_marker("xdist_group") is not None:  # such as "ray": one cluster at a time
            continue
        alone = item.get_closest_marker("alone") is not None
        group = item.nodeid if alone else "builds" if path(item).startswith(BUILDS) else path(item)
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_finish(session: pytest.Session) -> None:
    """In the processes of pytest-xdist: the groups are in the names by which tests are given out."""
    grouped = hasattr(session.config, "workerinput") and session.config.getoption("loadgroup", False)
    if grouped and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError("this pytest-xdist does not keep groups of tests together with this pytest")


settings.register_profile("short", derandomize=True, max_examples=500, **_EVERY_PROFILE)
settings.register_profile("long", max_examples=40_000, **_EVERY_PROFILE)
settings.load_profile("short")
