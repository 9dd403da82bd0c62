"""`embed`: one program for each 1,024 elements of a row.

tokens  (rows,) int64
weight  (vocab, HIDDEN) float32 | bfloat16 | float16
out     (rows, HIDDEN) float32: written; NaN for a token outside the vocabulary, for which nothing is read
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdecode.triton_kernels.case import Case
from fastdecode.triton_kernels.numerics import to_f32

_BLOCK = tl.constexpr(1024)
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit(do_not_specialize=["vocab"])
def embed(tokens, weight, out, vocab, HIDDEN: tl.constexpr):
    blocks = tl.cdiv(HIDDEN, _BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    i = tl.program_id(0) % blocks * _BLOCK + tl.arange(0, _BLOCK)
    token = tl.load(tokens + row)
    good = (token >= 0) & (token < vocab)
    x = to_f32(tl.load(weight + token * HIDDEN + i, mask=i < tl.where(good, HIDDEN, 0), other=0.0))
    tl.store(out + row * HIDDEN + i, tl.where(good, x, float("nan")), mask=i < HIDDEN)


def launch_embed(tokens: Tensor, weight: Tensor) -> Tensor:
    """(rows, hidden) float32. Shapes, dtypes and devices must have been checked."""
    rows, (vocab, hidden) = len(tokens), weight.shape
    out = torch.empty(rows, hidden, dtype=torch.float32, device=tokens.device)
    if rows:
        with torch.cuda.device_of(tokens):
            embed[(rows * triton.cdiv(hidden, _BLOCK.value),)](tokens, weight, out, vocab, hidden, **_OPTIONS)
    return out


COMPILE_CASES = [
    Case(embed, {"tokens": "*i64", "weight": dtype, "out": "*fp32", "vocab": "i32"}, {"HIDDEN": 4096}, _OPTIONS)
    for dtype in ("*bf16", "*fp16", "*fp32")
]
