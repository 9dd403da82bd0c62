"""Whether a job's options are right, before it begins: each set of them is tried on a few rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fastdecode.jobs.rows import Row
from fastdecode.ops.scalars import shown

TRIED, KINDS = 3, 100
"""Each set of options is tried on so many rows, and so many sets of them."""


class Tries(Protocol):
    """Raises what making a row would raise at once."""

    def try_row(self, row: Row) -> None: ...


def check_options(worker: Tries, rows: Sequence[Row]) -> None:
    """``ValueError`` for options with which none of the rows that they are tried on can be made, and if no row that is
    tried can. Else rows that fail have a reason of their own, which does not stop a job.
    """
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(repr((row.options, len(row.pictures))), []).append(row)
    wrong: list[tuple[Row, Exception]] = []
    good = False
    for some in list(kinds.values())[:KINDS]:
        errors = _errors(worker, some[:TRIED])
        if len(errors) == TRIED:
            wrong, good = errors, False
            break
        wrong += errors
        good = good or len(errors) < len(some)
    if wrong and not good:
        row, error = wrong[0]
        raise ValueError(f"the row {shown(row.id)} cannot be made: {error}") from error


def _errors(worker: Tries, rows: Sequence[Row]) -> list[tuple[Row, Exception]]:
    """Rows that cannot be made, until one can."""
    found: list[tuple[Row, Exception]] = []
    for row in rows:
        try:
            worker.try_row(row)
        except Exception as error:
            found.append((row, error))
        else:
            break
    return found
