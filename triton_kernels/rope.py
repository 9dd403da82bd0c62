"""Norms and rotates heads; for rope_append.py and attend.py.

Heads are given by a tile of addresses (heads, 1) of their first elements, elements by their numbers d (elements,). The
order in which a head is summed depends on the kernel, not on other heads and rows.
"""

import triton
import triton.language as tl

from fastdecode.triton_kernels.arguments import HeadNorm

NO_NORM = tl.constexpr(0)
RMS_NORM = tl.constexpr(1)
LAYER_NORM = tl.constexpr(2)


@triton.jit
def stored_as(dtype: tl.constexpr, x):
    """float32 x rounded to the dtype of the pages. To bfloat16 by its bits: the interpreter would truncate."""
    if dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), 0x7FC00000)
        result = (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        result = x.to(dtype)
    return result


@triton.jit
def _mean(x, HEAD_DIM: tl.constexpr):
    sums = tl.sum(x, 1)
    return tl.div_rn(sums, tl.full(sums.shape, HEAD_DIM, tl.float32))


@triton.jit
def statistics(heads, d, there, epsilon, NORM: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Mean (0 without LAYER_NORM) and factor (1 without a norm) of each head, (heads, 1), from all elements d."""
    x = tl.load(heads + d[None, :], mask=there, other=0.0)
    mean = tl.zeros((x.shape[0],), tl.float32)
    factor = tl.full((x.shape[0],), 1.0, tl.float32)
    if NORM == LAYER_NORM:
        mean = _mean(x, HEAD_DIM)
        x = tl.where(there, x - mean[:, None], 0.0)
    if NORM != NO_NORM:
        factor = tl.div_rn(factor, tl.sqrt_rn(_mean(x * x, HEAD_DIM) + epsilon))
    return mean[:, None], factor[:, None]


@triton.jit
def _normed(heads, weights, biases, mean, factor, d, there, NORM: tl.constexpr):
    x = tl.load(heads + d[None, :], mask=there, other=0.0)
    if NORM == LAYER_NORM:
        x -= mean
    if NORM != NO_NORM:
        x = x * factor * tl.load(weights + d[None, :], mask=there, other=0.0)
    if NORM == LAYER_NORM:
        x += tl.load(biases + d[None, :], mask=there, other=0.0)
    return x


@triton.jit
def turned(
    heads, weights, biases, mean, factor, cos, sin, d, there,
    NORM: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """Elements d of normed and rotated heads. ``cos``, ``sin``: HEAD_DIM at an address; half of sin negated."""
    HALF: tl.constexpr = HEAD_DIM // 2
    x = _normed(heads, weights, biases, mean, factor, d, there, NORM)
    partner = _normed(heads, weights, biases, mean, factor, tl.where(d < HALF, d + HALF, d - HALF), there, NORM)
    turn = tl.load(sin + d, mask=d < HEAD_DIM, other=0.0)[None, :]
    return x * tl.load(cos + d, mask=d < HEAD_DIM, other=0.0)[None, :] + partner * turn


def kind_of(norm: HeadNorm) -> int:
    if norm.weight is None:
        return NO_NORM.value
    return RMS_NORM.value if norm.bias is None else LAYER_NORM.value
