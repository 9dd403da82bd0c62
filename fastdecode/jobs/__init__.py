"""Jobs: documents from a file of rows, each made once, whatever happens meanwhile."""

from fastdecode.jobs.rows import Row, read_rows
from fastdecode.jobs.running import Maker, Summary, run
from fastdecode.jobs.worker import Job

__all__ = ["Job", "Maker", "Row", "Summary", "read_rows", "run"]
