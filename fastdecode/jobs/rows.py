"""The rows of a job, read from a file of JSON lines, CSV or Parquet."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

from fastdecode.jobs.columns import OWN, check_columns, option_names, options_of, value_of_text
from fastdecode.jobs.told import told
from fastdecode.ops.scalars import shown
from fastdecode.wording import kind_of

HALF = re.compile("[\ud800-\udfff]")
KINDS = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Row:
    """One document to be made.

        id        its name, unique in the job
        prompt    text; ``<image>`` marks where a picture goes
        seed      64 bits; of a row without one see `seed_of`
        pictures  paths of the files that the prompt shows, as the row has them
        options   of `fastdecode.generate`, and ``task``
        more      the other columns, carried along
        folder    where relative paths of pictures begin

    All of it is plain data; `read_rows` checks it.
    """

    id: str
    prompt: str
    seed: int
    pictures: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = field(default=Path(), compare=False)

    @property
    def files(self) -> list[Path]:
        """Its pictures."""
        return [self.folder / picture for picture in self.pictures]


def seed_of(name: str, seed: int = 0) -> int:
    """The seed of a row without one: 63 bits of its id and the job's ``seed``."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]) >> 1


def row_of(values: Mapping[str, Any], where: str, seed: int = 0, folder: Path = Path()) -> Row:
    """The row of these columns; None in one means that it is not given. ``ValueError``, which begins with ``where``,
    for a cell that is wrong.

        seed     the job's
        folder   where relative paths of pictures begin
    """
    found = {name: value for name, value in values.items() if value is not None}
    name = found.get("id")
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if not isinstance(name, str) or not name.strip():
        given = "missing" if name is None else shown(name)
        raise ValueError(f"{where}: the id is {given}: give every row a text or a whole number of its own")
    prompt = found.get("prompt", "")
    if not isinstance(prompt, str):
        raise ValueError(f"{where}: the prompt is {kind_of(prompt)}: give text")
    for column, value in found.items():
        _check_writable(column, value, where)
    own = found.get("seed")
    if own is None:
        own = seed_of(name, seed)
    if isinstance(own, bool) or not isinstance(own, int) or not -(2**63) <= own < 2**63:
        raise ValueError(f"{where}: the seed is {shown(own)}: give a whole number of 64 bits, or leave it out")
    pictures = found.get("pictures", ())
    pictures = [pictures] if isinstance(pictures, str) else pictures
    if not isinstance(pictures, (list, tuple)) or not all(isinstance(each, str) and each for each in pictures):
        raise ValueError(f"{where}: pictures is {shown(pictures)}: give the path of a file, or a list of paths")
    try:
        options = options_of(found)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from None
    more = {key: value for key, value in found.items() if key not in OWN and key not in option_names()}
    return Row(name, prompt, own, tuple(pictures), options, more, folder)


def _check_writable(column: str, value: Any, where: str) -> None:
    """``ValueError`` for what ``item.json`` could not say."""
    if HALF.search(column):
        raise ValueError(f"{where}: the column {shown(column)} has half of a character of UTF-16 in its name")
    try:
        said = json.dumps(told(value), ensure_ascii=False)
    except RecursionError:
        raise ValueError(f"{where}: the {column} is nested too deep") from None
    if HALF.search(said):
        raise ValueError(f"{where}: the {column} {shown(value)} has half of a character of UTF-16, which is not text")


def read_rows(file: Path, seed: int = 0, task: str | None = None) -> list[Row]:
    """All rows of ``file``. ``ValueError`` names the first that is wrong, and the line it is in.

    seed   the job's, for rows without one
    task   the job's, for rows without one: only a caption needs no prompt
    """
    kind = file.suffix.lower()
    if kind not in KINDS:
        raise ValueError(f"{file.name} ends with {kind or 'nothing'}: rows are read from {', '.join(KINDS)}")
    reader = {".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}[kind]
    rows: list[Row] = []
    first: dict[str, str] = {}
    keys: set[str] = set()
    for where, values in reader(file):
        if not keys.issuperset(values):
            check_columns(values.keys() - keys, where)
            keys |= values.keys()
        row = row_of(values, where, seed, file.parent)
        if values.get("prompt") is None and row.options.get("task", task) != "caption":
            raise ValueError(f"{where}: there is no prompt")
        if row.id in first:
            raise ValueError(f"{where}: the id {shown(row.id)} is that of {first[row.id]} too: give every row its own")
        first[row.id] = where.removeprefix(f"{file.name}, ")
        rows.append(row)
    if not rows:
        raise ValueError(f"{file.name} holds no rows")
    return rows


def _json_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_text(file).split("\n"), 1):
        where = f"{file.name}, line {number}"
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f'{where} is {kind_of(values)}: give an object, such as {{"id": "1", "prompt": "…"}}')
        yield where, values


def _csv(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(sys.maxsize)  # Python's own limit is 128 KB
    lines = csv.reader(io.StringIO(_text(file), newline=""), strict=True)
    try:
        names = next(lines, [])
        check_columns(names, f"{file.name}, line 1")
        double = next((name for name in names if names.count(name) > 1), None)
        if double is not None:
            raise ValueError(f"{file.name}, line 1: the column {double!r} is there twice")
        for cells in lines:
            where = f"{file.name}, line {lines.line_num}"
            if not cells:
                continue
            if len(cells) != len(names):
                raise ValueError(f"{where} has {len(cells)} cells, and there are {len(names)} columns")
            yield where, {name: value_of_text(name, cell) for name, cell in zip(names, cells, strict=True)}
    except csv.Error as error:
        raise ValueError(f"{file.name}, line {lines.line_num}, is not CSV: {error}") from None


def _parquet(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file.name} cannot be read as Parquet: {' '.join(str(error).split())[:200]}") from None
    number = 0
    for batch in table.to_batches(max_chunksize=1024):
        for values in batch.to_pylist():
            number += 1
            yield f"{file.name}, row {number}", {name: _plain(value, name) for name, value in values.items()}


def _plain(value: Any, name: str) -> Any:
    """What JSON has no word for: dates as text, decimals as text or, of options, as numbers."""
    if isinstance(value, Decimal):
        return float(value) if name in option_names() else str(value)
    return value.isoformat() if isinstance(value, (date, time)) else value


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file.name} is not text in UTF-8") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None


def digest(rows: Iterable[Row]) -> str:
    """A hash of all that the rows say, and of what is in the files of their pictures. ``ValueError`` for a file that
    cannot be read.
    """
    found, files = hashlib.sha256(), {}
    for row in rows:
        for file in row.files:
            if file not in files:
                files[file] = _hash_of(file, row)
        said = [row.id, row.prompt, row.seed, row.pictures, told(row.options), told(row.more)]
        found.update(json.dumps([*said, [files[file] for file in row.files]], sort_keys=True).encode())
    return found.hexdigest()


def _hash_of(file: Path, row: Row) -> str:
    try:
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise ValueError("it is no file")
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except FileNotFoundError:
        raise ValueError(f"the row {shown(row.id)} shows {shown(str(file))}: there is no such file") from None
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise ValueError(f"the row {shown(row.id)} shows {shown(str(file))}, which cannot be read: {said}") from None
