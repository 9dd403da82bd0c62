"""What ``GET /metrics`` tells, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fastdecode.generation.engine import Engine

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class EngineCollector(Collector):
    """The engine's statistics, as they are when somebody asks."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        now = self.engine.statistics()
        ended = CounterMetricFamily("fastdecode_requests", "Requests that ended, by outcome.", labels=["outcome"])
        for outcome in ("finished", "aborted", "failed"):
            ended.add_metric([outcome], getattr(now, outcome))
        yield ended
        yield CounterMetricFamily("fastdecode_submitted", "Requests submitted to the engine.", now.submitted)
        yield CounterMetricFamily("fastdecode_tokens", "Tokens generated.", now.tokens)
        yield CounterMetricFamily(
            "fastdecode_preemptions", "Times that a request gave back its pages.", now.preemptions
        )
        gauges = {
            "requests_waiting": ("Requests that wait for rows or pages.", now.waiting),
            "requests_running": ("Requests that are decoded.", now.running),
            "rows": ("Streams in a step.", now.rows),
            "pages_used": ("Pages of keys and values that requests use.", now.pages_used),
            "pages_retained": ("Pages kept for prompts that begin alike.", now.pages_retained),
            "pages_peak": ("Most pages ever used at once.", now.pages_peak),
        }
        if now.pages_limit is not None:
            gauges["pages_limit"] = ("Most pages that there can be.", now.pages_limit)
        for name, (meaning, value) in gauges.items():
            yield GaugeMetricFamily(f"fastdecode_{name}", meaning, value)


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(engine))
        ProcessCollector(registry=self.registry)
        self.refused = Counter(
            "fastdecode_refused", "Requests that were not served, by status.", ["status"], registry=self.registry
        )
        self.first_token = Histogram(
            "fastdecode_time_to_first_token_seconds",
            "From the arrival of a request to its first token.",
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.duration = Histogram(
            "fastdecode_request_duration_seconds",
            "From the arrival of a request to its end.",
            buckets=BUCKETS,
            registry=self.registry,
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)
