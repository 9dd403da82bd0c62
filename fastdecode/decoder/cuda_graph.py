"""Steps inside pictures, captured once and replayed: on a GPU as a CUDA graph, which costs the host one call a step.

A captured step reads and writes buffers at fixed addresses: the next tokens, lengths, page table, sampling parameters
and grammar states. The host takes pages for a whole run of steps, and reads the tokens when the run is over.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastdecode import ops
from fastdecode.decoder.triton_step import StepRows
from fastdecode.kv.kv_cache import StreamCache
from fastdecode.kv.page_pool import PoolExhausted
from fastdecode.ops.decode_state import ENDED

Capture = Callable[[Callable[[], None]], Callable[[], Any]]
"""Captures a function that works on fixed buffers; returns a function that replays it."""


class CapturableDecoder(Protocol):
    """What a captured step calls of `fastdecode.decoder.Decoder`."""

    logits_buffer: Tensor | None

    def layers_of_step(self, rows: StepRows, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor: ...

    def logits(self, hidden: Tensor, spans: Sequence[tuple[int, int]] | None = None) -> Tensor: ...

    def rope_tables(self, longest: int) -> tuple[Tensor, Tensor]: ...

    def beside_layers(self) -> list[tuple[nn.Module, int, torch.dtype]]: ...

    def stand_in_for(self, other: Any) -> bool: ...


MOST_STEPS = 64
"""The most steps of one run, whose tokens are read together."""

MOST_KEPT = 16
"""The most captured steps that a pool keeps."""


def bucket(count: int) -> int:
    """The size that is captured for so many rows or groups: 1, 2, 3, 4, 6, 8, 12, 16, 24, …"""
    power = 1 << max(count - 1, 0).bit_length()
    return power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power


def _fill(mine: Tensor, given: Tensor) -> None:
    """Copy ``given`` to the first entries of ``mine``, and its first entry to the remaining ones."""
    mine[: len(given)].copy_(given)
    mine[len(given) :] = given[0]


class CannotCapture(RuntimeError):
    """A step waits for the device, which a capture does not survive."""


def cuda_graph(step: Callable[[], None]) -> Callable[[], Any]:
    """``step`` as a CUDA graph of the current device; it runs twice before, in which kernels are compiled and memory is
    found. ``CannotCapture``, before anything is captured, if it waits for the device the second time.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        except RuntimeError as error:
            raise CannotCapture(str(error)) from error
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        step()
    return graph.replay


@dataclass
class Draws:
    """What the draws of a block need: `fastdecode.ops.sample_advance`'s arguments, and the head's rows."""

    tables: ops.GrammarTables
    streams: Tensor
    weights: Tensor
    seeds: Tensor
    parameters: dict[str, Any]
    spans: Sequence[tuple[int, int]] | None


class _Rows:
    """A cache's storage, with the lengths and the table of a captured step.

    There may be more rows than the cache has: they are its first one again, ``like``, and store what that one stores.
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
    """One step of ``decoder`` for the rows of ``cache``, and its draws, captured by ``capture``.

    For any later cache over the same storage of the pool, and any `Draws`, of about as many rows and groups: `fits`.
    Groups that are not there have ended before. ``spare``: a page to write to while it captures. ``seconds``: what that
    took, with compiling.
    """

    def __init__(
        self,
        decoder: CapturableDecoder,
        cache: StreamCache,
        draws: Draws,
        state: ops.DecodeState,
        spare: int,
        capture: Capture,
    ) -> None:
        groups, device = bucket(len(draws.streams)), cache.lengths.device
        self.decoder, self.tables, self.spans = decoder, draws.tables, draws.spans
        self.beside = decoder.beside_layers()
        # A captured table cannot grow: room for twice what there is, and for one more run.
        width = 2 * cache.page_table.shape[1] + -(-MOST_STEPS // cache.pool.page_slots)
        self.rows = _Rows(cache, width)
        self.cos, self.sin = decoder.rope_tables(width * cache.pool.page_slots)
        self.streams, self.weights, self.seeds = (
            t.new_empty(groups, *t.shape[1:]) for t in (draws.streams, draws.weights, draws.seeds)
        )
        self.parameters: dict[str, Any] = {
            name: torch.zeros(groups, dtype=torch.int32 if name == "top_k" else torch.float32, device=device)
            for name in draws.parameters
            if name != "penalty" or state.seen is not None  # which is 1 without them
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
        self.place = torch.zeros(1, dtype=torch.long, device=device)
        self.tokens = torch.full((MOST_STEPS, groups), -1, dtype=torch.long, device=device)
        self.statuses = torch.zeros((MOST_STEPS, groups), dtype=torch.int32, device=device)
        self.reader = _Reader(self.tokens, self.statuses)
        self.rows.page_table.fill_(spare)
        self._load(draws, state)
        begin = time.perf_counter()
        with torch.cuda.device_of(self.inputs):
            self.replay = capture(self._step)
        self.seconds = time.perf_counter() - begin
        self.kept = decoder.logits_buffer  # the capture writes there, whatever the decoder has later

    def fits(self, decoder: CapturableDecoder, cache: StreamCache, draws: Draws, state: ops.DecodeState) -> bool:
        """Whether `run` can be called with these, and does what ``decoder`` would."""
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
        """Whether the same sets are drawn from, by the same grammar."""
        mine, its = self.tables, draws.tables
        same = mine is its or (mine.vocab, mine.sets, mine.host) == (its.vocab, its.sets, its.host)
        return (
            same
            and mine.sets.largest == its.sets.largest
            and self.spans == draws.spans
            and self.parameters.keys() <= draws.parameters.keys()
        )

    def _load(self, draws: Draws, state: ops.DecodeState) -> None:
        """Everything but the rows into the buffers."""
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
        """What is captured: an id into every row, a draw for every group."""
        lengths = self.rows.lengths
        hidden = self.decoder.layers_of_step(self.rows, self.inputs, self.cos[lengths], self.sin[lengths])
        drawn = ops.sample_advance(
            self.decoder.logits(hidden, self.spans),
            self.tables,
            self.state,
            streams=self.streams,
            weights=self.weights,
            seed=self.seeds,
            **self.parameters,
        )
        if self.rows.some_alike:
            self.inputs.copy_(self.inputs[self.rows.like])
        lengths.add_(1)
        self.tokens.index_copy_(0, self.place, drawn.token[None])
        self.statuses.index_copy_(0, self.place, drawn.status[None])
        self.place.add_(1)

    def run(self, cache: StreamCache, draws: Draws, state: ops.DecodeState, steps: int) -> tuple[Tensor, Tensor]:
        """So many steps of ``cache``, which has room for them, from ``state`` on, whose ``seen`` is kept: tokens and
        statuses (steps, groups), views that the next run overwrites.
        """
        self._begin(cache, draws, state)
        with torch.cuda.device_of(self.inputs):
            for _ in range(steps):
                self.replay()
        cache.grow(steps)
        if state.seen is not None and self.state.seen is not None:
            state.seen.copy_(self.state.seen[: len(state.seen)])
        groups = len(draws.streams)
        return self.tokens[:steps, :groups], self.statuses[:steps, :groups]

    def run_ahead(
        self, cache: StreamCache, draws: Draws, state: ops.DecodeState, steps: int
    ) -> Iterator[tuple[list[int], list[int]]]:
        """At most so many steps, as of `run`. Yields a step's tokens and statuses when the next one is on its way and
        ``cache`` has grown; if the iterator is closed, the next one is for nothing.
        """
        self._begin(cache, draws, state)
        groups = len(draws.streams)
        with torch.cuda.device_of(self.inputs):
            self.replay()
        for step in range(steps):
            self.reader.send(step)
            if step + 1 < steps:
                with torch.cuda.device_of(self.inputs):
                    self.replay()
            tokens, statuses = self.reader.receive(step)
            cache.grow()
            yield tokens[:groups], statuses[:groups]


class _Reader:
    """Brings tokens and statuses (steps, groups) to the host, one step's at a time; it waits for no later step."""

    def __init__(self, tokens: Tensor, statuses: Tensor) -> None:
        self.device, self.there = (tokens, statuses), tokens.device.type == "cuda"
        self.host = tuple(torch.empty(t.shape, dtype=t.dtype, device="cpu", pin_memory=self.there) for t in self.device)
        self.sent = [torch.cuda.Event() for _ in tokens] if self.there else []

    def send(self, step: int) -> None:
        """After the launch of ``step``, before that of the next."""
        for mine, its in zip(self.host, self.device, strict=True):
            mine[step].copy_(its[step], non_blocking=True)
        if self.there:
            self.sent[step].record()

    def receive(self, step: int) -> tuple[list[int], list[int]]:
        if self.there:
            self.sent[step].synchronize()
        tokens, statuses = (t[step].tolist() for t in self.host)
        return tokens, statuses


class CapturedSteps:
    """What ``decoder`` captures. The pool of pages that captured steps write to keeps the last few of them, for later
    decoders of the same model too, until it gets other memory.
    """

    def __init__(self, decoder: CapturableDecoder, capture: Capture) -> None:
        self.decoder, self.capture, self.possible = decoder, capture, True

    def get(self, cache: StreamCache, draws: Draws, state: ops.DecodeState, steps: int) -> CapturedStep | None:
        """A captured step that fits, captured now if there is none; ``cache`` then has room for ``steps`` steps.

        None if there are too few pages, for more than `MOST_STEPS` steps, and if the step cannot be captured (with a
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
            cache.pool.allocate()  # what is captured knows this memory
            cache.reclaim(1)
            spare = cache.pool.take(1)
        except PoolExhausted:
            return None
        try:
            made = CapturedStep(self.decoder, cache, draws, state, spare[0], self.capture)
        except CannotCapture as error:
            self.possible = False
            warnings.warn(f"steps are not captured: {error}", stacklevel=2)
            return None
        finally:
            cache.pool.release(spare)
        captured[:] = [made, *captured[: MOST_KEPT - 1]]
        return made
