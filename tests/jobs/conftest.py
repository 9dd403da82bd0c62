"""The tests of jobs need pyarrow, and share their models."""

from importlib.util import find_spec

import pytest

import fastdecode

collect_ignore_glob = [] if find_spec("pyarrow") else ["test_*.py"]

LOADED = {}


@pytest.fixture(autouse=True)
def load_once(monkeypatch):
    """The tests of this process share their models."""

    def load(name, **options):
        key = (name, tuple(options.items()))
        if key not in LOADED:
            LOADED[key] = fastdecode.load(name, **options)
        return LOADED[key]

    monkeypatch.setattr("fastdecode.jobs.worker.load", load)


@pytest.fixture
def rows(tmp_path):
    from job_files import write

    from fastdecode.jobs import read_rows

    return read_rows(write(tmp_path / "rows.jsonl", 6))
