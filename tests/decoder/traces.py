"""A substitute for CUDA graphs: a trace of the operations on the buffers, replayed without Python.

Like a graph, it fixes the decisions of the host and the addresses of the buffers.
"""

from collections.abc import Callable

import pytest
import torch
from models_for_tests import BOS, padded, text_ids
from torch.fx.experimental.proxy_tensor import make_fx

import fastdecode
from fastdecode.engine.scheduler import Scheduler

IMAGE_ONLY = {"multimodal_generation_mode": "image-only", "do_sample": True, "seed": 3}
INTERLEAVED = {**IMAGE_ONLY, "multimodal_generation_mode": "interleaved-text-image"}


class Traces:
    """Counts captures and replays."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        step()  # to warm up
        trace = make_fx(lambda: step())()
        assert any(node.target is torch.ops.fastdecode.sample_advance.default for node in trace.graph.nodes)

        def replay() -> None:
            self.replays += 1
            trace()

        return replay


def uncaptured(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scheduler, "_steps", lambda self: (1 if self.running else 0, False))


def both(model, traces: Traces, monkeypatch: pytest.MonkeyPatch, **options) -> torch.Tensor:
    """What generate returns, captured and step by step: the same."""
    traces.captures = traces.replays = 0
    captured = fastdecode.generate(model, **options)
    with monkeypatch.context() as patch:
        uncaptured(patch)
        replays = traces.replays
        assert torch.equal(fastdecode.generate(model, **options), captured)
        assert traces.replays == replays
    return captured


def prompts_of(model, lengths=(9, 30, 3)) -> dict[str, torch.Tensor]:
    return padded([[BOS, *text_ids(model, i, n)] for i, n in enumerate(lengths)])
