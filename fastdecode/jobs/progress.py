"""How far a job is, for people and for logs."""

from __future__ import annotations

import sys
import time
from typing import Any


def bar(total: int, there: int, progress: bool | None) -> Any:
    """A bar with the rate and the time left. ``progress``: None shows it on a terminal, elsewhere a line a minute."""
    from tqdm.auto import tqdm

    if progress is None and not sys.stderr.isatty():
        return Lines(total, there)
    return tqdm(total=total, initial=there, unit="item", disable=progress is False, file=sys.stderr)


class Lines:
    """In place of a bar, for logs."""

    def __init__(self, total: int, there: int) -> None:
        self.total, self.count, self.made = total, there, 0
        self.begun = self.told = time.monotonic()

    def update(self, made: int) -> None:
        self.count += made
        self.made += made
        now = time.monotonic()
        if now - self.told >= LINE_SECONDS:
            rate = self.made / (now - self.begun)
            left = (self.total - self.count) / rate
            print(
                f"{self.count} of {self.total} items, {rate:.2f} items/s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
            self.told = now

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to close."""


LINE_SECONDS = 60.0
"""So often a log is told how far the job is."""
