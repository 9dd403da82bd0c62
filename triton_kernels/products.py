"""Products of float32 x with stored numbers, on tensor cores that multiply bfloat16.

A float32 number is the sum of three bfloat16 numbers of 8 significant bits each; a float16 number is the sum of two.
The product of two such parts is exact in float32. The products are summed in float32, the smallest first; those that
are at most 2⁻²⁴ of the whole are left out. So x is not rounded, as it would be with TF32, and each element of the
result is summed over k in the same order. Tensor cores truncate sums where float32 would round them, so a sum of theirs
should be short.

`product` takes x apart where it multiplies. Where many programs multiply the same x, parts.py does it once for all.
"""

import triton
import triton.language as tl

ON_TENSOR_CORES = tl.constexpr(not triton.knobs.runtime.interpret)
"""False in the interpreter. It cannot multiply bfloat16, and the order in which numpy sums depends on the row."""


@triton.jit
def leading(x):
    """float32 x rounded to 8 significant bits; every NaN stays a NaN."""
    rounded = ((x.to(tl.int32, bitcast=True) + 0x8000) & -65536).to(tl.float32, bitcast=True)
    return tl.where(x == x, rounded, x)


@triton.jit
def without(x, part):
    """x − part; 0 where both are equal, also where both are the same infinity."""
    return tl.where(x == part, 0.0, x - part)


@triton.jit
def split(x):
    """Three numbers of 8 significant bits each, the largest first, whose sum is float32 x."""
    x0 = leading(x)
    rest = without(x, x0)
    x1 = leading(rest)
    return x0, x1, rest - x1


@triton.jit
def float_of(x):
    """bfloat16 x as float32, in the interpreter as well."""
    return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def widened(x):
    """float32 of float32 | bfloat16 | float16 x."""
    return float_of(x) if x.dtype == tl.bfloat16 else x.to(tl.float32)


@triton.jit
def _add(total, x, w):
    if ON_TENSOR_CORES:
        total = tl.dot(x.to(tl.bfloat16), w.to(tl.bfloat16), total)
    else:
        total += tl.sum(x[:, :, None] * w[None, :, :], 1)
    return total


@triton.jit
def product(x, w):
    """x · w: (m, n) float32, for x (m, k) float32 and w (k, n) float32 | bfloat16 | float16. m, k, n ≥ 16."""
    x0, x1, x2 = split(x)
    total = tl.zeros((x.shape[0], w.shape[1]), tl.float32)
    if w.dtype == tl.bfloat16:
        if not ON_TENSOR_CORES:
            w = float_of(w)
        total = _add(total, x2, w)
        total = _add(total, x1, w)
        total = _add(total, x0, w)
    else:
        whole = w.to(tl.float32)
        w0 = leading(whole)
        left = without(whole, w0)
        w1 = leading(left)
        total = _add(total, x2, w0)
        total = _add(total, x1, w1)
        if w.dtype == tl.float32:
            total = _add(total, x0, left - w1)
        total = _add(total, x1, w0)
        total = _add(total, x0, w1)
        total = _add(total, x0, w0)
    return total
