"""The benchmark of the families: what is compared with what."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import bench_families
from benchmarks.bench_families import CASES, check, measure, prompts
from benchmarks.family_models import Shape

SMALL = Shape(side=3, small=True)


@pytest.mark.parametrize("name", CASES)
def test_small_models_draw_the_tokens_of_their_rivals(name: str):
    case = CASES[name]
    assert check(case, "cpu") is None
    other = dataclasses.replace(case, theirs=lambda *given: case.theirs(*given) + 1)
    with pytest.raises(SystemExit, match=r"other greedy tokens than .*; not timing it"):
        check(other, "cpu")


@pytest.mark.parametrize("name", CASES)
def test_both_draw_whole_pictures_of_image_tokens(name: str):
    case = CASES[name]
    model = case.make(SMALL)
    ids = prompts(model, 2)
    for draw in (case.ours, case.theirs):
        drawn = draw(model, ids, True, 8 if name == "janus" else 3)
        assert len(drawn) == 2
        assert drawn.shape[1] >= 9


def test_medians_of_turns_in_one_run(monkeypatch: pytest.MonkeyPatch):
    clock, calls = {"now": 0.0}, []

    def taking(seconds: list[float], who: str) -> Any:
        left = list(seconds)

        def draw(model: Any, ids: Tensor, sample: bool, side: int) -> Tensor:
            if sample:
                clock["now"] += left.pop(0)
                calls.append((who, len(ids)))
            return torch.zeros(len(ids), 9)

        return draw

    monkeypatch.setattr(bench_families.time, "perf_counter", lambda: clock["now"])
    ours, theirs = taking([9, 1, 3, 2, 4, 4], "ours"), taking([9, 9, 6, 8, 8, 40], "theirs")
    case = dataclasses.replace(CASES["liquid"], ours=ours, theirs=theirs)
    rows = measure(case, SMALL, (3, 2))
    assert calls == [("ours", 1), ("theirs", 1)] * 4 + [("ours", 8), ("theirs", 8)] * 2
    assert [row["ratio"] for row in rows] == [8 / 2, 24 / 4]
    assert [row["ratios of the turns"] for row in rows] == [[2.0, 4.0, 9.0], [2.0, 10.0]]
    assert [row["fastdecode ms per token"] for row in rows] == [2000 / 9, 4000 / 72]


def test_a_rival_that_does_not_run(capsys: pytest.CaptureFixture[str]):
    def broken(*given: Any) -> Tensor:
        raise TypeError("too few arguments")

    rows = measure(dataclasses.replace(CASES["liquid"], theirs=broken), SMALL, (1, 1))
    assert [row["rival does not run"] for row in rows] == ["TypeError: too few arguments"] * 2
    assert all("ratio" not in row for row in rows)
    assert "rival" not in capsys.readouterr().out
