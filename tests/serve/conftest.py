"""The embedded model, once for all tests of the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import fastdecode
from tests.serve.serving import Served, serving


@pytest.fixture(scope="session")
def blocks() -> tuple[Any, Any]:
    return fastdecode.load("blocks")


@pytest.fixture
def served(blocks: tuple[Any, Any]) -> Iterator[Served]:
    with serving(*blocks) as server:
        yield server
