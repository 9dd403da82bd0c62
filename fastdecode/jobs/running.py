"""A job from its rows to its output folder: what is there is not made again."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from fastdecode.jobs.files import writing
from fastdecode.jobs.folders import Folders
from fastdecode.jobs.index import NAME as INDEX
from fastdecode.jobs.index import write_index
from fastdecode.jobs.items import Made
from fastdecode.jobs.manifest import check_shards, check_target, describe, folder_of_shard, held
from fastdecode.jobs.progress import bar
from fastdecode.jobs.rows import Row
from fastdecode.jobs.store import Store
from fastdecode.jobs.tars import Tars
from fastdecode.jobs.worker import Job, Worker
from fastdecode.ops.scalars import shown


class Maker(Protocol):
    """Makes items of rows: a `fastdecode.jobs.worker.Worker`, or many of them."""

    def check(self, rows: Sequence[Row]) -> None:
        """``ValueError`` for the first row whose options cannot be followed."""

    def items(self, rows: Sequence[Row]) -> Generator[Sequence[Made], None, None]:
        """The items of ``rows``, in any order, several at a time."""


@dataclass(frozen=True)
class Summary:
    """What a run did.

    made            items
    failed          of these
    there           items that were there before
    failed_before   of these
    first_error     of all items that failed, the first in the order of the rows: which, and why; None if none has
    tokens          of the items that were made
    seconds         to make and write them, without loading
    """

    made: int
    failed: int
    there: int
    failed_before: int
    first_error: str | None
    tokens: int
    seconds: float


def run(
    job: Job,
    rows: Sequence[Row],
    target: Path,
    *,
    per_tar: int | None = None,
    shard: tuple[int, int] = (1, 1),
    retry_failed: bool = False,
    any_version: bool = False,
    maker: Callable[[], Maker] | None = None,
    progress: bool | None = None,
) -> Summary:
    """Make the items of ``rows`` that ``target`` does not have, and an index of all.

        rows          from `read_rows`, each with an id of its own
        target        the output folder: new, empty, or with this job in it
        per_tar       items in a tar file; None: a folder for each item
        shard         (number, count): every count-th row, from the number-th on, counted from 1. With a count above 1
                      into a folder of its own in ``target``
        retry_failed  make items again that failed
        any_version   go on with a job that was begun with other versions of fastdecode, torch or transformers
        maker         called if there is something to make, for what makes it; None: an engine in this process
        progress      show a bar; None: on a terminal

    ValueError, before anything is written, if rows or options are wrong, if ``target`` holds something else, or if
    another process works there; errors of `fastdecode.load`. `fastdecode.jobs.files.CannotWrite` if the disk is full,
    or the like; what is whole stays, and the next run goes on from there.
    """
    number, count = shard
    all_rows, rows = rows, rows[number - 1 :: count]
    if not rows:
        raise ValueError(f"shard {number} of {count} has no rows: there are fewer rows than shards")
    ids = [row.id for row in rows]
    maker = maker or partial(Worker, job)
    manifest = describe(job, all_rows, per_tar, shard)
    if count > 1:
        check_shards(target, manifest, any_version)
    target = folder_of_shard(target, shard)
    store: Store = Folders(target, ids) if per_tar is None else Tars(target, ids, per_tar)
    begun = check_target(target, manifest, any_version)
    makes = None
    if _left(store, rows, retry_failed):
        makes = maker()
        if not begun:
            makes.check(rows)
    with held(target, manifest, any_version):
        start = time.perf_counter()
        with writing(target):
            if _left(store, rows, retry_failed):
                (target / INDEX).unlink(missing_ok=True)  # it is there if and only if all items are
            store.open()
            if retry_failed:
                store.forget([facts["id"] for facts in store.facts() if "error" in facts])
            before = {facts["id"]: "error" in facts for facts in store.facts()}
        todo = [row for row in rows if row.id not in before]
        made = failed = tokens = 0
        if todo:
            makes = maker() if makes is None else makes  # another process may have removed items meanwhile
            with closing(makes.items(todo)) as batches, bar(len(rows), len(before), progress) as shown_bar:
                for items in batches:
                    with writing(target):
                        store.write(items)
                    made += len(items)
                    failed += sum(item.failed for item in items)
                    tokens += sum(item.facts.get("tokens", 0) for item in items)
                    shown_bar.update(len(items))
        seconds = time.perf_counter() - start
        with writing(target):
            facts = list(store.facts())
            write_index(facts, target)
    error = next((f"{shown(each['id'])}: {each['error']}" for each in facts if "error" in each), None)
    return Summary(made, failed, len(before), sum(before.values()), error, tokens, seconds)


def _left(store: Store, rows: Sequence[Row], retry_failed: bool) -> bool:
    """Whether there is anything to be made."""
    there = [facts for facts in store.facts() if not (retry_failed and "error" in facts)]
    return len(there) < len(rows)
