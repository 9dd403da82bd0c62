"""A request: one or more sequences that are admitted, preempted and finished together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fastdecode.engine.callbacks import Callbacks
from fastdecode.engine.sequence import Sequence


@dataclass(slots=True, eq=False)
class Request:
    """One sequence; or a whole batch in lock step, if ``callbacks`` need the whole batch.

    ``priority``: higher ones go first. ``on_change``: called in the thread that runs the engine, after new tokens and
    at the end of the request; it must not raise.
    """

    sequences: list[Sequence]
    callbacks: Callbacks | None = None
    priority: int = 0
    on_change: Callable[[], None] | None = None
    listened: bool = False
    number: int = -1
    passed: int = 0
    aborted: bool = False
    error: BaseException | None = None
    done: bool = False
    preemptions: int = 0
    live: list[Sequence] = field(init=False)

    def __post_init__(self) -> None:
        self.live = [s for s in self.sequences if not s.done]

    @property
    def records(self) -> bool:
        """Whether the scores of every token are recorded, also of forced tokens."""
        return self.callbacks is not None and self.callbacks.recorder.wanted

    @property
    def most_rows(self) -> int:
        return sum(s.most_streams for s in self.sequences)

    @property
    def rows(self) -> int:
        """The number of rows that it has in the cache."""
        return sum(len(s.rows) for s in self.live)

    @property
    def reason(self) -> str:
        """Why the request ended: "stop", "length", "aborted" or "error"."""
        if self.error is not None:
            return "error"
        if self.aborted:
            return "aborted"
        return self.sequences[0].reason or "stop"
