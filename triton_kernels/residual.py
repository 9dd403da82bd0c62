"""`residual`: the sum that goes through the layers of a step, and what the next product needs of it.

One program for each 1,024 elements of a row.

    x             (rows, N) float32 | bfloat16 | float16
    product       (rows, N) float32, to norm: squares (rows, PARTIALS) float32 are the sums of squares of its pieces,
                  weight (N,) float32; none is read if PARTIALS is 0
    following     (N,) float32: weight of the norm after; not read where FOLLOWED is False
    total         (rows, N) float32: x, or x + norm(product); written
    parts         the parts of total · following, or of total, see parts.py: written if PADDED is not 0
    squares_out   (rows, pieces of 16) float32: sums of squares of the pieces of total; written where FOLLOWED is True
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdecode.triton_kernels.case import Case
from fastdecode.triton_kernels.dependent import begin_dependent, launches_dependent
from fastdecode.triton_kernels.epilogue import PIECE, row_factors, squares_of
from fastdecode.triton_kernels.parts import FEW, NO_PARTS, Parts, store_parts
from fastdecode.triton_kernels.products import widened

_BLOCK = tl.constexpr(1024)


@triton.jit(do_not_specialize=["rows"])
def residual(
    x, product, squares, weight, epsilon, following, total, parts, squares_out, rows,
    N: tl.constexpr, PARTIALS: tl.constexpr, FOLLOWED: tl.constexpr,
    PADDED: tl.constexpr, GROUP: tl.constexpr, PAIRS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    begin_dependent(DEPENDENT)
    blocks = tl.cdiv(N, _BLOCK)
    row = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    i = block * _BLOCK + tl.arange(0, _BLOCK)
    there = i < N
    at = row.to(tl.int64) * N + i
    value = widened(tl.load(x + at, mask=there, other=0.0))
    if PARTIALS:
        factor = tl.sum(row_factors(squares, row + tl.arange(0, 1), rows, epsilon, PARTIALS, N), 0)
        normed = tl.load(product + at, mask=there, other=0.0) * factor
        value += normed * tl.load(weight + i, mask=there, other=0.0)
    tl.store(total + at, value, mask=there)
    if FOLLOWED:
        pieces = tl.cdiv(N, PIECE)
        p = block * (_BLOCK // PIECE) + tl.arange(0, _BLOCK // PIECE)
        tl.store(squares_out + row * pieces + p[None, :], squares_of(value[None, :]), mask=(p < pieces)[None, :])
        value *= tl.load(following + i, mask=there, other=0.0)
    if PADDED:
        store_parts(parts, row, i, value, i < PADDED, PADDED, GROUP, PAIRS)


def launch_residual(
    x: Tensor,
    product: tuple[Tensor, Tensor, Tensor, float] | None = None,
    following: Tensor | None = None,
    parts: Parts | None = None,
    *,
    begins: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """(total, squares of its pieces, or None without ``following``). ``product``: with squares, weight and epsilon.

    ``begins``: it may follow something else than a kernel, of which a graph knows no dependent launch.
    """
    rows, n = x.shape
    blocks, pieces = triton.cdiv(n, _BLOCK.value), triton.cdiv(n, PIECE.value)
    total = torch.empty(rows, n, dtype=torch.float32, device=x.device)
    squares = None if following is None else torch.empty(rows, pieces, dtype=torch.float32, device=x.device)
    added, its_squares, weight, epsilon = (total, total, total, 0.0) if product is None else product
    dependent = not begins and launches_dependent(x)
    with torch.cuda.device_of(x):
        residual[(rows * blocks,)](
            *(x, added, its_squares, weight, float(epsilon), total if following is None else following, total),
            *(total if parts is None else parts.data, total if squares is None else squares, rows, n),
            *(0 if product is None else its_squares.shape[1], following is not None),
            *(*(NO_PARTS if parts is None else parts.constants), dependent),
            **_options(dependent),
        )
    return total, squares


def _options(dependent: bool) -> dict[str, object]:
    options = {"num_warps": 4, "enable_fp_fusion": False}
    return options | {"launch_pdl": True} if dependent else options


_TYPES = dict.fromkeys(("product", "squares", "weight", "following", "total", "squares_out"), "*fp32")


def _case(x: str, partials: int, followed: bool, padded: int, arches: tuple[int, ...]) -> Case:
    types = _TYPES | {"x": x, "parts": "*bf16" if padded else "*fp32", "epsilon": "fp32", "rows": "i32"}
    constants = {"N": 4096, "PARTIALS": partials, "FOLLOWED": followed, "PADDED": padded, "PAIRS": False}
    constants |= {"GROUP": FEW if padded else 0, "DEPENDENT": arches == (90,)}
    return Case(residual, types, constants, _options(arches == (90,)), arches)


COMPILE_CASES = [
    _case("*bf16", 0, True, 4096, (80, 90)),
    _case("*fp32", 0, True, 4096, (80, 90)),
    *(
        _case("*fp32", partials, False, padded, arches)
        for partials, padded in ((0, 4096), (256, 4096), (256, 0))
        for arches in ((80,), (90,))
    ),
]
