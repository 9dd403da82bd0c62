"""`linear` for few rows: one program per 32 features and 16 rows.

    x       (rows, K) float32
    weight  (features, K) float32 | bfloat16 | float16
    bias    (features,) float32; any pointer where BIAS is off
    out     (rows, features) float32: written

Reads the weights once for every 16 rows. Rows up to 16 are multiplied at once, those that are not there as zeros, since
tensor cores take no fewer: so the kernel is the same for any number of rows, and a row is summed over k in one order.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdecode.triton_kernels.case import Case
from fastdecode.triton_kernels.products import product

ROWS = tl.constexpr(16)
FEATURES = tl.constexpr(32)


@triton.jit(do_not_specialize=["rows", "features"])
def linear(x, weight, bias, out, rows, features, K: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr):
    blocks = tl.cdiv(rows, ROWS)
    r = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    f = tl.program_id(0) // blocks * FEATURES + tl.arange(0, FEATURES)
    x_rows = x + r.to(tl.int64)[:, None] * K
    weight_rows = weight + f.to(tl.int64)[None, :] * K
    total = tl.zeros((ROWS, FEATURES), tl.float32)
    for begin in range(0, K, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        part = tl.load(x_rows + i[None, :], mask=(r < rows)[:, None] & (i < K)[None, :], other=0.0)
        w = tl.load(weight_rows + i[:, None], mask=(f < features)[None, :] & (i < K)[:, None], other=0.0)
        total += product(part, w)
    if BIAS:
        total += tl.load(bias + f, mask=f < features, other=0.0)[None, :]
    at = r.to(tl.int64)[:, None] * features + f[None, :]
    tl.store(out + at, total, mask=(r < rows)[:, None] & (f < features)[None, :])


def _tuned(dtype: torch.dtype) -> tuple[int, dict[str, Any]]:
    """Numbers of a row that are multiplied at once, and compile options: as much in flight as spills nothing."""
    block, warps = (128, 4) if dtype == torch.bfloat16 else (64, 8)
    return block, {"num_warps": warps, "num_stages": 4, "enable_fp_fusion": False}


def launch_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(rows, features) float32 for arguments of checked shapes, dtypes and devices."""
    (rows, k), features = x.shape, weight.shape[0]
    out = torch.empty(rows, features, device=x.device)
    grid = (triton.cdiv(rows, ROWS.value) * triton.cdiv(features, FEATURES.value),)
    block, options = _tuned(weight.dtype)
    if grid[0]:
        with torch.cuda.device_of(x):
            given = (x, weight, x if bias is None else bias, out, rows, features)
            linear[grid](*given, k, block, bias is not None, **options)
    return out


def _case(dtype: torch.dtype, name: str, k: int, bias: bool = False) -> Case:
    types = dict.fromkeys(("x", "bias", "out"), "*fp32") | {"weight": name, "rows": "i32", "features": "i32"}
    block, options = _tuned(dtype)
    return Case(linear, types, {"K": k, "BLOCK": block, "BIAS": bias}, options)


COMPILE_CASES = [
    _case(torch.bfloat16, "*bf16", 4096),
    _case(torch.bfloat16, "*bf16", 11008, bias=True),
    _case(torch.bfloat16, "*bf16", 301),
    _case(torch.float16, "*fp16", 4096),
    _case(torch.float32, "*fp32", 4096),
]
