"""The rows of a job, read from a file of JSON lines, CSV or Parquet."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdecode.jobs.columns import OWN, check_columns, option_of, options, value_of_text
from fastdecode.wording import kind_of

KINDS = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Row:
    """One document to be made.

    id        its name, unique in the job
    prompt    text; ``<image>`` marks where a picture goes
    pictures  paths of the files that the prompt shows
    seed      given, or made from the job's seed and the id
    options   of `fastdecode.generate`, with task, image_size and mode
    more      the other columns, carried along
    """

    id: str
    prompt: str
    seed: int
    pictures: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


def seed_of(name: str, seed: int = 0) -> int:
    """The seed of a row without one: 63 bits of its id and the job's ``seed``."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]) >> 1


def row_of(values: Mapping[str, Any], where: str, seed: int = 0, folder: Path = Path()) -> Row:
    """The row of these columns. ``ValueError``, which begins with ``where``, for a cell that is wrong.

    seed     the job's; folder   where relative paths of pictures begin
    """
    found = {name: value for name, value in values.items() if value is not None}
    name = found.get("id")
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if not isinstance(name, str) or not name.strip():
        raise ValueError(
            f"{where}: the id is {_cell(values, 'id')}: give every row a text or a whole number of its own"
        )
    prompt = found.get("prompt", "")
    if not isinstance(prompt, str):
        raise ValueError(f"{where}: the prompt is {kind_of(prompt)}: give text")
    own = found.get("seed")
    if own is None:
        own = seed_of(name, seed)
    if isinstance(own, bool) or not isinstance(own, int) or not -(2**63) <= own < 2**63:
        raise ValueError(f"{where}: the seed is {own!r}: give a whole number of 64 bits, or leave it out")
    pictures = found.get("pictures", ())
    pictures = [pictures] if isinstance(pictures, str) else pictures
    if not isinstance(pictures, (list, tuple)) or not all(isinstance(each, str) and each for each in pictures):
        raise ValueError(f"{where}: pictures is {kind_of(pictures)}: give the path of a file, or a list of paths")
    try:
        chosen = {key: option_of(key, found[key]) for key in sorted(found) if key in options()}
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    more = {key: value for key, value in found.items() if key not in OWN and key not in options()}
    return Row(name, prompt, own, tuple(str(folder / each) for each in pictures), chosen, more)


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
        if not row.prompt and "prompt" not in values and row.options.get("task", task) != "caption":
            raise ValueError(f"{where}: there is no prompt")
        if row.id in first:
            raise ValueError(f"{where}: the id {_cut(row.id)} is that of {first[row.id]} too: give every row its own")
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
        except ValueError as error:
            raise ValueError(f"{where} is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f'{where} is {kind_of(values)}: give an object, such as {{"id": "1", "prompt": "…"}}')
        yield where, values


def _csv(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = csv.reader(io.StringIO(_text(file), newline=""), strict=True)
    try:
        names = next(lines, [])
        check_columns(names, f"{file.name}, line 1,")
        double = next((name for name in names if names.count(name) > 1), None)
        if double is not None:
            raise ValueError(f"{file.name}, line 1, has the column {double!r} twice")
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
            yield f"{file.name}, row {number}", values


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file.name} is not text in UTF-8") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None


def _cell(values: Mapping[str, Any], name: str) -> str:
    return "missing" if values.get(name) is None else _cut(values[name])


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def digest(rows: Iterable[Row]) -> str:
    """A hash of all that the rows say; pictures by their paths."""
    found = hashlib.sha256()
    for row in rows:
        found.update(
            json.dumps(
                [row.id, row.prompt, row.seed, row.pictures, row.options, row.more], sort_keys=True, default=repr
            ).encode()
        )
    return found.hexdigest()
