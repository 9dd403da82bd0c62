"""The two forms of an answer: JSON when a document is finished, or server-sent events while it grows."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import Any

from starlette.responses import Response

from fastdecode.serve.job import Job, Message, Receive
from fastdecode.serve.limits import Refused

GRACE_SECONDS = 10.0
"""After its time is over, how long a stream may take to tell so to a client that does not read."""


async def document_of(job: Job, receive: Receive) -> dict[str, Any]:
    """The whole answer of a request. `Refused` if it failed or was aborted."""
    parts: list[dict[str, Any]] = []
    end: dict[str, Any] = {}
    async with aclosing(job.events(receive, previews=False)) as events:
        async for name, content in events:
            if name == "text":
                if not parts or parts[-1]["type"] != "text":
                    parts.append({"type": "text", "text": ""})
                parts[-1]["text"] += content["text"]
            elif name == "picture_begun":
                parts.append({"type": "picture", "png": None})
            elif name == "picture_done":
                parts[-1]["png"] = content["png"]
            elif name == "finished":
                end = content
    if "error" in end:
        raise Refused(end["status"], end["error"])
    for part in parts:
        if part["type"] == "text":
            part["text"] = part["text"].strip()
    return {"document": [part for part in parts if part.get("text") or part.get("png")], **end}


class EventStream(Response):
    """An answer in server-sent events."""

    media_type = "text/event-stream"

    def __init__(self, job: Job) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.job = job

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with (
            asyncio.timeout(self.job.service.limits.seconds + GRACE_SECONDS),
            aclosing(self.job.events(receive, self.job.asked.previews)) as events,
        ):
            async for message in events:
                await send({"type": "http.response.body", "body": as_event(message), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def as_event(message: Message) -> bytes:
    """A message in the format of server-sent events."""
    name, content = message
    shown = {key: value for key, value in content.items() if key != "status"}
    return f"event: {name}\ndata: {json.dumps(shown, ensure_ascii=False)}\n\n".encode()
