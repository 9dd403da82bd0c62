"""A tensor of small weights in a module: what runs the kernels, what runs on values, and what is refused."""

import copy
import io
import pickle
import re

import numpy as np
import pytest
import torch
from small_cases import KINDS, small
from torch import nn
from torch.nn import functional as F

from fastdecode.ops import SmallTensor, embed, last_backend, linear

X = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[8, 0], [3, 3]])


def tensor(kind: str = "int4", dtype: torch.dtype = torch.float32) -> SmallTensor:
    return SmallTensor(small(kind, 9, 64), dtype)


def modules(kind: str = "int4", dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, nn.Embedding]:
    """That share their weight."""
    torch.manual_seed(1)
    matrix, table = nn.Linear(64, 9, dtype=dtype), nn.Embedding(9, 64, dtype=dtype)
    table.weight = matrix.weight = nn.Parameter(tensor(kind, dtype), requires_grad=False)
    return matrix, table


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_linear_and_embedding_run_the_kernels(kind: str, dtype: torch.dtype):
    matrix, table = modules(kind, dtype)
    weights, x = matrix.weight.small, X.to(dtype)
    expected = linear(x.float().view(6, 64), weights, matrix.bias.detach().float()).view(2, 3, 9).to(dtype)
    for got in (matrix(x), F.linear(input=x, weight=matrix.weight, bias=matrix.bias)):
        assert last_backend() == "cpu"
        assert torch.equal(got, expected)
        assert type(got) is torch.Tensor
        assert not got.requires_grad
    assert torch.equal(matrix(x[0, 0]), expected[0, 0])
    assert matrix(x[:, :0]).shape == (2, 0, 9)
    rows = embed(TOKENS.view(-1), weights).view(2, 2, 64).to(dtype)
    for got in (table(TOKENS), table(TOKENS.int()), F.embedding(input=TOKENS, weight=table.weight, padding_idx=0)):
        assert torch.equal(got, rows)
        assert got.dtype == dtype
    assert table(TOKENS[:0]).shape == (0, 2, 64)


def test_other_operations_run_on_values():
    weight = tensor()
    values = weight.values()
    assert torch.equal(values, weight.small.values())
    other = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    for got, expected in [
        (X @ weight.t(), X @ values.t()),
        (weight[2:4], values[2:4]),
        (weight + 1, values + 1),
        (weight.sum(), values.sum()),
        (weight.int(), values.int()),
        (torch.cat((weight, weight)), torch.cat((values, values))),
        (F.linear(weight, other), F.linear(values, other)),
        (F.linear(weight, tensor()), linear(values, weight.small)),
        (torch.zeros_like(weight), torch.zeros(9, 64)),
        (torch.empty(9, 64).copy_(weight), values),
    ]:
        assert type(got) is torch.Tensor
        assert torch.equal(got, expected)
    assert weight.shape == (9, 64)
    assert repr(weight) == "SmallTensor(int4, (9, 64), torch.float32, device='cpu')"


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.add_(1),
        lambda w: w.zero_(),
        lambda w: w.copy_(torch.zeros(9, 64)),
        lambda w: torch.mul(w, 2, out=w),
        nn.init.normal_,
        lambda w: w.t().add_(1) if w.t().data_ptr() == w.data_ptr() else w.clamp_(0, 1),
    ],
)
def test_it_never_changes_in_place(change):
    """Such a change would be lost, since operations run on values that they make."""
    weight = tensor()
    before = weight.values()
    with torch.no_grad(), pytest.raises(ValueError, match=r"^weights of int4 cannot be changed in place, as aten\."):
        change(weight)
    assert torch.equal(weight.values(), before)


def test_a_checkpoint_of_ordinary_weights_is_not_lost_silently():
    matrix, _ = modules()
    with pytest.raises(RuntimeError, match="weights of int4 cannot be changed in place"):
        matrix.load_state_dict(nn.Linear(64, 9).state_dict())
    state = matrix.state_dict()
    assert type(state["weight"]) is SmallTensor
    other = nn.Linear(64, 9)
    other.load_state_dict(state, assign=True)
    assert torch.equal(other(X), matrix(X))


def test_copies():
    both = nn.ModuleList(modules())
    made = copy.deepcopy(both)
    assert made[0].weight is made[1].weight
    assert isinstance(made[0].weight, nn.Parameter)
    assert made[0].weight.small.data.data_ptr() != both[0].weight.small.data.data_ptr()
    assert torch.equal(made[0](X), both[0](X))
    for convert, dtype in (
        (lambda m: m.to(torch.bfloat16), torch.bfloat16),
        (lambda m: m.half(), torch.float16),
        (lambda m: m.double(), torch.float64),
    ):
        converted = convert(copy.deepcopy(both))
        weight = converted[0].weight
        assert type(weight) is SmallTensor
        assert weight.dtype == converted[1](TOKENS).dtype == converted[0](X.to(dtype)).dtype == dtype
        assert torch.equal(weight.small.data, both[0].weight.small.data)
        assert not weight.requires_grad
    empty = copy.deepcopy(both).to("meta")
    assert empty[0].weight.device.type == empty[0].weight.small.data.device.type == "meta"
    assert both[0].weight.detach().small is both[0].weight.small


def test_what_is_refused():
    matrix, table = modules()
    for call, message in [
        (
            lambda: torch.save(matrix.state_dict(), io.BytesIO()),
            "weights of int4 cannot be saved, nor shared with other processes: save the checkpoint",
        ),
        (
            lambda: pickle.dumps(matrix),
            "weights of int4 cannot be saved, nor shared with other processes: save the checkpoint",
        ),
        (
            lambda: matrix.share_memory(),
            "weights of int4 cannot be saved, nor shared with other processes: save the checkpoint",
        ),
        (lambda: matrix(X[..., :63]), "weight.shape = (9, 64): must be (features, 63)"),
        (lambda: table(TOKENS + 1), "tokens[0] = 9: must be a token in [0, 9)"),
        (
            lambda: F.embedding(TOKENS, table.weight, max_norm=1.0),
            "max_norm = 1.0: must be None for weights of int4, which never change",
        ),
        (lambda: SmallTensor(small("int4", 2, 32), torch.int8), "dtype = torch.int8: must be a floating-point dtype"),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            call()


def test_in_a_graph(monkeypatch: pytest.MonkeyPatch):
    """A product of int8 is one operation of it; of the others one sentence says that they are none."""
    monkeypatch.undo()  # a graph cannot refer to the poisoned torch.empty
    torch._dynamo.reset()
    for kind in ("int8", "int8x16", "q4_0"):
        matrix, table = modules(kind)
        assert torch.equal(torch.compile(table, backend="aot_eager")(TOKENS), table(TOKENS))
        if kind != "q4_0":
            assert torch.equal(torch.compile(matrix, backend="aot_eager", fullgraph=True)(X), matrix(X))
            assert torch.equal(torch.jit.trace(matrix, X)(X), matrix(X))
            continue
        message = "weight: a graph of torch cannot hold q4_0 weights; only those of int8"
        for make in (lambda m: torch.compile(m, backend="aot_eager")(X), lambda m: torch.jit.trace(m, X)):
            with pytest.raises(ValueError, match=f"^{message}"):
                make(matrix)
    torch._dynamo.reset()


@pytest.mark.parametrize("give", [torch.from_dlpack, np.from_dlpack])
def test_other_libraries_get_no_wrong_numbers(give):
    with pytest.raises(ValueError, match=r"^weights of int4 cannot be given to other libraries"):
        give(tensor())


@pytest.mark.parametrize("items", [0, (0, 0), slice(0, 2), slice(None)], ids=str)
def test_items_cannot_be_assigned(items):
    weight = tensor()
    with pytest.raises(
        ValueError, match=r"^weights of int4 cannot be changed in place, as an assignment to items would$"
    ):
        weight[items] = 1.0
