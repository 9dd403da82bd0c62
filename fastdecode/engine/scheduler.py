"""Which requests decode, which wait, and which must give their pages back.

Requests of one priority are served in order. A request is admitted when there are rows and pages for all streams that
it needs at once, so no request ever runs with a part of its guidance. When pages run out, the last request gives its
pages back, and later resumes from its tokens.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from fastdecode.decoder.cuda_graph import MOST_STEPS
from fastdecode.engine.request import Request
from fastdecode.engine.sequence import Sequence, Tokens
from fastdecode.kv.kv_cache import StreamCache

PREFILL_CHUNK = 128
"""The number of tokens of waiting prompts that are computed between two steps of the running requests."""

PATIENCE = 16
"""A waiting request gains one priority whenever so many later requests were admitted before it: none starves."""

FEW_STEPS = 8
"""Steps between two looks at the queue, where somebody waits or may come."""


@dataclass
class Plan:
    """One iteration: first the prefills, then ``steps`` steps of all sequences that have rows.

    ``read``: beginnings of prompts whose keys and values are computed ahead, for requests that still wait. ``unseen``:
    whether the host may read the tokens of these steps after the last one.
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
        self.hold = False  # pages ran out: admit no request before the next step
        self._count = 0

    # --- the queue ----------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        if request.number < 0:
            request.number = self._count
        self._count = max(self._count, request.number) + 1
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Forget a request that has ended and has no rows."""
        if request in self.running:
            self.running.remove(request)
        if request in self.waiting:
            self.waiting.remove(request)
        self.beginning = [s for s in self.beginning if s not in request.sequences]

    def forget(self, s: Sequence) -> None:
        """Forget a sequence that has ended: start no more streams for it."""
        if s in self.beginning:
            self.beginning.remove(s)

    def put_back(self, request: Request) -> None:
        """A running request waits again. Its rows are removed before."""
        self.running.remove(request)
        self.beginning = [s for s in self.beginning if s not in request.sequences]
        self.waiting.append(request)
        request.unread = sys.maxsize

    def preempt(self, request: Request) -> None:
        """Move a running request, which has no rows any more, back to the waiting ones."""
        self.put_back(request)
        self.hold = True
        request.preemptions += 1
        self.preemptions += 1

    @staticmethod
    def rank(request: Request) -> tuple[int, int]:
        """The sort key of the queue: the lowest goes first."""
        return -(request.priority + request.passed // PATIENCE), request.number

    def last_admitted(self) -> Request:
        """The request to preempt when pages run out: the last one of the lowest priority."""
        return max(self.running, key=self.rank)

    # --- one iteration ------------------------------------------------------------------------------------------

    def schedule(self) -> Plan:
        """The next plan. A plan without steps and prefills means that there is nothing to do."""
        plan = Plan()
        for request in self.running:
            parts = [(s, s.streams_now()[len(s.rows) :]) for s in request.live if s in self.beginning]
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
        """The number of tokens of a request's streams that are not computed yet. If it exceeds ``budget``, a part of
        them, in whole pages, is added to ``plan``; the next call then finds them in the cache.
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
            return 0  # each stream lacks less than a page: there is nothing to compute ahead
        return budget + 1

    def _fits(self, request: Request) -> bool:
        """Whether rows and pages suffice for ``request`` and the running ones, until each has finished a picture."""
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
        promised = sum(self._growth(r) + self._coming(r) for r in self.running)
        return self.cache.pages_missing(wanted) + growth + promised <= available

    def _growth(self, request: Request) -> int:
        """The maximum number of pages that a request takes until the end of its present or next pictures."""
        slots, pages = self.cache.pool.page_slots, 0
        for s in request.live:
            left = s.grammar.remaining(s.state)
            if left == 0:
                left = s.grammar.block_length if s.grammar.draws else slots
            left = min(left, s.limit - len(s.tokens))
            pages += s.most_streams * (-(-left // slots))
        return pages

    def _coming(self, request: Request) -> int:
        """The maximum number of pages of what streams that a schedule starts later have to read first."""
        slots = self.cache.pool.page_slots
        return sum(-(-len(stream) // slots) for s in request.live for stream in s.streams_coming)

    def _steps(self) -> tuple[int, bool]:
        """The number of steps in which only tokens change, and whether the tokens may be read after the last one."""
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
                    most = min(most, max(1, s.grammar.row_length))
                if s.forced >= 0 and not s.in_block:
                    return 1, False
                if not s.in_picture or s.mode == "unrestricted":
                    inside = False
                    most = min(most, max(1, s.limit - len(s.tokens)))
                else:
                    most = min(most, s.grammar.close - state, max(1, s.limit - len(s.tokens)))
                if s.streams_change_at is not None:
                    most = min(most, max(1, s.streams_change_at - len(s.tokens)))
                if s.rules_change_at is not None:
                    most = min(most, max(1, s.rules_change_at - len(s.tokens)))
        if inside:
            return most, most > 1
        return (min(most, MOST_STEPS // 2), False) if self.ahead else (1, False)
