"""What the sampler's kernels share: a group's parameters, set and logits, read from device memory.

Which of the optional arrays are given is a bit mask at run time, so that one compiled kernel serves
all combinations; an array that is absent is never dereferenced.
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
"""Numbers that vary from call to call: no kernel is compiled anew for their values."""

TYPES = (
    dict.fromkeys(_INT32, "i32")
    | dict.fromkeys(_INT64, "i64")
    | dict.fromkeys(("temperature_value", "top_p_value", "min_p_value", "penalty_value", "contrast_alpha"), "fp32")
    | dict.fromkeys(("weights", "temperatures", "top_ps", "min_ps", "penalties", "noise", "floats", "logprob"), "*fp32")
    | dict.fromkeys(("streams", "ranges", "offsets", "set_index", "top_ks", "seen", "ints", "kept", "status"), "*i32")
    | dict.fromkeys(("seeds", "steps", "longs", "token"), "*i64")
)
"""Triton's types of the sampler's arguments, without the logits, by name."""


@triton.jit
def parameter(values, value, group, given, BIT: tl.constexpr):
    """values[group] if the array is given, else the value for all groups."""
    return tl.load(values + group, mask=(given & BIT) != 0, other=value)


@triton.jit
def bad_parameters(temperature, top_p, min_p, penalty):
    """Whether one lies outside its domain; NaN is in none."""
    good = (temperature >= 0) & (temperature < INF) & (top_p >= 0) & (top_p <= 1)
    good = good & (min_p >= 0) & (min_p <= 1) & (penalty > 0) & (penalty < INF)
    return ~good


@triton.jit
def set_of(ranges, range_count, offsets, sets, set_index, vocab, group, given):
    """(first, last, bad): the group's ranges are first to last; none if it names no set."""
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
    """Whether ranges are not ascending, disjoint and inside the vocabulary; looks at every parts-th 128 of them."""
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
    """(ids, member, size): the set's ids at ascending positions, and how many it has."""
    size = first * 0
    ids = position
    for r in range(first, last):
        lo, hi = range_at(ranges, r, vocab, given)
        ids = tl.where(position >= size, position - size + lo, ids)
        size += hi - lo
    return ids, (position < size) & (ids >= 0) & (ids < vocab), size


@triton.jit
def in_set(ranges, first, last, vocab, given, ids):
    """Which ids lie in a range of the set, by binary search for the last range that begins at or before."""
    count = last - first
    stored = tl.where((given & SETS) != 0, count, 0)
    step = 1
    while step < count:
        step = step * 2
    begun = tl.zeros(ids.shape, tl.int32)  # ranges known to begin at or before the id
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
    """(row, weight, read, bad): the group's k-th stream, whether it is read, and whether it is none at all.

    Bad is a row outside [−1, rows) or a weight that is not finite; such a stream is not read.
    """
    at = group * width + k
    row = tl.load(streams + at, mask=(given & STREAMS) != 0, other=group.to(tl.int32))
    weight = tl.load(weights + at, mask=(given & WEIGHTS) != 0, other=1.0)
    bad = (row < -1) | (row >= rows) | ~((weight > -INF) & (weight < INF))
    return row.to(tl.int64), weight, (row >= 0) & (weight != 0) & ~bad, bad


@triton.jit
def mixed(logits, rows, row_stride, streams, weights, width, group, given, ids, member):
    """(z, possible, invalid): step 1 of the contract.

    invalid is 1 if a NaN or +inf was read, or a stream is bad, or none was read.
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
    """Logits of the first stream that is read, for contrast; −inf outside the set and for what is not finite."""
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
    """Steps 3 and 4: z penalised where seen, divided by the temperature unless that is 0; never −0."""
    if (given & SEEN) != 0:
        word = tl.load(seen + group * words + (ids >> 5), mask=member, other=0)
        penalised = tl.where(z < 0, z * penalty, tl.div_rn(z, penalty))
        z = tl.where(((word >> (ids & 31)) & 1) != 0, penalised, z)
    if temperature != 0:
        z = tl.div_rn(z, temperature)
    return z + 0.0
