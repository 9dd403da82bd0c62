"""A job's items in tar files, as WebDataset reads them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdecode.jobs.files import remove_folder, write_folder, written_file
from fastdecode.jobs.items import FACTS, PICTURE, Made, drawn, facts_of, key_of
from fastdecode.jobs.store import Store


class Tars(Store):
    """Files ``items-00000.tar`` of ``size`` items each, in the order of the rows. Which item is in which tar does not
    depend on the order in which they end: items wait as folders until the others of their tar are there.
    """

    name = ".items"

    def __init__(self, target: Path, ids: Sequence[str], size: int) -> None:
        super().__init__(target, ids)
        self.size = size
        self.number_of = {name: number // size for number, name in enumerate(ids)}
        self._missing: dict[int, set[str]] = {}

    @property
    def numbers(self) -> range:
        return range(-(-len(self.ids) // self.size))

    def members(self, number: int) -> Sequence[str]:
        """The ids of the items in a tar."""
        return self.ids[number * self.size : (number + 1) * self.size]

    def file(self, number: int) -> Path:
        return self.target / f"items-{number:05d}.tar"

    def facts(self) -> Iterator[dict[str, Any]]:
        for number in self.numbers:
            packed = self._packed(number)
            if packed is None:
                found = (self._facts_of(name) for name in self.members(number))
                yield from (facts for facts in found if facts is not None)
            else:
                yield from packed

    def open(self) -> None:
        super().open()
        for number in self.numbers:
            members = self.members(number)
            if self._packed(number) is None:
                self.file(number).unlink(missing_ok=True)
                self._missing[number] = {name for name in members if self._facts_of(name) is None}
                self._pack(number)
            else:  # a process that was stopped may have left its folders
                super().forget(members)

    def write(self, items: Iterable[Made]) -> None:
        items = list(items)
        super().write(items)
        for item in items:
            self._missing[self.number_of[item.id]].discard(item.id)
        for number in sorted({self.number_of[item.id] for item in items}):
            self._pack(number)

    def forget(self, ids: Iterable[str]) -> None:
        by_tar: dict[int, set[str]] = {}
        for name in ids:
            by_tar.setdefault(self.number_of[name], set()).add(name)
        for number, some in by_tar.items():
            self._unpack(number, some)
            super().forget(some)
            self._missing.setdefault(number, set()).update(some)

    def close(self) -> None:
        self.folder.rmdir()

    def _pack(self, number: int) -> None:
        """Write a tar, if all its items are there, and remove their folders."""
        if self._missing[number]:
            return
        with (
            written_file(self.file(number)) as draft,
            tarfile.open(draft, "w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for name in self.members(number):
                folder = self.folder / key_of(name)
                for file in sorted(folder.iterdir(), key=_order):
                    _add(tar, f"{folder.name}.{_kind_of(file.name)}", file.read_bytes())
        super().forget(self.members(number))

    def _unpack(self, number: int, without: set[str]) -> None:
        """The items of a tar as folders again, but for some."""
        if not self.file(number).is_file():
            return
        left = {key_of(name) for name in without}
        for key, files in _read(self.file(number)).items():
            remove_folder(self.folder / key)
            if key not in left:
                write_folder(self.folder / key, files)
        self.file(number).unlink()

    def _packed(self, number: int) -> list[dict[str, Any]] | None:
        """What a tar says of its items; None if it is not there with all of them whole. Reads no pictures."""
        facts, sizes = dict[str, bytes](), dict[str, dict[str, int]]()
        try:
            with tarfile.open(self.file(number)) as tar:
                for member in tar:
                    key, name = _place_of(member)
                    sizes.setdefault(key, {})[name] = member.size
                    if name == FACTS:
                        facts[key] = _content(tar, member)
        except (OSError, tarfile.TarError):
            return None
        keys = [key_of(name) for name in self.members(number)]
        found = [
            facts_of(facts.get(key, b""), sizes.get(key, {}), name)
            for key, name in zip(keys, self.members(number), strict=True)
        ]
        whole = [
            {**each, "files": self.file(number).name, "drawn": [f"{key}.{_kind_of(name)}" for name in drawn(each)]}
            for key, each in zip(keys, found, strict=True)
            if each is not None
        ]
        return whole if len(whole) == len(keys) else None


def _order(file: Path) -> tuple[bool, int, str]:
    """Of ``item.json`` first, then of the pictures by their numbers."""
    return file.name != FACTS, len(file.name), file.name


def _kind_of(name: str) -> str:
    """What follows an item's key and a dot in a tar, for a file of its folder: WebDataset's name for it."""
    return "json" if name == FACTS else name.removeprefix(PICTURE.partition("{")[0])


def _place_of(member: tarfile.TarInfo) -> tuple[str, str]:
    """The key of the item that a file in a tar is of, and its name in the item's folder."""
    key, _, kind = member.name.partition(".")
    return key, FACTS if kind == "json" else PICTURE.format(kind.removesuffix(".png"))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file that says nothing of when and by whom it was written."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    tar.addfile(info, io.BytesIO(content))


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member)
    return b"" if content is None else content.read()


def _read(file: Path) -> Mapping[str, dict[str, bytes]]:
    """The files of each item in a tar, by its key, with their names in its folder."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(file) as tar:
        for member in tar:
            key, name = _place_of(member)
            found.setdefault(key, {})[name] = _content(tar, member)
    return found
