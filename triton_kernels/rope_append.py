"""`rope_append`: one program per row and head of queries, keys or values.

    qkv                       (rows, (heads + 2 · kv_heads) · HEAD_DIM) float32
    cos, sin                  (rows, HEAD_DIM) float32, the first half of sin negated
    q_weight, q_bias          (heads, HEAD_DIM) float32; not read where Q_NORM has none
    k_weight, k_bias          (kv_heads, HEAD_DIM) float32; not read where K_NORM has none
    keys, values              (pages, kv_heads, SLOTS, HEAD_DIM) float32 | bfloat16 | float16: the slots of the new
                              tokens are written
    table                     (rows, width) int32 at a row stride
    lengths                   (rows,) int64
    queries                   (rows, heads, HEAD_DIM) float32: written

A row stores nothing, and its queries are NaN, if its pages have no slot for the new token or the page does not exist.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdecode.triton_kernels.arguments import HeadNorm, Pages
from fastdecode.triton_kernels.case import Case

NO_NORM = tl.constexpr(0)
RMS_NORM = tl.constexpr(1)
LAYER_NORM = tl.constexpr(2)

_INTS = ("heads", "kv_heads", "width", "pages")
_OPTIONS = {"num_warps": 1, "enable_fp_fusion": False}


@triton.jit
def _as(dtype: tl.constexpr, x):
    """float32 x rounded to the dtype of the pages. To bfloat16 by its bits: the interpreter would truncate."""
    if dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), 0x7FC00000)
        result = (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        result = x.to(dtype)
    return result


@triton.jit
def _mean(a, b, HEAD_DIM: tl.constexpr):
    return tl.div_rn(tl.sum(a + b, 0), tl.full((), HEAD_DIM, tl.float32))


@triton.jit
def _placed(
    x, weight, bias, epsilon, cos, sin, i, there,
    NORM: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """Norms and rotates one head x. Returns the two halves of the result."""
    HALF: tl.constexpr = HEAD_DIM // 2
    a = tl.load(x + i, mask=there, other=0.0)
    b = tl.load(x + HALF + i, mask=there, other=0.0)
    if NORM == LAYER_NORM:
        mean = _mean(a, b, HEAD_DIM)
        a = tl.where(there, a - mean, 0.0)
        b = tl.where(there, b - mean, 0.0)
    if NORM != NO_NORM:
        root = tl.sqrt_rn(_mean(a * a, b * b, HEAD_DIM) + epsilon)
        scale = tl.div_rn(tl.full((), 1.0, tl.float32), root)
        a = a * scale * tl.load(weight + i, mask=there, other=0.0)
        b = b * scale * tl.load(weight + HALF + i, mask=there, other=0.0)
    if NORM == LAYER_NORM:
        a += tl.load(bias + i, mask=there, other=0.0)
        b += tl.load(bias + HALF + i, mask=there, other=0.0)
    first = a * tl.load(cos + i, mask=there, other=0.0) + b * tl.load(sin + i, mask=there, other=0.0)
    second = b * tl.load(cos + HALF + i, mask=there, other=0.0) + a * tl.load(sin + HALF + i, mask=there, other=0.0)
    return first, second


@triton.jit(do_not_specialize=(*_INTS, "table_stride"))
def rope_append(
    qkv, cos, sin, q_weight, q_bias, k_weight, k_bias, epsilon,
    keys, values, pages, table, table_stride: tl.int64, width, lengths, queries, heads, kv_heads,
    Q_NORM: tl.constexpr, K_NORM: tl.constexpr, SLOTS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = HEAD_DIM // 2
    row = (tl.program_id(0) // (heads + 2 * kv_heads)).to(tl.int64)
    head = tl.program_id(0) % (heads + 2 * kv_heads)
    i = tl.arange(0, BLOCK)
    there = i < HALF

    length = tl.load(lengths + row)
    good = (length >= 0) & (length // SLOTS < width)
    page = tl.load(table + row * table_stride + length // SLOTS, mask=good, other=-1)
    good = good & (page >= 0) & (page < pages)
    stored = i < tl.where(good, HALF, 0)

    x = qkv + tl.program_id(0).to(tl.int64) * HEAD_DIM
    cos += row * HEAD_DIM
    sin += row * HEAD_DIM
    if head < heads:
        weights = head * HEAD_DIM
        first, second = _placed(x, q_weight + weights, q_bias + weights, epsilon, cos, sin, i, there, Q_NORM, HEAD_DIM)
        out = queries + (row * heads + head) * HEAD_DIM
        tl.store(out + i, tl.where(good, first, float("nan")), mask=there)
        tl.store(out + HALF + i, tl.where(good, second, float("nan")), mask=there)
    elif head < heads + kv_heads:
        weights = (head - heads) * HEAD_DIM
        first, second = _placed(x, k_weight + weights, k_bias + weights, epsilon, cos, sin, i, there, K_NORM, HEAD_DIM)
        slot = ((page.to(tl.int64) * kv_heads + head - heads) * SLOTS + length % SLOTS) * HEAD_DIM
        tl.store(keys + slot + i, _as(keys.dtype.element_ty, first), mask=stored)
        tl.store(keys + slot + HALF + i, _as(keys.dtype.element_ty, second), mask=stored)
    else:
        slot = ((page.to(tl.int64) * kv_heads + head - heads - kv_heads) * SLOTS + length % SLOTS) * HEAD_DIM
        for begin in tl.static_range(0, HEAD_DIM, HALF):
            v = tl.load(x + begin + i, mask=there, other=0.0)
            tl.store(values + slot + begin + i, _as(values.dtype.element_ty, v), mask=stored)


def _kind(norm: HeadNorm) -> int:
    if norm.weight is None:
        return NO_NORM.value
    return RMS_NORM.value if norm.bias is None else LAYER_NORM.value


def launch_rope_append(
    qkv: Tensor, cos: Tensor, sin: Tensor, stored: Pages, q_norm: HeadNorm, k_norm: HeadNorm, epsilon: float
) -> Tensor:
    """The queries (rows, heads, head_dim) float32. Shapes, dtypes and devices must have been checked."""
    pages, kv_heads, slots, head_dim = stored.keys.shape
    rows, heads = len(qkv), qkv.shape[1] // head_dim - 2 * kv_heads
    queries = torch.empty(rows, heads, head_dim, dtype=torch.float32, device=qkv.device)
    if rows:
        parts = (q_norm.weight, q_norm.bias, k_norm.weight, k_norm.bias)
        norms = (qkv if part is None else part for part in parts)
        table = (stored.table, stored.table.stride(0), stored.table.shape[1])
        constants = (_kind(q_norm), _kind(k_norm), slots, head_dim, triton.next_power_of_2(head_dim // 2))
        with torch.cuda.device_of(qkv):
            rope_append[(rows * (heads + 2 * kv_heads),)](
                *(qkv, cos, sin, *norms, float(epsilon), stored.keys, stored.values, pages, *table),
                *(stored.lengths, queries, heads, kv_heads, *constants),
                **_OPTIONS,
            )
    return queries


_TYPES = (
    dict.fromkeys(("qkv", "cos", "sin", "q_weight", "q_bias", "k_weight", "k_bias", "queries"), "*fp32")
    | dict.fromkeys(_INTS, "i32")
    | {"epsilon": "fp32", "table": "*i32", "table_stride": "i64", "lengths": "*i64"}
)


def _case(dtype: str, norm: tl.constexpr, head_dim: int) -> Case:
    norms = {"Q_NORM": norm.value, "K_NORM": norm.value}
    sizes = {"SLOTS": 32, "HEAD_DIM": head_dim, "BLOCK": head_dim // 2}
    return Case(rope_append, _TYPES | {"keys": dtype, "values": dtype}, norms | sizes, _OPTIONS)


COMPILE_CASES = [
    *(_case("*bf16", norm, 128) for norm in (NO_NORM, RMS_NORM, LAYER_NORM)),
    _case("*fp16", LAYER_NORM, 64),
    _case("*fp32", LAYER_NORM, 128),
]
