"""The GPU sampling benchmark without a GPU: its check rejects wrong results, and its rivals sample allowed tokens."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from benchmarks import gpu_sample
from fastdecode import ops
from fastdecode.bench.sample import FILTERS, Case


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_sample"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^2$"):
        gpu_sample.main()
    assert "torch sees no GPU; --dry-run" in capsys.readouterr().err


def test_a_wrong_draw_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    right = ops.sample

    def wrong(logits, **arguments):
        drawn = right(logits, **arguments)
        return drawn if arguments["backend"] == "reference" else drawn._replace(kept=drawn.kept + 1)

    monkeypatch.setattr(ops, "sample", wrong)
    with pytest.raises(RuntimeError, match="kept is"):
        gpu_sample.measure(Case(2, vocab=100), "cpu", 1e9, compiled=False)


def test_the_cases_are_those_of_the_field():
    found = gpu_sample.cases(False)
    assert len(found) == len(set(found))
    assert {case.groups for case in found} >= {1, 64}
    assert {(case.image, case.filter) for case in found} >= {(True, "top_p 0.9"), (False, "top_k 50")}
    assert set(found) >= gpu_sample.COMPILED


def test_logits_take_turns_and_a_rival_that_fails_says_so(monkeypatch: pytest.MonkeyPatch):
    def failing(self, logits):
        raise RuntimeError("cannot draw")

    monkeypatch.setattr(gpu_sample.Torch, "__call__", failing)
    row = gpu_sample.measure(Case(2, vocab=100), "cpu", 1e9, compiled=False)
    assert row["copies"] == 2
    assert row["bytes"] == 2 * 2 * 100 * 4
    assert row["bandwidth_fraction"] == pytest.approx(row["floor"] / row["fastdecode"])
    assert row["torch failed"] == "RuntimeError: cannot draw"
    assert "torch" not in row
    assert row["transformers"] > 0


@pytest.mark.parametrize("name", FILTERS)
def test_flashinfer_is_asked_for_what_the_filter_says(name: str, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def draw(kind: str):
        def from_probs(p: torch.Tensor, *values: float) -> torch.Tensor:
            asked.append((kind, *values))
            assert torch.allclose(p.sum(-1), torch.ones(len(p)))
            return p.argmax(-1).int()

        return from_probs

    kinds = ("sampling", "top_k_sampling", "top_p_sampling", "top_k_top_p_sampling", "min_p_sampling")
    package, module = ModuleType("flashinfer"), ModuleType("flashinfer.sampling")
    vars(module).update({f"{kind}_from_probs": draw(kind) for kind in kinds})
    package.sampling, package.__spec__ = module, SimpleNamespace()
    monkeypatch.setitem(sys.modules, "flashinfer", package)
    monkeypatch.setitem(sys.modules, "flashinfer.sampling", module)
    case = Case(3, vocab=9000, image=True, filter=name)
    drawn = dict(gpu_sample.rivals(case, "cpu", False))["flashinfer"](case.logits())
    gpu_sample.check_rival("flashinfer", case, drawn)
    expected = {
        "greedy": [],
        "none": [("sampling",)],
        "top_k 50": [("top_k_sampling", 50)],
        "top_k 2000": [("top_k_sampling", 2000)],
        "top_p 0.9": [("top_p_sampling", 0.9)],
        "top_k 2000, top_p 0.9": [("top_k_top_p_sampling", 2000, 0.9)],
        "min_p 0.05": [("min_p_sampling", 0.05)],
    }
    assert asked == expected[name]


def test_a_rival_outside_of_the_span_is_refused():
    case = Case(2, vocab=9000, image=True)
    with pytest.raises(RuntimeError, match=r"torch drew \[4, 8196\], not 2 ids of \[4, 8196\)"):
        gpu_sample.check_rival("torch", case, torch.tensor([4, 8196]))
