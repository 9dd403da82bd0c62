"""A job from its rows to its output folder: what is there already is not made again."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastdecode.jobs.items import Item, told
from fastdecode.jobs.manifest import FORMAT, check_target, files_of, hash_of, held, versions
from fastdecode.jobs.rows import Row, digest
from fastdecode.jobs.store import Shards, Store, write_file
from fastdecode.jobs.worker import Job, Worker

INDEX = "index.parquet"
TRIED = 3
"""Rows on which a set of options is tried. If it fails on all of them, the job does not begin."""


@dataclass(frozen=True)
class Summary:
    """``made`` items in this run, of which ``failed``; ``there`` before it. ``seconds`` and ``tokens``: of this run."""

    made: int
    failed: int
    there: int
    tokens: int
    seconds: float


def run(
    job: Job,
    rows: Sequence[Row],
    target: Path,
    *,
    per_shard: int | None = None,
    part: tuple[int, int] = (1, 1),
    retry_failed: bool = False,
    any_version: bool = False,
    make: Callable[[Sequence[Row]], Generator[list[Item], None, None]] | None = None,
    progress: bool | None = None,
) -> Summary:
    """Make the items of ``rows`` that ``target`` does not have, and its index. Returns what was done.

        per_shard     WebDataset shards of so many items; None: a folder for each item
        part          (number, count): only every count-th row, from ``number`` on, into a folder of its own
        retry_failed  make items again that failed
        any_version   go on with a job that was begun with other versions of fastdecode, torch or transformers
        make          makes items of rows, several at a time; None: one engine in this process
        progress      show a bar; None: on a terminal

    ValueError before anything is written if rows or options are wrong, or ``target`` holds something else. OSError if
    files cannot be written; what is there stays, and the next run goes on from there.
    """
    check_pictures(rows)
    number, count = part
    rows = rows[number - 1 :: count]
    if not rows:
        raise ValueError(f"part {number} of {count} has no rows: the input has fewer rows than parts")
    target = target if count == 1 else target / f"part-{number}-of-{count}"
    manifest = describe(job, rows, per_shard, part)
    goes_on = check_target(target, manifest, any_version)
    ids = [row.id for row in rows]
    store = Store(target, ids) if per_shard is None else Shards(target, ids, per_shard)
    again = store.failed() if retry_failed else set()
    missing = set(ids) - store.done() | again
    waiting = [row for row in rows if row.id in missing]
    if make is None and waiting:
        worker = Worker(job)
        if not goes_on:
            check_options(worker, waiting)
        make = worker.items
    begun = time.perf_counter()
    with held(target, manifest, any_version):
        store.open()
        store.forget(again)
        there = store.done()
        todo = [row for row in rows if row.id not in there]
        made = failed = tokens = 0
        if todo:
            assert make is not None
            with closing(make(todo)) as batches, bar(len(rows), len(there), progress) as shown:
                for items in batches:
                    store.write(items)
                    made += len(items)
                    failed += sum(item.failed for item in items)
                    tokens += sum(item.facts.get("tokens", 0) for item in items)
                    shown.update(len(items))
        seconds = time.perf_counter() - begun
        write_index(store, target)
        store.close()
    return Summary(made, failed, len(there), tokens, seconds)


def bar(total: int, there: int, progress: bool | None) -> Any:
    """A bar with the rate and the time left. ``progress``: None shows it on a terminal only."""
    from tqdm.auto import tqdm

    hidden = None if progress is None else not progress
    return tqdm(total=total, initial=there, unit="item", disable=hidden, file=sys.stderr, smoothing=0.1)


# --- before anything is made ------------------------------------------------------------------------------------


def check_pictures(rows: Sequence[Row]) -> None:
    """``ValueError`` for the first row whose picture is no file."""
    for row in rows:
        for file in row.pictures:
            if not Path(file).is_file():
                raise ValueError(f"the row {row.id!r} shows {file!r}: there is no such file")


def check_options(worker: Worker, rows: Sequence[Row]) -> None:
    """``ValueError`` for options that no row can be made with: each set of them is tried on its first rows."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(repr((sorted(row.options.items()), len(row.pictures))), []).append(row)
    for some in kinds.values():
        errors = []
        for row in some[:TRIED]:
            try:
                worker.check(row)
                break
            except Exception as error:
                errors.append(error)
        else:
            if len(errors) == len(rows) or len(errors) == TRIED:
                raise ValueError(f"the row {some[0].id!r} cannot be made: {errors[0]}") from errors[0]


# --- what is written of the whole -------------------------------------------------------------------------------


def describe(job: Job, rows: Sequence[Row], per_shard: int | None, part: tuple[int, int]) -> dict[str, Any]:
    """The manifest of a job: what its items depend on."""
    parameters = asdict(job)
    named = ("model", "dtype", "device", "vqgan", "weights")
    model = {name: parameters.pop(name) for name in named} | {"files": files_of(job.model)}
    if job.vqgan is not None:
        model["files"]["vqgan"] = hash_of(Path(job.vqgan))
    for name in ("pages", "max_rows"):
        if job.deterministic is not False:
            del parameters[name]  # they change no token
    return {
        "format": FORMAT,
        "model": model,
        "parameters": {**parameters, "options": told(job.options), "usual": told(job.usual)},
        "input": {"rows": len(rows), "sha256": digest(rows)},
        "output": {"items per shard": per_shard},
        "part": {"number": part[0], "of": part[1]},
        "versions": versions(),
    }


def write_index(store: Store, target: Path) -> None:
    """``index.parquet``: a row for each item, in the order of the input."""
    import pyarrow
    from pyarrow import parquet

    text, whole = pyarrow.string(), pyarrow.int64()
    kinds = {
        "id": text,
        "files": text,
        "prompt": text,
        "seed": whole,
        "text": text,
        "pictures": pyarrow.list_(text),
        "tokens": whole,
        "ended": text,
        "error": text,
    }
    rows = []
    for facts in store.facts():
        parts = facts["parts"]
        written = {
            "text": "\n\n".join(part["text"] for part in parts if "text" in part),
            "pictures": [part["picture"] for part in parts if "picture" in part],
        }
        rows.append({**{name: facts.get(name) for name in kinds}, **written})
    schema = pyarrow.schema(list(kinds.items()))
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), out)
    write_file(target / INDEX, out.getvalue())
