"""Rows in, items out: a model, its engine, and the requests of a job."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image

from fastdecode.generation.api import new_pool
from fastdecode.generation.by_recipe import check_served, request_of
from fastdecode.generation.engine import Engine
from fastdecode.generation.handle import Handle, RequestFailed
from fastdecode.jobs.items import Item
from fastdecode.jobs.layers import MODE, USUAL, options_of_row
from fastdecode.jobs.rows import Row
from fastdecode.jobs.told import told
from fastdecode.jobs.trials import NOT_ITS_OWN, check_options
from fastdecode.models.families import text_vocabulary_of
from fastdecode.models.loading import load
from fastdecode.models.memory import available
from fastdecode.models.picture_files import picture_of
from fastdecode.models.recipes import recipe

WINDOW = 2
"""So many times ``max_rows`` requests are submitted at once: some wait, so that no row of a step is ever empty."""

MEMORY = 0.4
"""The share of the free memory that keys and values may fill: a pool that grows is copied, and pictures need some."""

BLANK = (256, 256)
"""Width and height of the picture that options are tried with."""


@dataclass(frozen=True)
class Job:
    """What holds for all rows. An option of a row wins over these.

        model, dtype, device, vqgan, weights   as of `fastdecode.load`
        like           which Chameleon it is, for tasks: as of `fastdecode.recipe`
        options        of `fastdecode.generate`, and ``task``
        usual          the same, for rows without a task, if nothing else is said: as ``fastdecode generate`` decodes,
                       text and pictures, with temperature 0.7, top-p 0.9 and guidance
        seed           64 bits; rows without a seed get one of this and their id
        pages          most pages of keys and values; None: what the memory has room for
        max_rows       most streams in a step
        deterministic  an item's tokens do not depend on what is decoded beside it; None: where the model can

    It is plain data: an engine, made of it in any process, makes the same items of the same rows.
    """

    model: str = "blocks"
    dtype: str | None = None
    device: str | None = None
    vqgan: str | None = None
    weights: str | None = None
    like: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    usual: Mapping[str, Any] = field(default_factory=lambda: dict(USUAL))
    seed: int = 0
    pages: int | None = None
    max_rows: int = 64
    deterministic: bool | None = None


def mode_of(model: Any, task: str | None, like: str | None) -> str:
    """The mode of a request that names none: that of its task."""
    usual = "text-only"
    mode: str = usual if task is None else recipe(model, task, like=like).options.get(MODE, usual)
    return mode


def pages_for(model: Any) -> int | None:
    """How many pages of keys and values the memory of ``model``'s device has room for; None if that cannot be told."""
    device = model.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available()
    return None if free is None else max(1, int(free * MEMORY) // new_pool(model, pages=1).page_bytes)


class Worker:
    """An engine of the job's model."""

    def __init__(self, job: Job) -> None:
        self.job = job
        model, processor = load(job.model, dtype=job.dtype, device=job.device, vqgan=job.vqgan, weights=job.weights)
        check_served(model)
        self.model, self.processor = model, processor
        self.engine, self.deterministic = self._engine()

    def _engine(self) -> tuple[Engine, bool]:
        job = self.job
        pages = job.pages or pages_for(self.model)
        sizes: dict[str, Any] = {"pages": pages, "max_rows": job.max_rows}
        if job.deterministic is None:
            try:
                return Engine(self.model, self.processor, deterministic=True, **sizes), True
            except ValueError:  # this model cannot
                return Engine(self.model, self.processor, **sizes), False
        return Engine(self.model, self.processor, deterministic=job.deterministic, **sizes), job.deterministic

    # --- rows ---------------------------------------------------------------------------------------------------

    def request(self, row: Row, pictures: Sequence[Image.Image] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """The prompt and the options of a row, as arguments of `fastdecode.Engine.submit`. Errors of both as there.
        ``pictures``: in place of the row's.
        """
        job = self.job
        task = row.options.get("task", job.options.get("task"))
        usual = job.usual if task is None else {}
        options, mode = options_of_row(usual, job.options, row.options, mode_of(self.model, task, job.like))
        options.pop("task", None)
        size = options.pop("image_size", None)
        pictures = [picture_of(file, "the picture") for file in row.files] if pictures is None else list(pictures)
        inputs, options = request_of(
            self.model, self.processor, row.prompt, pictures, options, task=task, like=job.like, image_size=size
        )
        if mode != "image-only" and not options.keys() & {"max_new_tokens", "max_length"}:
            room = text_vocabulary_of(self.model).context - inputs["input_ids"].shape[1]
            options["max_new_tokens"] = max(1, room)
        device = self.model.device
        inputs = {name: value.to(device) if hasattr(value, "to") else value for name, value in inputs.items()}
        return inputs, {**options, "seed": row.seed}

    def submit(self, row: Row, pictures: Sequence[Image.Image] | None = None) -> Handle:
        inputs, options = self.request(row, pictures)
        return self.engine.submit(inputs, **options)

    def try_row(self, row: Row) -> None:
        """Raises what `submit` would."""
        self.submit(row).abort()

    def try_options(self, row: Row) -> None:
        """Raises what `submit` would for another prompt and other pictures."""
        self.submit(replace(row, prompt="x"), [Image.new("RGB", BLANK)] * len(row.pictures)).abort()

    def check(self, rows: Sequence[Row]) -> None:
        """``ValueError`` for the first row whose options cannot be followed."""
        check_options(self, rows)

    def items(self, rows: Iterable[Row]) -> Generator[list[Item], None, None]:
        """The items of ``rows`` as they end, those that end in the same step together. Items that fail have an error
        among their facts. Errors that are no item's own, such as MemoryError, are raised.
        """
        source, window = iter(rows), max(1, WINDOW * self.job.max_rows)
        open_now: dict[int, tuple[Row, Handle]] = {}
        more = True
        try:
            while more or open_now:
                while more and len(open_now) < window:
                    row = next(source, None)
                    if row is None:
                        more = False
                        break
                    try:
                        handle = self.submit(row)
                    except Exception as error:
                        yield [failed(row, error)]
                        continue
                    open_now[handle.number] = (row, handle)
                if not open_now:
                    continue
                self.engine.advance(next(iter(open_now.values()))[1])
                ended = [number for number, (_, handle) in open_now.items() if handle.done]
                if ended:
                    yield [self.item(*open_now.pop(number)) for number in ended]
        finally:
            for _, handle in open_now.values():
                handle.abort()

    def item(self, row: Row, handle: Handle) -> Item:
        """The item of a request that has ended."""
        try:
            handle.result()
            parts = handle.document()
        except RequestFailed as error:
            return failed(row, error.__cause__ or error)
        except Exception as error:
            return failed(row, error)
        logprob = round(sum(handle.logprobs), 4)
        facts = {**_facts(row), "tokens": len(handle.tokens), "logprob": logprob, "ended": handle.reason}
        return Item(row.id, parts, facts, tuple(handle.tokens))


def failed(row: Row, error: BaseException) -> Item:
    """The item of a row that cannot be made. Raises ``error`` if it is not the row's own."""
    if isinstance(error, NOT_ITS_OWN):
        raise error
    said = " ".join(str(error).split()) or type(error).__name__
    return Item(row.id, [], {**_facts(row), "error": f"{type(error).__name__}: {said}"})


def _facts(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {"prompt": row.prompt, "seed": row.seed}
    if row.pictures:
        found["pictures"] = list(row.pictures)
    return found | {name: told(value) for name, value in (("options", row.options), ("more", row.more)) if value}
