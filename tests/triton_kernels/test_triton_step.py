"""A decode step's operations through Triton against float64, as tests/ops/test_step_ops.py has them, and the reference.

Outputs and scratch are NaN before a kernel writes them, see tests/conftest.py; so are slots that hold no id.
"""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from devices import DEVICE, INTERPRETED
from step_cases import DTYPES, Paged, attention, close, paged, rotation
from test_step_ops import ACTIVATIONS, NORMS, SHAPES, SIZES, far_above, new_ids, norm_weights, placed, randn
from test_step_ops_checks import PAGED, good
from torch.nn import functional as F

pytest.importorskip("triton")

from fastdecode.ops import (
    Matrix,
    attend,
    embed,
    joint_linear,
    last_backend,
    linear,
    rms_norm,
    rope_append,
    swiglu,
)
from fastdecode.ops.pages import Pages
from fastdecode.ops.rope_append import HeadNorm
from fastdecode.triton_kernels.attend import launch_attend
from fastdecode.triton_kernels.embed import launch_embed
from fastdecode.triton_kernels.rope_append import launch_rope_append


@pytest.fixture(autouse=True)
def quiet():
    """numpy, which the interpreter computes with, warns where inf and NaN are meant."""
    with np.errstate(all="ignore"):
        yield


def run(operation, *arguments, **options):
    """The operation by Triton, on the device; its results on the CPU."""

    def moved(value):
        return value.to(DEVICE) if isinstance(value, torch.Tensor) else value

    out = operation(*map(moved, arguments), **{k: moved(v) for k, v in options.items()}, backend="triton")
    assert last_backend() == "triton"
    return tuple(part.cpu() for part in out) if isinstance(out, tuple) else out.cpu()


def on_device(cache: Paged) -> Paged:
    return replace(cache, **{name: getattr(cache, name).to(DEVICE) for name in ("keys", "values", "table", "lengths")})


def crossed(sizes: list[tuple[int, ...]], dtypes: tuple[torch.dtype, ...]) -> list:
    """(*size, dtype): every size in the first dtype, and the last size in all; the other pairs are long."""
    found = []
    for size in sizes:
        for dtype in dtypes:
            marks = [] if dtype == dtypes[0] or size == sizes[-1] else pytest.mark.long
            found.append(pytest.param(*size, dtype, marks=marks, id="-".join(map(str, (*size, dtype)))))
    return found


# --- rows by themselves


@pytest.mark.parametrize(("rows", "k", "dtype"), crossed([*SIZES, (33, 5), (17, 130)], DTYPES))
def test_linear(rows: int, k: int, dtype: torch.dtype):
    """Against torch's own product in float32: x is not rounded to the weights' dtype."""
    for features in (1, 30, 67):
        x, weight, bias = randn(rows, k), randn(features, k, seed=1).to(dtype), randn(features, seed=2)
        for b in (None, bias):
            exact = F.linear(x.double(), weight.double(), None if b is None else b.double())
            close(run(linear, x, weight, b), linear(x, weight, b, backend="reference"), exact)


BYTES = (torch.int8, torch.float8_e4m3fn)


def of_bytes(dtype: torch.dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    """Weights of every magnitude that a byte holds."""
    codes = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    if dtype == torch.float8_e4m3fn:
        codes[(codes & 0x7F) == 0x7F] = 3  # else NaN
    return codes.view(dtype)


@pytest.mark.parametrize(("rows", "k", "dtype"), crossed([*SIZES, (33, 5), (17, 130)], BYTES))
def test_linear_of_bytes(rows: int, k: int, dtype: torch.dtype):
    for features in (1, 30, 67):
        x, weight, bias = randn(rows, k), of_bytes(dtype, features, k), randn(features, seed=2)
        scale = randn(features, seed=3)
        for b, s in ((None, None), (None, scale), (bias, scale), (bias, None)):
            exact = F.linear(x.double(), weight.double()) * (1 if s is None else s.double()) + (0 if b is None else b)
            close(run(linear, x, weight, b, s), linear(x, weight, b, s, backend="reference"), exact)


@pytest.mark.parametrize("bits", [0x7FFF, 0x7E00, -1, 0x7C01], ids=hex)
def test_every_nan_of_float16(bits: int):
    """Whatever bits it has, and becomes in float32."""
    weight = torch.ones(2, 8).half()
    weight[1, 3] = torch.tensor(bits, dtype=torch.int16).view(torch.float16)
    assert run(linear, torch.ones(1, 8), weight).isnan().tolist() == [[False, True]]


@pytest.mark.parametrize(("k", "place"), [(1, 0), (2, 0), (2, 1)])
@pytest.mark.parametrize("dtype", BYTES, ids=str)
def test_every_byte(dtype: torch.dtype, k: int, place: int):
    """Bytes of rows of an even length are read as pairs."""
    codes = torch.zeros(256, k, dtype=torch.uint8)
    codes[:, place] = torch.arange(256)
    weight = codes.view(dtype)
    got, expected = run(linear, torch.ones(1, k), weight)[0], weight[:, place].float()
    assert torch.equal(got.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(got.isnan(), expected.isnan())


@pytest.mark.parametrize("dtype", BYTES, ids=str)
def test_weights_of_bytes_that_begin_anywhere(dtype: torch.dtype):
    """A tensor of bytes may begin at an odd address, where pairs cannot be read."""
    whole, x = of_bytes(dtype, 5 * 64 + 1), randn(2, 64)
    weight = whole.to(DEVICE)[1:].view(5, 64)
    expected = F.linear(x.double(), weight.cpu().double())
    close(run(linear, x, weight), linear(x, weight.cpu(), backend="reference"), expected)
    joined = run(joint_linear, x, [Matrix(weight), Matrix(weight.clone())])
    assert torch.equal(joined[:, :5], run(linear, x, weight))
    row = whole.to(DEVICE)[:315].view(5, 63)[:1, :62]  # contiguous, as it is one row, with an odd stride
    assert torch.equal(run(linear, x[:, :62], row), run(linear, x[:, :62], row.clone()))


@pytest.mark.parametrize("dtypes", [(0, 0), (0, 0, 0), (0, 1, 1), (1, 0, 3, 3), (0, 0, 0, 0, 0), (3, 4, 4)], ids=str)
@pytest.mark.parametrize("rows", [1, pytest.param(3, marks=pytest.mark.long), 17])
def test_matrices_side_by_side(rows: int, dtypes: tuple[int, ...]):
    """The bits of each alone, in one launch or in several."""
    x, matrices = randn(rows, 70), []
    for i, number in enumerate(dtypes):
        dtype, features = (*DTYPES, *BYTES)[number], (67, 32, 1, 33, 5)[i]
        byte = dtype in BYTES
        weight = of_bytes(dtype, features, 70, seed=i) if byte else randn(features, 70, seed=i).to(dtype)
        bias, scale = randn(features, seed=9) if number != 1 else None, randn(features, seed=8) if byte else None
        matrices.append(Matrix(*(None if part is None else part.to(DEVICE) for part in (weight, bias, scale))))
    alone = [run(linear, x, *matrix) for matrix in matrices]
    assert torch.equal(run(joint_linear, x, matrices), torch.cat(alone, 1))
    assert run(joint_linear, x[:0], matrices).shape == (0, sum(len(m.weight) for m in matrices))


def test_matrices_side_by_side_of_which_some_have_biases():
    x, matrices = randn(3, 70), []
    for features, biased in ((67, True), (32, False), (5, True), (33, False), (1, False)):
        weight, bias = randn(features, 70, seed=features).to(DEVICE), randn(features, seed=9).to(DEVICE)
        matrices.append(Matrix(weight, bias if biased else None))
    alone = [run(linear, x, *matrix) for matrix in matrices]
    assert torch.equal(run(joint_linear, x, matrices), torch.cat(alone, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_of_numbers_far_apart(dtype: torch.dtype):
    """Each product to 2⁻²² of itself, whatever the magnitudes: no part of a number is lost."""
    x = randn(3, 40) * torch.logspace(20, -20, 40)
    weight = (randn(40, seed=1) * torch.logspace(-4, 4, 40)).to(dtype)
    got = run(linear, x, weight.diag())
    exact = x.double() * weight.double()
    assert ((got - exact).abs() <= 2.0**-22 * exact.abs()).all()
    x[0, 3], x[1, 4] = torch.inf, torch.nan
    got = run(linear, x, weight[None].expand(2, 40).contiguous())
    assert got.isfinite().tolist() == [[False] * 2, [False] * 2, [True] * 2]


@pytest.mark.parametrize(("rows", "n"), [*SIZES, (2, 4096), (3, 9001)])
def test_rms_norm(rows: int, n: int):
    x, weight, residual = randn(rows, n), randn(n, seed=1), randn(rows, n, seed=2) * 3
    exact = F.rms_norm(x.double(), (n,), weight.double(), 1e-3)
    close(run(rms_norm, x, weight, 1e-3), rms_norm(x, weight, 1e-3, backend="reference"), exact)
    normed, total = run(rms_norm, x, weight, residual=residual)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, run(rms_norm, total, weight))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "inner"), [*SIZES, (2, 1025)])
def test_swiglu(rows: int, inner: int, activation: str):
    gate_up, options = randn(rows, 2 * inner) * 4, {"activation": activation}
    gate, up = gate_up.double().chunk(2, -1)
    theirs = swiglu(gate_up, **options, backend="reference")
    close(run(swiglu, gate_up, **options), theirs, ACTIVATIONS[activation](gate) * up)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_swiglu_has_the_bits_of_the_cpus_kernel(activation: str):
    gate_up = randn(3, 2 * 1025, seed=5) * torch.tensor([0.1, 3.0, 30.0])[:, None]
    found = run(swiglu, gate_up, activation=activation)
    assert torch.equal(found, swiglu(gate_up, activation=activation, backend="cpu"))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_swiglu_at_the_ends(activation: str):
    gate = torch.tensor([-1e30, -200.0, -0.0, 0.0, 200.0, 1e30, torch.inf, torch.nan])
    got = run(swiglu, torch.cat((gate, torch.full((8,), 0.5)))[None], activation=activation)[0]
    assert torch.equal(got[:7], torch.tensor([0.0, 0.0, 0.0, 0.0, 100.0, 5e29, torch.inf]))
    assert got[7].isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "hidden"), [*SIZES, (2, 1025)])
def test_embed(rows: int, hidden: int, dtype: torch.dtype):
    weight = randn(50, hidden).to(dtype)
    weight[7] *= 1e-6  # of float16: below what is normal
    tokens = torch.randint(0, 50, (rows,), generator=torch.Generator().manual_seed(1))
    tokens[0] = 7
    assert torch.equal(run(embed, tokens, weight), weight[tokens].float())


def test_a_row_has_the_same_bits_alone_and_among_others():
    x, weight = randn(19, 301), randn(301, seed=1)
    together = [run(rms_norm, x, weight), *(run(swiglu, randn(19, 602), activation=name) for name in ACTIVATIONS)]
    for r in (0, 3, 15, 16, 18):
        one = slice(r, r + 1)
        assert torch.equal(run(rms_norm, x[one], weight), together[0][one])
        for name, all_rows in zip(ACTIVATIONS, together[1:], strict=True):
            assert torch.equal(run(swiglu, randn(19, 602)[one], activation=name), all_rows[one])


@pytest.mark.parametrize("k", [301, 512])
@pytest.mark.parametrize("dtype", [*DTYPES, *BYTES], ids=str)
def test_a_product_has_the_same_bits_for_any_number_of_rows(dtype: torch.dtype, k: int):
    """Up to four rows, up to 16 and more are multiplied in different ways."""
    x = randn(19, k) * torch.logspace(-3, 3, 19)[:, None]
    matrix = of_bytes(dtype, 70, k) if dtype in BYTES else randn(70, k).to(dtype)
    all_rows = run(linear, x, matrix)
    for begin, rows in ((0, 1), (3, 1), (16, 1), (2, 2), (1, 3), (5, 4), (7, 5), (4, 8), (3, 16)):
        some = slice(begin, begin + rows)
        assert torch.equal(run(linear, x[some], matrix), all_rows[some]), (begin, rows)


# --- attention


@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "head_dim", "dtype"),
    crossed([(1, 34, 2, 64), (2, 4, 2, 130), (1, 2, 2, 130), *SHAPES], DTYPES),
)
def test_attend(rows: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype):
    queries = randn(rows, heads, head_dim)
    for slots, scale, lengths in ((1, 0.5, [1, 8, 7, 3, 40]), (5, None, [40, 1, 128, 129, 300]), (32, None, [33] * 5)):
        cache = paged(lengths[-rows:], kv_heads, head_dim, slots, dtype)
        exact = attention(queries, cache, head_dim**-0.5 if scale is None else scale, torch.float64)
        theirs = attend(queries, *cache.arguments, scale, backend="reference")
        close(run(attend, queries, *cache.arguments, scale), theirs, exact)


def test_attend_to_more_stretches_than_are_joined_at_once():
    cache, queries = paged([2500, 2049, 2048], 1, 16, 64, torch.bfloat16), randn(3, 2, 16) * 3
    theirs = attend(queries, *cache.arguments, backend="reference")
    close(run(attend, queries, *cache.arguments), theirs, attention(queries, cache, 0.25, torch.float64))


def test_attend_where_one_score_is_far_above():
    """Behind the first 128 ids, which are several stretches."""
    cache = paged([700], 1, 16, 8, torch.float32)
    keys, values = cache.ids[0][:, 0]
    place = far_above(keys, 128)
    assert torch.equal(run(attend, keys[place][None, None] * 1000, *cache.arguments, 1.0)[0, 0], values[place])


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("dtype", [DTYPES[0], *(pytest.param(d, marks=pytest.mark.long) for d in DTYPES[1:])], ids=str)
def test_attend_gives_the_same_bits_in_any_layout(dtype: torch.dtype, kv_heads: int):
    """Alone, among others, and in pages of other sizes and numbers."""
    lengths, queries = [3, 300, 128, 129, 90], randn(5, 4, 32)
    first = run(attend, queries, *paged(lengths, kv_heads, 32, 32, dtype).arguments)
    for slots in (1, 7, 40):
        keys, values, table, stored = paged(lengths, kv_heads, 32, slots, dtype).arguments
        assert torch.equal(run(attend, queries, keys, values, table, stored), first)
        for r in range(5):
            one = slice(r, r + 1)
            width = -(-lengths[r] // slots)
            assert torch.equal(run(attend, queries[one], keys, values, table[one, :width], stored[one]), first[one])


# --- placing


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "heads", "kv_heads", "head_dim"), SHAPES)
def test_rope_append(rows: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, kind: str):
    cache = paged([4, 0, 31, 32, 9][:rows], kv_heads, head_dim, 8, dtype, room=1)
    qkv, (cos, sin) = randn(rows, (heads + 2 * kv_heads) * head_dim), rotation(cache.lengths, head_dim, torch.float32)
    q_norm, k_norm = norm_weights(kind, heads, head_dim, 1), norm_weights(kind, kv_heads, head_dim, 3)
    options = dict(zip(("q_norm", "q_norm_bias", "k_norm", "k_norm_bias"), (*q_norm, *k_norm), strict=True))
    expected, after = cache.clone(), on_device(cache.clone())
    theirs = rope_append(qkv, cos, sin, *expected.arguments, **options, epsilon=1e-4, backend="reference")
    got = run(rope_append, qkv, cos, sin, *after.arguments, **options, epsilon=1e-4)
    q, k, v = qkv.view(rows, -1, head_dim).double().split([heads, kv_heads, kv_heads], 1)
    close(got, theirs, placed(q, *q_norm, cos, sin, 1e-4))
    after = Paged(*(tensor.cpu() for tensor in after.arguments), cache.ids)
    keys, values = new_ids(after)
    assert torch.equal(values, v.to(dtype))
    exact = placed(k, *k_norm, cos, sin, 1e-4)
    close(keys.float(), new_ids(expected)[0].float(), exact, 1.5 if dtype == torch.float32 else 1.01)
    for old, new in zip((cache.keys, cache.values), (after.keys, after.values), strict=True):
        changed = ((old != new) & ~(old.isnan() & new.isnan())).any(-1).all(1)  # (pages, slots)
        assert changed.sum() == rows


def test_numbers_between_two_of_bfloat16_are_rounded_to_the_even_one():
    cache = on_device(paged([3], 1, 8, 4, torch.bfloat16, room=1))
    values = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, -1 - 3 * 2**-8, 5 + 2**-6, 1e30, -0.0, torch.inf])
    qkv, (cos, sin) = torch.cat((randn(16), values))[None], rotation(torch.tensor([3]), 8, torch.float32)
    run(rope_append, qkv, cos, sin, *cache.arguments)
    _, stored = new_ids(Paged(*(tensor.cpu() for tensor in cache.arguments), cache.ids))
    assert torch.equal(stored[0, 0], values.bfloat16())


def test_appended_ids_are_attended():
    """Ids of one sequence one by one, and as rows of one call: the same bits."""
    ids, d = 6, 16
    qkv, (cos, sin) = randn(ids, 8 * d), rotation(torch.arange(ids), d, torch.float32)
    by_one, at_once = (on_device(paged([0], 2, d, 4, torch.bfloat16, room=ids)) for _ in range(2))
    weight, found = randn(d), []
    norms = {"q_norm": weight, "k_norm": weight}  # one for all heads
    for i in range(ids):
        lengths, one = torch.tensor([i]), slice(i, i + 1)
        stored = (by_one.keys, by_one.values, by_one.table)
        q = run(rope_append, qkv[one], cos[one], sin[one], *stored, lengths, **norms)
        found.append(run(attend, q, *stored, lengths + 1))
    lengths, stored = torch.arange(ids), (at_once.keys, at_once.values, at_once.table.expand(ids, -1))
    q = run(rope_append, qkv, cos, sin, *stored, lengths, **norms)
    assert torch.equal(run(attend, q, *stored, lengths + 1), torch.cat(found))


# --- bad input


def test_no_rows():
    nothing = torch.zeros(0, 8)
    assert run(linear, nothing, torch.zeros(3, 8)).shape == (0, 3)
    assert run(linear, torch.zeros(2, 8), torch.zeros(0, 8)).shape == (2, 0)
    assert run(rms_norm, nothing, torch.ones(8)).shape == run(swiglu, torch.zeros(0, 16)).shape == (0, 8)
    assert run(embed, torch.zeros(0, dtype=torch.long), torch.zeros(3, 8)).shape == (0, 8)
    cache = paged([], 1, 8, 4, torch.float32)
    assert run(attend, torch.zeros(0, 2, 8), *cache.arguments).shape == (0, 2, 8)
    assert run(rope_append, torch.zeros(0, 32), nothing, nothing, *cache.arguments).shape == (0, 2, 8)


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU values are not waited for")
@pytest.mark.parametrize(("change", "message"), [case for case in PAGED if case[1].startswith("table[")], ids=str)
def test_bad_pages_are_refused_on_the_cpu(change: dict, message: str):
    given = {**good(), **change}
    before = given["keys"].clone()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        run(rope_append, torch.ones(2, 32), torch.ones(2, 4), torch.ones(2, 4), **given)
    given["lengths"] = given["lengths"] + 1
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        run(attend, torch.ones(2, 4, 4), **given)
    assert torch.equal(given["keys"].nan_to_num(7.0), before.nan_to_num(7.0))
    with pytest.raises(ValueError, match=r"^tokens\[1\] = 3: must be a token in \[0, 3\)$"):
        run(embed, torch.tensor([0, 3]), torch.ones(3, 8))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"^weight.shape = \(3, 7\): must be \(features, 8\)$"):
        run(linear, torch.ones(2, 8), torch.ones(3, 7))
    with pytest.raises(ValueError, match=r"^gate_up.shape = \(2, 7\): must be \(rows, 2 \* inner\)$"):
        run(swiglu, torch.ones(2, 7))


def test_a_token_outside_of_the_vocabulary_is_nan_in_device_memory():
    tokens, weight = torch.tensor([1, 3, -1, 2**62, 0, -(2**63)], device=DEVICE), randn(3, 9).to(DEVICE)
    got = launch_embed(tokens, weight)
    assert got.isnan().all(1).tolist() == [False, True, True, True, False, True]
    assert torch.equal(got[[0, 4]], weight[[1, 0]])


BAD = [(5, 7), (5, -1), (5, 2**31 - 1), (5, -(2**31)), (13, None), (-1, None), (2**63 - 1, None), (-(2**63), None)]


@pytest.mark.parametrize(("length", "page"), BAD)
def test_a_bad_row_in_device_memory_is_nan_and_stores_nothing(length: int, page: int | None):
    """The launchers, behind the checks that only the host's memory gets: other rows are as without it."""
    given = good()
    given["table"] = given["table"].contiguous()
    given["lengths"][0] = length
    for seed, name in enumerate(("keys", "values")):
        given[name] = randn(*given[name].shape, seed=seed)
    if page is not None:
        given["table"][0, 1] = page
    moved = {name: tensor.to(DEVICE) for name, tensor in given.items()}
    qkv = randn(2, 32).to(DEVICE)
    only = Pages(moved["keys"], moved["values"], moved["table"][1:], moved["lengths"][1:])
    kv_heads = moved["keys"].shape[1]
    for heads in (4, kv_heads):  # several query heads for one of keys, and one
        queries = randn(2, heads, 4).to(DEVICE)
        found = launch_attend(queries, Pages(**moved), 0.5)
        assert found[0].isnan().all()
        assert torch.equal(found[1], launch_attend(queries[1:], only, 0.5)[0])

    ones, none = torch.ones(2, 4, device=DEVICE), HeadNorm(None, None)
    moved["lengths"][0] = {13: 12}.get(length, length)
    q = launch_rope_append(qkv, ones, ones, Pages(**moved), none, none, 1e-5)
    assert q[0].isnan().all()
    assert q[1].isfinite().all()
    for seed, name in enumerate(("keys", "values")):
        changed = (moved[name].cpu() != randn(*given[name].shape, seed=seed)).any(-1).any(1)
        assert changed.nonzero().tolist() == [[6, 0]]
