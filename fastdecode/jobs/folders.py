"""A job's items in folders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastdecode.jobs.files import remove_folder, remove_unfinished, write_folder
from fastdecode.jobs.items import FACTS, Made, drawn, facts_of, key_of

NAME = "items"


class Folders:
    """A `Store` with a folder for each item, which gets its name when its files are there.

    target   the output folder
    ids      of all rows of the job
    """

    def __init__(self, target: Path, ids: Sequence[str]) -> None:
        self.target, self.ids = target, ids
        self.folder = target / NAME

    def facts(self) -> Iterator[dict[str, Any]]:
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
        return None if facts is None else {**facts, "files": f"{NAME}/{folder.name}", "drawn": drawn(facts)}

    def open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(self.target)
        remove_unfinished(self.folder)
        for name in self.ids:
            if self._facts_of(name) is None:
                remove_folder(self.folder / key_of(name))

    def write(self, items: Iterable[Made]) -> None:
        for item in items:
            write_folder(self.folder / key_of(item.id), item.files())

    def forget(self, ids: Iterable[str]) -> None:
        for name in ids:
            remove_folder(self.folder / key_of(name))
