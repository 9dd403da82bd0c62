"""A server on a free port, in a thread of the test's process, and clients that talk HTTP to it."""

from __future__ import annotations

import base64
import http.client
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

import fastdecode
from fastdecode.serve.app import create_app
from fastdecode.serve.limits import Limits
from fastdecode.serve.server import Server, listen

SNOWMAN: dict[str, Any] = {
    "prompt": "Build a snowman in column 3.",
    "guidance": {"text": 1.5, "image": 1.2},
    "text": {"do_sample": False},
    "image": {"temperature": 0.7, "top_p": 0.9},
    "max_new_tokens": 480,
    "seed": 7,
}
ONE_PICTURE: dict[str, Any] = {"prompt": "Draw: In column 2 a red circle.", "mode": "image-only", "seed": 3}
PATIENCE = 60.0


def wait_until(what: Callable[[], Any], seconds: float = PATIENCE) -> None:
    """Until ``what()`` is true; how long that takes does not matter."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"still not so after {seconds} s"
        time.sleep(0.005)


class Gate:
    """Lets an engine take as many steps as the test says; all of them once it is open."""

    def __init__(self, engine: fastdecode.Engine, steps: int | None) -> None:
        self._allowed = threading.Condition()
        self._left = steps
        step = engine._core.step

        def gated() -> bool:
            with self._allowed:
                self._allowed.wait_for(lambda: self._left is None or self._left > 0)
                if self._left is not None:
                    self._left -= 1
            return step()

        engine._core.step = gated

    def open(self) -> None:
        with self._allowed:
            self._left = None
            self._allowed.notify_all()


class Served:
    """A running server."""

    def __init__(self, engine: fastdecode.Engine, limits: Limits, steps: int | None, like: str | None) -> None:
        self.engine, self.gate = engine, Gate(engine, steps)
        self.app = create_app(engine, limits, like=like)
        self.service = self.app.state.service
        self._listener = listen("127.0.0.1", 0)
        self.port = self._listener.getsockname()[1]
        self.server = Server(self.app)
        self._thread = threading.Thread(target=self.server.run, args=([self._listener],), name="server")
        self._thread.start()
        wait_until(lambda: self.server.started)

    def stop(self) -> None:
        """As SIGTERM does."""
        self.server.should_exit = True

    def join(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self._listener.close()

    # --- clients ------------------------------------------------------------------------------------------------

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def get(self, path: str) -> tuple[int, Any, bytes]:
        connection = self.connect()
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def send(self, body: Any, **more: Any) -> http.client.HTTPConnection:
        """Send a request; its answer is still to be read."""
        connection = self.connect()
        data = body if isinstance(body, bytes) else json.dumps(body | more)
        connection.request("POST", "/v1/generate", data, {"Content-Type": "application/json"})
        return connection

    def post(self, body: Any, **more: Any) -> tuple[int, Any, dict[str, Any]]:
        """Status, headers and JSON of an answer."""
        connection = self.send(body, **more)
        try:
            answer = connection.getresponse()
            return answer.status, answer.headers, json.loads(answer.read())
        finally:
            connection.close()

    def stream(self, body: dict[str, Any], **more: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        """Events of an answer; leaving the iteration closes the connection."""
        connection = self.send(body, stream=True, **more)
        try:
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            yield from events_of(answer)
        finally:
            answer.close()
            connection.close()

    # --- what is left behind ------------------------------------------------------------------------------------

    def is_empty(self) -> bool:
        """Whether no request is open, and none has a page."""
        now = self.engine.statistics()
        return not self.service.jobs and now.waiting + now.running + now.rows + now.pages_used == 0


def events_of(answer: http.client.HTTPResponse) -> Iterator[tuple[str, dict[str, Any]]]:
    name = ""
    for line in answer:
        key, _, value = line.decode().rstrip("\n").partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            yield name, json.loads(value)


@contextmanager
def serving(
    model: Any,
    processor: Any,
    *,
    limits: Limits | None = None,
    steps: int | None = None,
    like: str | None = None,
    **options: Any,
) -> Iterator[Served]:
    """A server whose engine is deterministic; ``steps``: as many as its engine takes before the gate is opened."""
    engine = fastdecode.Engine(model, processor, deterministic=True, **options)
    served = Served(engine, limits or Limits(), steps, like)
    try:
        yield served
    finally:
        served.gate.open()
        served.stop()
        served.join()


def to_picture(url: str) -> Image.Image:
    kind, _, data = url.partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def as_document(parts: list[dict[str, Any]]) -> list[str | Image.Image]:
    """The document of a JSON answer, as `fastdecode.to_documents` gives it."""
    return [part["text"] if part["type"] == "text" else to_picture(part["png"]) for part in parts]


def streamed_document(events: list[tuple[str, dict[str, Any]]]) -> list[str | Image.Image]:
    """The document that a client puts together from a stream."""
    found: list[str | Image.Image] = []
    text = ""
    for name, content in [*events, ("picture_begun", {})]:
        if name == "text":
            text += content["text"]
        elif name == "picture_begun":
            if text.strip():
                found.append(text.strip())
            text = ""
        elif name == "picture_done":
            found.append(to_picture(content["png"]))
    return found


def same(a: list[str | Image.Image], b: list[str | Image.Image]) -> bool:
    """Whether two documents have the same texts, and pictures of the same pixels."""
    if len(a) != len(b):
        return False
    for x, y in zip(a, b, strict=True):
        if isinstance(x, str) or isinstance(y, str):
            if x != y:
                return False
        elif x.mode != y.mode or x.size != y.size or x.tobytes() != y.tobytes():
            return False
    return True


def generated(model: Any, processor: Any, request: dict[str, Any]) -> list[str | Image.Image]:
    """What `fastdecode.generate` and `fastdecode.to_documents` make of a request."""
    options = dict(request)
    inputs = processor(text=options.pop("prompt"), images=options.pop("images", None), return_tensors="pt")
    guidance = options.pop("guidance", None)
    if isinstance(guidance, dict):
        guidance = fastdecode.Guidance.instruct(guidance["text"], guidance["image"])
    mode = options.pop("mode", "interleaved-text-image")
    out = fastdecode.generate(
        model, **inputs, guidance=guidance, multimodal_generation_mode=mode, deterministic=True, **options
    )
    [document] = fastdecode.to_documents(model, processor, out, start=inputs["input_ids"].shape[1])
    return document
