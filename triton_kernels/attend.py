"""`attend`: one program for each STRETCH tokens of a row and KV head; a second kernel joins the stretches in order.

    queries       (rows, heads, HEAD_DIM) float32
    keys, values  (pages, kv_heads, SLOTS, HEAD_DIM) float32 | bfloat16 | float16
    table         (rows, width) int32 at a row stride
    lengths       (rows,) int64
    found         (rows, heads, stretches, HEAD_DIM) float32, scratch: Σᵢ e^(scoreᵢ − top) · valueᵢ
    tops, sums    (rows, heads, stretches) float32, scratch: top, which is the largest score, and Σᵢ e^(scoreᵢ − top)
    out           (rows, heads, HEAD_DIM) float32: written
    parts         the parts of out as rows of heads · HEAD_DIM, see parts.py: written where GROUP is not 0

A program of `attend_stretch` reads keys and values once for all GROUP query heads that use them, and has all its loads
in flight at once: with few rows, the time is that of the longest chain of loads, not of the bytes. One query head is
multiplied in float32, and several on tensor cores (see products.py), which take 16.

A row is NaN if its length or one of its pages is out of range; such pages are not read. A program's result depends on
its own row alone, and not on which pages hold the tokens: the bits are the same whatever the other rows are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdecode.triton_kernels.arguments import Pages
from fastdecode.triton_kernels.case import Case
from fastdecode.triton_kernels.numerics import INF, exp_f32
from fastdecode.triton_kernels.parts import FEW, NO_PARTS, Parts, store_parts
from fastdecode.triton_kernels.products import product, widened

_JOINED = tl.constexpr(16)
"""Number of stretches that are joined at a time."""

_INTS = ("width", "pages", "kv_heads", "heads", "stretches")
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def _length(lengths, row, width, SLOTS: tl.constexpr):
    """A row's length; 0 where it is out of range."""
    length = tl.load(lengths + row)
    return tl.where((length >= 1) & (length <= width.to(tl.int64) * SLOTS), length, 0).to(tl.int32)


@triton.jit(do_not_specialize=(*_INTS, "table_stride"))
def attend_stretch(
    queries, keys, values, table, table_stride: tl.int64, width, lengths, scale, pages, kv_heads, stretches,
    found, tops, sums,
    GROUP: tl.constexpr, SLOTS: tl.constexpr, HEAD_DIM: tl.constexpr, HEADS: tl.constexpr, DIMS: tl.constexpr,
    STRETCH: tl.constexpr,
):  # fmt: skip
    """HEADS, DIMS: GROUP and HEAD_DIM rounded up to powers of two; DIMS, and HEADS if it is not 1, to at least 16."""
    stretch = tl.program_id(0) % stretches
    kv_head = tl.program_id(0) // stretches % kv_heads
    row = (tl.program_id(0) // stretches // kv_heads).to(tl.int64)
    g = tl.arange(0, HEADS)
    d = tl.arange(0, DIMS)
    i = stretch * STRETCH + tl.arange(0, STRETCH)
    page = tl.load(table + row * table_stride + i // SLOTS, mask=i // SLOTS < width, other=0)
    length = _length(lengths, row, width, SLOTS)
    if stretch * STRETCH < length:
        good = (i < length) & (page >= 0) & (page < pages)
        bad = tl.max(((i < length) & ~good).to(tl.int32), 0) != 0
        slot = ((page.to(tl.int64) * kv_heads + kv_head) * SLOTS + i % SLOTS) * HEAD_DIM
        head = (row * kv_heads + kv_head) * GROUP
        v = tl.load(values + slot[:, None] + d[None, :], mask=good[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
        if HEADS == 1:
            q = tl.load(queries + head * HEAD_DIM + d, mask=d < HEAD_DIM, other=0.0)
            k = tl.load(keys + slot[:, None] + d[None, :], mask=good[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
            score = tl.where(i < length, tl.sum(widened(k) * q[None, :], 1) * scale, -INF)
            top = tl.max(score, 0)
            p = exp_f32(score - top)
            acc = tl.sum(widened(v) * p[:, None], 0)
            total = tl.where(bad, float("nan"), tl.sum(p, 0))
            at = head * stretches + stretch
            tl.store(tops + at, top)
            tl.store(sums + at, total)
            tl.store(found + at * HEAD_DIM + d, acc, mask=d < HEAD_DIM)
        else:
            score = tl.zeros((HEADS, STRETCH), tl.float32)
            for first in tl.static_range(0, DIMS, 128):  # more at once are too many for the registers
                e = first + tl.arange(0, DIMS if DIMS < 128 else 128)
                at_q = queries + (head + g)[:, None] * HEAD_DIM + e[None, :]
                q = tl.load(at_q, mask=(g < GROUP)[:, None] & (e < HEAD_DIM)[None, :], other=0.0)
                k = tl.load(keys + slot[None, :] + e[:, None], mask=good[None, :] & (e < HEAD_DIM)[:, None], other=0.0)
                score += product(q, k)
            score = tl.where((i < length)[None, :], score * scale, -INF)
            top = tl.max(score, 1)
            p = exp_f32(score - top[:, None])
            acc = product(p, v)
            total = tl.where(bad, float("nan"), tl.sum(p, 1))
            at = (head + g) * stretches + stretch
            tl.store(tops + at, top, mask=g < GROUP)
            tl.store(sums + at, total, mask=g < GROUP)
            tl.store(found + at[:, None] * HEAD_DIM + d[None, :], acc, mask=(g < GROUP)[:, None] & (d < HEAD_DIM))


@triton.jit(do_not_specialize=_INTS)
def attend_join(
    found, tops, sums, lengths, width, heads, stretches, out, parts,
    SLOTS: tl.constexpr, HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, STRETCH: tl.constexpr,
    PADDED: tl.constexpr, GROUP: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """One program per row and head: Σ found · e^(top − highest) / Σ sum · e^(top − highest)."""
    head = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, DIMS)
    count = tl.cdiv(_length(lengths, head // heads, width, SLOTS), STRETCH)
    top = tl.full((), -INF, tl.float32)
    total = tl.full((), 0.0, tl.float32)
    acc = tl.zeros((DIMS,), tl.float32)
    for first in range(0, count, _JOINED):
        s = first + tl.arange(0, _JOINED)
        at = head * stretches + s
        its_top = tl.load(tops + at, mask=s < count, other=-INF)
        its_sum = tl.load(sums + at, mask=s < count, other=0.0)
        part = tl.load(
            found + at[:, None] * HEAD_DIM + d[None, :], mask=(s < count)[:, None] & (d < HEAD_DIM)[None, :], other=0.0
        )
        higher = tl.maximum(top, tl.max(its_top, 0))
        kept = exp_f32(top - higher)
        weight = exp_f32(its_top - higher)
        total = total * kept + tl.sum(its_sum * weight, 0)
        acc = acc * kept + tl.sum(part * weight[:, None], 0)
        top = higher
    result = tl.div_rn(acc, total)
    tl.store(out + head * HEAD_DIM + d, result, mask=d < HEAD_DIM)
    if GROUP:
        i = tl.program_id(0) % heads * HEAD_DIM + d
        store_parts(parts, tl.program_id(0) // heads, i, result, d < HEAD_DIM, PADDED, GROUP, PAIRS)


def _power_of_2(n: int) -> int:
    return max(triton.next_power_of_2(n), 16)


def _stretch(head_dim: int, dtype: torch.dtype, group: int) -> int:
    """64 tokens, or as many fewer as keep keys and values in registers."""
    taken_apart = group > 1 and dtype != torch.bfloat16  # see products.py
    room = 64 * 128 * 2 // (2 if taken_apart else 1)
    return max(min(64, room // (_power_of_2(head_dim) * dtype.itemsize)), 16)


def launch_attend(queries: Tensor, stored: Pages, scale: float, parts: Parts | None = None) -> Tensor:
    """(rows, heads, head_dim) float32. Shapes, dtypes and devices must have been checked.

    ``parts``: of the result; they are written too.
    """
    rows, heads, head_dim = queries.shape
    pages, kv_heads, slots, _ = stored.keys.shape
    table, width = stored.table, stored.table.shape[1]
    out = torch.empty_like(queries)
    if not rows:
        return out
    group, dims = heads // kv_heads, _power_of_2(head_dim)
    stretch, padded_group = _stretch(head_dim, stored.keys.dtype, group), 1 if group == 1 else _power_of_2(group)
    stretches = max(triton.cdiv(width * slots, stretch), 1)
    found = torch.empty(rows, heads, stretches, head_dim, dtype=torch.float32, device=queries.device)
    tops, sums = torch.empty(2, rows, heads, stretches, dtype=torch.float32, device=queries.device)
    if parts is not None and parts.data.shape[3] > heads * head_dim:
        parts.data.zero_()  # attend_join does not write the padding
    with torch.cuda.device_of(queries):
        attend_stretch[(rows * kv_heads * stretches,)](
            *(queries, stored.keys, stored.values, table, table.stride(0), width, stored.lengths, float(scale)),
            *(pages, kv_heads, stretches, found, tops, sums, group, slots, head_dim, padded_group, dims, stretch),
            **_OPTIONS,
        )
        attend_join[(rows * heads,)](
            *(found, tops, sums, stored.lengths, width, heads, stretches, out, out if parts is None else parts.data),
            *(slots, head_dim, dims, stretch, *(NO_PARTS if parts is None else parts.constants)),
            **_OPTIONS,
        )
    return out


_TYPES = (
    dict.fromkeys(("queries", "found", "tops", "sums", "out"), "*fp32")
    | dict.fromkeys(_INTS, "i32")
    | {"scale": "fp32", "table": "*i32", "table_stride": "i64", "lengths": "*i64"}
)


def _case(dtype: torch.dtype, name: str, group: int, head_dim: int) -> Case:
    sizes = {"GROUP": group, "SLOTS": 32, "HEAD_DIM": head_dim, "STRETCH": _stretch(head_dim, dtype, group)}
    filled = {"HEADS": 1 if group == 1 else _power_of_2(group), "DIMS": _power_of_2(head_dim)}
    return Case(attend_stretch, _TYPES | {"keys": name, "values": name}, sizes | filled, _OPTIONS)


def _join_case(head_dim: int, parts: str, constants: tuple[int, int, bool]) -> Case:
    sizes = {"SLOTS": 32, "HEAD_DIM": head_dim, "DIMS": head_dim, "STRETCH": 64}
    written = dict(zip(("PADDED", "GROUP", "PAIRS"), constants, strict=True))
    return Case(attend_join, _TYPES | {"parts": parts}, sizes | written, _OPTIONS)


COMPILE_CASES = [
    _case(torch.bfloat16, "*bf16", 1, 128),
    _case(torch.bfloat16, "*bf16", 8, 128),
    _case(torch.bfloat16, "*bf16", 1, 64),
    _case(torch.bfloat16, "*bf16", 1, 256),
    _case(torch.bfloat16, "*bf16", 8, 256),
    _case(torch.float16, "*fp16", 1, 128),
    _case(torch.float16, "*fp16", 4, 128),
    _case(torch.float32, "*fp32", 1, 128),
    _case(torch.float32, "*fp32", 4, 128),
    *(_join_case(d, "*fp32", NO_PARTS) for d in (64, 128)),
    _join_case(128, "*bf16", (4096, FEW, False)),
]
