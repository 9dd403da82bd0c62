"""`rms_norm`: one program per row.

    x, residual   (rows, N) float32; residual is not read where RESIDUAL is False
    weight        (N,) float32
    out           (rows, N) float32: written
    total         (rows, N) float32: x + residual, written where RESIDUAL is True

A row of up to 4,096 elements is read once, a longer row twice.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdecode.triton_kernels.case import Case

_OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}


@triton.jit
def _summed(x, residual, at, there, RESIDUAL: tl.constexpr):
    y = tl.load(x + at, mask=there, other=0.0)
    if RESIDUAL:
        y += tl.load(residual + at, mask=there, other=0.0)
    return y


@triton.jit
def rms_norm(
    x, residual, weight, out, total, epsilon,
    N: tl.constexpr, RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * N
    i = tl.arange(0, BLOCK)
    y = _summed(x, residual, row + i, i < N, RESIDUAL)
    squares = y * y
    for begin in range(BLOCK, N, BLOCK):
        more = _summed(x, residual, row + begin + i, begin + i < N, RESIDUAL)
        squares += more * more
    root = tl.sqrt_rn(tl.div_rn(tl.sum(squares, 0), tl.full((), N, tl.float32)) + epsilon)
    scale = tl.div_rn(tl.full((), 1.0, tl.float32), root)
    for begin in range(0, N, BLOCK):
        there = begin + i < N
        if begin > 0:
            y = _summed(x, residual, row + begin + i, there, RESIDUAL)
        if RESIDUAL:
            tl.store(total + row + begin + i, y, mask=there)
        tl.store(out + row + begin + i, y * scale * tl.load(weight + begin + i, mask=there, other=0.0), mask=there)


def launch_rms_norm(
    x: Tensor, weight: Tensor, epsilon: float, residual: Tensor | None
) -> Tensor | tuple[Tensor, Tensor]:
    """The norm of x, or (norm of x + residual, x + residual). Shapes, dtypes and devices must have been checked."""
    rows, n = x.shape
    out = torch.empty_like(x)
    total = None if residual is None else torch.empty_like(x)
    if rows:
        with torch.cuda.device_of(x):
            given = (x, x if residual is None else residual, weight, out, out if total is None else total)
            rms_norm[(rows,)](*given, float(epsilon), n, residual is not None, _block(n), **_OPTIONS)
    return out if total is None else (out, total)


def _block(n: int) -> int:
    return min(max(triton.next_power_of_2(n), 256), 4096)


_TYPES = dict.fromkeys(("x", "residual", "weight", "out", "total"), "*fp32") | {"epsilon": "fp32"}
COMPILE_CASES = [
    Case(rms_norm, _TYPES, {"N": n, "RESIDUAL": residual, "BLOCK": _block(n)}, _OPTIONS)
    for n in (4096, 5120)
    for residual in (False, True)
]
