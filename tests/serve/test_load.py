"""Many clients at once, a third of which leave at random moments, leave nothing behind."""

from __future__ import annotations

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fastdecode.serve.limits import Limits
from tests.serve.serving import (
    ONE_PICTURE,
    SNOWMAN,
    Served,
    as_document,
    generated,
    same,
    serving,
    streamed_document,
    wait_until,
)

REQUESTS = (
    SNOWMAN,
    SNOWMAN | {"prompt": "Build a tree in column 1.", "seed": 11},
    SNOWMAN | {"prompt": "Build a traffic light in column 4.", "seed": 12, "priority": 1},
    ONE_PICTURE,
    ONE_PICTURE | {"guidance": 2.0, "seed": 4, "image": {"temperature": 0.85}},
    {"prompt": SNOWMAN["prompt"], "mode": "text-only", "max_new_tokens": 40, "seed": 5},
)


def client(served: Served, number: int, seed: int) -> Any:
    """The document that it got; None if it left."""
    dice = random.Random(f"{seed}/{number}")
    request = REQUESTS[number % len(REQUESTS)]
    if number % 3 == 1:  # leaves
        if dice.random() < 0.5:
            connection = served.send(request)
            time.sleep(dice.random())
            connection.close()
        else:
            stream = served.stream(request)
            for _ in range(dice.randrange(1, 12)):
                next(stream, None)
            stream.close()
        return None
    if dice.random() < 0.5:
        return streamed_document(list(served.stream(request)))
    status, _, answer = served.post(request)
    assert status == 200, answer
    return as_document(answer["document"])


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


POOLS = ("asyncio_", "uvloop_")
"""Of the event loop: asyncio's, and uvloop's, which uvicorn takes where it is installed."""


def threads() -> int:
    """Those of pools apart, which are few, and grow as they are needed."""
    names = [thread.name for thread in threading.enumerate()]
    assert sum(name.startswith(POOLS) for name in names) <= min(32, (os.cpu_count() or 1) + 4)
    return sum(not name.startswith((*POOLS, "AnyIO")) for name in names)


@pytest.mark.parametrize("clients", [12, pytest.param(64, marks=pytest.mark.long)])
def test_nothing_is_left_behind(blocks: tuple[Any, Any], clients: int) -> None:
    wanted = [generated(*blocks, {k: v for k, v in request.items() if k != "priority"}) for request in REQUESTS]
    with serving(*blocks, limits=Limits(waiting=clients), pages=120, max_rows=48) as served:
        served.post(ONE_PICTURE), list(served.stream(ONE_PICTURE))
        wait_until(served.is_empty)
        before = threads(), descriptors()
        start = time.perf_counter()
        for turn in range(2):
            with ThreadPoolExecutor(clients) as pool:
                documents = list(pool.map(lambda i, turn=turn: client(served, i, turn), range(clients)))
            stayed = [(i, document) for i, document in enumerate(documents) if i % 3 != 1]
            assert all(same(document, wanted[i % len(wanted)]) for i, document in stayed)
            wait_until(served.is_empty)
        spent = time.perf_counter() - start
        wait_until(lambda: descriptors() <= before[1])
        assert threads() <= before[0]
        now = served.engine.statistics()
        left = 2 * sum(i % 3 == 1 for i in range(clients))
        assert now.failed == 0
        assert now.submitted == now.finished + now.aborted
        assert 0 < now.aborted <= left
        assert now.pages_peak <= 120
        served.engine.forget_prompts()
        assert served.engine._core.cache.pool.used == 0
        print(
            f"{clients} clients, twice: {now.submitted} requests in {spent:.1f} s, {now.aborted} of {left} that left "
            f"were aborted, {now.tokens} tokens ({now.tokens / spent:.0f} per second), {now.pages_peak} pages at peak, "
            f"{now.preemptions} preemptions"
        )
