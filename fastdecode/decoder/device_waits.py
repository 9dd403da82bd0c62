"""Whether a function waits for the GPU: then it cannot be captured as a CUDA graph.

torch can raise an error or warn where an operation waits, but only for all threads of the process at once: an error
would hit another thread, which may wait. So torch warns here, and a filter of warnings raises on the calling thread.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

MESSAGE = "called a synchronizing CUDA operation"
"""With this torch's warnings, and its errors, of a wait begin."""

EXPERIMENTAL = "Synchronization debug mode is a prototype"
"""With this the warning begins that torch gives when the mode is set for the first time."""

DEFAULT, ERROR = 0, 2
"""Modes of torch; 1 is to warn."""

TRIES = 3
"""Another thread may change the filters meanwhile; then the function is called again, at most so many times in all."""

_one_at_a_time = threading.Lock()


class _Fresh(Warning):
    """Never given. A filter for it makes Python forget which warnings it has shown: it does not filter those again."""


class _Begins:
    """Stands in a filter in place of a pattern: accepts messages that begin with ``text``, on one thread (``here``) or
    on all others.
    """

    def __init__(self, text: str, here: bool = True) -> None:
        self.text, self.here, self.thread = text, here, threading.get_ident()

    def match(self, message: str) -> bool:
        return message.startswith(self.text) and (threading.get_ident() == self.thread) is self.here


def wait_in(run: Callable[[], Any]) -> str | None:
    """Call ``run``, until it waits for the GPU. Returns torch's message about that; None if it does not wait.

    Other threads may wait meanwhile. All other exceptions of ``run`` are raised. A wait is not found if another thread
    hides warnings at that moment, or at each of `TRIES` calls; the capture then fails.
    """
    with _one_at_a_time:
        for _ in range(TRIES):
            with _raising_here() as intact:
                try:
                    run()
                except (RuntimeError, UserWarning) as error:
                    if not str(error).startswith(MESSAGE):
                        raise
                    return str(error)
                if intact():
                    return None
    return None


@contextmanager
def _raising_here() -> Iterator[Callable[[], bool]]:
    """In the block a wait of this thread raises. Yields a function that says whether this is still so."""
    before = torch.cuda.get_sync_debug_mode()
    mine: list[Any] = [
        ("error", _Begins(MESSAGE), UserWarning, None, 0),
        ("ignore", _Begins(EXPERIMENTAL), UserWarning, None, 0),
    ]
    if before == DEFAULT:  # nobody asked for warnings
        mine.append(("ignore", _Begins(MESSAGE, here=False), UserWarning, None, 0))
    warnings.simplefilter("ignore", _Fresh)
    filters = cast("list[Any]", warnings.filters)
    filters[:0] = mine
    mine.append(("ignore", None, _Fresh, None, 0))
    try:
        if before != ERROR:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lambda: list(warnings.filters[:1]) == mine[:1]
        finally:
            torch.cuda.set_sync_debug_mode(before)
    finally:
        # Another thread may have put a copy of the list in its place, and puts the list back later.
        for changed in (filters, cast("list[Any]", warnings.filters)):
            for item in mine:
                if item in changed:
                    changed.remove(item)
