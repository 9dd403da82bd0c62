"""Where a job's items go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from fastdecode.jobs.items import Made


class Store(Protocol):
    """An output folder's items: `fastdecode.jobs.folders.Folders` or `fastdecode.jobs.tars.Tars`.

    Whatever stops the process, and when: an item is whole, or does not count and is made again. The disk is not waited
    for, so a machine that loses power may lose what was just written; ``item.json`` has the sizes of the pictures, by
    which that is seen.
    """

    def facts(self) -> Iterator[dict[str, Any]]:
        """What ``item.json`` says of each item that is there, in the order of the rows; "files", where they are, seen
        from the output folder; and "drawn", the names that its pictures have there. Changes nothing.
        """

    def open(self) -> None:
        """Prepare for writing. Remove what a process that was stopped left, and items that are not whole."""

    def write(self, items: Iterable[Made]) -> None:
        """Add items that are not there."""

    def forget(self, ids: Iterable[str]) -> None:
        """Remove these items, so that they are made again."""
