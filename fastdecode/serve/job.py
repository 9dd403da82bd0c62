"""One request that was submitted: its events as they go over the wire, and every way in which it ends early."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, cast

from fastdecode.engine.events import Event, Finished, PictureBegun, PictureDone, PicturePart, TextDelta, Tokens
from fastdecode.generation.engine import Engine
from fastdecode.generation.handle import Handle, RequestFailed
from fastdecode.kv.page_pool import PoolExhausted
from fastdecode.serve.limits import Limits
from fastdecode.serve.metrics import Metrics
from fastdecode.serve.pictures import to_data_url
from fastdecode.serve.preview import paint_part
from fastdecode.serve.schema import GenerateRequest
from fastdecode.vocabulary import Vocabulary

Receive = Callable[[], Awaitable[Any]]
Message = tuple[str, dict[str, Any]]


class Host(Protocol):
    """What a job needs of the `fastdecode.serve.service.Service` that it belongs to."""

    engine: Engine
    limits: Limits
    metrics: Metrics
    paints: bool

    def ended(self, job: Any) -> None: ...


@dataclass(eq=False)
class Job:
    """A request of a client. ``cause``: why the server ended it early, "timeout", "shutdown" or "left"; None: it did
    not. ``rows``: of the picture that grows, as far as they were told; -1 before it was told that it begins. ``drawn``:
    its tokens so far, and ``before``: those of the last whole picture.
    """

    service: Host
    handle: Handle
    asked: GenerateRequest
    seed: int
    arrived: float
    cause: str | None = None
    rows: int = -1
    drawn: tuple[int, ...] = ()
    before: tuple[int, ...] | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's tokens, with pictures of the size that this request draws."""
        return self.handle._prepared.vocabulary

    def stop(self, cause: str) -> None:
        """Abort the request, for the first cause that there is; its events then end."""
        if self.cause is None and not self.handle.done:
            self.cause = cause
            self.handle.abort()

    async def events(self, receive: Receive, previews: bool) -> AsyncGenerator[Message, None]:
        """Names and contents of events; the last is "finished". The request is aborted when the client leaves, when its
        time is over, and when nobody iterates any more.
        """
        loop = asyncio.get_running_loop()
        left = self.service.limits.seconds - (time.monotonic() - self.arrived)
        timer = loop.call_later(max(0.0, left), self.stop, "timeout")
        watch = asyncio.create_task(self._watch(receive))
        first = True
        try:
            yield "begun", {"number": self.handle.number, "seed": self.seed}
            async with aclosing(cast("AsyncGenerator[Event, None]", aiter(self.handle))) as events:
                async for event in events:
                    if isinstance(event, Tokens):
                        if first:
                            self.service.metrics.first_token.observe(time.monotonic() - self.arrived)
                        first = False
                        continue
                    for message in await self._messages(event, previews):
                        yield message
        except RequestFailed:
            pass  # told by the event before
        finally:
            timer.cancel()
            watch.cancel()
            if not self.handle.done:
                self.handle.abort()
            self.service.ended(self)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.stop("left")

    async def _messages(self, event: Event, previews: bool) -> list[Message]:
        match event:
            case TextDelta(text):
                return [("text", {"text": text})]
            case PictureBegun():
                self.rows = -1  # told with its first tokens: a marker that none follow is a part of the text
            case PicturePart(picture, tokens, total):
                return await self._part(picture, tokens, total, previews)
            case PictureDone(picture, image):
                self.before = self.drawn
                png = None if image is None else await asyncio.to_thread(to_data_url, image)
                return [("picture_done", {"picture": picture, "png": png})]
            case Finished():
                return [("finished", self._finished(event))]
        return []

    async def _part(self, picture: int, tokens: tuple[int, ...], total: int, previews: bool) -> list[Message]:
        """At most one preview for each row of image tokens."""
        found: list[Message] = []
        self.drawn = tokens
        if self.rows < 0:
            self.rows = 0
            found.append(("picture_begun", {"picture": picture, "total": total}))
        row = len(tokens) // self.vocabulary.picture.row_length
        if previews and self.service.paints and self.rows < row and len(tokens) < total and self.cause is None:
            self.rows = row
            png = await asyncio.to_thread(self._paint, tokens)
            found.append(("picture_part", {"picture": picture, "tokens": len(tokens), "total": total, "png": png}))
        return found

    def _paint(self, tokens: tuple[int, ...]) -> str:
        return to_data_url(paint_part(self.service.engine.model, tokens, self.vocabulary, self.before))

    def _finished(self, event: Finished) -> dict[str, Any]:
        """Contents of the last event. ``status``: of an answer that is no stream."""
        reason = self.cause if event.reason == "aborted" and self.cause is not None else event.reason
        number, seconds = self.handle.number, self.service.limits.seconds
        sentences = {
            "timeout": (504, f"request {number} was aborted: it was not finished after {seconds:g} seconds"),
            "shutdown": (503, f"request {number} was aborted: the server is shutting down"),
            "left": (503, f"request {number} was aborted: its client has left"),
            "aborted": (503, f"request {number} was aborted"),
            "error": (
                503 if isinstance(event.error, PoolExhausted) else 500,
                f"request {number} failed: {event.error}",
            ),
        }
        found = {
            "reason": reason,
            "number": number,
            "seed": self.seed,
            "tokens": len(self.handle.tokens),
            "seconds": round(time.monotonic() - self.arrived, 4),
        }
        if reason in sentences:
            found["status"], found["error"] = sentences[reason]
        return found
