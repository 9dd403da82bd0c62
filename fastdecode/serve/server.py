"""A uvicorn that tells open streams that it shuts down, before it waits for them."""

from __future__ import annotations

import signal
import socket

import uvicorn
from fastapi import FastAPI

SHUTDOWN_SECONDS = 30
"""How long a shutdown waits for clients that do not read their last event."""


class Server(uvicorn.Server):
    """Serves an app of `fastdecode.serve.app.create_app` on a socket that listens."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="on",
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            )
        )
        self.service = app.state.service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.stop()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. ValueError says why an address cannot be had."""
    if not 0 <= port <= 65535:
        raise ValueError(f"port {port}: it must be 0 (any that is free) to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise ValueError(f"{host} port {port} cannot be listened at: {error.strerror or error}") from error


def run(app: FastAPI, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; returns when all streams have ended and the engine is closed."""
    server = Server(app)
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them again when it has shut down
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listener])
    if not server.started:
        raise RuntimeError("the server did not start; its log says why")
