"""Every backend against the reference on adversarial arguments, bit by bit; and wrong arguments of all kinds.

``pytest tests/ops/test_sample_fuzz.py --hypothesis-profile=long`` searches at random for about ten minutes. The default
is a short search that is the same every time.
"""

import math
import os
import warnings
from contextlib import suppress

import numpy as np
import pytest
import torch
from cases import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import arguments

from fastdecode.ops import TokenSets, available_backends, last_backend, sample

SIZES = [1, 2, 31, 32, 33, 63, 64, 65, 257, 511, 513, 1000, 2047, 2500]
LONG = [8191, 8193, 66_000, 66_001]  # the longer ones, of two groups or more, are shared out to threads
TRITON_SIZES = [1, 2, 31, 33, 64, 257]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and "triton" in available_backends()
HALF = settings(max_examples=settings.default.max_examples // 2)
A_TENTH = settings(max_examples=settings.default.max_examples // 10)


def check_same(backend: str, args: dict) -> None:
    expected = sample(**args, backend="reference")
    assert last_backend() == "reference"
    got = sample(**args, backend=backend)
    assert last_backend() == backend
    assert_same_bits(got, expected)
    vocab = args["logits"].shape[1]
    ok = got.status == 0
    assert (ok == (got.token >= 0)).all()
    assert (ok == (got.kept > 0)).all()
    assert (got.token < vocab).all()
    assert (got.logprob[ok] <= 1e-5).all()
    assert (got.logprob[~ok] == -math.inf).all()


@given(args=arguments(SIZES))
def test_same_bits(args: dict):
    check_same("cpu", args)


@pytest.mark.skipif(not INTERPRETED, reason="the triton backend is not run in its interpreter (TRITON_INTERPRET=1)")
@A_TENTH
@given(args=arguments(TRITON_SIZES))
def test_same_bits_in_tritons_interpreter(args: dict):
    with np.errstate(all="ignore"):  # numpy, which interprets, warns of every inf that is meant; slowly, under pytest
        check_same("triton", args)


@pytest.mark.long
@HALF
@given(args=arguments(LONG))
def test_same_bits_of_long_rows_on_threads(args: dict):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        check_same("cpu", args)
    finally:
        torch.set_num_threads(before)


# --- wrong arguments ----------------------------------------------------------------------------------------------

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # quantized tensors are going away
    QUANTIZED = torch.quantize_per_tensor(torch.zeros(2, 8), 0.1, 0, torch.qint8)
JUNK = st.sampled_from(
    [
        "words",
        b"bytes",
        object(),
        [],
        [[1.0]],
        {},
        (1, 2, 3),
        1 + 2j,
        math.nan,
        math.inf,
        -math.inf,
        1e39,
        -1.5,
        2**63,
        2**31,
        -(2**70),
        torch.tensor(math.nan),
        torch.tensor([math.nan]),
        torch.tensor(1 + 2j),
        torch.zeros(0),
        torch.zeros(3, 3, 3),
        torch.zeros(2, 8, device="meta"),
        torch.zeros((), device="meta"),
        torch.zeros(2, device="meta"),
        torch.zeros(2, 8).to_sparse(),
        torch.zeros(2, 8, dtype=torch.complex64),
        torch.zeros(2, 8, dtype=torch.bool),
        torch.zeros(8, 2).t(),
        QUANTIZED,
        10**400,
        (0.1, math.inf),
    ]
)
NAMES = [
    *("logits", "streams", "weights", "allowed", "set_index", "temperature", "top_k", "top_p", "min_p", "penalty"),
    *("seen", "contrast", "seed", "step", "noise", "backend"),
]
BAD_SETS = st.sampled_from([[[(3, 1)]], [[(0, 9)]], [[(-1, 2)]], [[(0,)]], [(0, 8)], [["ab"]], [[(0.5, "x")]], [None]])


@st.composite
def spoilt(draw: st.DrawFn) -> tuple[str, object]:
    """An argument's name, and what may well be a wrong value for it."""
    name = draw(st.sampled_from(NAMES))
    if name == "allowed" and draw(st.booleans()):
        return name, draw(BAD_SETS | st.just(TokenSets([[(0, 2)]], device="meta")))
    if name in ("streams", "set_index") and draw(st.booleans()):
        index = draw(st.integers(-(2**31), 2**31 - 1) | st.integers(-3, 3))
        table = torch.full((2, 1) if name == "streams" else (2,), index, dtype=torch.int32)
        return name, table
    if draw(st.booleans()):
        shape = draw(st.lists(st.integers(0, 9), max_size=3))
        dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int32, torch.int64]))
        device = draw(st.sampled_from(["cpu", "cpu", "meta"]))
        return name, torch.full(shape, -3, dtype=dtype, device=device)
    return name, draw(JUNK)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@given(wrong=spoilt())
def test_wrong_arguments_are_refused_by_name(backend: str, wrong: tuple[str, object]):
    """Or they were right. A crash, or any other exception, fails."""
    name, value = wrong
    args = {
        "logits": torch.zeros(2, 8),
        "seen": torch.zeros(2, 1, dtype=torch.int32),
        "penalty": 1.5,
        "backend": backend,
        name: value,
    }
    try:
        got = sample(**args)
    except (ValueError, TypeError) as error:
        refusal = str(error)
    else:
        assert all(len(field) == len(got.token) for field in got)
        assert ((got.token >= 0) == (got.status == 0)).all()
        return
    named = refusal.partition(":")[0]
    # What the others must be like follows from these two: they may be the ones that are refused.
    names = NAMES if name in ("logits", "streams") else [name]
    assert any(n in named for n in names), refusal
    assert len(refusal) > len(named) + 5


@given(wrong=st.lists(spoilt(), min_size=2, max_size=5))
def test_many_wrong_arguments_at_once_crash_nothing(wrong: list[tuple[str, object]]):
    args = {"logits": torch.zeros(2, 8), **dict(wrong)}
    with suppress(ValueError, TypeError):
        sample(**args)
