"""A request: one or more sequences that are admitted, preempted and finished together."""

from __future__ import annotations

import sys
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
    cause: str = ""  # why it was aborted, where its caller did not do it
    error: BaseException | None = None
    done: bool = False
    preemptions: int = 0
    unread: int = sys.maxsize  # tokens of its prompts that were still to be read when it was last looked at
    live: list[Sequence] = field(init=False)

    def __post_init__(self) -> None:
        self.live = [s for s in self.sequences if not s.done]

    def rewind(self) -> None:
        """After an interruption anywhere: no rows, and every sequence's place found anew from its tokens; of a batch in
        lock step, from those that all of it have.
        """
        running = [s for s in self.sequences if not s.done]
        if self.callbacks is not None and running:
            steps = min(len(s.tokens) - s.prompt_length for s in running)
            for s in self.sequences:
                if len(s.tokens) - s.prompt_length > steps:  # of a step that was not finished
                    del s.tokens[s.prompt_length + steps :], s.logprobs[steps:]
                    s.reason = None
        for s in self.sequences:
            s.rows, s.inputs, s.seen = [], [], None
            if not s.done:
                s.recover()
        self.live = [s for s in self.sequences if not s.done]
        if self.callbacks is not None:
            self.callbacks.rewind([s.generated for s in self.sequences])

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
