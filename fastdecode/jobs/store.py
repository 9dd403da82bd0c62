"""Where a job's items go: a folder for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastdecode.jobs.files import remove_folder, remove_unfinished, write_folder
from fastdecode.jobs.items import FACTS, Made, drawn, facts_of, key_of


class Store:
    """A folder with a folder for each item, which gets its name when its files are there: a killed process leaves only
    whole items.

    The disk is not waited for, so a machine that loses power may lose what was just written. ``item.json`` has the
    sizes of the other files: an item that lacks a part of them does not count, and is made again.

        target   the output folder
        ids      of all rows of the job
    """

    name = "items"

    def __init__(self, target: Path, ids: Sequence[str]) -> None:
        self.target, self.ids = target, ids
        self.folder = target / self.name

    def facts(self) -> Iterator[dict[str, Any]]:
        """What ``item.json`` says of each item that is there, in the order of the rows; "files", where they are, seen
        from the output folder; and "drawn", the names that its pictures have there.
        """
        for name in self.ids:
            facts = self._facts_of(name)
            if facts is not None:
                yield facts

    def _facts_of(self, name: str) -> dict[str, Any] | None:
        folder = self.folder / key_of(name)
        try:
            content = (folder / FACTS).read_bytes()
            sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
        except OSError:
            return None
        facts = facts_of(content, sizes, name)
        return None if facts is None else {**facts, "files": f"{self.name}/{folder.name}", "drawn": drawn(facts)}

    def open(self) -> None:
        """Make the folder. Remove what a process that was stopped left, and items that are not whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(self.target)
        remove_unfinished(self.folder)
        for name in self.ids:
            if self._facts_of(name) is None:
                remove_folder(self.folder / key_of(name))

    def write(self, items: Iterable[Made]) -> None:
        """Add items that are not there."""
        for item in items:
            write_folder(self.folder / key_of(item.id), item.files())

    def forget(self, ids: Iterable[str]) -> None:
        """Remove these items, so that they are made again."""
        for name in ids:
            remove_folder(self.folder / key_of(name))

    def close(self) -> None:
        """All items are there."""
