"""Requests that arrive by a Poisson process, three ways to serve them, and the time of each token.

The time of a token is when the caller could have it: when `Handle` gets it, when a stopping criterion of ``generate``
gets it, or when transformers' continuous batching writes its time stamp. No text or pictures are decoded during the
measurement.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig, StoppingCriteria, StoppingCriteriaList

import fastdecode
from fastdecode.vocabulary import Vocabulary


@dataclass(frozen=True)
class Demand:
    """A prompt and the options of `fastdecode.generate`."""

    kind: str
    prompt: tuple[int, ...]
    options: dict[str, Any]

    def inputs(self) -> dict[str, Tensor]:
        ids = torch.tensor([self.prompt])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@dataclass
class Served:
    """``stamps``: moments, and how many new tokens there were; ``arrival`` and moments on one clock, in seconds."""

    demand: Demand
    arrival: float
    stamps: list[tuple[float, int]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def when(self, count: int) -> float:
        """The time at which there were so many new tokens."""
        return next(moment for moment, there in self.stamps if there >= count)

    @property
    def first(self) -> float:
        return self.when(1) - self.arrival

    @property
    def whole(self) -> float:
        return self.when(len(self.tokens)) - self.arrival

    @property
    def per_token(self) -> float | None:
        """Seconds per token after the first one."""
        moment, there = self.stamps[0]
        return (self.when(len(self.tokens)) - moment) / (len(self.tokens) - there) if len(self.tokens) > there else None

    def pictures(self, v: Vocabulary) -> list[float]:
        """Seconds from each picture's begin to its last image token."""
        begins = [i for i, token in enumerate(self.tokens) if token == v.begin_image]
        whole = [i for i in begins if i + v.image_length < len(self.tokens)]
        return [self.when(i + 1 + v.image_length) - self.when(i + 1) for i in whole]


def poisson(rate: float, seconds: float, demands: Sequence[Demand], seed: int) -> list[tuple[float, Demand]]:
    """Arrivals at ``rate`` a second within ``seconds``, each with one of ``demands`` in turn; at least one."""
    rng = random.Random(seed)
    found: list[tuple[float, Demand]] = []
    now = rng.expovariate(rate)
    while now < seconds or not found:
        found.append((now, demands[len(found) % len(demands)]))
        now += rng.expovariate(rate)
    return found


def engine(model: Any, arrivals: Sequence[tuple[float, Demand]], **settings: Any) -> list[Served]:
    """Serve by `fastdecode.Engine`, whose thread decodes."""
    found = []
    with fastdecode.Engine(model, **settings) as serving:
        handles = []
        start = time.perf_counter()
        for after, demand in arrivals:
            time.sleep(max(0.0, start + after - time.perf_counter()))
            served = Served(demand, start + after)
            handle = serving.submit(demand.inputs(), **demand.options)
            _watch(handle, served)
            found.append(served)
            handles.append(handle)
        for handle, served in zip(handles, found, strict=True):
            handle.result(600)
            served.tokens = list(handle.tokens)
            served.stamps.append((served.stamps[-1][0] if served.stamps else time.perf_counter(), len(served.tokens)))
    return found


def _watch(handle: Any, served: Served) -> None:
    """Record when ``handle`` gets tokens. Inside pictures it gets them row by row, as if someone iterated over it."""
    request = handle._request
    tell = request.on_change

    def note() -> None:
        there = len(request.sequences[0].tokens) - request.sequences[0].prompt_length
        if there:
            served.stamps.append((time.perf_counter(), there))
        tell()

    request.listened, request.on_change = True, note


class Stamp(StoppingCriteria):
    """Never stops; records when it was called."""

    def __init__(self, served: Served) -> None:
        self.served = served

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.served.stamps.append((time.perf_counter(), input_ids.shape[1] - len(self.served.demand.prompt)))
        return torch.zeros(len(input_ids), dtype=torch.bool)


def queue(model: Any, arrivals: Sequence[tuple[float, Demand]]) -> list[Served]:
    """Serve by calls of `fastdecode.generate`, one after another, in order of arrival."""
    found = []
    start = time.perf_counter()
    for after, demand in arrivals:
        time.sleep(max(0.0, start + after - time.perf_counter()))
        served = Served(demand, start + after)
        stamp = StoppingCriteriaList([Stamp(served)])
        sequences = fastdecode.generate(model, **demand.inputs(), **demand.options, stopping_criteria=stamp)
        served.tokens = sequences[0, len(demand.prompt) :].tolist()
        found.append(served)
    return found


class Batching:
    """transformers' continuous batching of greedy text, with room for ``rows`` requests. On a CPU it must be told the
    size of its cache. Use as a context: it begins and ends its thread.
    """

    def __init__(self, model: Any, ends: Sequence[int], longest: int, rows: int = 16) -> None:
        pages = rows * -(-longest // 32)
        self.ends = list(ends)
        generation = GenerationConfig(do_sample=False, eos_token_id=self.ends, pad_token_id=model.config.pad_token_id)
        layout = ContinuousBatchingConfig(
            page_size=32, num_blocks=pages, max_batch_tokens=256, max_requests_per_batch=rows
        )
        self._context = model.continuous_batching_context_manager(generation, continuous_batching_config=layout)

    def __enter__(self) -> Batching:
        self.manager = self._context.__enter__()
        return self

    def __exit__(self, *caught: Any) -> None:
        self._context.__exit__(*caught)

    def __call__(self, model: Any, arrivals: Sequence[tuple[float, Demand]]) -> list[Served]:
        by_name: dict[str, Served] = {}
        start = time.perf_counter()
        for after, demand in arrivals:
            time.sleep(max(0.0, start + after - time.perf_counter()))
            new = demand.options["max_new_tokens"]
            name = self.manager.add_request(
                list(demand.prompt), max_new_tokens=new, record_timestamps=True, eos_token_id=self.ends
            )
            by_name[name] = Served(demand, start + after)
        left = set(by_name)
        while left:
            output = self.manager.get_result(timeout=60)
            if output is None:
                raise RuntimeError(f"continuous batching gave nothing for 60 s: {len(left)} requests are open")
            if output.error is not None:
                raise RuntimeError(f"continuous batching failed: {output.error}")
            if output.is_finished():
                served = by_name[output.request_id]
                served.tokens = list(output.generated_tokens)
                served.stamps = [(moment, i + 1) for i, moment in enumerate(output.timestamps)]
                left.discard(output.request_id)
        return list(by_name.values())


# --- figures ----------------------------------------------------------------------------------------------------


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]


def summary(served: Sequence[Served], v: Vocabulary) -> dict[str, Any]:
    """p50 and p99 in milliseconds; None without times."""
    times: dict[str, list[float]] = {
        "first token": [s.first for s in served],
        "per token": [each for s in served if (each := s.per_token) is not None],
        "per picture": [each for s in served for each in s.pictures(v)],
        "whole request": [s.whole for s in served],
    }
    begin = min(s.arrival for s in served)
    end = max(s.stamps[-1][0] for s in served)
    found: dict[str, Any] = {
        "requests": len(served),
        "pictures": len(times["per picture"]),
        "tokens/s": sum(len(s.tokens) for s in served) / (end - begin),
    }
    for name, values in times.items():
        for share in (0.5, 0.99):
            found[f"{name} p{share * 100:.0f} ms"] = 1000 * percentile(values, share) if values else None
        found[f"{name} mean ms"] = 1000 * statistics.fmean(values) if values else None
    return found
