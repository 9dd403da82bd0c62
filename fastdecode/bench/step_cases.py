"""The operations that `fastdecode bench step` times: arguments, equivalents in torch, and bytes to read.

Calls rotate through copies of the weights, keys and values that are together larger than the caches, as in a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastdecode import ops

COLD_BYTES = 160 << 20
"""The size of all copies together."""
IDS = 1000
"""The number of tokens that a row attends to."""
PAGE_SLOTS = 32


@dataclass(frozen=True)
class Size:
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int = 128
    vocab: int = 65536


SIZES = {"289M": Size(1024, 2816, 8, 8), "7B": Size(4096, 11008, 32, 32)}


@dataclass(frozen=True)
class Case:
    """One operation for ``rows`` rows, in a model of this size. ``dtype``: of weights, keys and values."""

    operation: str
    size: str = "289M"
    rows: int = 1
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class Runner:
    """``fastdecode`` and ``torch`` do the same work. ``results`` returns those of fastdecode and of the reference.
    A call reads ``bytes`` bytes.
    """

    fastdecode: Callable[[], Any]
    torch: Callable[[], Any]
    results: Callable[[], tuple[Any, Any]]
    bytes: int


def _random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def _copies(tensor: Tensor) -> Iterator[Tensor]:
    size = tensor.numel() * tensor.element_size()
    return cycle([tensor, *(tensor.clone() for _ in range(COLD_BYTES // size))])


def _bytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _linear(case: Case, size: Size, features: int, k: int) -> Runner:
    dtype: torch.dtype = getattr(torch, case.dtype)
    x, weight = _random(case.rows, k), _random(features, k, dtype=dtype) / k**0.5
    rounded, weights = x.to(dtype), _copies(weight)
    return Runner(
        lambda: ops.linear(x, next(weights)),
        lambda: F.linear(rounded, next(weights)),
        lambda: (ops.linear(x, weight), ops.linear(x, weight, backend="reference")),
        _bytes(weight),
    )


def _qkv(case: Case, size: Size) -> Runner:
    return _linear(case, size, (size.heads + 2 * size.kv_heads) * size.head_dim, size.hidden)


def _gate_up(case: Case, size: Size) -> Runner:
    return _linear(case, size, 2 * size.inner, size.hidden)


def _down(case: Case, size: Size) -> Runner:
    return _linear(case, size, size.hidden, size.inner)


def _rms_norm(case: Case, size: Size) -> Runner:
    x, weight, residual = _random(case.rows, size.hidden), _random(size.hidden), _random(case.rows, size.hidden) * 2

    def by_torch() -> tuple[Tensor, Tensor]:
        total = x + residual
        return F.rms_norm(total, weight.shape, weight, 1e-5), total

    return Runner(
        lambda: ops.rms_norm(x, weight, residual=residual),
        by_torch,
        lambda: (
            ops.rms_norm(x, weight, residual=residual),
            ops.rms_norm(x, weight, residual=residual, backend="reference"),
        ),
        _bytes(x, weight, residual),
    )


def _swiglu(case: Case, size: Size) -> Runner:
    gate_up = _random(case.rows, 2 * size.inner)

    def by_torch() -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up

    return Runner(
        lambda: ops.swiglu(gate_up),
        by_torch,
        lambda: (ops.swiglu(gate_up), ops.swiglu(gate_up, backend="reference")),
        _bytes(gate_up),
    )


def _embed(case: Case, size: Size) -> Runner:
    weight = _random(size.vocab, size.hidden, dtype=getattr(torch, case.dtype))
    tokens = torch.arange(case.rows) * 7 % size.vocab
    return Runner(
        lambda: ops.embed(tokens, weight),
        lambda: F.embedding(tokens, weight).float(),
        lambda: (ops.embed(tokens, weight), ops.embed(tokens, weight, backend="reference")),
        _bytes(weight[tokens]),
    )


def _table(rows: int) -> Tensor:
    """A page table of rows with room for `IDS` + 1 tokens, in shuffled order."""
    width = IDS // PAGE_SLOTS + 1
    order = torch.randperm(rows * width, generator=torch.Generator().manual_seed(0))
    return order.view(rows, width).int()


def _rope_append(case: Case, size: Size) -> Runner:
    d, dtype, rows = size.head_dim, getattr(torch, case.dtype), case.rows
    table, lengths = _table(rows), torch.full((rows,), IDS)
    keys = torch.zeros(table.numel(), size.kv_heads, PAGE_SLOTS, d, dtype=dtype)
    values = torch.zeros_like(keys)
    qkv = _random(rows, (size.heads + 2 * size.kv_heads) * d)
    cos, sin = _random(rows, d), _random(rows, d)
    norms: dict[str, Any] = {"q_norm": _random(size.heads, d), "q_norm_bias": _random(size.heads, d)}
    norms |= {"k_norm": _random(size.kv_heads, d), "k_norm_bias": _random(size.kv_heads, d)}
    row, dense = torch.arange(rows), torch.zeros(2, rows, size.kv_heads, IDS + 1, d, dtype=dtype)

    def rotated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = torch.addcmul(bias, F.layer_norm(x, (d,)), weight)
        return x * cos[:, None] + x.roll(d // 2, -1) * sin[:, None]

    def by_torch() -> Tensor:
        q, k, v = qkv.view(rows, -1, d).split([size.heads, size.kv_heads, size.kv_heads], 1)
        dense[0, row, :, lengths] = rotated(k, norms["k_norm"], norms["k_norm_bias"]).to(dtype)
        dense[1, row, :, lengths] = v.to(dtype)
        return rotated(q, norms["q_norm"], norms["q_norm_bias"])

    def run(backend: str | None = None) -> Tensor:
        return ops.rope_append(qkv, cos, sin, keys, values, table, lengths, **norms, backend=backend)

    def results() -> tuple[Any, Any]:
        found = [(run(backend), keys.float(), values.float()) for backend in (None, "reference")]
        return found[0], found[1]

    return Runner(run, by_torch, results, _bytes(qkv, cos, sin, *norms.values()))


def _attend(case: Case, size: Size) -> Runner:
    d, dtype, rows = size.head_dim, getattr(torch, case.dtype), case.rows
    table, lengths = _table(rows), torch.full((rows,), IDS)
    stored = _random(2, table.numel(), size.kv_heads, PAGE_SLOTS, d, dtype=dtype)
    copies, queries = _copies(stored), _random(rows, size.heads, d)
    by_row = stored[:, table.long()].permute(0, 1, 3, 2, 4, 5).reshape(2, rows, size.kv_heads, -1, d)
    dense = _copies(by_row[:, :, :, :IDS].contiguous())
    rounded = queries.to(dtype).view(rows, size.kv_heads, -1, d)

    def run(pages: Tensor, backend: str | None = None) -> Tensor:
        return ops.attend(queries, pages[0], pages[1], table, lengths, backend=backend)

    def by_torch() -> Tensor:
        keys, values = next(dense)
        # By hand: for one query in bfloat16 on the CPU, scaled_dot_product_attention takes four times as long.
        found: Tensor = ((rounded @ keys.mT) * d**-0.5).softmax(-1) @ values
        return found

    return Runner(
        lambda: run(next(copies)),
        by_torch,
        lambda: (run(stored), run(stored, "reference")),
        2 * rows * size.kv_heads * IDS * d * dtype.itemsize,
    )


def _sample_advance(case: Case, size: Size) -> Runner:
    """``rows`` groups of two streams each."""
    groups, vocab = case.rows, size.vocab
    logits = _random(2 * groups, vocab)
    sets = ops.TokenSets([[(4, 8196)]], vocab)
    tables = ops.GrammarTables(sets, set_of=[0], forced=[-1], following=[[0]], class_ranges=[], vocab=vocab)
    streams = torch.arange(2 * groups, dtype=torch.int32).view(groups, 2)
    weights = torch.tensor([[3.0, -2.0]] * groups)
    options: dict[str, Any] = {
        "streams": streams,
        "weights": weights,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": torch.arange(groups),
    }
    capacity = 1 << 20

    def new_state() -> ops.DecodeState:
        return ops.DecodeState(
            torch.zeros(groups, dtype=torch.int32),
            torch.zeros(groups, dtype=torch.int64),
            torch.zeros(groups, dtype=torch.uint8),
            inputs=torch.zeros(2 * groups, dtype=torch.int64),
            lengths=torch.zeros(2 * groups, dtype=torch.int64),
            seen=torch.zeros(groups, vocab // 32, dtype=torch.int32),
            sequences=torch.zeros(groups, capacity, dtype=torch.int64),
        )

    ours, theirs, group = new_state(), new_state(), torch.arange(groups)

    def run(state: ops.DecodeState, backend: str | None = None) -> ops.Sample:
        return ops.sample_advance(logits, tables, state, **options, backend=backend)

    def by_torch() -> ops.Sample:
        drawn = ops.sample(logits, allowed=sets, step=theirs.step, **options)
        assert theirs.inputs is not None
        assert theirs.lengths is not None
        assert theirs.seen is not None
        assert theirs.sequences is not None
        theirs.sequences[group, theirs.step] = drawn.token
        theirs.inputs.view(groups, 2).copy_(drawn.token[:, None])
        ops.set_seen_(theirs.seen, drawn.token)
        theirs.step += 1
        theirs.lengths += 1
        return drawn

    def results() -> tuple[Any, Any]:
        states = new_state(), new_state()
        found = [
            (*run(state, backend), state.inputs) for state, backend in zip(states, (None, "reference"), strict=True)
        ]
        return found[0], found[1]

    return Runner(lambda: run(ours), by_torch, results, _bytes(logits[:, 4:8196]))


OPERATIONS: dict[str, Callable[[Case, Size], Runner]] = {
    "linear qkv": _qkv,
    "linear gate_up": _gate_up,
    "linear down": _down,
    "rope_append": _rope_append,
    "attend": _attend,
    "rms_norm": _rms_norm,
    "swiglu": _swiglu,
    "embed": _embed,
    "sample_advance": _sample_advance,
}


def runner(case: Case) -> Runner:
    """The functions that are timed for a case."""
    return OPERATIONS[case.operation](case, SIZES[case.size])
