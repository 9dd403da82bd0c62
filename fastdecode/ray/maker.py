"""`RayMaker`: the engines of a cluster make the items of a job; the process that runs the job writes them."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow
import ray
import ray.data
from ray.exceptions import RayError

from fastdecode.jobs.items import Item, Made
from fastdecode.jobs.rows import Row
from fastdecode.jobs.worker import Job
from fastdecode.models.loading import EMBEDDED
from fastdecode.ray.alike import Expected
from fastdecode.ray.cluster import check_machines, connect, sizes
from fastdecode.ray.painter import Painter

BATCH = 32
"""The most rows that an engine is given at once. If it dies, they are made again."""


OF_RAY = r"(?!.*\b(UserCodeException|SystemException|RayTaskError)\b)"
REASON = re.compile(OF_RAY + r"([\w.]+\.)?\w*(Error|Exception)\b(: .|$)")
"""A line of Ray's pages that says what went wrong, and not only that something did."""


class RayMaker:
    """Makes the items of ``job`` on a cluster, with `Painter` and Ray Data: the ``maker`` of `fastdecode.jobs.run`.

        address       of the cluster: HOST:PORT, or "auto", one that runs on this machine; None: that, or else a new
                      one of this machine
        actors        how many engines; None: as many as there is room for
        cpus, gpus    of each; None: one GPU if the job's device is cuda, else the CPUs of the smallest machine
        batch         the most rows that an engine gets at once
        any_version   take machines with other versions of fastdecode, torch and transformers

    An engine that dies is started again, and what it was making is made again. Machines may come and go.

    ``ValueError`` for an address that does not answer, machines without fastdecode or with other versions, and sizes
    that no machine has.
    """

    def __init__(
        self,
        job: Job,
        address: str | None = None,
        *,
        actors: int | None = None,
        cpus: int | None = None,
        gpus: float | None = None,
        batch: int = BATCH,
        any_version: bool = False,
    ) -> None:
        self.batch = batch
        connect(address)
        check_machines(any_version)
        self.sizes = sizes(actors, cpus, gpus, job.device)
        self.expected = Expected.here(job, any_version)
        self.job = on_all_machines(job)

    @property
    def _engine(self) -> dict[str, Any]:
        """What an engine is made of."""
        return {"job": self.job, "threads": int(self.sizes.cpus), "expected": self.expected}

    @property
    def _resources(self) -> dict[str, Any]:
        return {"num_cpus": self.sizes.cpus, "num_gpus": self.sizes.gpus}

    def check(self, rows: Sequence[Row]) -> None:
        """As `fastdecode.jobs.worker.Worker.check`, by an engine of the cluster."""
        trial = ray.remote(**self._resources, max_retries=2, max_calls=1)(_trial)
        with in_words():
            said = ray.get(trial.remote(self._engine, [absolute(row) for row in rows]))
        if said is not None:
            raise ValueError(said)

    def items(self, rows: Sequence[Row]) -> Generator[Sequence[Made], None, None]:
        """The items of ``rows``, in any order, a batch at a time."""
        batch = max(1, min(self.batch, -(-len(rows) // (2 * self.sizes.actors))))
        packed = [{"row": pickle.dumps(absolute(row))} for row in rows]
        data = ray.data.from_items(packed, override_num_blocks=-(-len(packed) // batch)).map_batches(
            Packer,
            fn_constructor_kwargs=self._engine,
            batch_size=batch,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=self.sizes.actors),
            **self._resources,
        )
        with in_words():
            for table in tables(data):
                yield [PackedItem(**values) for values in table.to_pylist()]


def absolute(row: Row) -> Row:
    """``row`` for a process that works in another folder."""
    return replace(row, folder=row.folder.absolute())


def on_all_machines(job: Job) -> Job:
    """``job`` for processes that work in other folders."""
    folder = Path(job.model).expanduser()
    model = str(folder.absolute()) if folder.is_dir() and job.model not in EMBEDDED else job.model
    return replace(job, model=model, vqgan=None if job.vqgan is None else str(Path(job.vqgan).absolute()))


class Packer(Painter):
    """A `Painter` whose rows are pickled, and whose items are the files that a store writes."""

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        items = self.items([pickle.loads(row) for row in batch["row"].to_pylist()])
        return pyarrow.Table.from_pylist([pack(item) for item in items], schema=PACKED)


PACKED = pyarrow.schema(
    {
        "id": pyarrow.string(),
        "tokens": pyarrow.int64(),
        "failed": pyarrow.bool_(),
        "names": pyarrow.list_(pyarrow.string()),
        "contents": pyarrow.list_(pyarrow.large_binary()),
    }
)


def pack(item: Item) -> dict[str, Any]:
    """A row of `PACKED`: an item on its way to the machine that writes it."""
    files = item.files()
    return {
        "id": item.id,
        "tokens": len(item.tokens),
        "failed": item.failed,
        "names": list(files),
        "contents": list(files.values()),
    }


@dataclass(frozen=True)
class PackedItem:
    """An item that has come from another process."""

    id: str
    tokens: int
    failed: bool
    names: Sequence[str]
    contents: Sequence[bytes]

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"tokens": self.tokens}

    def files(self) -> dict[str, bytes]:
        return dict(zip(self.names, self.contents, strict=True))


def _trial(engine: Mapping[str, Any], rows: Sequence[Row]) -> str | None:
    """What is wrong with the options of ``rows``, or with this machine; None: nothing."""
    try:
        Painter(**engine).worker.check(rows)
    except (ValueError, TypeError, OSError) as error:
        return str(error)
    return None


def tables(data: ray.data.Dataset) -> Iterator[pyarrow.Table]:
    """The batches of ``data`` as they come. Ray Data says nothing meanwhile: the job has a bar of its own."""
    context = data.context
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    yield from data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


@contextmanager
def in_words() -> Iterator[None]:
    """RuntimeError says in a sentence what Ray says in pages."""
    try:
        yield
    except RayError as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        reasons = [line for line in said if REASON.match(line)]
        raise RuntimeError(f"the cluster failed: {[*said, *reasons][-1] if said else type(error).__name__}") from error
