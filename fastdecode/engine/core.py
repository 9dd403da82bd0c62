"""The engine's core: schedule, step, commit. Use it in one thread; `fastdecode.Engine` wraps it for several."""

from __future__ import annotations

import torch

from fastdecode.decoder import BaseDecoder
from fastdecode.decoder.cuda_graph import MOST_STEPS
from fastdecode.engine.request import Request
from fastdecode.engine.runner import Runner, Step
from fastdecode.engine.scheduler import Plan, Scheduler
from fastdecode.engine.sequence import Draw, Sequence, Tokens
from fastdecode.grammar import DONE
from fastdecode.kv.kv_cache import StreamCache
from fastdecode.kv.page_pool import PagePool, PoolExhausted
from fastdecode.ops import STATUS_INVALID_LOGITS


class EngineCore:
    """Decodes requests until none is left.

    ``pool``: where keys and values go; None: a pool of its own. ``max_rows``: the most rows of a step. ``retain``: the
    most pages that are kept for prompts to come that begin alike; None: all that the pool has room for.
    ``most_steps``: the most steps inside pictures between two looks at the queue.
    """

    def __init__(
        self,
        decoder: BaseDecoder,
        pool: PagePool | None = None,
        *,
        max_rows: int | None = None,
        retain: int | None = 0,
        most_steps: int = MOST_STEPS,
    ) -> None:
        self.decoder = decoder
        self.cache: StreamCache = decoder.new_cache(pool, retain)
        self.scheduler = Scheduler(self.cache, max_rows, decoder.captured is not None, most_steps)
        self.runner = Runner(decoder, self.cache)
        self._owners: dict[int, Request] = {}
        self._unsettled = False  # something was interrupted, and not put right yet

    @property
    def idle(self) -> bool:
        return not self.scheduler.waiting and not self.scheduler.running

    # --- the loop -----------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Run one iteration. False if there was nothing to do.

        An error fails the request that caused it; if that is unknown, all running requests. Other exceptions (an
        interrupt) are raised after all pages were freed: all requests wait, and the next call continues them.
        """
        if self._unsettled:
            self.reset()
        if self.idle:
            return False
        self._unsettled = True
        try:
            plan = self.scheduler.schedule()
            with self.decoder.context():
                if self._prefill(plan):
                    self._decode(plan)
        except BaseException:
            self.reset()
            raise
        self._unsettled = False
        return True

    @torch.inference_mode()
    def _decode(self, plan: Plan) -> None:
        steps = self.runner.run(plan, self.scheduler.running)
        try:
            for step in steps:
                if not self.commit(step) and not plan.unseen:
                    break
        except PoolExhausted as error:
            self._make_way(error)
        except Exception as error:
            for request in list(self.scheduler.running):
                self.fail(request, error)
            self.runner.clear()
        finally:
            steps.close()

    def commit(self, step: Step) -> bool:
        """Append a step's tokens to their sequences. Returns whether the rows stay the same."""
        changed = bool(step.failed)
        self.scheduler.hold = False
        for request, error in step.failed:
            self.fail(request, error)
        by_request: dict[int, tuple[Request, dict[int, Draw]]] = {}
        for s, token, status, logprob in zip(step.sequences, *step.drawn, strict=True):
            owner = self._owners.get(id(s))
            if owner is None or owner.done or s.done:
                continue  # it ended in an earlier step of this plan
            if token < 0:
                self.fail(owner, no_distribution(s, status))
                changed = True
                continue
            by_request.setdefault(id(owner), (owner, {}))[1][id(s)] = token, logprob
        for request, tokens in by_request.values():
            if not request.done:
                changed |= self._commit_to(request, tokens)
        return not changed

    def _commit_to(self, request: Request, drawn: dict[int, Draw]) -> bool:
        """Append a token to each live sequence, and final tokens that need no step. Returns whether its rows change."""
        changed = self._append(request, drawn)
        while request.live and all(self._ends_by_force(s) for s in request.live) and not request.records:
            changed |= self._append(request, {id(s): (s.forced, 0.0) for s in request.live})
        if not request.done and not request.live:
            self._finish(request)
        elif request.on_change is not None:
            request.on_change()
        return changed

    @staticmethod
    def _ends_by_force(s: Sequence) -> bool:
        """Whether all its further tokens are forced, so that its rows are not needed any more."""
        state, length = s.state, len(s.tokens)
        while state != DONE and length < s.limit:
            token = s.grammar.forced[state]
            if token < 0:
                return False
            state, length = s.grammar.advance(state, token), length + 1
        return True

    def _append(self, request: Request, drawn: dict[int, Draw]) -> bool:
        changed = False
        for s in list(request.live):
            grammar, was_inside, had_rows, needed = s.grammar, s.in_picture, bool(s.rows), s.needed
            begins = s.append(*drawn[id(s)])
            if s.done:
                self._end(request, s)
                changed = True
                continue
            if begins:
                if had_rows and not s.guidance.everywhere:
                    self.runner.release(s, 1)
                s.begin_picture()
                if had_rows and not s.guidance.everywhere and s.streams:
                    self.scheduler.beginning.append(s)
            elif was_inside and not s.in_picture and not s.guidance.everywhere:
                self.runner.release(s, min(1, len(s.rows)))
                s.end_streams()
            elif s.needed != needed:
                self._follow_schedule(s, needed)
                changed = True
            if s.in_picture != was_inside or s.grammar is not grammar or begins:
                self.runner.batch = None
                changed = True
        if request.callbacks is not None:
            changed |= self._call_back(request, [drawn.get(id(s), (-1, 0.0))[0] for s in request.sequences])
        return changed

    def _follow_schedule(self, s: Sequence, before: Tokens) -> None:
        """A schedule needs other streams of ``s`` than ``before``: free the rows of some, start those of others."""
        if s.rows:
            for place in reversed(range(len(before))):
                if before[place] not in s.needed:
                    self.runner.release_row(s, 1 + place)
            if len(s.rows) <= len(s.streams):
                self.scheduler.beginning.append(s)

    def _call_back(self, request: Request, newest: list[int]) -> bool:
        assert request.callbacks is not None
        try:
            stops = request.callbacks.step(newest)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.fail(request, error)
            return True
        stopped = [s for s, stop in zip(request.sequences, stops, strict=True) if stop and not s.done]
        for s in stopped:
            s.state, s.reason = DONE, "stop"
            self._end(request, s)
        return bool(stopped)

    # --- requests -----------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request. Tokens that the grammar forces before anything is sampled are appended at once. Called again
        for the same request, after an interruption, it goes on where it was.
        """
        if request.done:
            return
        for s in request.sequences:
            self._owners[id(s)] = request
        if request not in self.scheduler.waiting:
            self.scheduler.add(request)
        while request.live and all(s.forced >= 0 for s in request.live) and not request.records:
            self._append(request, {id(s): (s.forced, 0.0) for s in request.live})
        if not request.live and not request.done:
            self._finish(request)

    def abort(self, request: Request) -> None:
        """End a request now. No effect if it has ended."""
        if not request.done:
            request.aborted = True
            self._finish(request)

    def fail(self, request: Request, error: BaseException) -> None:
        """End a request with its error."""
        if not request.done:
            request.error = error
            self._finish(request)

    def preempt(self, request: Request) -> None:
        """Free the pages of a running request and let it wait. It resumes later from its tokens."""
        for s in request.live:
            self.runner.release(s)
        self.scheduler.preempt(request)

    def _end(self, request: Request, s: Sequence) -> None:
        self.runner.release(s, remember=request.error is None)
        request.live.remove(s)
        self.scheduler.forget(s)

    def _finish(self, request: Request) -> None:
        for s in list(request.live):
            self._end(request, s)
        for s in request.sequences:
            self._owners.pop(id(s), None)
        request.done = True
        self.scheduler.remove(request)
        if request.on_change is not None:
            request.on_change()

    # --- errors -------------------------------------------------------------------------------------------------

    def _prefill(self, plan: Plan) -> bool:
        """Run the prefills of a plan. False if some failed, so that a new plan is needed."""
        try:
            if plan.read:
                self.runner.read_ahead(plan.read)
        except PoolExhausted:
            pass  # running requests need the pages, and reading ahead is optional
        except Exception as error:
            for request, _ in plan.read:
                self.fail(request, error)
            return False
        try:
            self.runner.start([part for _, parts in plan.starting for part in parts])
            return True
        except Exception:
            return self._prefill_one_by_one(plan)

    def _prefill_one_by_one(self, plan: Plan) -> bool:
        """After prefill failed, start each request by itself, so that only the bad one fails. A new request without
        enough pages waits again. False if a running request lacks pages for streams that it needs now.
        """
        all_whole = True
        for request, parts in plan.starting:
            if request not in self.scheduler.running:
                continue  # it was preempted
            try:
                self.runner.start(parts)
            except PoolExhausted as error:
                if not request.rows and len(self.scheduler.running) > 1:
                    self.preempt(request)
                    continue
                all_whole = False
                self._make_way(error)
                if request in self.scheduler.running:
                    self.scheduler.beginning += [s for s, _ in parts]
            except Exception as error:
                self.fail(request, error)
        return all_whole

    def _make_way(self, error: PoolExhausted) -> None:
        """There are too few pages: preempt the last request. A request that runs alone fails."""
        running = self.scheduler.running
        if len(running) > 1:
            self.preempt(self.scheduler.last_admitted())
            return
        [request] = running
        tokens = max(len(s.generated) for s in request.sequences)
        sequences = "1 sequence" if len(request.sequences) == 1 else f"{len(request.sequences)} sequences"
        message = (
            f"{error}, at new token {tokens} of {sequences} ({self.cache.rows} streams): give more pages, or fewer "
            "sequences at once"
        )
        self.fail(request, PoolExhausted(message))

    def reset(self) -> None:
        """All requests wait, and no page is taken, whatever was interrupted."""
        self._unsettled = True
        self.runner.clear()
        self.scheduler.beginning = []
        for request in [*self.scheduler.running, *self.scheduler.waiting]:
            if request.done:
                self.scheduler.remove(request)
                if request.on_change is not None:
                    request.on_change()
                continue
            request.rewind()
            if request in self.scheduler.running:
                self.scheduler.put_back(request)
            if not request.live:
                self._finish(request)
        self._unsettled = False


def no_distribution(s: Sequence, status: int) -> RuntimeError:
    """The error for a sequence that got no token."""
    what = "NaN, +inf or nothing but -inf" if status == STATUS_INVALID_LOGITS else "no allowed token"
    return RuntimeError(
        f"{s.name} has {what} among the logits of its token {len(s.tokens)} (prompt included): the model, or a logits "
        "processor, produced no distribution to sample from"
    )
