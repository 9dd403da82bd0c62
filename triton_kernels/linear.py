"""`linear` and `joint_linear` for few rows: one program for each 16 rows and 32 features of one matrix of up to three.

    x               (rows, K) float32
    weight0, …      (features0, K), …, all float32 | bfloat16 | float16, or bytes: int8, or float8_e4m3fn as uint8
    scale0, …       (features0,), … float32; not read where SCALED is False
    bias0, …        (features0,), … float32; not read where BIAS is False
    out             (rows, features0 + features1 + features2) float32: written

The weights are read once for every 16 rows. 16 rows are always multiplied together, missing ones as zeros, because
tensor cores take no fewer. So one kernel serves any number of rows, and every row is summed over k in the same order.
With fewer than three matrices the others have 0 features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdecode.triton_kernels.arguments import Matrix
from fastdecode.triton_kernels.case import Case
from fastdecode.triton_kernels.products import product

ROWS = tl.constexpr(16)
FEATURES = tl.constexpr(32)
MATRICES = 3

_INTS = ("rows", "features0", "features1", "features2")


@triton.jit
def _bf16(w):
    """Weights of one byte as bfloat16, which is exact. uint8 holds the bits of float8_e4m3fn, in which 0x7f is NaN."""
    if w.dtype == tl.uint8:
        bits = w.to(tl.int32)
        magnitude = bits & 0x7F
        # Exponent and mantissa moved to their places in float32. The exponent biases differ by 120, hence the factor.
        value = (magnitude << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2 ** 120
        value = tl.where(magnitude == 0x7F, float("nan"), value)
        result = tl.where(bits >= 0x80, -value, value)
    else:
        result = w.to(tl.float32)
    return (result.to(tl.int32, bitcast=True) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _pick(first, second, a, b, c):
    return tl.where(first, a, tl.where(second, b, c))


@triton.jit(do_not_specialize=_INTS)
def linear(
    x, weight0, weight1, weight2, scale0, scale1, scale2, bias0, bias1, bias2, out,
    rows, features0, features1, features2,
    K: tl.constexpr, BLOCK: tl.constexpr, SCALED: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(rows, ROWS)
    r = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    block = tl.program_id(0) // blocks
    begin1 = tl.cdiv(features0, FEATURES)
    begin2 = begin1 + tl.cdiv(features1, FEATURES)
    first = block < begin1
    second = block < begin2
    weight = _pick(first, second, weight0, weight1, weight2)
    features = _pick(first, second, features0, features1, features2)
    f = (block - _pick(first, second, 0, begin1, begin2)) * FEATURES + tl.arange(0, FEATURES)

    x_rows = x + r.to(tl.int64)[:, None] * K
    weight_rows = weight + f.to(tl.int64)[None, :] * K
    total = tl.zeros((ROWS, FEATURES), tl.float32)
    for begin in range(0, K, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        part = tl.load(x_rows + i[None, :], mask=(r < rows)[:, None] & (i < K)[None, :], other=0.0)
        w = tl.load(weight_rows + i[:, None], mask=(f < features)[None, :] & (i < K)[:, None], other=0)
        if w.dtype.primitive_bitwidth == 8:
            w = _bf16(w)
        total += product(part, w)
    if SCALED:
        total *= tl.load(_pick(first, second, scale0, scale1, scale2) + f, mask=f < features, other=0.0)[None, :]
    if BIAS:
        total += tl.load(_pick(first, second, bias0, bias1, bias2) + f, mask=f < features, other=0.0)[None, :]
    column = _pick(first, second, 0, features0, features0 + features1) + f
    at = r.to(tl.int64)[:, None] * (features0 + features1 + features2) + column[None, :]
    tl.store(out + at, total, mask=(r < rows)[:, None] & (f < features)[None, :])


def _tuned(dtype: torch.dtype) -> tuple[int, dict[str, Any]]:
    """(elements of a row that are loaded and multiplied at a time, launch options), chosen so that nothing spills.

    An H200 needs about 33 KB of loads in flight per multiprocessor to use its memory bandwidth; with these numbers one
    program has 36 KB of bfloat16 weights in flight.
    """
    block, warps, stages = {torch.float32: (32, 4, 8), torch.float16: (64, 8, 6)}.get(dtype, (64, 4, 10))
    return block, {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False}


def launch_linear(x: Tensor, matrices: Sequence[Matrix]) -> Tensor:
    """(rows, sum of all features) float32. Shapes, dtypes and devices must have been checked."""
    rows = len(x)
    out = torch.empty(rows, sum(len(m.weight) for m in matrices), dtype=torch.float32, device=x.device)
    if not out.numel():
        return out
    begin = 0
    while begin < len(matrices):
        end = begin + 1
        while end < min(len(matrices), begin + MATRICES) and _alike(matrices[begin], matrices[end]):
            end += 1
        if end - begin == len(matrices):
            _launch(x, matrices, out)
        else:
            column = sum(len(m.weight) for m in matrices[:begin])
            part = torch.empty(
                rows, sum(len(m.weight) for m in matrices[begin:end]), dtype=torch.float32, device=x.device
            )
            _launch(x, matrices[begin:end], part)
            out[:, column : column + part.shape[1]] = part
        begin = end
    return out


def _alike(a: Matrix, b: Matrix) -> bool:
    biases, scales = (a.bias is None) == (b.bias is None), (a.scale is None) == (b.scale is None)
    return a.weight.dtype == b.weight.dtype and biases and scales


def _launch(x: Tensor, matrices: Sequence[Matrix], out: Tensor) -> None:
    (rows, k), first = x.shape, matrices[0]
    features = [len(m.weight) for m in matrices] + [0] * (MATRICES - len(matrices))
    grid = triton.cdiv(rows, ROWS.value) * sum(triton.cdiv(n, FEATURES.value) for n in features)
    if not grid:
        return
    filled = [*matrices, *[first] * (MATRICES - len(matrices))]
    weights = [m.weight.view(torch.uint8) if m.weight.dtype == torch.float8_e4m3fn else m.weight for m in filled]
    scales = [x if m.scale is None else m.scale for m in filled]
    biases = [x if m.bias is None else m.bias for m in filled]
    block, options = _tuned(first.weight.dtype)
    with torch.cuda.device_of(x):
        linear[(grid,)](
            *(x, *weights, *scales, *biases, out, rows, *features, k, block),
            *(first.scale is not None, first.bias is not None),
            **options,
        )


_TYPES = (
    dict.fromkeys(("x", "out"), "*fp32")
    | {f"{name}{i}": "*fp32" for name in ("scale", "bias") for i in range(MATRICES)}
    | dict.fromkeys(_INTS, "i32")
)


def _case(dtype: torch.dtype, name: str, k: int, scaled: bool = False, bias: bool = False) -> Case:
    types = _TYPES | {f"weight{i}": name for i in range(MATRICES)}
    block, options = _tuned(dtype)
    return Case(linear, types, {"K": k, "BLOCK": block, "SCALED": scaled, "BIAS": bias}, options)


COMPILE_CASES = [
    _case(torch.bfloat16, "*bf16", 4096),
    _case(torch.bfloat16, "*bf16", 11008, bias=True),
    _case(torch.bfloat16, "*bf16", 301),
    _case(torch.float16, "*fp16", 4096),
    _case(torch.float32, "*fp32", 4096),
    _case(torch.int8, "*i8", 4096, scaled=True),
    _case(torch.float8_e4m3fn, "*u8", 4096, scaled=True),
]
