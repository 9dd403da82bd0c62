"""Which requests decode, which wait, and which must give their pages back.

First come, first served within a priority. A request is admitted when there are rows and pages for every stream that it
needs at once, so none is ever decoded with a part of its guidance. When pages run out, the one that came last gives its
own back, and is resumed later from its tokens.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from fastdecode.decoder.cuda_graph import MOST_STEPS
from fastdecode.engine.request import Request
from fastdecode.engine.sequence import Sequence, Tokens
from fastdecode.kv.kv_cache import StreamCache

PREFILL_CHUNK = 128
"""Tokens of waiting prompts that are read between two steps of those that decode."""

PATIENCE = 16
"""A waiting request rises by one priority each time that so many later ones were admitted before it: none starves."""

FEW_STEPS = 8
"""Steps between two looks at the queue, where somebody waits or may come."""


@dataclass
class Plan:
    """One iteration: first the prefills, then ``steps`` steps of all sequences that have rows.

    ``read``: beginnings of prompts whose keys and values are computed ahead, for requests that still wait. ``unseen``:
    whether the tokens of these steps need to be looked at only when all are there.
    """

    starting: list[tuple[Request, list[tuple[Sequence, list[Tokens]]]]] = field(default_factory=list)
    read: list[tuple[Request, Tokens]] = field(default_factory=list)
    steps: int = 0
    unseen: bool = False


class Scheduler:
    """``max_rows``: the most rows of a step; None: any number. ``ahead``: whether steps can be begun before the tokens
    of the one before are read. ``most_steps``: the most steps between two looks at the queue.
    """

    def __init__(
        self, cache: StreamCache, max_rows: int | None = None, ahead: bool = False, most_steps: int = MOST_STEPS
    ) -> None:
        self.cache, self.max_rows, self.ahead, self.most_steps = cache, max_rows, ahead, most_steps
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.beginning: list[Sequence] = []
        self.preemptions = 0
        self.hold = False  # admit nobody until a step has been taken: pages ran out
        self._count = 0

    # --- the queue ----------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        if request.number < 0:
            request.number = self._count
        self._count = max(self._count, request.number) + 1
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Forget a request that ended; it has no rows any more."""
        if request in self.running:
            self.running.remove(request)
        if request in self.waiting:
            self.waiting.remove(request)
        self.beginning = [s for s in self.beginning if s not in request.sequences]

    def forget(self, s: Sequence) -> None:
        """Want no more streams for a sequence that ended."""
        if s in self.beginning:
            self.beginning.remove(s)

    def preempt(self, request: Request) -> None:
        """Back to the waiting ones; it has no rows any more."""
        self.running.remove(request)
        self.beginning = [s for s in self.beginning if s not in request.sequences]
        self.waiting.append(request)
        self.hold = True
        request.preemptions += 1
        request.unread = sys.maxsize
        self.preemptions += 1

    @staticmethod
    def rank(request: Request) -> tuple[int, int]:
        """The lowest goes first."""
        return -(request.priority + request.passed // PATIENCE), request.number

    def last_admitted(self) -> Request:
        """Who gives its pages back when they run out: of the lowest priority the one that came last."""
        return max(self.running, key=self.rank)

    # --- one iteration ------------------------------------------------------------------------------------------

    def schedule(self) -> Plan:
        """What comes next; nothing to do if there are no steps and no prefills in it."""
        plan = Plan()
        for request in self.running:
            parts = [(s, s.streams_now()[1:]) for s in request.live if s in self.beginning]
            if parts:
                plan.starting.append((request, parts))
        self.beginning = []
        budget = PREFILL_CHUNK if self.cache.most_retained != 0 and self.running else None
        for request in sorted(self.waiting, key=self.rank):
            if (self.hold and self.running) or not self._fits(request):
                break
            if budget is not None:
                budget -= self._read_ahead(plan, request, budget)
                if budget < 0:
                    break
            self._admit(request, plan)
        plan.steps, plan.unseen = self._steps()
        return plan

    def _admit(self, request: Request, plan: Plan) -> None:
        self.waiting.remove(request)
        for other in self.waiting:
            if other.number < request.number:
                other.passed += 1
        self.running.append(request)
        plan.starting.append((request, [(s, s.streams_now()) for s in request.live]))

    def _read_ahead(self, plan: Plan, request: Request, budget: int) -> int:
        """How many tokens of a request's streams are still to be read. More than ``budget``: a part of them, in whole
        pages, is put into ``plan``, to be found in the cache next time.
        """
        streams = [stream for s in request.live for stream in s.streams_now()]
        slots = self.cache.pool.page_slots
        missing = {stream: max(0, len(stream) - 1 - self.cache.known(stream[:-1])) for stream in streams}
        total = sum(missing.values())
        kept, request.unread = total < request.unread, total
        if total <= budget or not kept:  # what was read last time may not have been kept: then it is read at once
            return min(total, budget)
        left = budget
        for stream in missing:
            known = len(stream) - 1 - missing[stream]
            end = min(len(stream) - 1, known + left) // slots * slots
            if end > known:
                plan.read.append((request, stream[:end]))
                left -= end - known
        if not plan.read and budget == PREFILL_CHUNK:
            return 0  # less than a page of each is missing: there is nothing to read ahead
        return budget + 1

    def _fits(self, request: Request) -> bool:
        """Whether there are rows and pages for ``request`` beside those that run, to the end of a picture of each."""
        if not self.running:
            return True
        if self.max_rows is not None:
            reserved = sum(r.most_rows for r in self.running)
            if reserved + request.most_rows > self.max_rows:
                return False
        available = self.cache.available
        if available is None:
            return True
        wanted, growth = [], self._growth(request)
        for s in request.live:
            wanted += [stream[:-1] for stream in s.streams_planned()[0]]
        promised = sum(self._growth(r) for r in self.running)
        return self.cache.pages_missing(wanted) + growth + promised <= available

    def _growth(self, request: Request) -> int:
        """Pages that a request may take until its pictures, present or next, are closed."""
        slots, pages = self.cache.pool.page_slots, 0
        for s in request.live:
            left = s.grammar.remaining(s.state)
            if left == 0:
                left = s.grammar.block_length if s.grammar.draws else slots
            left = min(left, s.limit - len(s.tokens))
            pages += s.most_streams * (-(-left // slots))
        return pages

    def _steps(self) -> tuple[int, bool]:
        """How many steps may follow before anything but tokens changes, and whether tokens are read at their end."""
        if not self.running:
            return 0, False
        most = min(MOST_STEPS, self.most_steps)
        if self.waiting:
            most = min(most, FEW_STEPS)
        inside = True
        for request in self.running:
            if request.callbacks is not None and request.callbacks.asks:
                return 1, False
            for s in request.live:
                state = s.state
                if request.listened and s.grammar.draws:
                    most = min(most, max(1, s.grammar.side))
                if s.forced >= 0:
                    return 1, False
                if not s.in_picture or s.mode == "unrestricted":
                    inside = False
                    most = min(most, max(1, s.limit - len(s.tokens)))
                else:
                    most = min(most, s.grammar.close - state, max(1, s.limit - len(s.tokens)))
                if s.rules_change_at is not None:
                    most = min(most, max(1, s.rules_change_at - len(s.tokens)))
        if inside:
            return most, most > 1
        return (min(most, MOST_STEPS // 2), False) if self.ahead else (1, False)
