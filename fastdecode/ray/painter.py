"""`Painter`: rows in and documents out, for ``ray.data.Dataset.map_batches``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow
import torch

from fastdecode.jobs.columns import check_columns
from fastdecode.jobs.items import FACTS, Item, drawn, text_of
from fastdecode.jobs.rows import Row, row_of
from fastdecode.jobs.worker import Job, Worker
from fastdecode.ops.scalars import shown
from fastdecode.ray.alike import Expected

EXACT = 2**53
"""From here on floats do not hold every whole number."""

SCHEMA = pyarrow.schema(
    {
        "id": pyarrow.string(),
        "prompt": pyarrow.string(),
        "seed": pyarrow.int64(),
        "text": pyarrow.string(),
        "png": pyarrow.list_(pyarrow.binary()),
        "tokens": pyarrow.list_(pyarrow.int64()),
        "logprob": pyarrow.float64(),
        "ended": pyarrow.string(),
        "error": pyarrow.string(),
        "item": pyarrow.string(),
    }
)


class Painter:
    """Makes a document of every row: a class for ``map_batches``, whose actors load the model once each.

        job       the model and the options of all rows: a `fastdecode.jobs.Job`
        threads   of a CPU; None: as Ray says, which is the actor's ``num_cpus``
        expected  refuse a machine with other weights or versions; None: take it as it is

    ``rows.map_batches(Painter, fn_constructor_args=(job,), batch_size=32, compute=ActorPoolStrategy(size=2))``

    Rows in: the columns that `fastdecode.jobs.read_rows` reads: ``id``, ``prompt``, ``seed``, ``pictures``, and any
    option of `fastdecode.generate`. Paths of pictures must be absolute, and files of every machine. Batches may be of
    NumPy, pandas or pyarrow.

    Rows out, as a pyarrow table, in the same order:

        id, prompt, seed   of the row; a row without a seed got one of its id
        text               of the document, its parts with an empty line between them
        png                list of its pictures, each a PNG
        tokens             list of its new tokens
        logprob            the sum of their log probabilities, see `fastdecode.Handle.logprobs`
        ended              "stop" or "length"; null if it failed
        error              why there is no document; null if there is one
        item               JSON: text and pictures in order and all else, as in ``item.json`` of a job's output

    Tokens depend on the model, the row and its seed: not on batches, actors or machines of one kind. A row that cannot
    be made for a reason of its own has an error; ``ValueError`` for wrong columns, rows without an id, and ids that are
    twice in a batch.
    """

    def __init__(self, job: Job | None = None, *, threads: int | None = None, expected: Expected | None = None) -> None:
        self.job = job or Job()
        if expected is not None:
            expected.check(self.job)
        if threads is not None:
            torch.set_num_threads(threads)
        self.worker = Worker(self.job)

    def __call__(self, batch: Any) -> pyarrow.Table:
        items = self.items(rows_of(batch, self.job.seed))
        return pyarrow.Table.from_pylist([columns_of(item) for item in items], schema=SCHEMA)

    def items(self, rows: Sequence[Row]) -> list[Item]:
        """The items of ``rows``, in their order."""
        ids = [row.id for row in rows]
        if len(set(ids)) < len(ids):
            double = next(name for name in ids if ids.count(name) > 1)
            raise ValueError(f"the id {shown(double)} is there twice: give every row its own")
        found = {item.id: item for items in self.worker.items(rows) for item in items}
        return [found[name] for name in ids]


def rows_of(batch: Any, seed: int = 0) -> list[Row]:
    """The rows of a batch of Ray Data: a mapping of columns, a pandas frame or a pyarrow table."""
    if not isinstance(batch, pyarrow.Table):
        columns = batch if isinstance(batch, Mapping) else {name: batch[name] for name in batch.columns}
        batch = pyarrow.table({name: _arrow(name, column) for name, column in columns.items()})
    check_columns(batch.column_names, "the dataset")
    return [row_of(values, f"row {number} of a batch", seed) for number, values in enumerate(batch.to_pylist(), 1)]


def _arrow(name: str, column: Iterable[Any]) -> pyarrow.Array:
    """A column of a batch. NaN becomes null: with it NumPy and pandas say that there is no number, for which they turn
    whole numbers into floats.
    """
    values = [value.tolist() if hasattr(value, "tolist") else value for value in column]
    values = [None if isinstance(value, float) and math.isnan(value) else value for value in values]
    if name in ("id", "seed"):
        values = [_whole(value, name) for value in values]
    return pyarrow.array(values)


def _whole(value: Any, name: str) -> Any:
    if not isinstance(value, float) or not value.is_integer():
        return value
    if abs(value) >= EXACT:
        raise ValueError(
            f"the column {name} is of floats, which cannot hold {value:.0f} exactly: make it int64 or text"
        )
    return int(value)


def columns_of(item: Item) -> dict[str, Any]:
    """A row out."""
    files = item.files()
    facts = json.loads(files[FACTS])
    return {
        **{name: item.facts.get(name) for name in ("prompt", "seed", "logprob", "ended", "error")},
        "id": item.id,
        "text": text_of(facts),
        "png": [files[name] for name in drawn(facts)],
        "tokens": list(item.tokens),
        "item": files[FACTS].decode(),
    }
