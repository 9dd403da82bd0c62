"""Functions that the kernels of `sample` share: they read a group's parameters, token set and logits.

`given` is a bit mask that says which of the optional arrays are there. It is a number at run time, so that one
compiled kernel serves all combinations. An array whose bit is not set is never read.
"""

import triton
import triton.language as tl

from fastdecode.triton_kernels.numerics import INF, to_f32

STREAMS = tl.constexpr(1)
WEIGHTS = tl.constexpr(2)
SETS = tl.constexpr(4)
SET_INDEX = tl.constexpr(8)
TEMPERATURE = tl.constexpr(16)
TOP_K = tl.constexpr(32)
TOP_P = tl.constexpr(64)
MIN_P = tl.constexpr(128)
PENALTY = tl.constexpr(256)
SEEN = tl.constexpr(512)
SEED = tl.constexpr(1024)
STEP = tl.constexpr(2048)

_INT32 = (
    *("rows", "vocab", "width", "range_count", "sets", "words", "given"),
    *("top_k_value", "contrast_k", "span", "chunks"),
)
_INT64 = ("row_stride", "noise_stride", "seed_value", "step_value")

INTS = [*_INT32, *_INT64]
"""Integers for whose values Triton must not compile a kernel again."""

TYPES = (
    dict.fromkeys(_INT32, "i32")
    | dict.fromkeys(_INT64, "i64")
    | dict.fromkeys(("temperature_value", "top_p_value", "min_p_value", "penalty_value", "contrast_alpha"), "fp32")
    | dict.fromkeys(("weights", "temperatures", "top_ps", "min_ps", "penalties", "noise", "floats", "logprob"), "*fp32")
    | dict.fromkeys(("streams", "ranges", "offsets", "set_index", "top_ks", "seen", "ints", "kept", "status"), "*i32")
    | dict.fromkeys(("seeds", "steps", "longs", "token"), "*i64")
)
"""The Triton types of all arguments of `sample`'s kernels except the logits, by name."""


@triton.jit
def parameter(values, value, group, given, BIT: tl.constexpr):
    """values[group] if the array is given, else `value`, which is for all groups."""
    return tl.load(values + group, mask=(given & BIT) != 0, other=value)


@triton.jit
def bad_parameters(temperature, top_p, min_p, penalty):
    """Whether any of the parameters is NaN or outside its valid range."""
    good = (temperature >= 0) & (temperature < INF) & (top_p >= 0) & (top_p <= 1)
    good = good & (min_p >= 0) & (min_p <= 1) & (penalty > 0) & (penalty < INF)
    return ~good


@triton.jit
def set_of(ranges, range_count, offsets, sets, set_index, vocab, group, given):
    """(first, last, bad): the ranges of the group's set are [first, last). bad: the set does not exist; no ranges."""
    number = tl.load(set_index + group, mask=(given & SET_INDEX) != 0, other=0)
    bad = (number < 0) | (number >= sets)
    number = tl.where(bad, 0, number)
    listed = (given & SETS) != 0
    first = tl.load(offsets + number, mask=listed, other=0)
    last = tl.load(offsets + number + 1, mask=listed, other=1)
    bad = bad | (first < 0) | (first > last) | (last > range_count)
    return tl.where(bad, 0, first), tl.where(bad, 0, last), bad


@triton.jit
def range_at(ranges, r, vocab, given):
    """(lo, hi) of range r; the whole vocabulary where no sets are given."""
    listed = (given & SETS) != 0
    return tl.load(ranges + r * 2, mask=listed, other=0), tl.load(ranges + r * 2 + 1, mask=listed, other=vocab)


@triton.jit
def bad_ranges(ranges, first, last, vocab, given, part, parts):
    """Whether any range is not sorted, not disjoint or not inside the vocabulary.

    The work is divided among `parts` programs: each looks at every parts-th block of 128 ranges, from number `part`.
    """
    wrong = tl.zeros((128,), tl.int32)
    if (given & SETS) != 0:
        for begin in range(first + part * 128, last, parts * 128):
            r = begin + tl.arange(0, 128)
            lo = tl.load(ranges + r * 2, mask=r < last, other=0)
            hi = tl.load(ranges + r * 2 + 1, mask=r < last, other=0)
            before = tl.load(ranges + r * 2 - 1, mask=(r < last) & (r > first), other=0)
            wrong = wrong | ((lo < before) | (hi < lo) | (hi > vocab)).to(tl.int32)
    return tl.max(wrong, 0) != 0


@triton.jit
def ids_at(ranges, first, last, vocab, given, position):
    """(tokens, member, size): the tokens at these positions of the ascending set, which of the positions exist, and the
    size of the set.
    """
    size = first * 0
    ids = position
    for r in range(first, last):
        lo, hi = range_at(ranges, r, vocab, given)
        ids = tl.where(position >= size, position - size + lo, ids)
        size += hi - lo
    return ids, (position < size) & (ids >= 0) & (ids < vocab), size


@triton.jit
def in_set(ranges, first, last, vocab, given, ids):
    """Which tokens are in the set: binary search for the last range that begins at or before the token."""
    count = last - first
    stored = tl.where((given & SETS) != 0, count, 0)
    step = 1
    while step < count:
        step = step * 2
    begun = tl.zeros(ids.shape, tl.int32)  # ranges known to begin at or before the token
    while step > 0:
        probe = begun + step
        lo = tl.load(ranges + (first + probe - 1) * 2, mask=probe <= stored, other=0)
        begun = tl.where((probe <= count) & (lo <= ids), probe, begun)
        step = step // 2
    at = tl.minimum(begun, stored)  # 0: nothing to load
    hi = tl.load(ranges + (first + at - 1) * 2 + 1, mask=at > 0, other=vocab)
    return (begun > 0) & (ids < hi) & (ids >= 0) & (ids < vocab)


@triton.jit
def stream_at(k, rows, streams, weights, width, group, given):
    """(row, weight, read, bad): the group's k-th stream.

    read: whether its logits are read. bad: its row is outside [−1, rows) or its weight is not finite; it is not read.
    """
    at = group * width + k
    row = tl.load(streams + at, mask=(given & STREAMS) != 0, other=group.to(tl.int32))
    weight = tl.load(weights + at, mask=(given & WEIGHTS) != 0, other=1.0)
    bad = (row < -1) | (row >= rows) | ~((weight > -INF) & (weight < INF))
    return row.to(tl.int64), weight, (row >= 0) & (weight != 0) & ~bad, bad


@triton.jit
def mixed(logits, rows, row_stride, streams, weights, width, group, given, ids, member):
    """(z, possible, invalid): step 1 of `sample`, the weighted sum.

    invalid: 1 if a NaN or +inf was read, a stream is bad, or no stream was read.
    """
    z = tl.zeros(ids.shape, tl.float32)
    possible = member
    wrong = member & False
    reads = width * 0
    invalid = width * 0
    for k in range(width):
        row, weight, read, bad = stream_at(k, rows, streams, weights, width, group, given)
        invalid = invalid | bad.to(tl.int32)
        if read:
            stream = to_f32(tl.load(logits + row * row_stride + ids, mask=member, other=0.0))
            wrong = wrong | (member & ~(stream < INF))
            possible = possible & ~(stream == -INF)
            z = z + weight * stream
            reads = reads + 1
    invalid = invalid | (reads == 0).to(tl.int32) | tl.max(wrong.to(tl.int32), 0)
    return z, possible, invalid


@triton.jit
def expert_of(logits, rows, row_stride, streams, weights, width, group, given, ids, member):
    """Logits of the first stream that is read, the expert of contrast; −inf outside the set and for logits that are not
    finite.
    """
    expert = tl.full(ids.shape, -INF, tl.float32)
    reads = width * 0
    for k in range(width):
        row, _, read, _ = stream_at(k, rows, streams, weights, width, group, given)
        if read & (reads == 0):
            expert = to_f32(tl.load(logits + row * row_stride + ids, mask=member, other=-INF)) + 0.0
            reads = reads + 1
    return tl.where((expert > -INF) & (expert < INF), expert, -INF)


@triton.jit
def scaled(z, seen, words, group, given, penalty, temperature, ids, member):
    """Steps 3 and 4 of `sample`: the penalty for tokens in `seen`, then division by the temperature unless that is 0.

    The result is never −0.
    """
    if (given & SEEN) != 0:
        word = tl.load(seen + group * words + (ids >> 5), mask=member, other=0)
        penalised = tl.where(z < 0, z * penalty, tl.div_rn(z, penalty))
        z = tl.where(((word >> (ids & 31)) & 1) != 0, penalised, z)
    if temperature != 0:
        z = tl.div_rn(z, temperature)
    return z + 0.0
