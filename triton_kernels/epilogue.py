"""What a product of linear.py or linear_int4.py does with its sums before they leave the multiprocessor.

    squares         (rows, PARTIALS) float32: sums of squares of pieces of each row of x; not read if PARTIALS is 0
    residual        (rows, features) float32: read with ADD
    following       (features,) float32: weight of the norm after; read if parts are written, but not with GATED
    out             (rows, features) float32: written without GATED
    parts_out       the parts of what is multiplied next, see parts.py: written if OUT_PADDED is not 0
    squares_out     (rows, pieces of 16 features) float32: written with SQUARES, for the norm after

A norm is a factor of each row and a weight of each element. Where x was multiplied by the weight alone, the sums of the
product are multiplied by the factor here, so that no launch is needed for a norm.

Squares are summed as whole numbers. So the bits of a row depend neither on the order in which threads sum, nor on how
many rows and features a program has.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastdecode.triton_kernels.parts import Parts, store_parts
from fastdecode.triton_kernels.swiglu import activated

PIECE = tl.constexpr(16)
"""Elements of a row whose squares are summed together. Every program has a multiple of them."""

_FRACTION = tl.constexpr(2.0**36)


@triton.jit
def _scale(top):
    """The power of two in ``top`` ≥ 0, from 2⁻¹²⁶ to 2¹²⁶, and its inverse."""
    bits = tl.minimum(tl.maximum(top.to(tl.int32, bitcast=True) & 0x7F800000, 0x00800000), 0x7E800000)
    return bits.to(tl.float32, bitcast=True), (0x7F000000 - bits).to(tl.float32, bitcast=True)


@triton.jit
def _whole(x, inverse):
    """x ≥ 0 in units of 2⁻³⁶ of the scale, as int64: sums of these are the same in any order."""
    return (tl.where(x < float("inf"), x * inverse, 0.0) * _FRACTION).to(tl.int64)


@triton.jit
def _sum_of(whole, top, scale):
    """The sum of numbers whose largest is ``top``; infinite where that is."""
    found = whole.to(tl.float32) * (1.0 / _FRACTION) * scale
    return tl.where(top < float("inf"), found, float("inf"))


@triton.jit
def squares_of(x):
    """Sums of squares of the pieces of rows x (rows, n): (rows, n // PIECE). NaN counts as infinity: a product of
    the row is NaN whatever its factor is.
    """
    pieces = x.reshape(x.shape[0], x.shape[1] // PIECE, PIECE)
    squares = tl.where(pieces == pieces, pieces * pieces, float("inf"))
    top = tl.max(squares, 2)
    scale, inverse = _scale(top)
    return _sum_of(tl.sum(_whole(squares, inverse[:, :, None]), 2), top, scale)


@triton.jit
def row_factors(squares, r, rows, epsilon, PARTIALS: tl.constexpr, K: tl.constexpr):
    """1 / √(mean of squares + epsilon) of rows r, whose K elements were squared and summed in PARTIALS pieces."""
    CHUNK: tl.constexpr = min(2048 // r.shape[0], triton.next_power_of_2(PARTIALS))
    top = tl.zeros(r.shape, tl.float32)
    for begin in tl.static_range(0, PARTIALS, CHUNK):
        part = _partial(squares, r, rows, begin + tl.arange(0, CHUNK), PARTIALS)
        top = tl.maximum(top, tl.max(part, 1))
    scale, inverse = _scale(top)
    whole = tl.zeros(r.shape, tl.int64)
    for begin in tl.static_range(0, PARTIALS, CHUNK):
        part = _partial(squares, r, rows, begin + tl.arange(0, CHUNK), PARTIALS)
        whole += tl.sum(_whole(part, inverse[:, None]), 1)
    sums = _sum_of(whole, top, scale)
    root = tl.sqrt_rn(tl.div_rn(sums, tl.full(sums.shape, K, tl.float32)) + epsilon)
    return tl.div_rn(tl.full(root.shape, 1.0, tl.float32), root)


@triton.jit
def _partial(squares, r, rows, p, PARTIALS: tl.constexpr):
    there = (r < rows)[:, None] & (p < PARTIALS)[None, :]
    found = tl.load(squares + r[:, None] * PARTIALS + p[None, :], mask=there, other=0.0)
    return tl.where(found == found, found, float("inf"))


@triton.jit
def _store_gated(
    total, r, i, rows, inner, parts_out,
    ACTIVATION: tl.constexpr, OUT_PADDED: tl.constexpr, GROUP: tl.constexpr, OUT_PAIRS: tl.constexpr,
):  # fmt: skip
    """Elements i of activation(gate) · up, as parts. ``total`` (rows r, columns): the gates, then the ups."""
    HALF: tl.constexpr = total.shape[1] // 2
    gate, up = total.reshape(total.shape[0], 2, HALF).permute(0, 2, 1).split()
    there = (r < rows)[:, None] & (i < inner)[None, :]
    store_parts(
        parts_out, r[:, None], i[None, :], activated(gate, ACTIVATION) * up, there, OUT_PADDED, GROUP, OUT_PAIRS
    )


@triton.jit
def _store_rows(
    total, r, f, column, there, rows, width, features, block, residual, following, out, parts_out, squares_out,
    ADD: tl.constexpr, SQUARES: tl.constexpr, OUT_PADDED: tl.constexpr, GROUP: tl.constexpr, OUT_PAIRS: tl.constexpr,
):  # fmt: skip
    """``total`` (rows r, features f of a matrix, at columns of a row of ``width``), those that are ``there``.

    ``features``: all that the rows have, with SQUARES; ``block``: which of their blocks f is.
    """
    stored = (r < rows)[:, None] & there[None, :]
    at = r.to(tl.int64)[:, None] * width + column[None, :]
    if ADD:
        total += tl.load(residual + at, mask=stored, other=0.0)
    tl.store(out + at, total, mask=stored)
    if OUT_PADDED:
        value = total * tl.load(following + f, mask=there, other=0.0)[None, :]
        store_parts(parts_out, r[:, None], f[None, :], value, stored, OUT_PADDED, GROUP, OUT_PAIRS)
    if SQUARES:
        COUNT: tl.constexpr = total.shape[1] // PIECE
        p = block * COUNT + tl.arange(0, COUNT)
        pieces = tl.cdiv(features, PIECE)
        there_p = (r < rows)[:, None] & (p < pieces)[None, :]
        tl.store(squares_out + r[:, None] * pieces + p[None, :], squares_of(tl.where(stored, total, 0.0)), mask=there_p)


@triton.jit
def finish(
    total, r, f, column, rows, features, block, bias, squares, epsilon, residual, following,
    out, out_stride, parts_out, squares_out,
    K: tl.constexpr, GROUP: tl.constexpr, BIAS: tl.constexpr, PARTIALS: tl.constexpr, GATED: tl.constexpr,
    ACTIVATION: tl.constexpr, ADD: tl.constexpr, SQUARES: tl.constexpr, OUT_PADDED: tl.constexpr,
    OUT_PAIRS: tl.constexpr,
):  # fmt: skip
    """``total`` (rows r, features f) of K products each. ``bias``: of f, an address or one for each."""
    there = f < features
    if PARTIALS:
        total *= row_factors(squares, r, rows, epsilon, PARTIALS, K)[:, None]
    if BIAS:
        total += tl.load(bias + f, mask=there, other=0.0)[None, :]
    if GATED:
        HALF: tl.constexpr = total.shape[1] // 2
        i = block * HALF + tl.arange(0, HALF)
        _store_gated(total, r, i, rows, features, parts_out, ACTIVATION, OUT_PADDED, GROUP, OUT_PAIRS)
    else:
        _store_rows(
            total, r, f, column, there, rows, out_stride, features, block,
            residual, following, out, parts_out, squares_out, ADD, SQUARES, OUT_PADDED, GROUP, OUT_PAIRS,
        )  # fmt: skip


class RowNorm(NamedTuple):
    """The norm that x of a product has before it. ``squares`` (rows, pieces) float32."""

    squares: Tensor
    epsilon: float


class Gated(NamedTuple):
    """A product of gate and up becomes the parts of activation(gate) · up. ``activation``: fastdecode_activation."""

    activation: int
    parts: Parts


class Added(NamedTuple):
    """A product is added to ``residual`` (rows, features) float32, and stored. Then, where given: the sums of squares
    of its pieces (rows, pieces of 16) float32; and the parts of it multiplied by ``following`` (features,) float32.
    """

    residual: Tensor | None = None
    squares: Tensor | None = None
    following: Tensor | None = None
    parts: Parts | None = None


def around(
    out: Tensor | None, norm: RowNorm | None, after: Gated | Added | None, features: int, none: Tensor
) -> tuple[tuple[Any, ...], tuple[Any, ...], bool]:
    """A kernel's arguments from ``out`` to ``squares_out``, and from ``PARTIALS`` to ``OUT_PAIRS``; and whether memory
    was filled for it, after which no launch should be dependent. ``none`` stands for tensors that are not used.
    """
    activation, residual, squares, following, parts = 0, None, None, None, None
    if isinstance(after, Gated):
        activation, parts = after
    elif after is not None:
        residual, squares, following, parts = after
    filled = parts is not None and parts.data.shape[3] > features
    if parts is not None and filled:
        parts.data.zero_()  # the kernel does not write the padding
    data = None if parts is None else parts.data
    used = [none if tensor is None else tensor for tensor in (residual, following, data, squares)]
    read = (none, 0.0) if norm is None else (norm.squares, float(norm.epsilon))
    written = (none, 0) if out is None else (out, out.stride(0))
    padded, pairs = (0, 0) if parts is None else (parts.data.shape[3], parts.pairs)
    partials = 0 if norm is None else norm.squares.shape[1]
    has = (residual is not None, squares is not None)
    constants = (partials, isinstance(after, Gated), activation, *has, padded, pairs)
    return (*written, *read, *used), constants, filled
