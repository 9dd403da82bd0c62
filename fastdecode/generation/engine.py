"""`Engine` decodes many requests at once, from any thread; `stream` yields one document while it is made."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastdecode.decoder import decoder_for
from fastdecode.decoder.alterations import Fingerprint, mode_of_torch
from fastdecode.decoder.autocast import Autocast
from fastdecode.decoder.wrappers import share_generation_config
from fastdecode.engine.core import EngineCore
from fastdecode.engine.events import Event
from fastdecode.engine.scheduler import FEW_STEPS
from fastdecode.generation.api import prepare_call
from fastdecode.generation.generate_options import GenerateOptions
from fastdecode.generation.handle import Handle
from fastdecode.generation.option_kinds import check_whole
from fastdecode.generation.prepared import Prepared
from fastdecode.generation.prompts import check_processor, prompt_inputs
from fastdecode.generation.room_checks import check_deterministic, check_fits
from fastdecode.generation.step_lock import StepLock
from fastdecode.generation.validation import check_config
from fastdecode.models.families import supported
from fastdecode.ops.scalars import shown
from fastdecode.wording import kind_of

RETAIN_BYTES = 256 << 20
"""The maximum memory of prompts' pages that an engine without a limit retains for later prompts."""

OWN_OPTIONS = tuple(GenerateOptions.__dataclass_fields__)


@dataclass(frozen=True)
class EngineStatistics:
    """Counts of requests, tokens and pages of an engine, since it was made or at present.

    ``submitted`` = ``waiting`` + ``running`` + ``finished`` + ``aborted`` + ``failed``. ``preemptions``: how often a
    request gave its pages back and had to be resumed. ``tokens``: generated tokens. ``rows``: streams in a step at
    present. ``pages_used``: by requests. ``pages_retained``: for later prompts with the same beginning.
    ``pages_limit``: None without a limit.
    """

    submitted: int
    waiting: int
    running: int
    finished: int
    aborted: int
    failed: int
    preemptions: int
    tokens: int
    rows: int
    pages_used: int
    pages_retained: int
    pages_peak: int
    pages_limit: int | None


class Engine:
    """Decodes many requests at once. They share every step, whatever their modality, guidance and parameters.

        model          a model that `fastdecode.generate` takes
        processor      its processor, for prompts given as text and pictures, and for text in events
        pages          maximum number of pages (32 tokens of one stream) of keys and values; None: no limit
        max_rows       maximum number of streams in a step; None: no limit
        deterministic  a request's tokens do not depend on what runs beside it, bit for bit

    `submit` requests from any thread. Then `run` until all have ended, or `start` a thread that decodes them
    (``with Engine(…) as engine`` starts it, and at the end closes the engine, which aborts requests that have not
    ended: wait for their results inside). Without either, `Handle.result` and iteration decode.

    The model must stay as it is while the engine is used: after a hook, an adapter or a module was added or removed,
    or a weight was written to, `submit` raises RuntimeError. An engine that was made under `torch.autocast` decodes
    under it, in any thread. A mode of torch (a `TorchFunctionMode` or `TorchDispatchMode`) is on in one thread only: an
    engine that was made in one decodes only there, and `start` raises RuntimeError.

    A request waits until there are rows and pages for all its streams. Requests of one priority are served in order of
    arrival. When pages run out, the last request gives its pages back; it resumes later with the same tokens. Raises
    TypeError for an unsupported model, ValueError for sizes below 1 or a model that cannot be deterministic.
    """

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        *,
        pages: int | None = None,
        max_rows: int | None = None,
        deterministic: bool = False,
    ) -> None:
        given, model = model, supported(model)
        for name, value in (("pages", pages), ("max_rows", max_rows)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={shown(value)}: give a whole number of at least 1, or None for no limit")
        if not isinstance(deterministic, bool):
            raise ValueError(f"deterministic={deterministic!r}: give True or False")
        check_processor(processor)
        self.model, self.processor, self.deterministic = model, processor, deterministic
        decoder = decoder_for(model, deterministic)
        self._mode = mode_of_torch()
        self._made_for = Fingerprint(model, weights=decoder.forward_reason is None)
        check_deterministic(decoder)
        share_generation_config(given, model)
        pool = decoder.new_pool(pages)
        kept = max(1, RETAIN_BYTES // pool.page_bytes)
        retain = None if pages is not None else kept
        if decoder.forward_reason is not None:
            retain = 0  # what a hook does may change from one request to the next
        if decoder.device.type == "cpu":
            pool.reserve(kept)  # costs nothing until it is used, and then nothing is copied
        self._core = EngineCore(decoder, pool, max_rows=max_rows, retain=retain, most_steps=FEW_STEPS)
        self._max_rows = max_rows
        self._preparing = threading.Lock()
        self._stepping = StepLock()
        self._process = os.getpid()
        self._work = threading.Condition()
        self._inbox: deque[Callable[[], None]] = deque()
        self._handles: dict[int, Handle] = {}
        self._submitted = 0
        self._ended = {"finished": 0, "aborted": 0, "failed": 0}
        self._tokens = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("an Engine cannot be copied or pickled, since it holds requests and threads: make another")

    # --- requests -----------------------------------------------------------------------------------------------

    def submit(
        self,
        inputs: str | Mapping[str, Any] | Sequence[int] | Tensor | None = None,
        *,
        images: Sequence[Any] | Any = None,
        priority: int = 0,
        **options: Any,
    ) -> Handle:
        """Queue a request and return at once.

            inputs    the prompt: text (with ``images`` for its ``<image>``), what the processor returned, or tokens
                      (length,) or (1, length)
            images    a PIL picture, the path of a file, an array (height, width, 3) uint8, or a list of these, for the
                      ``<image>`` of a prompt given as text; without any ``<image>`` they go before the text
            priority  requests of a higher priority go first
            options   those of `fastdecode.generate`

        Errors are raised in the caller's thread, before anything changes: what `fastdecode.generate` raises for a wrong
        option, ValueError for a request that can never fit into the engine's pages or rows, and RuntimeError if the
        engine is closed, its model was changed, or torch is in another mode than where it was made.
        """
        self._check_open()
        self._check_mode()
        self._check_model()
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise ValueError(f"priority={priority!r}: give a whole number; higher ones go first")
        prompt = prompt_inputs(self.model, self.processor, inputs, images, options)
        double = next((name for name in prompt if inputs is not None and options.get(name) is not None), None)
        if double is not None:
            raise ValueError(f"{double} was given twice: in the inputs, and as an option")
        prepared = self._prepare(prompt, dict(options))
        if prepared.told_sizes is not None:
            raise ValueError("an engine takes no image_grid_thw: draw with fastdecode.generate")
        check_fits(prepared.sequences, self._core.cache.pool, "the engine", "the request")
        [request] = prepared.requests(priority=priority)
        if self._max_rows is not None and request.most_rows > self._max_rows:
            raise ValueError(
                f"the request needs {request.most_rows} streams at once, and the engine has max_rows={self._max_rows}: "
                "use a Guidance of fewer streams, or an engine with more rows"
            )
        with self._work:
            self._check_open()
            request.number = self._submitted
            self._submitted += 1
            for s in request.sequences:
                s.name = f"request {request.number}"
            handle = Handle(self, prepared, request, self.processor)
            self._handles[request.number] = handle
            self._inbox.append(lambda: self._core.add(request))
            self._work.notify_all()
        return handle

    def _prepare(self, inputs: dict[str, Any], options: dict[str, Any]) -> Prepared:
        options = {**inputs, **options}  # a mapping may hold options too
        refused = {
            "kv_pool": "an engine has pages of its own: give pages=… to the Engine",
            "progress": "iterate over the handle instead",
            "streamer": "iterate over the handle instead, which tells text and pictures as they come",
        }
        config = options.get("generation_config")
        check_config(config)
        given = {name: options.pop(name) for name in OWN_OPTIONS if name in options}
        if given.get("kv_pool") is not None:
            raise ValueError(f"kv_pool: {refused['kv_pool']}")
        found = vars(GenerateOptions.found(self.model, config, given)) | {"streamer": options.pop("streamer", None)}
        for name, why in refused.items():
            if found[name] is not None and found[name] is not False:
                raise ValueError(f"{name}: {why}")
        if found["fallback"] not in (None, "error"):
            raise ValueError(
                f"fallback={shown(found['fallback'])}: an engine decodes every request itself; it hands none to "
                "transformers"
            )
        if found["deterministic"] not in (None, self.deterministic):
            raise ValueError(
                f"deterministic: this engine has deterministic={self.deterministic} for all its requests: make another"
            )
        check_whole("num_return_sequences", options.get("num_return_sequences"), 1)
        if options.get("num_return_sequences") not in (None, 1):
            raise ValueError(
                f"num_return_sequences={shown(options['num_return_sequences'])}: submit takes one prompt and returns "
                "one handle; submit it several times, with seeds of their own"
            )
        given = {name: value for name, value in found.items() if name in OWN_OPTIONS and name != "progress"}
        given["deterministic"] = self.deterministic
        if options.get("inputs") is None and options.get("input_ids") is None:
            raise ValueError("no prompt: give text, what the processor returned, or tokens")
        with self._preparing:
            prepared = prepare_call(self.model, options.pop("inputs", None), options, given)
        if len(prepared.sequences) != 1:
            raise ValueError(
                f"submit takes one prompt, and got {len(prepared.sequences)}: submit each by itself; they are decoded "
                "together all the same"
            )
        return prepared

    def abort(self, handle: Handle) -> None:
        """As `Handle.abort`. TypeError for what is no handle, ValueError for a handle of another engine."""
        if not isinstance(handle, Handle):
            raise TypeError(f"handle is {kind_of(handle)}: give what submit returned")
        if handle._engine is not self:
            raise ValueError(f"request {handle.number} is of another engine: call its handle's own abort()")
        self._inbox.append(lambda: self._core.abort(handle._request))
        with self._work:
            self._work.notify_all()
        if self._stepping.acquire(blocking=False):  # no thread decodes, so no other thread would read the inbox
            try:
                self._take_inbox()
            finally:
                self._stepping.release()

    # --- decoding -----------------------------------------------------------------------------------------------

    @property
    def started(self) -> bool:
        """Whether the engine's own thread decodes."""
        return self._thread is not None and self._thread.is_alive()

    def run(self) -> None:
        """Decode until no request is left, including requests submitted meanwhile. Several threads may call it.

        An interrupt (Ctrl-C) leaks no page. Call it again to continue.
        """
        self._check_open()
        self._check_mode()
        while self._iterate():
            pass

    def advance(self, handle: Handle) -> None:
        """Decode one iteration, unless ``handle`` ended while this thread waited for its turn."""
        self._check_process()
        self._check_mode()
        with self._stepping:
            if not handle.done:
                self._step()

    def _iterate(self) -> bool:
        with self._stepping:
            return self._step()

    def _step(self) -> bool:
        """Run one iteration. False if there is nothing to do. The caller must hold ``_stepping``."""
        self._take_inbox()
        try:
            return self._core.step()
        except Exception as error:
            for request in [*self._core.scheduler.running, *self._core.scheduler.waiting]:
                self._core.fail(request, error)
            return True

    def _take_inbox(self) -> None:
        try:
            while self._inbox:
                self._inbox[0]()
                self._inbox.popleft()  # only now: an interruption loses no request
        except BaseException:
            self._core.reset()
            raise

    def ended(self, handle: Handle) -> None:
        """Count a request that has ended, and forget it. Its handle calls this before it reports the end."""
        request = handle._request
        kind = "failed" if request.error is not None else "aborted" if request.aborted else "finished"
        with self._work:
            if self._handles.pop(request.number, None) is not None:
                self._ended[kind] += 1
                self._tokens += len(handle.tokens)

    def start(self) -> Engine:
        """Start a thread that decodes requests as they arrive, and lives until `close`. Returns the engine."""
        if self._mode is not None:
            raise RuntimeError(
                f"{self._mode}, which another thread would not be: make the Engine outside of it, or decode with run()"
            )
        with self._work:
            self._check_open()
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="fastdecode engine", daemon=True)
                self._thread.start()
        return self

    def _serve(self) -> None:
        while True:
            with self._work:
                self._work.wait_for(lambda: self._closed or self._inbox or not self._core.idle)
                if self._closed:
                    return
            try:
                self._iterate()
            except BaseException as error:  # of this thread alone: nobody would hear of it
                with self._work:
                    self._closed = True
                self._end_all(error)
                raise

    def _end_all(self, error: BaseException | None = None) -> None:
        """End every request that is open: with ``error``, or as aborted."""
        with self._stepping:
            self._inbox.clear()
            for handle in list(self._handles.values()):
                if error is None:
                    handle._request.cause = "the engine was closed"
                    self._core.abort(handle._request)
                else:
                    self._core.fail(handle._request, error)
            self._core.cache.clear()

    def close(self) -> None:
        """Stop the thread, if there is one, and abort requests that have not ended. `submit` raises from now on."""
        self._stepping.refuse_inside()
        with self._work:
            self._closed = True
            self._work.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None
        self._end_all()

    def __enter__(self) -> Engine:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError("this engine was made in another process: make one after the fork")

    def _check_open(self) -> None:
        self._check_process()
        if self._closed:
            raise RuntimeError("this engine is closed: make another one")

    def _check_mode(self) -> None:
        """RuntimeError if torch is in another mode here than where the engine was made."""
        mode = mode_of_torch()
        if mode != self._mode:
            made = "where it was in no mode" if self._mode is None else f"where {self._mode}"
            now = "torch is in no mode" if mode is None else mode
            raise RuntimeError(f"{now}, and this engine was made {made}: use it where it was made, or make another")

    def _check_model(self) -> None:
        """RuntimeError if the model is not what the engine was made for."""
        decoder = self._core.decoder
        changed = self._made_for.change()
        if changed is not None:
            raise RuntimeError(f"the model was changed after this engine was made ({changed}): make another Engine")
        autocast = Autocast.now(decoder.device)
        if autocast.on and autocast != decoder.autocast:
            raise RuntimeError(
                f"{autocast} is on, and this engine was made with {decoder.autocast}: make the Engine where autocast "
                "is on, or submit where it is off"
            )

    # --- what is going on ---------------------------------------------------------------------------------------

    def statistics(self) -> EngineStatistics:
        """The current counts of requests, tokens and pages. Call it from any thread."""
        core = self._core
        pool, scheduler = core.cache.pool, core.scheduler
        with self._work:
            ended, submitted, open_now = dict(self._ended), self._submitted, len(self._handles)
            generated = self._tokens + sum(len(h.tokens) for h in self._handles.values())
        running = len(scheduler.running)
        retained = core.cache.retained
        return EngineStatistics(
            submitted=submitted,
            waiting=max(0, open_now - running),
            running=min(running, open_now),
            **ended,
            preemptions=scheduler.preemptions,
            tokens=generated,
            rows=core.cache.rows,
            pages_used=pool.used - retained,
            pages_retained=retained,
            pages_peak=pool.peak,
            pages_limit=pool.limit,
        )

    def forget_prompts(self) -> None:
        """Free the pages that are retained for later prompts."""
        with self._stepping:
            self._core.cache.drop_retained()


def stream(model: Any, processor: Any, inputs: Any = None, **options: Any) -> Iterator[Event]:
    """Decode one prompt and yield its document as it is made: events of `fastdecode.engine.events`, such as `TextDelta`
    and `PictureDone`. Takes the arguments of `Engine.submit` (also ``**inputs`` of the processor), and raises its
    errors at once. Leaving the loop early ends the request.
    """
    deterministic = options.pop("deterministic", None)
    engine = Engine(model, processor, deterministic=False if deterministic is None else deterministic)
    handle = engine.submit(inputs, **options)

    def events() -> Iterator[Event]:
        try:
            yield from handle
        finally:
            engine.close()

    return events()
