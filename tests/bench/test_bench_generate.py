"""The benchmark of pictures by blocks: what is compared with what."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import bench_generate


def test_every_width_is_compared_with_the_faster_width_of_the_rival(monkeypatch: pytest.MonkeyPatch):
    clock = {"now": 0.0}
    drew: list[tuple[str, torch.dtype, bool]] = []

    def by(who: str, seconds: dict[torch.dtype, float], draw: Any) -> Any:
        def run(model: Any, inputs: dict[str, Tensor]) -> Tensor:
            small = "SmallTensor" in type(model.lm_head.weight).__name__
            drew.append((who, model.dtype, small))
            sequences: Tensor = draw(model, inputs)
            clock["now"] += seconds[model.dtype] / (2 if small else 1)
            return sequences

        return run

    ours = by("fastdecode", {torch.float32: 4.0, torch.bfloat16: 1.0}, bench_generate.draw)
    theirs = by("transformers", {torch.float32: 40.0, torch.bfloat16: 20.0}, bench_generate.draw_as_transformers)
    monkeypatch.setattr(bench_generate, "draw", ours)
    monkeypatch.setattr(bench_generate, "draw_as_transformers", theirs)
    monkeypatch.setattr(bench_generate.time, "perf_counter", lambda: clock["now"])
    rows = bench_generate.measure(1, 2)
    found = [(row["weights"], row["rival weights"], row["ratio"], row["ratios of the repeats"]) for row in rows]
    assert found == [
        ("float32", "bfloat16", 5.0, [5.0, 5.0]),
        ("bfloat16", "bfloat16", 20.0, [20.0, 20.0]),
        ("int8", "bfloat16", 10.0, [10.0, 10.0]),
    ]
    f32, bf16 = torch.float32, torch.bfloat16
    turn = [("fastdecode", f32, False), ("transformers", f32, False), ("fastdecode", bf16, False)]
    turn += [("transformers", bf16, False), ("fastdecode", f32, True)]
    assert drew == turn * 3  # all are checked once, then take turns


def test_what_cannot_be_read_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench_generate, "recognise", lambda picture: None)
    with pytest.raises(SystemExit, match="fastdecode in float32 drew nothing that can be read for prompt 0"):
        bench_generate.measure(1, 1)
