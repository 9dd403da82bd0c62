"""Requests on their way through the engine: prepared off the event loop, followed, and ended early when they must."""

from __future__ import annotations

import asyncio
import secrets
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from fastdecode.generation.by_recipe import check_served, request_of
from fastdecode.generation.engine import Engine
from fastdecode.generation.handle import Handle
from fastdecode.models.families import supported, vocabulary_of
from fastdecode.models.pictures import missing_decoder_keys
from fastdecode.models.recipes import check_like
from fastdecode.serve.job import Job
from fastdecode.serve.limits import Limits, Refused
from fastdecode.serve.metrics import Metrics
from fastdecode.serve.pictures import open_pictures
from fastdecode.serve.schema import GenerateRequest, read_request

RETRY_AFTER = 2
"""Seconds after which a client that was told to come back may try again."""

STOPPING = "the server is shutting down: try again later"


class Service:
    """An engine, the limits of a server, and the requests that are open. For one event loop. ``like``: as of
    `fastdecode.recipe`, for requests with a task.
    """

    def __init__(self, engine: Engine, limits: Limits, like: str | None = None) -> None:
        if engine.processor is None:
            raise ValueError("a server needs an engine with a processor: fastdecode.Engine(model, processor)")
        model = supported(engine.model)
        check_like(model, like)
        check_served(model)
        self.engine, self.limits, self.metrics, self.like = engine, limits, Metrics(engine), like
        self.vocabulary = vocabulary_of(engine.model)
        self.paints = self.vocabulary.has_pictures and not missing_decoder_keys(engine.model)
        self.jobs: set[Job] = set()
        self.stopping = False
        self._preparing = 0
        # One thread: preparing is serial in the engine too, and must not take those that streams paint in.
        self._executor = ThreadPoolExecutor(1, "fastdecode prepare")

    @property
    def waiting(self) -> int:
        """Requests that are being prepared, or wait for rows or pages.

        Counted from what the event loop knows: the engine counts a request as its own a moment before the thread that
        submitted it reports back, and so both would count it.
        """
        submitted = sum(not job.handle.done for job in self.jobs)
        return max(0, self._preparing + submitted - self.engine.statistics().running)

    def check_room(self) -> None:
        """`Refused` with 503 if a request cannot be taken now."""
        if self.stopping:
            raise Refused(503, STOPPING)
        waiting = self.waiting
        if waiting > self.limits.waiting:
            raise Refused(
                503,
                f"{waiting} requests wait already, more than the {self.limits.waiting} that this server lets wait: "
                f"try again in {RETRY_AFTER} seconds",
                {"Retry-After": str(RETRY_AFTER)},
            )

    async def submit(self, body: bytes, arrived: float) -> Job:
        """Read a request and submit it. `Refused` says what is wrong with it."""
        self.check_room()
        self._preparing += 1
        future = self._executor.submit(self._prepare, body)
        try:
            asked, seed, handle = await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            future.add_done_callback(_abort)
            raise
        finally:
            self._preparing -= 1
        job = Job(self, handle, asked, seed, arrived)
        self.jobs.add(job)
        if self.stopping:
            job.stop("shutdown")
        return job

    def _prepare(self, body: bytes) -> tuple[GenerateRequest, int, Handle]:
        asked = read_request(body)
        limits = self.limits
        if len(asked.prompt) > limits.prompt_characters:
            raise Refused(
                413,
                f"the prompt has {len(asked.prompt)} characters, and this server takes at most "
                f"{limits.prompt_characters}",
            )
        pictures = open_pictures(asked.images, limits)
        seed = secrets.randbits(31) if asked.seed is None else asked.seed
        try:
            engine = self.engine
            inputs, options = request_of(
                engine.model,
                engine.processor,
                asked.prompt,
                pictures,
                asked.options(),
                task=asked.task,
                like=self.like,
                image_size=asked.image_size,
            )
            options |= self._length(asked, options, inputs["input_ids"].shape[1])
            return asked, seed, self.engine.submit(inputs, seed=seed, priority=asked.priority, **options)
        except (ValueError, TypeError) as error:
            raise Refused(422, str(error)) from error
        except RuntimeError:
            if self.stopping:
                raise Refused(503, STOPPING) from None
            raise

    def _length(self, asked: GenerateRequest, options: dict[str, Any], prompt_tokens: int) -> dict[str, Any]:
        """``max_new_tokens`` as it is submitted. `Refused` if the limit or the context has no room for it."""
        most, room = self.limits.new_tokens, max(1, self.vocabulary.context - prompt_tokens)
        if asked.max_new_tokens is None:
            if options.get("multimodal_generation_mode") == "image-only":  # one picture
                return {}
            usual = min(options.get("max_new_tokens", room), room)
            return {"max_new_tokens": usual if most is None else min(most, usual)}
        if most is not None and asked.max_new_tokens > most:
            raise Refused(
                422,
                f"max_new_tokens = {asked.max_new_tokens}: this server generates at most {most} tokens of a request",
            )
        if asked.max_new_tokens > room:
            raise Refused(
                422,
                f"max_new_tokens = {asked.max_new_tokens}: the prompt has {prompt_tokens} tokens and the model's "
                f"context is {self.vocabulary.context}, which leaves room for {room}: ask for no more, or leave it out",
            )
        return {"max_new_tokens": asked.max_new_tokens}

    def ended(self, job: Job) -> None:
        self.jobs.discard(job)
        self.metrics.duration.observe(time.monotonic() - job.arrived)

    def stop(self) -> None:
        """Take no more requests, and end those that are open, which tell their clients."""
        self.stopping = True
        for job in list(self.jobs):
            job.stop("shutdown")

    def close(self) -> None:
        """Stop for good, and close the engine; waits for its last step."""
        self._executor.shutdown()
        self.engine.close()


def _abort(future: Future[tuple[GenerateRequest, int, Handle]]) -> None:
    """Nobody waits any more for what was prepared."""
    if not future.cancelled() and future.exception() is None:
        future.result()[2].abort()
