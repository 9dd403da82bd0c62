"""Products of float32 x with stored weights, on tensor cores that multiply bfloat16.

A float32 number is the sum of three bfloat16 numbers of 8 significant bits each; a float16 number is the sum of two.
The product of two such parts is exact in float32. The products are summed in float32, the smallest first; those that
are at most 2⁻²⁴ of the whole are left out. So x is not rounded, as it would be with TF32, and each element of the
result is summed over k in the same order.
"""

import triton
import triton.language as tl

_ON_TENSOR_CORES = tl.constexpr(not triton.knobs.runtime.interpret)
"""False in the interpreter. It cannot multiply bfloat16, and the order in which numpy sums depends on the row."""


@triton.jit
def _leading(x):
    """float32 x rounded to 8 significant bits; every NaN stays a NaN."""
    rounded = ((x.to(tl.int32, bitcast=True) + 0x8000) & -65536).to(tl.float32, bitcast=True)
    return tl.where(x == x, rounded, x)


@triton.jit
def _without(x, part):
    """x − part; 0 where both are equal, also where both are the same infinity."""
    return tl.where(x == part, 0.0, x - part)


@triton.jit
def _add(total, x, w):
    if _ON_TENSOR_CORES:
        total = tl.dot(x.to(tl.bfloat16), w.to(tl.bfloat16), total)
    else:
        total += tl.sum(x[:, :, None] * w[None, :, :], 1)
    return total


@triton.jit
def product(x, w):
    """x · w: (m, n) float32, for x (m, k) float32 and w (k, n) float32 | bfloat16 | float16. m, k, n ≥ 16."""
    x0 = _leading(x)
    rest = _without(x, x0)
    x1 = _leading(rest)
    x2 = rest - x1
    total = tl.zeros((x.shape[0], w.shape[1]), tl.float32)
    if w.dtype == tl.bfloat16:
        if not _ON_TENSOR_CORES:
            w = (w.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
        total = _add(total, x2, w)
        total = _add(total, x1, w)
        total = _add(total, x0, w)
    else:
        whole = w.to(tl.float32)
        w0 = _leading(whole)
        left = _without(whole, w0)
        w1 = _leading(left)
        total = _add(total, x2, w0)
        total = _add(total, x1, w1)
        if w.dtype == tl.float32:
            total = _add(total, x0, left - w1)
        total = _add(total, x1, w0)
        total = _add(total, x0, w1)
        total = _add(total, x0, w0)
    return total
