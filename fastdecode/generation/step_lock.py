"""The lock of the thread that decodes for an engine."""

from __future__ import annotations

import threading


class StepLock:
    """A lock for the thread that decodes. A caller's processor or criterion runs inside it, and cannot take it again:
    RuntimeError instead of waiting for itself.
    """

    def __init__(self) -> None:
        self._lock, self._thread = threading.Lock(), 0

    def refuse_inside(self) -> None:
        if self._thread == threading.get_ident():
            raise RuntimeError(
                "the engine was asked to decode or to close from inside a processor or criterion of one of its "
                "requests, whose step has to end first: submit and abort are possible there"
            )

    def acquire(self, blocking: bool = True) -> bool:
        if blocking:
            self.refuse_inside()
        if not self._lock.acquire(blocking):
            return False
        self._thread = threading.get_ident()
        return True

    def release(self) -> None:
        self._thread = 0
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
