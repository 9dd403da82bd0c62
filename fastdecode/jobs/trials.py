"""Whether a job's options are right, before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from fastdecode.jobs.rows import Row
from fastdecode.ops.scalars import shown

KINDS = 1000
"""So many sets of options are tried."""


NOT_ITS_OWN = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
"""Errors that say nothing about the row that met them: they end the job, and the item is made later."""


class Tries(Protocol):
    """Raises what making a row would raise at once."""

    def try_row(self, row: Row) -> None: ...

    def try_options(self, row: Row) -> None:
        """As `try_row`, with a prompt and pictures that are right."""


def check_options(worker: Tries, rows: Sequence[Row]) -> None:
    """``ValueError`` for the first row whose options cannot be followed, whatever its prompt and pictures are. Where
    only those are wrong, the row fails by itself, which does not stop a job.
    """
    kinds: dict[str, Row] = {}
    for row in rows:
        kinds.setdefault(repr((row.options, len(row.pictures))), row)
    for row in list(kinds.values())[:KINDS]:
        try:
            worker.try_row(row)
        except NOT_ITS_OWN:
            raise
        except Exception:
            _try_options(worker, row)


def _try_options(worker: Tries, row: Row) -> None:
    try:
        worker.try_options(row)
    except NOT_ITS_OWN:
        raise
    except Exception as error:
        raise ValueError(f"the row {shown(row.id)} cannot be made: {error}") from error
