"""Where a job's items go: a folder for each, or WebDataset shards. What is there is whole, even after a kill."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdecode.jobs.items import Item, key_of

UNFINISHED = ".unfinished-"
"""Begins the names of files and folders that are not whole yet; at the start those of a killed job are removed."""

FACTS = "item.json"


class Store:
    """A folder ``items`` with a folder for each item.

    Files are written into a folder of another name, which then gets its own: a killed process leaves only whole items.
    The disk is not waited for, so that a machine that loses power may lose what was just written; ``item.json`` has the
    sizes of the other files, and an item that lacks a part of them is made again.
    """

    def __init__(self, target: Path, ids: Sequence[str]) -> None:
        self.target, self.ids = target, ids
        self.folder = target / "items"

    def open(self) -> None:
        """Make the folder, and remove what a job that was stopped left unfinished."""
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = {key_of(facts["id"]) for facts in Store.facts(self)}
        for entry in list(self.folder.iterdir()):
            if entry.name not in whole and not entry.name.startswith(UNFINISHED):
                remove(entry)
        for folder in (self.target, self.folder):
            for left in folder.glob(f"{UNFINISHED}*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    def done(self) -> set[str]:
        """The ids of all items that are there whole, also of those that failed."""
        return {facts["id"] for facts in self.facts()}

    def failed(self) -> set[str]:
        """The ids of items that failed."""
        return {facts["id"] for facts in self.facts() if "error" in facts}

    def write(self, items: Iterable[Item]) -> None:
        for item in items:
            write_folder(self.folder / item.key, item.files())

    def forget(self, ids: Iterable[str]) -> None:
        """Remove these items, so that they are made again."""
        for name in ids:
            remove(self.folder / key_of(name))

    def facts(self) -> Iterator[dict[str, Any]]:
        """What ``item.json`` says of every item that is there, in the order of the ids, and where its files are."""
        for name in self.ids:
            facts = facts_in(self.folder / key_of(name))
            if facts is not None:
                yield {**facts, "files": f"items/{key_of(name)}"}

    def close(self) -> None:
        """All rows are done."""


class Shards(Store):
    """WebDataset shards ``shard-00000.tar`` of ``size`` items each, in the order of the rows. Which item is in which
    shard does not depend on the order in which they end: items wait as folders until their shard is whole.
    """

    def __init__(self, target: Path, ids: Sequence[str], size: int) -> None:
        super().__init__(target, ids)
        self.folder, self.size = target / ".items", size
        self.shard_of = {name: number // size for number, name in enumerate(ids)}
        self._missing: dict[int, set[str]] = {}

    def members(self, shard: int) -> Sequence[str]:
        return self.ids[shard * self.size : (shard + 1) * self.size]

    def file(self, shard: int) -> Path:
        return self.target / f"shard-{shard:05d}.tar"

    @property
    def count(self) -> int:
        return -(-len(self.ids) // self.size)

    def open(self) -> None:
        super().open()
        waiting = super().done()
        for shard in range(self.count):
            if self.file(shard).is_file():
                self._remove(shard)  # the job was killed after the shard had got its name
            else:
                self._missing[shard] = set(self.members(shard)) - waiting
                self._pack(shard)

    def done(self) -> set[str]:
        packed = {name for shard in range(self.count) if self.file(shard).is_file() for name in self.members(shard)}
        return packed | super().done()

    def write(self, items: Iterable[Item]) -> None:
        items = list(items)
        super().write(items)
        for item in items:
            self._missing[self.shard_of[item.id]].discard(item.id)
        for shard in sorted({self.shard_of[item.id] for item in items}):
            self._pack(shard)

    def forget(self, ids: Iterable[str]) -> None:
        wanted = set(ids)
        for shard in sorted({self.shard_of[name] for name in wanted}):
            if self.file(shard).is_file():
                self._unpack(shard)
            self._missing[shard] |= wanted & set(self.members(shard))
        super().forget(wanted)

    def facts(self) -> Iterator[dict[str, Any]]:
        loose = {facts["id"]: facts for facts in super().facts()}
        for shard in range(self.count):
            if self.file(shard).is_file():
                with tarfile.open(self.file(shard)) as tar:
                    for member in tar:
                        if member.name.endswith(".json"):
                            yield {**json.loads(content_of(tar, member)), "files": self.file(shard).name}
            else:
                yield from (loose[name] for name in self.members(shard) if name in loose)

    def close(self) -> None:
        self.folder.rmdir()

    def _pack(self, shard: int) -> None:
        """Write the shard if all its items are there."""
        if self._missing[shard]:
            return
        draft = self.target / f"{UNFINISHED}{self.file(shard).name}"
        with open(draft, "wb") as out:
            with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for name in self.members(shard):
                    folder = self.folder / key_of(name)
                    for file in sorted(
                        folder.iterdir(), key=lambda file: (file.name != FACTS, len(file.name), file.name)
                    ):
                        add(tar, member_name(folder.name, file.name), file.read_bytes())
            synchronise(out)
        os.replace(draft, self.file(shard))
        synchronise_path(self.target)
        self._remove(shard)

    def _remove(self, shard: int) -> None:
        for name in self.members(shard):
            remove(self.folder / key_of(name))

    def _unpack(self, shard: int) -> None:
        """The items of a shard as folders again."""
        found: dict[str, dict[str, bytes]] = {}
        with tarfile.open(self.file(shard)) as tar:
            for member in tar:
                key, _, rest = member.name.partition(".")
                found.setdefault(key, {})[file_name(rest)] = content_of(tar, member)
        for key, files in found.items():
            remove(self.folder / key)
            write_folder(self.folder / key, files)
        self.file(shard).unlink()
        synchronise_path(self.target)
        self._missing[shard] = set()


def member_name(key: str, file: str) -> str:
    """The name in a shard of a file of an item: WebDataset takes what follows the first dot for its kind."""
    return f"{key}.json" if file == FACTS else f"{key}.{file.removeprefix('picture-')}"


def file_name(rest: str) -> str:
    """The name in an item's folder of what has ``rest`` after its key in a shard."""
    return FACTS if rest == "json" else f"picture-{rest}"


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """A file that says nothing of when and by whom it was written."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    tar.addfile(info, io.BytesIO(content))


def content_of(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    source = tar.extractfile(member)
    return b"" if source is None else source.read()


def facts_in(folder: Path) -> dict[str, Any] | None:
    """What ``item.json`` says in the folder of an item; None unless all its files are there in their sizes."""
    try:
        facts = json.loads((folder / FACTS).read_bytes())
        pictures = [part for part in facts["parts"] if "picture" in part]
        whole = all((folder / part["picture"]).stat().st_size == part["bytes"] for part in pictures)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts if whole else None


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """A folder that is there with all its files, or not at all."""
    draft = folder.with_name(f"{UNFINISHED}{folder.name}")
    draft.mkdir()
    try:
        for name, content in files.items():
            (draft / name).write_bytes(content)
        os.rename(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def write_file(file: Path, content: bytes) -> None:
    """A file that is there whole, or as it was."""
    draft = file.with_name(f"{UNFINISHED}{file.name}")
    try:
        with open(draft, "wb") as out:
            out.write(content)
            synchronise(out)
        os.replace(draft, file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    synchronise_path(file.parent)


def remove(folder: Path) -> None:
    """A folder and its files, so that a job that is killed meanwhile does not take what is left for whole."""
    if folder.is_dir():
        gone = folder.with_name(f"{UNFINISHED}{folder.name}")
        os.rename(folder, gone)
        shutil.rmtree(gone)


def synchronise(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def synchronise_path(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
