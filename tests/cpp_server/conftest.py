"""Fixtures of these tests."""

import shutil
from pathlib import Path

import pytest
from linking import config, run
from server_requests import BLOCKS, EXAMPLE, MODEL, REQUESTS, STRICT, answer


@pytest.fixture(scope="session")
def expected() -> list[str]:
    return [answer(request.expected(MODEL)) for request in REQUESTS]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built against the installed package by one command."""
    program = tmp_path_factory.mktemp("server") / "server"
    flags = config("--cflags", "--libs")
    run("g++", "-std=c++17", "-O2", "-pthread", *STRICT, EXAMPLE / "server.cpp", *flags, "-o", program)
    return program


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(BLOCKS / name, tmp_path / name)
    return tmp_path
