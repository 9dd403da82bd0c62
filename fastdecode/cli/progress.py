"""What the command line says on standard error while one waits."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PERIOD = 1.0
"""Seconds between two lines of a terminal."""


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Say that ``name`` is being loaded, on a terminal with the seconds so far, and at the end how long it took."""
    begun, ended, stream = time.monotonic(), threading.Event(), sys.stderr
    terminal = stream.isatty()

    def count() -> None:
        while not ended.wait(PERIOD):
            print(f"\rloading {name} … {time.monotonic() - begun:.0f} s", end="", file=stream, flush=True)

    print(f"loading {name} …", end="" if terminal else "\n", file=stream, flush=True)
    counter = threading.Thread(target=count, daemon=True)
    if terminal:
        counter.start()
    try:
        yield
    except BaseException:
        _stop(ended, counter)
        if terminal:
            print(file=stream)
        raise
    _stop(ended, counter)
    if terminal:
        print(f"\rloaded {name} in {time.monotonic() - begun:.1f} s   ", file=stream, flush=True)


def _stop(ended: threading.Event, counter: threading.Thread) -> None:
    ended.set()
    if counter.is_alive():
        counter.join()
