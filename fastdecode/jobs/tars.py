"""A job's items in tar files, as WebDataset reads them."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdecode.jobs.files import append, remove_unfinished, written_file
from fastdecode.jobs.items import FACTS, PICTURE, Made, drawn, facts_of, key_of


@dataclass(frozen=True)
class Place:
    """An item in a tar: its ``facts``, and the bytes of its members, from ``begin`` to ``end``."""

    facts: dict[str, Any]
    begin: int
    end: int


class Tars:
    """A `Store` with files ``items-00000.tar`` of ``size`` items each, in the order of the rows. Which item is in which
    tar does not depend on the order in which they end: until all items of a tar are there, they stand in the order of
    their ends in a part of it, ``.items-00000.tar``.

        target   the output folder
        ids      of all rows of the job
        size     items of a tar
    """

    def __init__(self, target: Path, ids: Sequence[str], size: int) -> None:
        self.target, self.ids, self.size = target, ids, size
        self._number_of = {name: number // size for number, name in enumerate(ids)}
        self._parts: dict[int, dict[str, Place]] = {}

    @property
    def numbers(self) -> range:
        return range(-(-len(self.ids) // self.size))

    def members(self, number: int) -> Sequence[str]:
        """The ids of the items in a tar."""
        return self.ids[number * self.size : (number + 1) * self.size]

    def file(self, number: int) -> Path:
        return self.target / f"items-{number:05d}.tar"

    def part(self, number: int) -> Path:
        return self.target / f".items-{number:05d}.tar"

    def facts(self) -> Iterator[dict[str, Any]]:
        for number in self.numbers:
            file, found = self._there(number)
            for name in self.members(number):
                if name in found:
                    facts = found[name].facts
                    pictures = [_member(key_of(name), picture) for picture in drawn(facts)]
                    yield {**facts, "files": file.name, "drawn": pictures}

    def open(self) -> None:
        remove_unfinished(self.target)
        for number in self.numbers:
            file, found = self._there(number)
            if len(found) == len(self.members(number)):
                if file == self.part(number):
                    self._pack(number, found)
                self.part(number).unlink(missing_ok=True)
            elif file == self.part(number):
                self._parts[number] = found
                if file.exists():
                    os.truncate(file, max((place.end for place in found.values()), default=0))
            else:
                self._keep(number, found)

    def write(self, items: Iterable[Made]) -> None:
        for item in items:
            number = self._number_of[item.id]
            part = self._parts[number]
            begin = max((place.end for place in part.values()), default=0)
            content = _members(key_of(item.id), item.files())
            append(self.part(number), content, begin)
            part[item.id] = Place({}, begin, begin + len(content))
            if len(part) == len(self.members(number)):
                self._pack(number, self._parts.pop(number))

    def forget(self, ids: Iterable[str]) -> None:
        by_tar: dict[int, set[str]] = {}
        for name in ids:
            by_tar.setdefault(self._number_of[name], set()).add(name)
        for number, some in by_tar.items():
            _, found = self._there(number)
            self._keep(number, {name: place for name, place in found.items() if name not in some})

    # --- within -------------------------------------------------------------------------------------------------

    def _there(self, number: int) -> tuple[Path, dict[str, Place]]:
        """A tar, or the part of one, and the whole items in it."""
        file = self.file(number)
        if not file.exists():
            file = self.part(number)
        return file, _places(file, {key_of(name): name for name in self.members(number)})

    def _pack(self, number: int, places: Mapping[str, Place]) -> None:
        """Write a tar, whose items are all in its part, and remove that."""
        with written_file(self.file(number)) as draft, open(draft, "wb") as tar:
            for content in _contents(self.part(number), [places[name] for name in self.members(number)]):
                tar.write(content)
            tar.write(bytes(2 * tarfile.BLOCKSIZE))
            tar.write(bytes(-tar.tell() % tarfile.RECORDSIZE))
        self.part(number).unlink()

    def _keep(self, number: int, places: Mapping[str, Place]) -> None:
        """Make a tar a part again, or a part a smaller one, with these items in it."""
        file, _ = self._there(number)
        kept: dict[str, Place] = {}
        with written_file(self.part(number)) as draft, open(draft, "wb") as part:
            for (name, place), content in zip(places.items(), _contents(file, list(places.values())), strict=True):
                kept[name] = Place(place.facts, part.tell(), part.tell() + len(content))
                part.write(content)
        self.file(number).unlink(missing_ok=True)
        self._parts[number] = kept


def _places(file: Path, names: Mapping[str, str]) -> dict[str, Place]:
    """The whole items of a tar, or of the beginning of one, by id. ``names``: their ids by their keys. Reads no
    pictures.
    """
    facts, sizes = dict[str, bytes](), dict[str, dict[str, int]]()
    bounds: dict[str, tuple[int, int]] = {}
    size = 0
    try:
        size = file.stat().st_size
        with tarfile.open(file) as tar:
            for member in tar:
                key, name = _place_of(member)
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if end > size:
                    break
                sizes.setdefault(key, {})[name] = member.size
                bounds[key] = (bounds.get(key, (member.offset, 0))[0], end)
                if name == FACTS:
                    opened = tar.extractfile(member)
                    facts[key] = b"" if opened is None else opened.read()
    except (OSError, tarfile.TarError):
        pass  # what was read before is whole
    found: dict[str, Place] = {}
    for key, bound in bounds.items():
        told = facts_of(facts.get(key, b""), sizes[key], names[key]) if key in names else None
        if told is not None:
            found[names[key]] = Place(told, *bound)
    return found


def _contents(file: Path, places: Sequence[Place]) -> Iterator[bytes]:
    """The bytes of these items in ``file``."""
    if places:
        with open(file, "rb") as opened:
            for place in places:
                opened.seek(place.begin)
                yield opened.read(place.end - place.begin)


def _members(key: str, files: Mapping[str, bytes]) -> bytes:
    """The files of an item as members of a tar, which say nothing of when and by whom they were written."""
    found: list[bytes] = []
    for name, content in sorted(files.items(), key=lambda file: _order(file[0])):
        info = tarfile.TarInfo(_member(key, name))
        info.size, info.mode = len(content), 0o644
        found += [info.tobuf(tarfile.PAX_FORMAT), content, bytes(-len(content) % tarfile.BLOCKSIZE)]
    return b"".join(found)


def _order(name: str) -> tuple[bool, int, str]:
    """Of ``item.json`` first, then of the pictures by their numbers."""
    return name != FACTS, len(name), name


def _member(key: str, name: str) -> str:
    """WebDataset's name of a file of an item: its key, a dot, and what is in it."""
    return f"{key}.json" if name == FACTS else f"{key}.{name.removeprefix(PICTURE.partition('{')[0])}"


def _place_of(member: tarfile.TarInfo) -> tuple[str, str]:
    """The key of the item that a member is of, and its name among the item's files."""
    key, _, kind = member.name.partition(".")
    return key, FACTS if kind == "json" else PICTURE.format(kind.removesuffix(".png"))
