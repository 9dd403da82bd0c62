import copy
import gc
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models_for_tests import tiny_model
from safetensors.torch import load_file
from torch import nn

import fastdecode
from benchmarks.models import random_model
from fastdecode.models import loading, move_weights, quantise
from fastdecode.ops import SmallTensor, huge_pages


def memory_of(model) -> list[torch.Tensor]:
    return [p.small.data if isinstance(p, SmallTensor) else p.detach() for p in model.parameters()]


@pytest.mark.parametrize("weights", [None, "int8", "int4"])
def test_all_weights_are_the_same_elsewhere(weights: str | None):
    model = random_model("tiny")
    if weights is not None:
        fastdecode.quantise(model, weights)
    same = copy.deepcopy(model)
    parameters, before = list(model.parameters()), memory_of(model)
    move_weights.move_weights(model.parameters())
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert not {t.data_ptr() for t in memory_of(model)} & {t.data_ptr() for t in before}
    for (name, new), old in zip(model.named_parameters(), same.parameters(), strict=True):
        assert type(new) is type(old)
        assert new.dtype == old.dtype
        assert new.requires_grad == old.requires_grad
        if isinstance(new, SmallTensor):
            assert torch.equal(new.values(), old.values()), name
        else:
            assert torch.equal(new, old), name


def test_what_it_cannot_move_stays():
    class Other(torch.Tensor):
        pass

    transposed = nn.Parameter(torch.randn(4, 6).t())
    elsewhere = nn.Parameter(torch.empty(3, device="meta"))
    foreign = torch.randn(3).as_subclass(Other)
    before = [transposed.data_ptr(), foreign.data_ptr()]
    trained = nn.Parameter(torch.ones(5))
    move_weights.move_weights([transposed, elsewhere, foreign, trained, trained])
    assert [transposed.data_ptr(), foreign.data_ptr()] == before
    assert elsewhere.is_meta
    (trained * 2).sum().backward()
    assert trained.grad.tolist() == [2.0] * 5


def test_load_and_quantise_move_the_weights(monkeypatch: pytest.MonkeyPatch):
    moved = []
    for module in (loading, quantise):
        monkeypatch.setattr(module, "move_weights", lambda parameters: moved.append({id(p) for p in parameters}))
    for weights in (None, "int8"):
        model, _ = fastdecode.load("blocks", weights=weights)
        assert moved.pop() == {id(p) for p in model.parameters()}
        assert not moved
    model = tiny_model()
    fastdecode.quantise(model, "int8")
    places = {id(module.weight) for _, module in quantise.modules_to_shrink(model)}
    assert moved == [places]


def test_quantise_frees_the_memory_of_the_weights_before(monkeypatch: pytest.MonkeyPatch):
    made = []

    def recorded(size: int, dtype: type) -> np.ndarray:
        array = np.empty(size, dtype)
        made.append((weakref.ref(array), size))
        return array

    monkeypatch.setattr(huge_pages, "np", SimpleNamespace(empty=recorded, uint8=np.uint8))
    model = random_model("37M")
    moved = list(made)
    assert sum(size for _, size in moved) > 100e6
    fastdecode.quantise(model, "int8")
    gc.collect()
    left = sum(size for ref, size in moved if ref() is not None)
    whole = sum(p.nbytes for p in model.parameters() if not isinstance(p, SmallTensor))
    assert left < whole + 1.5 * huge_pages._TOGETHER


def test_a_moved_model_can_be_saved_and_copied(tmp_path: Path):
    model = random_model("tiny")
    model.save_pretrained(tmp_path)
    saved, copied = load_file(tmp_path / "model.safetensors"), dict(copy.deepcopy(model).named_parameters())
    for name, old in model.named_parameters():
        assert torch.equal(saved[name], old), name
        assert torch.equal(copied[name], old), name
