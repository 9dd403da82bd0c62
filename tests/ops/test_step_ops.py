"""The operations of a decode step against float64 and against torch's own in the same dtype, whatever the layout."""

from functools import partial

import pytest
import torch
from isas import DECODE_ISAS, assert_runs_with, each
from step_cases import DTYPES, Paged, attention, close, paged, rotation
from torch.nn import functional as F

from fastdecode.ops import (
    Matrix,
    attend,
    embed,
    joint_linear,
    last_backend,
    linear,
    rms_norm,
    rope_append,
    round_to_int8,
    swiglu,
)

SIZES = [(1, 1), (3, 7), (5, 64), (2, 301), (9, 1000)]
BACKENDS = ["reference", "cpu"]
NORMS = ["none", "rms", "layer"]
ACTIVATIONS = {"silu": F.silu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "gelu": F.gelu}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


# --- rows by themselves


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "k"), SIZES)
def test_linear(rows: int, k: int, dtype: torch.dtype, backend: str):
    for features in (1, 30, 67):
        x, weight, bias = randn(rows, k), randn(features, k, seed=1).to(dtype), randn(features, seed=2)
        for b in (None, bias):
            got = linear(x, weight, b, backend=backend)
            assert last_backend() == backend
            exact = F.linear(x.double(), weight.double(), None if b is None else b.double())
            theirs = F.linear(x.to(dtype), weight, None if b is None else b.to(dtype))
            close(got, theirs, exact)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_linear_of_bytes(dtype: torch.dtype):
    """On a CPU float8 by the reference, which nobody has to name; the kernels of int8 round x."""
    x, weight = randn(3, 40), (randn(7, 40, seed=1) * 20).to(dtype)
    scale, bias = randn(7, seed=2), randn(7, seed=3)
    got = linear(x, weight, bias, scale)
    assert last_backend() == ("cpu" if dtype == torch.int8 else "reference")
    read = round_to_int8(x) if dtype == torch.int8 else x
    exact = F.linear(read.double(), weight.double()) * scale.double() + bias.double()
    close(got, F.linear(read, weight.float()) * scale + bias, exact)
    close(linear(x, weight), F.linear(read, weight.float()), F.linear(read.double(), weight.double()))
    joint = joint_linear(x, [Matrix(weight, bias, scale), Matrix(randn(2, 40))])
    assert torch.equal(joint[:, :7], got)


@pytest.mark.parametrize("backend", BACKENDS)
def test_matrices_side_by_side(backend: str):
    x, matrices = randn(5, 33), [Matrix(randn(n, 33, seed=n), b) for n, b in ((3, None), (40, randn(40)), (1, None))]
    alone = [linear(x, *matrix, backend=backend) for matrix in matrices]
    assert torch.equal(joint_linear(x, matrices, backend=backend), torch.cat(alone, 1))
    assert last_backend() == backend


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rows", "n"), SIZES)
def test_rms_norm(rows: int, n: int, backend: str):
    x, weight, residual = randn(rows, n), randn(n, seed=1), randn(rows, n, seed=2) * 3
    exact = F.rms_norm(x.double(), (n,), weight.double(), 1e-3)
    close(rms_norm(x, weight, 1e-3, backend=backend), F.rms_norm(x, (n,), weight, 1e-3), exact)
    normed, total = rms_norm(x, weight, residual=residual, backend=backend)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, rms_norm(total, weight, backend=backend))
    assert torch.equal(x, randn(rows, n))


@pytest.mark.parametrize("scale", [2.0, 20.0])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "inner"), SIZES)
def test_swiglu(rows: int, inner: int, activation: str, backend: str, scale: float):
    gate_up, function = randn(rows, 2 * inner) * scale, ACTIVATIONS[activation]
    gate, up = gate_up.double().chunk(2, -1)
    theirs = function(gate_up[:, :inner]) * gate_up[:, inner:]
    close(swiglu(gate_up, activation=activation, backend=backend), theirs, function(gate) * up)
    assert torch.equal(swiglu(gate_up, backend=backend), swiglu(gate_up, activation="silu", backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_swiglu_at_the_ends(activation: str, backend: str):
    gate = torch.tensor([-1e30, -200.0, -0.0, 0.0, 200.0, 1e30])
    got = swiglu(torch.cat((gate, torch.full((6,), 0.5)))[None], activation=activation, backend=backend)
    assert torch.equal(got, torch.tensor([[0.0, 0.0, 0.0, 0.0, 100.0, 5e29]]))
    strange = torch.tensor([torch.inf, torch.nan, -torch.inf])
    got = swiglu(torch.cat((strange, torch.ones(3)))[None], activation=activation, backend=backend)[0]
    assert got[0] == torch.inf
    assert got[1:].isnan().all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_is_exact_relative_to_its_size(activation: str):
    """Torch's own GELU loses the digits of 1 + tanh and 1 + erf below 0; the kernel does not."""
    positive = torch.cat((torch.logspace(-30, 0, 997), torch.linspace(1, 4, 997)))
    gate = torch.cat((positive, -positive))
    got = swiglu(torch.cat((gate, torch.ones_like(gate)))[None], activation=activation, backend="cpu")[0]
    exact = ACTIVATIONS[activation](gate.double())
    if activation == "gelu":
        exact = gate.double() * torch.special.erfc(-gate.double() / 2**0.5) / 2
    elif activation == "gelu_tanh":
        v = 2 * (2 / torch.pi) ** 0.5 * (gate.double() + 0.044715 * gate.double() ** 3)
        exact = gate.double() * torch.sigmoid(v)
    assert ((got - exact) / exact).abs().max() <= 2e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "hidden"), SIZES)
def test_embed(rows: int, hidden: int, dtype: torch.dtype, backend: str):
    weight = randn(50, hidden).to(dtype)
    weight[7] *= 1e-6  # of float16: below what is normal
    tokens = torch.randint(0, 50, (rows,), generator=generator(1))
    tokens[0] = 7
    assert torch.equal(embed(tokens, weight, backend=backend), weight[tokens].float())


# --- attention


SHAPES = [(1, 1, 1, 8), (2, 4, 2, 16), (5, 6, 3, 10), (3, 8, 1, 128), (4, 3, 3, 70), (2, 4, 4, 256)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "heads", "kv_heads", "head_dim"), SHAPES)
def test_attend(rows: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, backend: str):
    queries, lengths = randn(rows, heads, head_dim), [1, 40, 7, 33, 600][-rows:]
    for slots, scale in ((1, 0.5), (5, None), (32, None)):
        cache = paged(lengths, kv_heads, head_dim, slots, dtype)
        got = attend(queries, *cache.arguments, scale, backend=backend)
        given = head_dim**-0.5 if scale is None else scale
        exact = attention(queries, cache, given, torch.float64)
        close(got, attention(queries, cache, given, dtype), exact)


def far_above(keys: torch.Tensor, first: int) -> int:
    """A place from ``first`` on, pages before the last, whose key is its own best match by far: (ids, head_dim)."""
    for place in range(first, len(keys) - 50):
        best, second = (keys @ keys[place] * 1000).topk(2)[0]
        if best == keys[place] @ keys[place] * 1000 and best - second > 100:
            return place
    raise AssertionError("there is none")


def test_attend_where_one_score_is_far_above():
    """Behind the first 512 ids, which are one stretch, and not in the last page."""
    cache = paged([700], 1, 16, 8, torch.float32)
    keys, values = cache.ids[0][:, 0]
    place = far_above(keys, 512)
    got = attend(keys[place][None, None] * 1000, *cache.arguments, 1.0)
    assert torch.equal(got[0, 0], values[place])


@pytest.mark.parametrize("length", [1, 5, 15, 16, 17, 33])
def test_attend_where_all_scores_are_far_below_zero(length: int):
    """All the same, so that the result is the mean of the values: what fills up the last vector must not count."""
    cache = paged([length], 1, 16, 8, torch.float32)
    keys, values, table, lengths = cache.arguments
    found = attend(torch.full((1, 1, 16), -20.0), torch.ones_like(keys), values, table, lengths, 1.0, backend="cpu")
    expected = cache.ids[0][:, 0][1].mean(0)
    assert (found[0, 0] - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attend_gives_the_same_bits_in_any_layout(dtype: torch.dtype):
    """Alone, among others, in pages of other sizes and numbers, and on any number of threads."""
    lengths, queries = [3, 1300, 512, 513, 90], randn(5, 4, 32)
    first = attend(queries, *paged(lengths, 2, 32, 32, dtype).arguments)
    before = torch.get_num_threads()
    try:
        for slots, threads in ((1, 1), (7, 2), (40, 3)):
            torch.set_num_threads(threads)
            keys, values, table, stored = paged(lengths, 2, 32, slots, dtype).arguments
            assert torch.equal(attend(queries, keys, values, table, stored), first)
            for r in range(5):
                one = slice(r, r + 1)
                assert torch.equal(attend(queries[one], keys, values, table[one], stored[one]), first[one])
    finally:
        torch.set_num_threads(before)


# --- placing


def norm_weights(kind: str, heads: int, head_dim: int, seed: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    weight, bias = randn(heads, head_dim, seed=seed), randn(heads, head_dim, seed=seed + 1)
    return None if kind == "none" else weight, bias if kind == "layer" else None


def placed(x: torch.Tensor, weight, bias, cos: torch.Tensor, sin: torch.Tensor, epsilon: float) -> torch.Tensor:
    """(rows, heads, head_dim) normed by torch's own norms, and rotated, in the dtype of x."""
    n, dtype = x.shape[-1], x.dtype
    if weight is not None and bias is None:
        x = F.rms_norm(x, (n,), None, epsilon) * weight.to(dtype)
    elif weight is not None:
        x = F.layer_norm(x, (n,), None, None, epsilon) * weight.to(dtype) + bias.to(dtype)
    a, b = x.chunk(2, -1)
    return x * cos.to(dtype)[:, None] + torch.cat((b, a), -1) * sin.to(dtype)[:, None]


def new_ids(cache: Paged) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values in the slots behind the rows' ids: (rows, kv_heads, head_dim)."""
    slots = cache.keys.shape[2]
    page = cache.table.gather(1, (cache.lengths // slots)[:, None])[:, 0].long()
    return cache.keys[page, :, cache.lengths % slots], cache.values[page, :, cache.lengths % slots]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "heads", "kv_heads", "head_dim"), SHAPES)
def test_rope_append(rows: int, heads: int, kv_heads: int, head_dim: int, dtype, kind: str, backend: str):
    cache = paged([4, 0, 31, 32, 9][:rows], kv_heads, head_dim, 8, dtype, room=1)
    qkv = randn(rows, (heads + 2 * kv_heads) * head_dim)
    cos, sin = rotation(cache.lengths, head_dim, torch.float32)
    q_norm, k_norm = norm_weights(kind, heads, head_dim, 1), norm_weights(kind, kv_heads, head_dim, 3)
    options = dict(zip(("q_norm", "q_norm_bias", "k_norm", "k_norm_bias"), (*q_norm, *k_norm), strict=True))
    after = cache.clone()
    arguments = (after.keys, after.values, after.table, after.lengths)
    got = rope_append(qkv, cos, sin, *arguments, **options, epsilon=1e-4, backend=backend)
    q, k, v = qkv.view(rows, -1, head_dim).split([heads, kv_heads, kv_heads], 1)
    close(got, placed(q, *q_norm, cos, sin, 1e-4), placed(q.double(), *q_norm, cos, sin, 1e-4), 2.0)
    keys, values = new_ids(after)
    assert torch.equal(values, v.to(dtype))
    exact = placed(k.double(), *k_norm, cos, sin, 1e-4)
    if dtype == torch.float32:
        close(keys, placed(k, *k_norm, cos, sin, 1e-4), exact, 2.0)
    else:
        close(keys.float(), exact.to(dtype), exact, 1.01)
    for old, new in zip((cache.keys, cache.values), (after.keys, after.values), strict=True):
        changed = ((old != new) & ~(old.isnan() & new.isnan())).any(-1).all(1)  # (pages, slots)
        assert changed.sum() == rows


def test_rope_append_takes_one_weight_for_all_heads():
    cache = paged([3], 2, 8, 4, torch.float32, room=1)
    qkv, (cos, sin), weight = randn(1, 6 * 8), rotation(cache.lengths, 8, torch.float32), randn(8)
    got = rope_append(qkv, cos, sin, *cache.arguments, q_norm=weight, k_norm=weight)
    again = cache.clone()
    expected = rope_append(
        qkv, cos, sin, *again.arguments, q_norm=weight.expand(2, 8).clone(), k_norm=weight.expand(2, 8).clone()
    )
    assert torch.equal(got, expected)
    assert torch.equal(cache.keys.nan_to_num(), again.keys.nan_to_num())


def test_appended_ids_are_attended():
    """Ids of one sequence one by one, and as rows of one call: the same bits."""
    ids, heads, d = 6, 4, 16
    qkv, (cos, sin) = randn(ids, 8 * d), rotation(torch.arange(ids), d, torch.float32)
    by_one, at_once = (paged([0], 2, d, 4, torch.bfloat16, room=ids) for _ in range(2))
    found = []
    for i in range(ids):
        lengths, one = torch.tensor([i]), slice(i, i + 1)
        q = rope_append(qkv[one], cos[one], sin[one], by_one.keys, by_one.values, by_one.table, lengths)
        found.append(attend(q, by_one.keys, by_one.values, by_one.table, lengths + 1))
    lengths, table = torch.arange(ids), at_once.table.expand(ids, -1)
    q = rope_append(qkv, cos, sin, at_once.keys, at_once.values, table, lengths)
    assert q.shape == (ids, heads, d)
    assert torch.equal(attend(q, at_once.keys, at_once.values, table, lengths + 1), torch.cat(found))


# --- all


def test_a_row_has_the_same_bits_alone_and_among_others():
    x, weight = randn(7, 300), randn(300, seed=1)
    matrix = randn(70, 300).bfloat16()
    gates = [lambda x, name=name: swiglu(x, activation=name) for name in ACTIVATIONS]
    for one in (lambda x: rms_norm(x, weight), *gates, lambda x: linear(x, matrix)):
        together = one(x)
        for r in range(7):
            assert torch.equal(one(x[r : r + 1]), together[r : r + 1])


def test_many_rows_have_the_same_bits_as_one():
    """Also where features are longer than a chunk of a block, and do not fill the last block."""
    for k, features in ((40, 35), (1024, 16), (1025, 33), (2100, 50), (5152, 19)):
        x, bias = randn(130, k), randn(features, seed=2)
        for dtype in DTYPES:
            weight = randn(features, k, seed=1).to(dtype)
            alone = torch.cat([linear(row, weight, bias) for row in x.split(1)])
            for rows in (3, 6, 12, 13, 18, 64, 65, 130):
                assert torch.equal(linear(x[:rows], weight, bias), alone[:rows]), (k, features, dtype, rows)
            exact = F.linear(x.double(), weight.double(), bias.double())
            close(alone, F.linear(x.to(dtype), weight, bias.to(dtype)), exact)


def test_no_rows():
    nothing = torch.zeros(0, 8)
    assert linear(nothing, torch.zeros(3, 8)).shape == (0, 3)
    assert rms_norm(nothing, torch.ones(8)).shape == swiglu(torch.zeros(0, 16)).shape == (0, 8)
    assert embed(torch.zeros(0, dtype=torch.long), torch.zeros(3, 8)).shape == (0, 8)
    assert linear(torch.zeros(2, 8), torch.zeros(0, 8)).shape == (2, 0)
    cache = paged([], 1, 8, 4, torch.float32)
    assert attend(torch.zeros(0, 2, 8), *cache.arguments).shape == (0, 2, 8)
    queries = rope_append(torch.zeros(0, 32), nothing, nothing, *cache.arguments)
    assert queries.shape == (0, 2, 8)


def test_what_is_not_dense_is_read_as_it_is():
    x, weight = randn(8, 5).t(), randn(30, 8)
    assert torch.equal(linear(x, weight), linear(x.contiguous(), weight))
    assert torch.equal(swiglu(x), swiglu(x.contiguous()))
    negated = torch._neg_view(x.contiguous())
    assert torch.equal(swiglu(negated), swiglu(-x))
    parameter = torch.nn.Parameter(weight)
    assert not linear(x, parameter).requires_grad
    assert not linear(x, parameter, backend="reference").requires_grad


@pytest.mark.parametrize("isa", each(DECODE_ISAS))
def test_every_instruction_set(isa: str):
    assert_runs_with(
        isa,
        "import test_step_ops as t\n"
        "for dtype in t.DTYPES:\n"
        "    for size in t.SIZES: t.test_linear(*size, dtype, 'cpu'), t.test_embed(*size, dtype, 'cpu')\n"
        "    for shape in t.SHAPES:\n"
        "        t.test_attend(*shape, dtype, 'cpu')\n"
        "        for kind in t.NORMS: t.test_rope_append(*shape, dtype, kind, 'cpu')\n"
        "    t.test_attend_gives_the_same_bits_in_any_layout(dtype)\n"
        "for size in t.SIZES: t.test_rms_norm(*size, 'cpu')\n"
        "for name in t.ACTIVATIONS:\n"
        "    for size in t.SIZES: t.test_swiglu(*size, name, 'cpu', 20.0)\n"
        "    t.test_swiglu_at_the_ends(name, 'cpu'), t.test_an_activation_is_exact_relative_to_its_size(name)\n"
        "t.test_a_row_has_the_same_bits_alone_and_among_others(), t.test_many_rows_have_the_same_bits_as_one()\n"
        "t.test_appended_ids_are_attended()\n",
    )
