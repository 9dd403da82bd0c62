"""`Replica`: what `fastdecode.ray.Server` deploys: an engine, asked over HTTP or by handles of Ray Serve."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any

from fastapi import FastAPI

from fastdecode.generation.engine import Engine
from fastdecode.models.loading import load
from fastdecode.serve.answers import document_of
from fastdecode.serve.app import create_app
from fastdecode.serve.job import Job, Message
from fastdecode.serve.limits import Limits, Refused

OF_RAY_DATA = ("request_id", "idx_in_batch")
"""What ``ray.data.llm`` adds to a request."""

_apps: list[FastAPI] = []
"""That of the replica that is being made in this process."""


def app_of_replica() -> FastAPI:
    """For ``serve.ingress``, which asks for it when the constructor of `Replica` is done."""
    return _apps.pop()


class Replica:
    """An engine that answers requests.

        model, dtype, device, vqgan, weights   as of `fastdecode.load`
        like                                   which Chameleon it is, for requests with a task
        pages, max_rows, deterministic         as of `fastdecode.Engine`
        limits                                 fields of `fastdecode.serve.limits.Limits`, by name

    Over HTTP each replica answers as ``fastdecode serve`` does: ``POST /v1/generate`` and the rest. From Python, by a
    handle, where a request is a mapping with the fields of that body:

        ``await handle.generate.remote(request)``                       the whole answer
        ``handle.options(stream=True).events.remote(request)``          pairs of name and content, as they come
        ``handle.options(stream=True).document.remote(request)``        the whole answer, once: for ``ray.data.llm``

    ValueError for a request that is wrong, RuntimeError for one that could not be finished. A request whose client
    leaves, or that is cancelled, is aborted. A replica that is replaced finishes its requests first.
    """

    def __init__(
        self,
        model: str = "blocks",
        *,
        dtype: str | None = None,
        device: str | None = None,
        vqgan: str | None = None,
        weights: str | None = None,
        like: str | None = None,
        pages: int | None = None,
        max_rows: int = 64,
        deterministic: bool = False,
        limits: Mapping[str, Any] | None = None,
    ) -> None:
        loaded, processor = load(model, dtype=dtype, device=device, vqgan=vqgan, weights=weights)
        engine = Engine(loaded, processor, pages=pages, max_rows=max_rows, deterministic=deterministic)
        app = create_app(engine, Limits(**(limits or {})), like=like)
        self.engine, self.service = engine, app.state.service
        _apps.append(app)

    async def generate(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The whole answer, as ``POST /v1/generate`` has it."""
        with _told():
            return await document_of(await self._submit({**request, "stream": False}), _stays)

    async def document(self, request: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """As `generate`, as a stream of one."""
        asked = {name: value for name, value in request.items() if name not in OF_RAY_DATA and value is not None}
        yield await self.generate(asked)

    async def events(self, request: Mapping[str, Any]) -> AsyncGenerator[Message, None]:
        """The server-sent events of ``POST /v1/generate``, as pairs of name and content."""
        with _told():
            job = await self._submit({**request, "stream": True})
        async with aclosing(job.events(_stays, job.asked.previews)) as events:
            async for message in events:
                yield message

    async def _submit(self, request: Mapping[str, Any]) -> Job:
        body = json.dumps(request, default=_plain).encode()
        return await self.service.submit(body, time.monotonic())

    def statistics(self) -> dict[str, Any]:
        """The counts of `fastdecode.EngineStatistics`, by name."""
        return vars(self.engine.statistics())

    def check_health(self) -> None:
        """Called by Ray, which replaces a replica whose engine has died."""
        if not self.engine.started:
            raise RuntimeError("the engine does not run")


async def _stays() -> Any:
    """The client of a handle: it never says that it leaves; it cancels."""
    await asyncio.Event().wait()


@contextmanager
def _told() -> Iterator[None]:
    """Errors as they go to another process."""
    try:
        yield
    except Refused as error:
        raise (ValueError if error.status < 500 else RuntimeError)(error.sentence) from None


def _plain(value: Any) -> Any:
    """What JSON has a word for, for arrays and numbers of NumPy, which come from Ray Data."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise ValueError(f"a request has a {type(value).__name__}, for which JSON has no word")
