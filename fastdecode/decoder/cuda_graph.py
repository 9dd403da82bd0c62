"""Captures a step inside a picture once and replays it: on a GPU as a CUDA graph, one call of the host per step.

A captured step reads and writes buffers at fixed addresses: the next tokens, lengths, page table, sampling parameters
and grammar states. The host allocates pages for a whole run of steps, and reads the tokens after the run.
"""

from __future__ import annotations

import gc
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastdecode import ops
from fastdecode.decoder.device_waits import wait_in
from fastdecode.decoder.draws import Draws, joined
from fastdecode.decoder.triton_step import StepRows
from fastdecode.kv.kv_cache import StreamCache
from fastdecode.kv.page_pool import PoolExhausted
from fastdecode.ops.decode_state import ENDED

Capture = Callable[[Callable[[], None]], Callable[[], Any]]
"""Captures a function that works on fixed buffers; returns a function that replays it."""


class CapturableDecoder(Protocol):
    """The part of `fastdecode.decoder.Decoder` that a captured step calls."""

    logits_buffer: Tensor | None

    def layers_of_step(self, rows: StepRows, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor: ...

    def logits(self, hidden: Tensor, spans: Sequence[tuple[int, int]] | None = None) -> Tensor: ...

    def rope_tables(self, longest: int) -> Tensor: ...

    def beside_layers(self) -> list[tuple[nn.Module, int, torch.dtype]]: ...

    def stand_in_for(self, other: Any) -> bool: ...


Columns = tuple[Tensor, Tensor, Tensor]
"""Tokens, statuses and log probabilities, as `fastdecode.ops.sample` returns them."""

MOST_STEPS = 64
"""The maximum number of steps in one run. The host reads the tokens of a run together."""

MOST_KEPT = 16
"""The maximum number of captured steps that a pool stores."""

TEXT_AHEAD = 1024
"""A captured step has pages for so many more tokens of text, or as many as the sequences may get if these are fewer."""

MOST_PLACES = 2**20
"""Rows times tokens of a captured step, up to which it gets pages for all tokens to come. The scratch memory of
attention then takes at most 256 MiB with 32 heads of 128 elements of bfloat16, and up to four times that in float32. A
program of it that has no tokens yet does nothing.
"""


def bucket(count: int) -> int:
    """The captured size for ``count`` rows or groups: the next of 1, 2, 3, 4, 6, 8, 12, 16, 24, …"""
    power = 1 << max(count - 1, 0).bit_length()
    return power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power


def _fill(mine: Tensor, given: Tensor) -> None:
    """Copy ``given`` to the first entries of ``mine``, and its first entry to the remaining ones."""
    mine[: len(given)].copy_(given)
    mine[len(given) :] = given[0]


def table_width(cache: StreamCache, ahead: int) -> int:
    """The width of a captured page table, which cannot grow: the pages for ``ahead`` more tokens in each row (within
    `MOST_PLACES`), or twice the present ones and those of a run, if that is more; not more than the pool has.
    """
    pool, present = cache.pool, cache.page_table.shape[1]
    needed = -(-(cache.longest + ahead) // pool.page_slots)
    most = MOST_PLACES // (bucket(cache.rows) * pool.page_slots)
    width = max(2 * present + -(-MOST_STEPS // pool.page_slots), min(needed, most))
    return width if pool.limit is None else max(present, min(width, pool.limit))


class CannotCapture(RuntimeError):
    """A step waits for the device, so it cannot be captured."""


_one_capture = threading.Lock()
"""torch allows one capture at a time in a process."""


@contextmanager
def _no_collection() -> Iterator[None]:
    """In the block Python does not collect garbage. It would destroy other CUDA graphs and free memory of the device,
    which spoils a capture.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def cuda_graph(step: Callable[[], None]) -> Callable[[], Any]:
    """Capture ``step`` as a CUDA graph of the current device, after two runs that compile and load kernels and allocate
    memory. Returns a function that replays it. ``CannotCapture``, before the capture, if the second run waits for the
    device; other errors of ``step`` are raised as they are.
    """
    before, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(before)
    try:
        with torch.cuda.stream(stream):
            step()
            gc.collect(1)  # what is new: with transformers imported, all is 400,000 objects
            with _one_capture, _no_collection():
                waited = wait_in(step)
                if waited is not None:
                    raise CannotCapture(waited)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                    step()
    finally:
        before.wait_stream(stream)  # also after an error: the memory that the runs use is given to others then
    return graph.replay


class _Rows:
    """A cache's keys and values, with the lengths and page table of a captured step.

    It may have more rows than the cache. Extra rows repeat the cache's first row (``like``) and store the same values.
    """

    def __init__(self, cache: StreamCache, width: int) -> None:
        rows, device = bucket(cache.rows), cache.lengths.device
        self.keys, self.values = list(cache.keys), list(cache.values)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.page_table = torch.zeros((rows, width), dtype=torch.int32, device=device)
        self.like = torch.zeros(rows, dtype=torch.long, device=device)
        self.some_alike = any(bucket(n) == rows for n in range(1, rows))

    def load(self, cache: StreamCache) -> None:
        _fill(self.lengths, cache.lengths)
        _fill(self.page_table[:, : cache.page_table.shape[1]], cache.page_table)
        self.like.zero_()
        torch.arange(cache.rows, out=self.like[: cache.rows])


class CapturedStep:
    """One step of ``decoder`` for the rows of ``cache``, with sampling, captured by ``capture``.

    It also serves later caches over the same memory of the pool, and other `Draws`, if `fits` accepts them: the numbers
    of rows and groups must have the same `bucket`. Unused groups are marked as finished. ``spare``: a page to write to
    during the capture. ``ahead``: see `CapturedSteps.get`. ``seconds``: the time that the capture took, with compiling.
    """

    def __init__(
        self,
        decoder: CapturableDecoder,
        cache: StreamCache,
        draws: Draws,
        state: ops.DecodeState,
        spare: int,
        ahead: int,
        capture: Capture,
    ) -> None:
        groups, device = bucket(len(draws.streams)), cache.lengths.device
        self.decoder, self.tables, self.spans = decoder, draws.tables, draws.spans
        self.beside = decoder.beside_layers()
        width = table_width(cache, ahead)
        self.rows = _Rows(cache, width)
        self.cos, self.sin = decoder.rope_tables(width * cache.pool.page_slots)
        self.streams, self.weights, self.seeds = (
            t.new_empty(groups, *t.shape[1:]) for t in (draws.streams, draws.weights, draws.seeds)
        )
        self.parameters: dict[str, Any] = {
            name: torch.zeros(groups, dtype=torch.int32 if name == "top_k" else torch.float32, device=device)
            for name in draws.parameters
            if name != "penalty" or state.seen is not None  # without seen tokens the penalty is 1
        }
        self.inputs = torch.zeros_like(self.rows.lengths)
        self.state = ops.DecodeState(
            mode=torch.zeros(groups, dtype=torch.int32, device=device),
            step=torch.zeros(groups, dtype=torch.long, device=device),
            finished=torch.zeros(groups, dtype=torch.uint8, device=device),
            limit=torch.zeros(groups, dtype=torch.long, device=device),
            inputs=self.inputs,
            seen=None if state.seen is None else state.seen.new_empty(groups, state.seen.shape[1]),
        )
        self.parts = draws.parts
        own = Draws(self.tables, self.streams, self.weights, self.seeds, self.parameters, self.spans, self.parts)
        self.calls = own.calls(self.state)
        self.place = torch.zeros(1, dtype=torch.long, device=device)
        self.tokens = torch.full((MOST_STEPS, groups), -1, dtype=torch.long, device=device)
        self.statuses = torch.zeros((MOST_STEPS, groups), dtype=torch.int32, device=device)
        self.logprobs = torch.zeros((MOST_STEPS, groups), dtype=torch.float32, device=device)
        self.reader = _Reader(self.drawn)
        self.rows.page_table.fill_(spare)
        self._load(draws, state)
        begin = time.perf_counter()
        with torch.cuda.device_of(self.inputs):
            self.replay = capture(self._step)
        self.seconds = time.perf_counter() - begin
        self.kept = decoder.logits_buffer  # the capture writes here, even if the decoder gets another buffer

    @property
    def drawn(self) -> Columns:
        return self.tokens, self.statuses, self.logprobs

    def fits(self, decoder: CapturableDecoder, cache: StreamCache, draws: Draws, state: ops.DecodeState) -> bool:
        """Whether `run` computes with these what ``decoder`` would. If so, norms and biases are copied from it."""
        return (
            (len(self.inputs), len(self.streams)) == (bucket(cache.rows), bucket(len(draws.streams)))
            and self.streams.shape[1] == draws.streams.shape[1]
            and self.draws_alike(draws)
            and (self.state.seen is None) == (state.seen is None)
            and cache.page_table.shape[1] <= self.rows.page_table.shape[1]
            and self.beside == decoder.beside_layers()
            and self.decoder.stand_in_for(decoder)
        )

    def draws_alike(self, draws: Draws) -> bool:
        """Whether ``draws`` has the same grammar, token sets, spans and parts."""
        mine, its = self.tables, draws.tables
        same = mine is its or (mine.vocab, mine.sets, mine.host) == (its.vocab, its.sets, its.host)
        return (
            same
            and mine.sets.largest == its.sets.largest
            and self.spans == draws.spans
            and self.parts == draws.parts
            and self.parameters.keys() <= draws.parameters.keys()
        )

    def _load(self, draws: Draws, state: ops.DecodeState) -> None:
        """Copy everything except the rows into the buffers."""
        for mine, given in ((self.streams, draws.streams), (self.weights, draws.weights), (self.seeds, draws.seeds)):
            _fill(mine, given)
        for name, mine in self.parameters.items():
            value = draws.parameters[name]
            if isinstance(value, Tensor):
                _fill(mine, value)
            else:
                mine.fill_(value)
        for name in ("mode", "step", "finished", "limit", "inputs", "seen"):
            value = getattr(state, name)
            if value is not None:
                _fill(getattr(self.state, name), value)
        self.state.finished[len(state.finished) :] = ENDED
        self.place.zero_()

    def _begin(self, cache: StreamCache, draws: Draws, state: ops.DecodeState) -> None:
        self._load(draws, state)
        self.rows.load(cache)

    def _step(self) -> None:
        """What is captured: a token into every row, a draw for every group."""
        lengths = self.rows.lengths
        hidden = self.decoder.layers_of_step(self.rows, self.inputs, self.cos[lengths], self.sin[lengths])
        logits = self.decoder.logits(hidden, self.spans)
        drawn = joined([ops.sample_advance(logits, self.tables, state, **given) for state, given in self.calls])
        if self.rows.some_alike:
            self.inputs.copy_(self.inputs[self.rows.like])
        lengths.add_(1)
        for mine, new in zip(self.drawn, (drawn.token, drawn.status, drawn.logprob), strict=True):
            mine.index_copy_(0, self.place, new[None])
        self.place.add_(1)

    def _replay(self, draws: Draws, step: int) -> None:
        if draws.weights_ahead is not None:
            _fill(self.weights, draws.weights_ahead[step])
        self.replay()

    def run(self, cache: StreamCache, draws: Draws, state: ops.DecodeState, steps: int) -> Columns:
        """Run ``steps`` steps of ``cache``, which must have room for them, from ``state`` on; updates ``state.seen``.
        Returns tokens, statuses and log probabilities, each (steps, groups): views that the next run overwrites.
        """
        self._begin(cache, draws, state)
        with torch.cuda.device_of(self.inputs):
            for step in range(steps):
                self._replay(draws, step)
        cache.grow(steps)
        if state.seen is not None and self.state.seen is not None:
            state.seen.copy_(self.state.seen[: len(state.seen)])
        groups = len(draws.streams)
        tokens, statuses, logprobs = (column[:steps, :groups] for column in self.drawn)
        return tokens, statuses, logprobs

    def run_ahead(
        self, cache: StreamCache, draws: Draws, state: ops.DecodeState, steps: int
    ) -> Iterator[tuple[list[int], list[int], list[float]]]:
        """As `run`, at most ``steps`` steps. Yields what `run` returns, of one step, after the next step has been
        launched and ``cache`` has grown. If the iterator is closed, the result of that next step is not used.
        """
        self._begin(cache, draws, state)
        groups = len(draws.streams)
        with torch.cuda.device_of(self.inputs):
            self._replay(draws, 0)
        for step in range(steps):
            self.reader.send(step)
            if step + 1 < steps:
                with torch.cuda.device_of(self.inputs):
                    self._replay(draws, step + 1)
            tokens, statuses, logprobs = self.reader.receive(step)
            cache.grow()
            yield tokens[:groups], statuses[:groups], logprobs[:groups]


class _Reader:
    """Copies ``columns`` (steps, groups) to the host, one step at a time, without waiting for later steps."""

    def __init__(self, columns: Columns) -> None:
        self.device, self.there = columns, columns[0].device.type == "cuda"
        self.host = tuple(torch.empty(t.shape, dtype=t.dtype, device="cpu", pin_memory=self.there) for t in self.device)
        self.sent = [torch.cuda.Event() for _ in columns[0]] if self.there else []

    def send(self, step: int) -> None:
        """Start the copy: call it after the launch of ``step`` and before that of the next step."""
        for mine, its in zip(self.host, self.device, strict=True):
            mine[step].copy_(its[step], non_blocking=True)
        if self.there:
            self.sent[step].record()

    def receive(self, step: int) -> tuple[list[int], list[int], list[float]]:
        if self.there:
            self.sent[step].synchronize()
        tokens, statuses, logprobs = (t[step].tolist() for t in self.host)
        return tokens, statuses, logprobs


class CapturedSteps:
    """The captured steps of ``decoder``. The pool whose pages they write to stores the last `MOST_KEPT` of them until
    it gets other memory. Later decoders of the same model use them too.
    """

    def __init__(self, decoder: CapturableDecoder, capture: Capture) -> None:
        self.decoder, self.capture, self.possible = decoder, capture, True

    def get(
        self, cache: StreamCache, draws: Draws, state: ops.DecodeState, steps: int, ahead: int
    ) -> CapturedStep | None:
        """A captured step that fits; captures one if there is none. ``cache`` then has room for ``steps`` steps.
        ``ahead``: how many more tokens the rows may get, for which a new captured step has pages.

        None if there are too few pages, if ``steps`` exceeds `MOST_STEPS`, or if the step cannot be captured (with a
        warning the first time).
        """
        if steps > MOST_STEPS or not self.possible:
            return None
        try:
            cache.make_room(steps)
            captured = cache.pool.captured
            for step in captured:
                if step.fits(self.decoder, cache, draws, state):
                    captured.remove(step)
                    captured.insert(0, step)
                    return step
            cache.pool.allocate()  # a capture stores the addresses of this memory
            cache.reclaim(1)
            spare = cache.pool.take(1)
        except PoolExhausted:
            return None
        try:
            made = CapturedStep(self.decoder, cache, draws, state, spare[0], ahead, self.capture)
        except CannotCapture as error:
            self.possible = False
            warnings.warn(f"steps are not captured: {error}", stacklevel=2)
            return None
        finally:
            cache.pool.release(spare)
        captured[:] = [made, *captured[: MOST_KEPT - 1]]
        return made
