"""The routes of the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import fastdecode
from fastdecode.generation.engine import Engine
from fastdecode.serve.answers import EventStream, document_of
from fastdecode.serve.limits import Limits, Refused
from fastdecode.serve.schema import GenerateRequest
from fastdecode.serve.service import Service

PAGE = Path(__file__).parent / "page"
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}


def create_app(
    engine: Engine, limits: Limits | None = None, model: str | None = None, *, like: str | None = None
) -> FastAPI:
    """The server as an ASGI application, which starts ``engine`` and closes it.

        engine  made with a processor
        limits  what is refused; ``Limits()`` if None
        model   its name, as the page and ``/healthz`` show it; default: the last part of the folder or hub id that it
                was loaded from
        like    which Chameleon the model is, for requests with a task: as of `fastdecode.recipe`

    ``app.state.service`` has the open requests: call its ``stop()`` when the server is about to shut down, so that
    streams end with an event that says so. ValueError for an engine without processor.
    """
    service = Service(engine, limits or Limits(), like)
    name = Path(engine.model.config.name_or_path).name if model is None else model

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        service.stop()
        await asyncio.to_thread(service.close)

    app = FastAPI(title="fastdecode", version=fastdecode.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    body = {"required": True, "content": {"application/json": {"schema": GenerateRequest.model_json_schema()}}}

    @app.post("/v1/generate", openapi_extra={"requestBody": body})
    async def generate(request: Request) -> Response:
        """A document of text and pictures that continues a prompt."""
        arrived = time.monotonic()
        if request.url.query:
            raise Refused(422, f"the address has ?{request.url.query[:80]}: put the fields into the JSON body", CLOSE)
        service.check_room()
        job = await service.submit(await _read_body(request, service.limits), arrived)
        if job.asked.stream:
            return EventStream(job)
        return JSONResponse(await document_of(job, request.receive))

    @app.get("/healthz")
    async def healthz() -> Response:
        """200 while requests are taken, 503 when the server shuts down."""
        state = {"status": "shutting down" if service.stopping else "ok", "model": name}
        return JSONResponse(state | {"version": fastdecode.__version__}, 503 if service.stopping else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", headers=PAGE_HEADERS)

    app.mount("/page", StaticFiles(directory=PAGE))

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        service.metrics.refused.labels(str(error.status)).inc()
        return JSONResponse({"error": error.sentence}, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        sentence = f"{request.method} {request.url.path}: {str(error.detail).lower()}"
        return JSONResponse({"error": sentence}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "the server failed, and has written why into its log"}, 500)

    return app


async def _read_body(request: Request, limits: Limits) -> bytes:
    """The body, never more of it than the limit. `Refused`: 415 for another kind, 413 for more, 408 if it is slow."""
    kind, _, rest = request.headers.get("content-type", "").partition(";")
    kind = kind.strip().lower()
    if kind != "application/json":
        raise Refused(415, f"Content-Type is {kind or 'missing'}: send application/json", CLOSE)
    charset = rest.strip().lower().removeprefix("charset=").strip('" ') or "utf-8"
    if charset not in ("utf-8", "utf8"):
        raise Refused(415, f"Content-Type has {rest.strip()}: send JSON in UTF-8", CLOSE)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise Refused(415, f"Content-Encoding is {encoding}: send the body as it is, without one", CLOSE)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.body_bytes:
        raise _too_large(limits)
    found = bytearray()
    try:
        async with asyncio.timeout(limits.seconds):
            async for chunk in request.stream():
                found += chunk
                if len(found) > limits.body_bytes:
                    raise _too_large(limits)
    except TimeoutError:
        raise Refused(408, f"the body was not here after {limits.seconds:g} seconds", CLOSE) from None
    except ClientDisconnect:
        raise Refused(400, "the client has left before its request was here") from None
    return bytes(found)


CLOSE = {"Connection": "close"}


def _too_large(limits: Limits) -> Refused:
    return Refused(413, f"the body is too large: this server takes at most {limits.body_bytes} bytes", CLOSE)
