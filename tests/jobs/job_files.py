"""A job of small pictures, and what it wrote."""

import json
from types import SimpleNamespace

from pyarrow import parquet

from fastdecode.jobs import Job
from fastdecode.jobs.files import UNFINISHED

OPTIONS = {
    "multimodal_generation_mode": "image-only",
    "guidance": 3.0,
    "image": {"temperature": 0.7, "top_p": 0.9},
}
JOB = Job(options=OPTIONS, max_rows=8)


def by(items):
    """A maker whose items these are."""
    return lambda: SimpleNamespace(items=items, check=lambda rows: None)


def write(file, count):
    rows = [{"id": f"r{n}", "prompt": f"Draw: In column {n % 3 + 1} a red circle."} for n in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def contents(folder):
    """All files that a job wrote, by their names."""
    found = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert not [name for name in found if UNFINISHED in name]
    return found


def index(folder):
    return parquet.read_table(folder / "index.parquet").to_pylist()


def counts(summary):
    return summary.made, summary.failed, summary.there, summary.failed_before
