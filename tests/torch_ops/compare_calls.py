"""Compares torch.ops.fastdecode.* of libfastdecode_torch.so with the functions of fastdecode.ops, in one process.

Argument: the library. Random calls must give the same bits, and bad calls the same sentence.
"""

import sys

import torch

# The library comes before fastdecode.ops, whose functions for the CPU are then not registered.
if __name__ == "__main__":
    torch.ops.load_library(sys.argv[1])

import numpy as np
from cases import assert_same_bits, random_arguments
from step_cases import DTYPES, paged, rotation
from test_advance import assert_same_state, copy, random_state, random_tables
from test_library import flat, rest

from fastdecode import ops
from fastdecode.ops.sample.traced import call_sample

OPS = torch.ops.fastdecode


def compare_sampling(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arguments = random_arguments(rng, 300, DTYPES[seed % 3])
    expected = ops.sample(**arguments)
    logits = arguments.pop("logits")
    assert_same_bits(call_sample(logits, **{"allowed": None, **arguments}), expected)


def compare_rows() -> None:
    """Rows of logits and noise that overlap, or are all the same one."""
    values = torch.randn(60)
    for rows in (values.unfold(0, 40, 3), values.expand(3, 60)):
        assert_same_bits(OPS.sample(rows, noise=rows), ops.sample(rows, noise=rows))


def compare_advance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups, rows, vocab = 4, 8, 90
    tables = random_tables(rng, vocab)
    state = random_state(rng, tables, groups, rows)
    streams = torch.arange(rows, dtype=torch.int32).view(groups, 2)
    token = torch.tensor(rng.integers(0, vocab, groups))
    expected = copy(state)
    ops.advance(token, tables, expected, streams=streams)
    OPS.advance(token, *flat(tables, state), **rest(state), streams=streams)
    assert_same_state(state, expected)
    state = random_state(rng, tables, groups, rows)
    expected = copy(state)
    logits = torch.randn(rows, vocab)
    sampled = ops.sample_advance(logits, tables, expected, streams=streams, top_p=0.8, contrast=(0.1, 3), seed=7)
    options = {**rest(state), "streams": streams, "top_p_value": 0.8, "seed_value": 7}
    got = OPS.sample_advance(logits, *flat(tables, state), **options, contrast_alpha=0.1, contrast_k=3)
    assert_same_bits(got, sampled)
    assert_same_state(state, expected)


def equal(got: object, expected: object) -> None:
    got, expected = (x if isinstance(x, tuple) else (x,) for x in (got, expected))
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.view(torch.int32), b.view(torch.int32))


def compare_step(dtype: torch.dtype) -> None:
    rows, heads, kv_heads, head_dim, k = 3, 4, 2, 8, 40
    x, residual, weight = torch.randn(rows, k), torch.randn(k, rows).T, torch.randn(24, k).to(dtype)
    bias, factors = torch.randn(24), torch.randn(k)
    equal(OPS.linear(x, weight, bias), ops.linear(x, weight, bias))
    equal(OPS.linear(residual, weight), ops.linear(residual, weight))
    tokens = torch.tensor([3, 0, 23, 5])[::2]
    equal(OPS.embed(tokens, weight), ops.embed(tokens, weight))
    equal(OPS.rms_norm(x, factors, 1e-3), ops.rms_norm(x, factors, 1e-3))
    equal(OPS.add_rms_norm(x, residual, factors), ops.rms_norm(x, factors, residual=residual))
    equal(OPS.swiglu(x), ops.swiglu(x))
    for name in ("silu", "gelu_tanh", "gelu"):
        equal(OPS.swiglu(x, activation=name), ops.swiglu(x, activation=name))
    qkv = torch.randn(rows, (heads + 2 * kv_heads) * head_dim)
    cos, sin = rotation(torch.tensor([5, 0, 9]), head_dim, torch.float32)
    norms = {"q_norm": torch.randn(head_dim), "k_norm": torch.randn(kv_heads, head_dim)}
    biases = {"q_norm_bias": torch.randn(heads, head_dim), "k_norm_bias": torch.randn(head_dim)}
    for options in ({}, norms, {**norms, **biases}):
        cache = paged([5, 1, 9], kv_heads, head_dim, 4, dtype, room=1)
        expected = cache.clone()
        queries = ops.rope_append(qkv, cos, sin, *expected.arguments, **options, epsilon=1e-4)
        equal(OPS.rope_append(qkv, cos, sin, *cache.arguments, **options, epsilon=1e-4), queries)
        for a, b in ((cache.keys, expected.keys), (cache.values, expected.values)):
            assert torch.equal(a.view(torch.int8), b.view(torch.int8))
        for scale in (None, 0.3):
            equal(OPS.attend(queries, *cache.arguments, scale), ops.attend(queries, *cache.arguments, scale))


def sentence(call) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    raise AssertionError("a bad call was accepted")


def compare_refusals() -> None:
    """The operation's own sentence: that of the function, which checks in Python."""
    x, i32, i64 = torch.randn(4, 32), torch.zeros(4, dtype=torch.int32), torch.zeros(4, dtype=torch.int64)
    for bad in (torch.zeros(4), torch.zeros(4, 3, dtype=torch.int64), x.T.contiguous().T, torch.zeros(4, 0)):
        assert sentence(lambda bad=bad: OPS.sample(bad)) == sentence(lambda bad=bad: ops.sample(bad))
    for options in (
        {"streams": i64},
        {"streams": torch.zeros(4, 0, dtype=torch.int32)},
        {"streams": torch.full((2, 1), 4, dtype=torch.int32)},
        {"weights": torch.ones(4, 2)},
        {"weights": torch.ones(4, 1, dtype=torch.float64)},
        {"set_index": i32 + 1},
        {"temperature": torch.ones(3)},
        {"temperature": torch.full((4,), -1.0)},
        {"top_k": i64},
        {"seed": i32},
        {"step": i32},
        {"penalty": torch.ones(4)},
        {"seen": torch.zeros(4, 32, dtype=torch.bool)},
        {"seen": torch.zeros(4, 2, dtype=torch.int32)},
        {"noise": torch.zeros(4, 31)},
        {"noise": torch.zeros(32, 4).T},
        {"noise": torch.zeros(4, 32, dtype=torch.float64)},
    ):
        assert sentence(lambda o=options: OPS.sample(x, **o)) == sentence(lambda o=options: ops.sample(x, **o)), options
    assert sentence(lambda: OPS.sample(x, top_k_value=1 << 31)) == sentence(lambda: ops.sample(x, top_k=1 << 31))
    assert sentence(lambda: OPS.sample(x, contrast_alpha=2.0, contrast_k=1)) == sentence(
        lambda: ops.sample(x, contrast=(2.0, 1))
    )
    for name in ("", "relu", "gelu_new"):
        expected = sentence(lambda name=name: ops.swiglu(x, activation=name))
        assert sentence(lambda name=name: OPS.swiglu(x, activation=name)) == expected
    assert "must be given together" in sentence(lambda: OPS.sample(x, ranges=torch.zeros(1, 2, dtype=torch.int32)))
    assert "must be 'cpu' or None" in sentence(lambda: OPS.sample(x, backend="reference"))
    of_bytes = sentence(lambda: OPS.linear(x, x.to(torch.int8)))
    assert of_bytes == "weight.dtype = torch.int8: must be float32, bfloat16 or float16"  # the C library has no others
    for name, bad in (
        ("linear", (x, x[:, :3].contiguous())),
        ("embed", (i64, x.double())),
        ("linear", (x, torch.zeros(32, 4).T)),
        ("linear", (x[0], x)),
        ("linear", (x, x, torch.ones(3))),
        ("linear", (x, x, None, torch.ones(4))),
        ("embed", (i32, x)),
        ("embed", (i64 + 4, x)),
        ("rms_norm", (x, x)),
        ("rms_norm", (x.double(), x[0])),
        ("swiglu", (x[:, :31],)),
        ("attend", (x, *paged([1], 2, 8, 4, torch.float32).arguments)),
        ("attend", (torch.randn(1, 3, 8), *paged([1], 2, 8, 4, torch.float32).arguments)),
        ("attend", (torch.randn(2, 2, 8), *paged([1], 2, 8, 4, torch.float32).arguments)),
        ("attend", (torch.randn(1, 2, 8), *paged([0], 2, 8, 4, torch.float32).arguments)),
    ):
        expected = sentence(lambda name=name, bad=bad: getattr(ops, name)(*bad))
        assert sentence(lambda name=name, bad=bad: getattr(OPS, name)(*bad)) == expected, (name, expected)
    rng = np.random.default_rng(0)
    tables = random_tables(rng, 90)
    token = torch.zeros(4, dtype=torch.int64)
    for change in (
        {"mode": i64},
        {"step": torch.zeros(8, dtype=torch.int64)[::2]},
        {"finished": torch.full((4,), 3, dtype=torch.uint8)},
        {"inputs": torch.zeros(3, dtype=torch.int64)},
        {"sequences": torch.zeros(4, 0, dtype=torch.int64)},
        {"seen": torch.zeros(4, 2, dtype=torch.int32)},
    ):
        state = ops.DecodeState(i32.clone(), i64.clone(), torch.zeros(4, dtype=torch.uint8))
        for name, value in change.items():
            setattr(state, name, value)
        expected = sentence(lambda state=state: ops.advance(token, tables, state))
        got = sentence(lambda state=state: OPS.advance(token, *flat(tables, state), **rest(state)))
        assert got == expected, (got, expected)


def main() -> None:
    torch.manual_seed(0)
    for operation in (OPS.sample, OPS.advance, OPS.sample_advance, OPS.linear, OPS.attend):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(operation._qualified_op_name, "CPU"), operation
    for seed in range(40):
        compare_sampling(seed)
        compare_advance(seed)
    for dtype in DTYPES:
        compare_step(dtype)
    compare_rows()
    compare_refusals()
    traced = torch.compile(lambda logits: ops.sample(logits, seed=3).token, backend="aot_eager", fullgraph=True)
    logits = torch.randn(3, 40)
    assert torch.equal(traced(logits), ops.sample(logits, seed=3).token)


if __name__ == "__main__":
    main()
    print("all equal")
