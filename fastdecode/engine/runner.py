"""Runs a step, captured or not: prefill, the model's layers, the sampling kernel. It does not end requests."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdecode import ops
from fastdecode.decoder import BaseDecoder, Upcoming
from fastdecode.decoder.cuda_graph import TEXT_AHEAD
from fastdecode.engine.batch import Batch
from fastdecode.engine.processed import sample_processed
from fastdecode.engine.request import Request
from fastdecode.engine.scheduler import Plan
from fastdecode.engine.sequence import Sequence, Tokens
from fastdecode.engine.tables import SharedTables
from fastdecode.kv.kv_cache import StreamCache
from fastdecode.kv.page_pool import PoolExhausted


class Drawn(NamedTuple):
    """The tokens of a step, their statuses and their log probabilities, as `fastdecode.ops.sample` returns them."""

    tokens: list[int]
    statuses: list[int]
    logprobs: list[float]


@dataclass(slots=True)
class Step:
    """What one step drew, in the order of ``sequences``. ``failed``: requests whose processors raised, with their
    errors.
    """

    sequences: list[Sequence]
    drawn: Drawn
    failed: list[tuple[Request, BaseException]] = field(default_factory=list)


class Runner:
    """Runs the plans of a scheduler over one cache. ``rows``: the sequence of each row of the cache."""

    def __init__(self, decoder: BaseDecoder, cache: StreamCache) -> None:
        self.decoder, self.cache = decoder, cache
        self.rows: list[Sequence] = []
        self.shared = SharedTables(decoder.device)
        self.batch: Batch | None = None
        self.processed: list[Request] = []

    # --- rows ---------------------------------------------------------------------------------------------------

    def read_ahead(self, beginnings: list[tuple[Request, Tokens]]) -> None:
        """Compute keys and values of beginnings of prompts. The cache retains them for prompts that begin so."""
        vectors = _vectors(s for request, _ in beginnings for s in request.sequences)
        rows = self.decoder.prefill(self.cache, [tokens for _, tokens in beginnings], vectors=vectors)
        for row in reversed(range(rows.start, rows.stop)):
            self.cache.remove(row)

    def start(self, starting: list[tuple[Sequence, list[Tokens]]]) -> None:
        """Add a row for each stream and prefill all at once, except the last token of each: it goes into the next step.

        After an exception nothing has changed.
        """
        streams = [(s, stream) for s, of_sequence in starting for stream in of_sequence]
        if not streams:
            return
        self.cache.pool.expect(pages_to_come(starting, self.cache.pool.page_slots))
        rows = self._prefill(streams)
        self.batch = None
        for row, (s, stream) in zip(range(rows.start, rows.stop), streams, strict=True):
            if len(s.inputs) < len(s.rows):  # its earlier rows continue with its newest token
                s.inputs = [s.tokens[-1]] * len(s.rows)
            s.rows.append(row)
            s.inputs.append(stream[-1])
            self.rows.append(s)

    def release(self, s: Sequence, keep: int = 0, remember: bool = True) -> None:
        """Give up all but the first ``keep`` rows of a sequence. With ``remember`` later prompts, or the sequence when
        it is resumed, find the keys and values of its streams, as long as the cache keeps them.
        """
        whole = remember and self.cache.most_retained != 0 and len(s.rows) == 1 + len(s.streams) > keep
        streams = s.streams_now() if whole else []
        while len(s.rows) > keep:
            place = len(s.rows) - 1
            if streams:
                self.cache.remember(s.rows[place], streams[place])
            self.release_row(s, place)

    def release_row(self, s: Sequence, place: int) -> None:
        """Give up one row of a sequence: ``s.rows[place]``."""
        self.batch, self.processed = None, []
        row = s.rows.pop(place)
        del s.inputs[place : place + 1]
        moved = self.cache.remove(row)
        last = self.rows.pop()
        if moved != row:
            last.rows[last.rows.index(moved)] = row
            self.rows[row] = last

    def clear(self) -> None:
        """Give up all rows of all sequences, whatever state an exception left them in."""
        self.batch, self.processed = None, []
        for s in self.rows:
            s.rows, s.inputs = [], []
        self.rows = []
        self.cache.clear()

    # --- steps --------------------------------------------------------------------------------------------------

    def _lay_out(self, running: list[Request]) -> Batch:
        if self.batch is None:
            self.processed = [r for r in running if r.callbacks is not None and r.callbacks.process]
            sampled = [s for r in running if r not in self.processed for s in r.live]
            inputs = [0] * len(self.rows)
            for r in running:
                for s in r.live:
                    for place, row in enumerate(s.rows):
                        inputs[row] = s.inputs[place] if s.inputs else s.tokens[-1]
            self.batch = Batch(sampled, inputs, self.shared, self.decoder.device)
        return self.batch

    def run(self, plan: Plan, running: list[Request]) -> Generator[Step, None, None]:
        """Run at most ``plan.steps`` steps of all rows, in inference mode. Yields each step when its tokens can be
        read. If the iterator is closed, a step that was started ahead has no effect. ``PoolExhausted``, before the step
        changes anything, if there are too few pages.
        """
        batch = self._lay_out(running)
        if not self.processed and batch.bias is None and batch.draws is not None and self.decoder.captured is not None:
            captured = self._captured(batch, plan)
            if captured is not None:
                yield from captured
                return
        if plan.unseen and self._has_room(plan.steps):
            yield from self._unseen(batch, plan.steps)
            return
        for _ in range(plan.steps):
            if self.batch is None:
                batch = self._lay_out(running)
            yield self._one(batch)

    def _has_room(self, steps: int) -> bool:
        """Take the pages for so many steps. False if the pool has too few."""
        try:
            self.cache.make_room(steps)
        except PoolExhausted:
            return False
        return True

    def _one(self, batch: Batch) -> Step:
        """Run one step and read its tokens."""
        hidden = self._step(batch)
        sampled = batch.sampled
        if not self.processed:
            if all(s.forced >= 0 and not s.in_block for s in sampled):
                self.batch = None
                count = len(sampled)
                return Step(sampled, Drawn([s.forced for s in sampled], [ops.STATUS_OK] * count, [0.0] * count))
            return Step(
                sampled,
                read(batch.sample(self.decoder.logits(hidden, batch.draws.spans if batch.draws else None))),
            )
        logits = self.decoder.logits(hidden)
        step = Step(list(sampled), read(batch.sample(logits)) if sampled else Drawn([], [], []))
        for request in self.processed:
            try:
                columns = sample_processed(request, logits)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # whatever a caller's processor raises is its own request's
                step.failed.append((request, error))
                continue
            for s, token, status, logprob in zip(request.sequences, *columns, strict=True):
                if status == ops.STATUS_FINISHED:
                    continue
                step.sequences.append(s)
                step.drawn.tokens.append(token)
                step.drawn.statuses.append(status)
                step.drawn.logprobs.append(logprob)
                batch.inputs[s.rows] = token
        return step

    def _prefill(self, streams: list[tuple[Sequence, Tokens]]) -> slice:
        prompts = [stream[:-1] for _, stream in streams]
        vectors = _vectors(s for s, _ in streams)
        if self.decoder.forward_reason is None:
            return self.decoder.prefill(self.cache, prompts, vectors=vectors)
        upcoming = Upcoming([stream[-1] for _, stream in streams], [s.grammar.draws for s, _ in streams])
        return self.decoder.prefill(self.cache, prompts, upcoming, vectors)

    def _step(self, batch: Batch) -> Tensor:
        if self.decoder.forward_reason is None:
            return self.decoder.step(self.cache, batch.inputs)
        return self.decoder.step(self.cache, batch.inputs, [s.grammar.draws for s in self.rows])

    def _unseen(self, batch: Batch, steps: int) -> Generator[Step, None, None]:
        """Run steps and read their tokens together after the last one."""
        draws = batch.draws
        assert draws is not None
        samples = []
        for _ in range(steps):
            drawn = batch.sample(self.decoder.logits(self._step(batch), draws.spans))
            samples.append([column.clone() for column in (drawn.token, drawn.status, drawn.logprob)])
        columns = [torch.stack(column).tolist() for column in zip(*samples, strict=True)]
        for of_step in zip(*columns, strict=True):
            yield Step(batch.sampled, Drawn(*of_step))

    def _captured(self, batch: Batch, plan: Plan) -> Generator[Step, None, None] | None:
        """Run the steps by replaying a captured step. None if there is none."""
        draws, state, captures = batch.draws, batch.state, self.decoder.captured
        assert draws is not None
        assert state is not None
        assert captures is not None
        if plan.steps < 2 or any(s.forced >= 0 and not s.in_block for s in batch.sampled):
            return None
        captured = captures.get(self.cache, draws, state, plan.steps, tokens_to_come(batch.sampled))
        if captured is None:
            return None
        return self._replay(captured, batch, plan)

    def _replay(self, captured: Any, batch: Batch, plan: Plan) -> Generator[Step, None, None]:
        draws, state, sampled = batch.draws, batch.state, batch.sampled
        self.batch = None  # the captured step has its own buffers
        assert draws is not None
        draws.weights_ahead = batch.weights_ahead(plan.steps)
        if plan.unseen:
            columns = captured.run(self.cache, draws, state, plan.steps)
            for of_step in zip(*(column.tolist() for column in columns), strict=True):
                yield Step(sampled, Drawn(*of_step))
            return
        accepted: list[list[int]] = []
        try:
            for columns in captured.run_ahead(self.cache, draws, state, plan.steps):
                drawn = Drawn(*columns)
                accepted.append(drawn.tokens)
                yield Step(sampled, drawn)
        finally:
            for tokens in accepted:
                batch.advance_seen(tokens)


def read(sample: ops.Sample) -> Drawn:
    """What a step drew, on the host."""
    return Drawn(sample.token.tolist(), sample.status.tolist(), sample.logprob.tolist())


def _vectors(sequences: Iterable[Sequence]) -> dict[int, Tensor]:
    """Those of all ``sequences``."""
    return {number: vector for s in sequences for number, vector in s.vectors.items()}


def tokens_to_come(sampled: list[Sequence]) -> int:
    """The maximum number of tokens that one of these sequences gets, up to its limit: until the end of its present
    picture, or `TEXT_AHEAD` if that is more.
    """
    return max(min(max(s.grammar.remaining(s.state), TEXT_AHEAD), s.limit - len(s.tokens)) for s in sampled)


def pages_to_come(starting: list[tuple[Sequence, list[Tokens]]], slots: int) -> int:
    """The maximum number of pages that these sequences take until the end of their present pictures."""
    pages = 0
    for s, streams in starting:
        left = min(s.grammar.remaining(s.state), s.limit - len(s.tokens))
        pages += sum(-(-(len(stream) + left) // slots) for stream in streams)
        pages += len(s.rows) * (-(-left // slots))
    return pages
