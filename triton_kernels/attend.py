"""`attend`: one program for each STRETCH tokens of a row and KV head. The last one to end joins the stretches in order.

    x             (rows, heads, HEAD_DIM) float32: queries. With APPEND (rows, heads + 2 · kv_heads, HEAD_DIM): queries,
                  keys and values of new tokens, as rope_append.py has them with cos, sin, weights and biases
    keys, values  (pages, kv_heads, SLOTS, HEAD_DIM) float32 | bfloat16 | float16; with APPEND the slots of the new
                  tokens are written
    table         (rows, width) int32 at a row stride
    lengths       (rows,) int64: tokens in the pages
    found         (rows, heads, stretches, HEAD_DIM) float32, scratch: Σᵢ e^(scoreᵢ − top) · valueᵢ
    tops, sums    (rows, heads, stretches) float32, scratch: top, which is the largest score, and Σᵢ e^(scoreᵢ − top)
    arrived       (rows, kv_heads) int32: programs that have ended; 0 before and after
    out           (rows, heads, HEAD_DIM) float32: written if PART_ROWS is 0
    parts         the parts of the result as rows of heads · HEAD_DIM, see parts.py: written if PART_ROWS is not 0

A program reads keys and values once for all GROUP query heads that use them, and has all its loads in flight at once:
with few rows, the time is that of the longest chain of loads, not of the bytes. One query head is multiplied in
float32, and several on tensor cores (see products.py), which take 16.

With APPEND a row has one token more than its length says. Its key and value are not read from the page: the program of
its stretch has them, and stores them there.

A row is NaN if its length or one of its pages is out of range; such pages are not read. Nothing is stored if the length
or the new token's page is. The bits of a row do not depend on the other rows, on which pages hold the tokens, or on
which program is the last.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdecode.triton_kernels.arguments import HeadNorm, Pages
from fastdecode.triton_kernels.case import Case
from fastdecode.triton_kernels.dependent import begin_dependent, launches_dependent
from fastdecode.triton_kernels.numerics import INF, exp_f32
from fastdecode.triton_kernels.parts import FEW, NO_PARTS, Parts, store_parts
from fastdecode.triton_kernels.products import product, widened
from fastdecode.triton_kernels.rope import LAYER_NORM, NO_NORM, RMS_NORM, kind_of, statistics, stored_as, turned

_INTS = ("width", "pages", "kv_heads", "stretches")
_JOINED_ELEMENTS = tl.constexpr(8192)
"""Elements of stretches that are joined at a time."""


@triton.jit
def _tokens(lengths, row, width, SLOTS: tl.constexpr, APPEND: tl.constexpr):
    """A row's tokens, with the new one; 0 where they are out of range."""
    tokens = tl.load(lengths + row) + APPEND
    return tl.where((tokens >= 1) & (tokens <= width.to(tl.int64) * SLOTS), tokens, 0).to(tl.int32)


@triton.jit
def _join(
    head, count, stretches, found, tops, sums,
    GROUP: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, JOINED: tl.constexpr,
):  # fmt: skip
    """Of GROUP heads from ``head`` on, (HEADS, DIMS): Σ found · e^(top − highest) / Σ sum · e^(top − highest)."""
    g = tl.arange(0, HEADS)
    d = tl.arange(0, DIMS)
    top = tl.full((HEADS,), -INF, tl.float32)
    total = tl.zeros((HEADS,), tl.float32)
    acc = tl.zeros((HEADS, DIMS), tl.float32)
    for first in range(0, count, JOINED):
        s = first + tl.arange(0, JOINED)
        at = (head + g)[:, None] * stretches + s[None, :]
        there = (g < GROUP)[:, None] & (s < count)[None, :]
        # .cg: from the cache that all multiprocessors share.
        its_top = tl.load(tops + at, mask=there, other=-INF, cache_modifier=".cg")
        its_sum = tl.load(sums + at, mask=there, other=0.0, cache_modifier=".cg")
        at_d = found + at[:, :, None] * HEAD_DIM + d[None, None, :]
        there_d = there[:, :, None] & (d < HEAD_DIM)[None, None, :]
        part = tl.load(at_d, mask=there_d, other=0.0, cache_modifier=".cg")
        higher = tl.maximum(top, tl.max(its_top, 1))
        kept = exp_f32(top - higher)
        weight = exp_f32(its_top - higher[:, None])
        total = total * kept + tl.sum(its_sum * weight, 1)
        acc = acc * kept[:, None] + tl.sum(part * weight[:, :, None], 1)
        top = higher
    return tl.div_rn(acc, tl.broadcast_to(total[:, None], (HEADS, DIMS)))


@triton.jit(do_not_specialize=(*_INTS, "table_stride"))
def attend(
    x, cos, sin, q_weight, q_bias, k_weight, k_bias, epsilon,
    keys, values, table, table_stride: tl.int64, width, lengths, scale, pages, kv_heads, stretches,
    found, tops, sums, arrived, out, parts,
    APPEND: tl.constexpr, Q_NORM: tl.constexpr, K_NORM: tl.constexpr,
    GROUP: tl.constexpr, SLOTS: tl.constexpr, HEAD_DIM: tl.constexpr, HEADS: tl.constexpr, DIMS: tl.constexpr,
    STRETCH: tl.constexpr, PADDED: tl.constexpr, PART_ROWS: tl.constexpr, PAIRS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """HEADS, DIMS: GROUP and HEAD_DIM rounded up to powers of two; DIMS, and HEADS if it is not 1, to at least 16."""
    CHUNK: tl.constexpr = DIMS if HEADS == 1 or DIMS <= 128 else 64  # more at once are too many for the registers
    begin_dependent(DEPENDENT)
    stretch = tl.program_id(0) % stretches
    kv_head = tl.program_id(0) // stretches % kv_heads
    row = (tl.program_id(0) // stretches // kv_heads).to(tl.int64)
    tokens = _tokens(lengths, row, width, SLOTS, APPEND)
    count = tl.maximum(tl.cdiv(tokens, STRETCH), 1)
    if stretch < count:
        g = tl.arange(0, HEADS)
        d = tl.arange(0, DIMS)
        in_head = (d < HEAD_DIM)[None, :]
        i = stretch * STRETCH + tl.arange(0, STRETCH)
        page = tl.load(table + row * table_stride + i // SLOTS, mask=i < tokens, other=-1)
        good = (i < tokens) & (page >= 0) & (page < pages)
        bad = (tokens == 0) | (tl.max(((i < tokens) & ~good).to(tl.int32), 0) != 0)
        slot = ((page.to(tl.int64) * kv_heads + kv_head) * SLOTS + i % SLOTS) * HEAD_DIM
        heads = kv_heads * GROUP
        head = row * heads + kv_head * GROUP
        first_head = x + (head + row * (2 * kv_heads if APPEND else 0)) * HEAD_DIM
        query_heads = first_head + (g * HEAD_DIM)[:, None]
        asked = (g < GROUP)[:, None]
        cos += row * HEAD_DIM
        sin += row * HEAD_DIM
        at_q = (kv_head * GROUP + g)[:, None] * HEAD_DIM
        if APPEND:
            last = i == tokens - 1
            limit = tl.where(tl.max((last & good).to(tl.int32), 0) != 0, HEAD_DIM, 0)
            old = good & ~last
            # The new key, if it is in this stretch, and the place for it.
            at_k = kv_head * HEAD_DIM
            key_head = x + ((row * (heads + 2 * kv_heads) + heads + kv_head) * HEAD_DIM + tl.zeros((1, 1), tl.int64))
            new_there = (d < limit)[None, :]
            key_mean, key_factor = statistics(key_head, d, new_there, epsilon, K_NORM, HEAD_DIM)
            new_slot = tl.sum(tl.where(last, slot, 0), 0)
            mean, factor = statistics(query_heads, d, asked & in_head, epsilon, Q_NORM, HEAD_DIM)
            v_new = stored_as(
                values.dtype.element_ty, tl.load(key_head + kv_heads * HEAD_DIM + d[None, :], mask=new_there, other=0.0)
            )
            tl.store(values + new_slot + d[None, :], v_new, mask=new_there)
        else:
            old = good
        v = tl.load(values + slot[:, None] + d[None, :], mask=old[:, None] & in_head, other=0.0)
        score = tl.zeros((HEADS, STRETCH), tl.float32)
        new_score = tl.zeros((HEADS,), tl.float32)
        for first in tl.static_range(0, DIMS, CHUNK):
            e = first + tl.arange(0, CHUNK)
            in_chunk = (e < HEAD_DIM)[None, :]
            if APPEND:
                new_chunk = (e < limit)[None, :]
                q = turned(
                    query_heads, q_weight + at_q, q_bias + at_q, mean, factor, cos, sin, e, asked & in_chunk,
                    Q_NORM, HEAD_DIM,
                )  # fmt: skip
                k_new = stored_as(
                    keys.dtype.element_ty,
                    turned(
                        key_head, k_weight + at_k, k_bias + at_k, key_mean, key_factor, cos, sin, e, new_chunk,
                        K_NORM, HEAD_DIM,
                    ),
                )  # fmt: skip
                tl.store(keys + new_slot + e[None, :], k_new, mask=new_chunk)
                new_score += tl.sum(q * widened(k_new), 1)
            else:
                q = tl.load(query_heads + e[None, :], mask=asked & in_chunk, other=0.0)
            if HEADS == 1:
                k = tl.load(keys + slot[:, None] + e[None, :], mask=old[:, None] & in_chunk, other=0.0)
                score += tl.sum(widened(k) * q, 1)[None, :]
            else:
                k = tl.load(keys + slot[None, :] + e[:, None], mask=old[None, :] & (e < HEAD_DIM)[:, None], other=0.0)
                score += product(q, k)
        if APPEND:
            score = tl.where(last[None, :], new_score[:, None], score)
        score = tl.where((i < tokens)[None, :], score * scale, -INF)
        top = tl.max(score, 1)
        p = exp_f32(score - top[:, None])
        if HEADS == 1:
            flat = tl.reshape(p, (STRETCH,))
            acc = tl.sum(widened(v) * flat[:, None], 0)[None, :]
        else:
            acc = product(p, v)
        if APPEND:
            acc += tl.sum(tl.where(last[None, :], p, 0.0), 1)[:, None] * widened(v_new)
        total = tl.where(bad, float("nan"), tl.sum(p, 1))
        at = (head + g) * stretches + stretch
        tl.store(tops + at, top, mask=g < GROUP)
        tl.store(sums + at, total, mask=g < GROUP)
        tl.store(found + at[:, None] * HEAD_DIM + d[None, :], acc, mask=asked & in_head)

        # All threads have stored: the counter, released and acquired, makes it visible to the last program.
        tl.debug_barrier()
        counter = arrived + row * kv_heads + kv_head
        if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == count - 1:
            tl.store(counter, 0)
            JOIN_HEADS: tl.constexpr = triton.next_power_of_2(GROUP)
            PER_STRETCH: tl.constexpr = JOIN_HEADS * DIMS
            JOINED: tl.constexpr = min(max(_JOINED_ELEMENTS // PER_STRETCH, 1), 16)
            joined = _join(
                head, count, stretches, found, tops, sums, GROUP, JOIN_HEADS, HEAD_DIM, DIMS, JOINED
            )  # fmt: skip
            j = tl.arange(0, JOIN_HEADS)[:, None]
            there = (j < GROUP) & in_head
            if PART_ROWS:
                column = (kv_head * GROUP + j) * HEAD_DIM + d[None, :]
                store_parts(parts, row, column, joined, there, PADDED, PART_ROWS, PAIRS)
            else:
                tl.store(out + (head + j) * HEAD_DIM + d[None, :], joined, mask=there)


def _power_of_2(n: int) -> int:
    return max(triton.next_power_of_2(n), 16)


def _stretch(head_dim: int, dtype: torch.dtype, group: int) -> int:
    """64 tokens, or as many fewer as keep keys and values in registers."""
    many = group > 1 and (dtype != torch.bfloat16 or head_dim > 128)  # numbers that products.py takes apart
    room = 64 * 128 * 2 // (2 if many else 1)
    return max(min(64, room // (_power_of_2(head_dim) * dtype.itemsize)), 16)


def _options(head_dim: int, dependent: bool) -> dict[str, Any]:
    options = {"num_warps": 4 if head_dim <= 128 else 8, "enable_fp_fusion": False}
    return options | {"launch_pdl": True} if dependent else options


class Appended(NamedTuple):
    """How new tokens become queries, keys and values: cos, sin (rows, head_dim); norms of heads and their epsilon."""

    cos: Tensor
    sin: Tensor
    q_norm: HeadNorm
    k_norm: HeadNorm
    epsilon: float


def new_counters(rows: int, kv_heads: int, device: torch.device) -> Tensor:
    """``arrived``, for any number of launches that follow each other."""
    return torch.zeros(rows, kv_heads, dtype=torch.int32, device=device)


def launch_attend(
    x: Tensor,
    stored: Pages,
    scale: float,
    *,
    appended: Appended | None = None,
    parts: Parts | None = None,
    arrived: Tensor | None = None,
) -> Tensor:
    """(rows, heads, head_dim) float32. Shapes, dtypes and devices must have been checked.

    ``x``: queries (rows, heads, head_dim); with ``appended`` (rows, (heads + 2 · kv_heads) · head_dim), whose keys and
    values are stored in slot ``stored.lengths`` of each row. ``parts``: they are written in place of the result, which
    is not initialised then. ``arrived``: see `new_counters`.
    """
    rows = len(x)
    pages, kv_heads, slots, head_dim = stored.keys.shape
    heads = x[0].numel() // head_dim - (0 if appended is None else 2 * kv_heads) if rows else x.shape[1]
    table, width = stored.table, stored.table.shape[1]
    out = torch.empty(rows, heads, head_dim, dtype=torch.float32, device=x.device)
    if not rows:
        return out
    group, dims = heads // kv_heads, _power_of_2(head_dim)
    stretch, padded_group = _stretch(head_dim, stored.keys.dtype, group), 1 if group == 1 else _power_of_2(group)
    stretches = max(triton.cdiv(width * slots, stretch), 1)
    found = torch.empty(rows, heads, stretches, head_dim, dtype=torch.float32, device=x.device)
    tops, sums = torch.empty(2, rows, heads, stretches, dtype=torch.float32, device=x.device)
    arrived = new_counters(rows, kv_heads, x.device) if arrived is None else arrived
    fills = parts is not None and parts.data.shape[3] > heads * head_dim
    if parts is not None and fills:
        parts.data.zero_()  # the kernel does not write the padding
    kinds, norms, turns, epsilon = (NO_NORM.value, NO_NORM.value), (x, x, x, x), (x, x), 0.0
    if appended is not None:
        cos, sin, q_norm, k_norm, epsilon = appended
        turns, kinds = (cos, sin), (kind_of(q_norm), kind_of(k_norm))
        norms = tuple(x if t is None else t for t in (q_norm.weight, q_norm.bias, k_norm.weight, k_norm.bias))
    dependent = not fills and launches_dependent(x)  # see epilogue.py
    with torch.cuda.device_of(x):
        attend[(rows * kv_heads * stretches,)](
            *(x, *turns, *norms, float(epsilon), stored.keys, stored.values, table, table.stride(0), width),
            *(stored.lengths, float(scale), pages, kv_heads, stretches, found, tops, sums, arrived, out),
            *(out if parts is None else parts.data, appended is not None, *kinds, group, slots, head_dim),
            *(padded_group, dims, stretch, *(NO_PARTS if parts is None else parts.constants), dependent),
            **_options(head_dim, dependent),
        )
    return out


_FLOATS = ("x", "cos", "sin", "q_weight", "q_bias", "k_weight", "k_bias", "found", "tops", "sums", "out")
_TYPES = (
    dict.fromkeys(_FLOATS, "*fp32")
    | dict.fromkeys(_INTS, "i32")
    | {"table": "*i32", "table_stride": "i64", "lengths": "*i64", "scale": "fp32", "epsilon": "fp32", "arrived": "*i32"}
)


def _case(
    dtype: torch.dtype,
    name: str,
    group: int,
    head_dim: int,
    norm: int | None = None,
    parts: tuple[int, int, bool] = NO_PARTS,
    arches: tuple[int, ...] = (80, 90),
) -> Case:
    """``norm``: of new tokens; None: without them."""
    filled = {"HEADS": 1 if group == 1 else _power_of_2(group), "DIMS": _power_of_2(head_dim)}
    sizes = {"GROUP": group, "SLOTS": 32, "HEAD_DIM": head_dim, **filled, "STRETCH": _stretch(head_dim, dtype, group)}
    how = {"APPEND": norm is not None, "Q_NORM": norm or 0, "K_NORM": norm or 0}
    written = dict(zip(("PADDED", "PART_ROWS", "PAIRS"), parts, strict=True)) | {"DEPENDENT": arches == (90,)}
    types = _TYPES | {"keys": name, "values": name, "parts": "*bf16" if parts[1] else "*fp32"}
    return Case(attend, types, how | sizes | written, _options(head_dim, arches == (90,)), arches)


_PARTS = (4096, FEW, False)
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
    *(
        _case(torch.bfloat16, "*bf16", group, head_dim, norm.value, _PARTS, arches)
        for group, head_dim, norm in ((1, 128, LAYER_NORM), (8, 128, LAYER_NORM), (1, 256, NO_NORM), (8, 256, NO_NORM))
        for arches in ((80,), (90,))
    ),
    _case(torch.bfloat16, "*bf16", 4, 64, RMS_NORM.value, (4096, FEW, 1), (90,)),
    _case(torch.bfloat16, "*bf16", 1, 96, NO_NORM.value, _PARTS, (90,)),
    _case(torch.float16, "*fp16", 1, 128, NO_NORM.value, _PARTS, (90,)),
    _case(torch.float16, "*fp16", 4, 128, LAYER_NORM.value, _PARTS),
    _case(torch.float32, "*fp32", 4, 128, LAYER_NORM.value, _PARTS),
]
