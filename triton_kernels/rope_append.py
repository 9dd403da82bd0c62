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
from fastdecode.triton_kernels.rope import LAYER_NORM, NO_NORM, RMS_NORM, kind_of, statistics, stored_as, turned

_INTS = ("heads", "kv_heads", "width", "pages")
_OPTIONS = {"num_warps": 1, "enable_fp_fusion": False}


@triton.jit(do_not_specialize=(*_INTS, "table_stride"))
def rope_append(
    qkv, cos, sin, q_weight, q_bias, k_weight, k_bias, epsilon,
    keys, values, pages, table, table_stride: tl.int64, width, lengths, queries, heads, kv_heads,
    Q_NORM: tl.constexpr, K_NORM: tl.constexpr, SLOTS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // (heads + 2 * kv_heads)).to(tl.int64)
    head = tl.program_id(0) % (heads + 2 * kv_heads)
    d = tl.arange(0, BLOCK)
    there = (d < HEAD_DIM)[None, :]

    length = tl.load(lengths + row)
    good = (length >= 0) & (length // SLOTS < width)
    page = tl.load(table + row * table_stride + length // SLOTS, mask=good, other=-1)
    good = good & (page >= 0) & (page < pages)
    stored = (d < tl.where(good, HEAD_DIM, 0))[None, :]
    kv_head = (head - heads) % kv_heads
    slot = (((page.to(tl.int64) * kv_heads + kv_head) * SLOTS + length % SLOTS) * HEAD_DIM + d)[None, :]

    x = qkv + (tl.program_id(0) + tl.zeros((1, 1), tl.int64)) * HEAD_DIM
    cos += row * HEAD_DIM
    sin += row * HEAD_DIM
    if head < heads:
        at = head * HEAD_DIM
        mean, factor = statistics(x, d, there, epsilon, Q_NORM, HEAD_DIM)
        q = turned(x, q_weight + at, q_bias + at, mean, factor, cos, sin, d, there, Q_NORM, HEAD_DIM)
        tl.store(queries + ((row * heads + head) * HEAD_DIM + d)[None, :], tl.where(good, q, float("nan")), mask=there)
    elif head < heads + kv_heads:
        at = kv_head * HEAD_DIM
        mean, factor = statistics(x, d, there, epsilon, K_NORM, HEAD_DIM)
        k = turned(x, k_weight + at, k_bias + at, mean, factor, cos, sin, d, there, K_NORM, HEAD_DIM)
        tl.store(keys + slot, stored_as(keys.dtype.element_ty, k), mask=stored)
    else:
        v = tl.load(x + d[None, :], mask=there, other=0.0)
        tl.store(values + slot, stored_as(values.dtype.element_ty, v), mask=stored)


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
        constants = (kind_of(q_norm), kind_of(k_norm), slots, head_dim, triton.next_power_of_2(head_dim))
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
    sizes = {"SLOTS": 32, "HEAD_DIM": head_dim, "BLOCK": head_dim}
    return Case(rope_append, _TYPES | {"keys": dtype, "values": dtype}, norms | sizes, _OPTIONS)


COMPILE_CASES = [
    *(_case("*bf16", norm, 128) for norm in (NO_NORM, RMS_NORM, LAYER_NORM)),
    _case("*fp16", LAYER_NORM, 64),
    _case("*fp32", LAYER_NORM, 128),
]
