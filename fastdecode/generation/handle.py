"""A handle on a submitted request: its events while it is decoded, and its result."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image
from torch import Tensor
from transformers.generation import GenerateDecoderOnlyOutput

from fastdecode.engine.events import DocumentEvents, Event, Finished
from fastdecode.engine.request import Request
from fastdecode.generation.prepared import Prepared
from fastdecode.models.documents import to_documents

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop


class RequestFailed(RuntimeError):
    """A request has no result: it failed (``__cause__`` is its error) or was aborted."""


class Driver(Protocol):
    """The part of an engine that a handle uses."""

    def advance(self, handle: Handle) -> None: ...

    def abort(self, handle: Handle) -> None: ...

    def ended(self, handle: Handle) -> None: ...


class Handle:
    """Made by `fastdecode.Engine.submit`. Every method may be called from any thread.

    Iterate over it with ``for`` or ``async for`` to get the events of `fastdecode.engine.events` as they happen. Every
    iteration begins with the first event. The last event is `Finished`; if the request failed, `RequestFailed` is
    raised after it. The iterating thread decodes the text and the pictures.
    """

    def __init__(self, engine: Driver, prepared: Prepared, request: Request, processor: Any) -> None:
        self._engine, self._prepared, self._request, self._processor = engine, prepared, request, processor
        self._changed = threading.Condition()
        self._wakers: list[Callable[[], None]] = []
        request.on_change = self._notify

    def __repr__(self) -> str:
        return f"<Handle of request {self.number}: {self.reason or 'running or waiting'}>"

    @property
    def number(self) -> int:
        """The number of the request: an engine counts from 0, in the order of submission."""
        return self._request.number

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a Handle cannot be copied or pickled: give its result() or document() on")

    @property
    def done(self) -> bool:
        return self._request.done

    @property
    def reason(self) -> str | None:
        """Why the request ended: "stop", "length", "aborted" or "error"; None before it ends."""
        return self._request.reason if self._request.done else None

    @property
    def tokens(self) -> list[int]:
        """The tokens generated so far."""
        return self._request.sequences[0].generated

    @property
    def logprobs(self) -> list[float]:
        """The natural logarithm of the probability of each of `tokens`, among those that could be drawn in its place:
        after guidance, temperature and the other sampling parameters. 0 for forced tokens and without sampling.
        """
        s = self._request.sequences[0]
        return s.logprobs[: len(s.generated)]

    def abort(self) -> None:
        """End the request. Its pages are free after at most one step. No effect if it has ended."""
        self._engine.abort(self)

    def result(self, timeout: float | None = None) -> Tensor | GenerateDecoderOnlyOutput:
        """Wait for the end, and return what `fastdecode.generate` would return for this prompt: (1, length + new)
        int64. If the engine has no thread of its own, this call decodes.

        Raises `RequestFailed` with the request's number if it failed or was aborted, TimeoutError after ``timeout``
        seconds.
        """
        self._wait_until(lambda: self.done, timeout)
        self._raise_if_failed()
        return self._prepared.output()

    def document(self, timeout: float | None = None) -> list[str | Image.Image]:
        """The result as a list of text and pictures, like that of `fastdecode.to_documents`, without the prompt."""
        self._wait_until(lambda: self.done, timeout)
        self._raise_if_failed()
        if self._processor is None:
            raise ValueError("document() needs a processor: give one to the Engine")
        s = self._request.sequences[0]
        tokens, start = (s.generated, 0) if s.vectors else (s.tokens, s.prompt_length)
        [document] = to_documents(self._prepared.model, self._processor, [tokens], start)
        return document

    # --- events -------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Event]:
        teller = self._teller()
        while True:
            events, finished = teller.news()
            yield from events
            if finished:
                break
            if not teller.behind():
                self._wait_until(teller.behind, None)
        yield from self._last_events(teller)

    async def __aiter__(self) -> AsyncIterator[Event]:
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        waker = _waker(loop, woken)
        teller = self._teller()
        with self._changed:
            self._wakers.append(waker)
        try:
            while True:
                woken.clear()
                events, finished = teller.news()
                told = await asyncio.to_thread(list, events)
                for event in told:
                    yield event
                if finished:
                    break
                if not teller.behind():
                    if self._engine_has_thread():
                        await woken.wait()
                    else:
                        await asyncio.to_thread(self._engine.advance, self)
            for event in self._last_events(teller):
                yield event
        finally:
            with self._changed:
                self._wakers.remove(waker)

    def _engine_has_thread(self) -> bool:
        return bool(getattr(self._engine, "started", False))

    def _teller(self) -> _Teller:
        self._request.listened = True
        return _Teller(self._request, self._prepared, self._processor)

    def _last_events(self, teller: _Teller) -> Iterator[Event]:
        yield from teller.parser.end()
        yield Finished(self._request.reason, self._request.error)
        if self._request.error is not None:
            self._raise_if_failed()

    # --- within -------------------------------------------------------------------------------------------------

    def _notify(self) -> None:
        if self._request.done:
            self._engine.ended(self)
        with self._changed:
            self._changed.notify_all()
            for waker in self._wakers:
                waker()

    def _wait_until(self, ready: Callable[[], bool], timeout: float | None) -> None:
        """Wait for the engine's thread until ``ready``, or decode until then."""
        deadline = _Deadline(timeout)
        if self._engine_has_thread():
            with self._changed:
                if not self._changed.wait_for(lambda: ready() or not self._engine_has_thread(), deadline.seconds):
                    raise TimeoutError(f"request {self.number} has not ended after {timeout} s")
        while not ready():
            if deadline.passed:
                raise TimeoutError(f"request {self.number} has not ended after {timeout} s")
            self._engine.advance(self)

    def _raise_if_failed(self) -> None:
        error = self._request.error
        if error is not None:
            raise RequestFailed(f"request {self.number} failed: {type(error).__name__}: {error}") from error
        if self._request.aborted:
            cause = f": {self._request.cause}" if self._request.cause else ""
            raise RequestFailed(f"request {self.number} was aborted{cause}")


class _Teller:
    """The progress of one iteration over a request's events."""

    def __init__(self, request: Request, prepared: Prepared, processor: Any) -> None:
        self.request, self.sequence, self.told = request, request.sequences[0], 0
        s = self.sequence
        start = s.grammar.image_start(s.prompt_length, s.grammar.start(s.tokens[: s.prompt_length]))
        begun = s.tokens[start + 1 : s.prompt_length] if start >= 0 else None
        self.parser = DocumentEvents(prepared.model, processor, prepared.vocabulary, s.grammar.draws, begun)

    def behind(self) -> bool:
        """Whether there are new events."""
        return self.request.done or len(self.sequence.tokens) - self.sequence.prompt_length > self.told

    def news(self) -> tuple[Iterator[Event], bool]:
        """The events of new tokens, and whether they are the last ones."""
        done = self.request.done  # read before the tokens: the next call gets later ones
        new = self.sequence.tokens[self.sequence.prompt_length + self.told :]
        self.told += len(new)
        return (self.parser.feed(new) if new else iter(())), done


class _Deadline:
    def __init__(self, timeout: float | None) -> None:
        wrong = isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout != timeout
        if timeout is not None and wrong:
            raise ValueError(f"timeout={timeout!r}: give a number of seconds, or None to wait without end")
        self.seconds = None if timeout is None else min(timeout, threading.TIMEOUT_MAX / 2)  # more cannot be waited
        self._end = None if self.seconds is None else time.monotonic() + self.seconds

    @property
    def passed(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end


def _waker(loop: AbstractEventLoop, woken: asyncio.Event) -> Callable[[], None]:
    def wake() -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
            loop.call_soon_threadsafe(woken.set)

    return wake
