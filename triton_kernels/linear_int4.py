"""`linear` and `joint_linear` of weights of 4 bits in groups, for few rows: see linear.py, and int4_weights.py.

    parts           the parts of x, with PAIRS = 2: see parts.py
    weight0, …      (features0, K / 4), … int16: four values each, the first in the lowest bits
    scale0, …       (⌈K / SIZE⌉, features0), … float32 | bfloat16 | float16, rows stride0, … numbers apart
    offset0, …      as the scales, and as far apart; not read where OFFSET is False
    bias0, …        (features0,), … float32; not read where BIAS is False
    out             (rows, features0 + features1 + features2) float32: written

SIZE values of a feature share a scale and an offset, and a weight is value · scale + offset. The tensor cores multiply
values, which bfloat16 holds exactly, with the parts of x, and sum BLOCK of the products, or fewer. This sum is
multiplied with the scale in float32, and the sum of the parts with the offset. So neither weights nor x are rounded.

SIZE alone says what BLOCK is, so every row is summed over k in the same order, whatever the other rows and matrices
are. Groups of 32 are halves of a block, as tensor cores sum no fewer than 16 products of each of the four values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdecode.triton_kernels.arguments import GroupedMatrix
from fastdecode.triton_kernels.case import Case
from fastdecode.triton_kernels.dependent import launches_dependent
from fastdecode.triton_kernels.epilogue import Added, Gated, RowNorm, around, finish
from fastdecode.triton_kernels.int4_weights import of_fours
from fastdecode.triton_kernels.linear import (
    ADDED,
    ALONE,
    FEW_FEATURES,
    GATED,
    MATRICES,
    NORMED,
    ROWS,
    Tuning,
    _begin,
    _folded,
    _interpreted,
    _pick,
    _place,
    _rows_of,
)
from fastdecode.triton_kernels.parts import FEW, FOURS, MANY, Parts, empty_parts, launch_parts, padded_length
from fastdecode.triton_kernels.products import ON_TENSOR_CORES, float_of, widened

_INTS = ("rows", *(f"{name}{i}" for name in ("features", "stride") for i in range(MATRICES)))


@triton.jit
def _multiply(a, b, c, d, w0, w1, w2, w3):
    """16 rows of the four quarters of the parts · the four weights of each int16."""
    if ON_TENSOR_CORES:
        found = tl.dot(d, w3, tl.dot(c, w2, tl.dot(b, w1, tl.dot(a, w0))))
    else:
        found = _interpreted(a, w0) + _interpreted(b, w1) + _interpreted(c, w2) + _interpreted(d, w3)
    return found


@triton.jit
def _of_group(
    total, part, there, w0, w1, w2, w3, scale, offset, PADDED: tl.constexpr, OFFSET: tl.constexpr
):  # fmt: skip
    """total + (16 rows of parts) · (weights · scale + offset)."""
    a = tl.load(part, mask=there, other=0.0)
    b = tl.load(part + PADDED // 4, mask=there, other=0.0)
    c = tl.load(part + PADDED // 2, mask=there, other=0.0)
    d = tl.load(part + PADDED // 4 * 3, mask=there, other=0.0)
    found = _multiply(a, b, c, d, w0, w1, w2, w3)
    total = tl.fma(found, tl.broadcast_to(widened(scale)[None, :], total.shape), total)
    if OFFSET:
        if ON_TENSOR_CORES:
            ones = tl.full(w0.shape, 1.0, tl.bfloat16)
            sums = _multiply(a, b, c, d, ones, ones, ones, ones)
        else:
            sums = tl.sum(float_of(a) + float_of(b) + float_of(c) + float_of(d), 1)[:, None]
        total = tl.fma(sums, tl.broadcast_to(widened(offset)[None, :], total.shape), total)
    return total


@triton.jit
def _add(
    total, part, there, w0, w1, w2, w3, scale, offset, more_scale, more_offset,
    PADDED: tl.constexpr, HALVES: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """With HALVES the second half of the weights has a scale and an offset of its own, and meets zeros in the first."""
    if HALVES:
        lower = (tl.arange(0, w0.shape[0]) < w0.shape[0] // 2)[None, :]
        total = _of_group(total, part, there & lower, w0, w1, w2, w3, scale, offset, PADDED, OFFSET)
        total = _of_group(total, part, there & ~lower, w0, w1, w2, w3, more_scale, more_offset, PADDED, OFFSET)
    else:
        total = _of_group(total, part, there, w0, w1, w2, w3, scale, offset, PADDED, OFFSET)
    return total


@triton.jit(do_not_specialize=(*_INTS, "out_stride"))
def linear_int4(
    parts, weight0, weight1, weight2, scale0, scale1, scale2, offset0, offset1, offset2, bias0, bias1, bias2,
    out, out_stride: tl.int64, squares, epsilon, residual, following, parts_out, squares_out,
    apart: tl.int64, rows, features0, features1, features2, stride0, stride1, stride2,
    K: tl.constexpr, PADDED: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    FEATURES: tl.constexpr, OFFSET: tl.constexpr, BIAS: tl.constexpr,
    PARTIALS: tl.constexpr, GATED: tl.constexpr, ACTIVATION: tl.constexpr, ADD: tl.constexpr, SQUARES: tl.constexpr,
    OUT_PADDED: tl.constexpr, OUT_PAIRS: tl.constexpr, DEPENDENT: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """What comes around a product: see linear.py."""
    WIDTH: tl.constexpr = K // 4
    STEP: tl.constexpr = BLOCK // 4
    # An iteration has two scales of each feature: of the halves of a block, or of two blocks.
    HALVES: tl.constexpr = SIZE < BLOCK
    BLOCKS: tl.constexpr = 1 if HALVES else 2
    BOTH: tl.constexpr = BLOCK * BLOCKS
    LAST: tl.constexpr = (K - 1) // SIZE
    tl.static_assert(PADDED % BOTH == 0)
    tl.static_assert(SIZE * 2 == BLOCK or SIZE % BLOCK == 0)
    tl.static_assert(K % 4 == 0)
    groups = tl.cdiv(rows, GROUP)
    group = tl.program_id(0) % groups
    block = tl.program_id(0) // groups
    first, second, f, features, column = _place(block, features0, features1, features2, FEATURES, GATED)
    near = tl.minimum(f, features - 1)
    weight_rows = _rows_of(
        first, second, f, features, weight0, weight1, weight2, apart, WIDTH, FEATURES, GATED
    )  # fmt: skip
    _begin(weight_rows, WIDTH, LINES, DEPENDENT)
    stride = _pick(first, second, stride0, stride1, stride2).to(tl.int64)
    scales = _pick(first, second, scale0, scale1, scale2) + near
    offsets = _pick(first, second, offset0, offset1, offset2) + near

    t = tl.arange(0, ROWS)
    there = ((t % GROUP < rows - group * GROUP) & (t < 3 * GROUP))[:, None]
    part_rows = parts + group.to(tl.int64) * (3 * GROUP * PADDED) + t[:, None] * PADDED
    total = tl.zeros((ROWS, FEATURES), tl.float32)
    total1 = tl.zeros((ROWS, FEATURES), tl.float32)
    total2 = tl.zeros((ROWS, FEATURES), tl.float32)
    scale = tl.load(scales)
    offset = tl.load(offsets) if OFFSET else scale
    at = min(BOTH // 2 // SIZE, LAST) * stride
    more_scale = tl.load(scales + at)
    more_offset = tl.load(offsets + at) if OFFSET else more_scale
    for begin in range(0, K, BOTH):
        # Scales and offsets are read one iteration ahead. Triton does it only for what is multiplied on tensor cores.
        at = tl.minimum((begin + BOTH) // SIZE, LAST) * stride
        next_scale = tl.load(scales + at)
        next_offset = tl.load(offsets + at) if OFFSET else offset
        at = tl.minimum((begin + BOTH + BOTH // 2) // SIZE, LAST) * stride
        next_more_scale = tl.load(scales + at)
        next_more_offset = tl.load(offsets + at) if OFFSET else offset
        for b in tl.static_range(BLOCKS):
            i = begin // 4 + b * STEP + tl.arange(0, STEP)
            if K % BOTH == 0:
                w = tl.load(weight_rows + i[:, None])
            else:
                w = tl.load(weight_rows + i[:, None], mask=(i < WIDTH)[:, None], other=0)
            w0, w1, w2, w3 = of_fours(w)
            part = part_rows + i[None, :]
            s = scale if b == 0 else more_scale
            z = offset if b == 0 else more_offset
            total = _add(total, part, there, w0, w1, w2, w3, s, z, more_scale, more_offset, PADDED, HALVES, OFFSET)
            if GROUP == ROWS:
                part += ROWS * PADDED
                total1 = _add(
                    total1, part, there, w0, w1, w2, w3, s, z, more_scale, more_offset, PADDED, HALVES, OFFSET
                )
                part += ROWS * PADDED
                total2 = _add(
                    total2, part, there, w0, w1, w2, w3, s, z, more_scale, more_offset, PADDED, HALVES, OFFSET
                )
        scale, offset, more_scale, more_offset = next_scale, next_offset, next_more_scale, next_more_offset
    r = group * GROUP + tl.arange(0, GROUP)
    finish(
        _folded(total, total1, total2, GROUP), r, f, column, rows, features, block,
        _pick(first, second, bias0, bias1, bias2), squares, epsilon,
        residual, following, out, out_stride, parts_out, squares_out,
        K, GROUP, BIAS, PARTIALS, GATED, ACTIVATION, ADD, SQUARES, OUT_PADDED, OUT_PAIRS,
    )  # fmt: skip


LARGEST_BLOCK = 128


def tuning_of(size: int, rows: int, features: int) -> Tuning:
    """For groups of ``size``, and ``features`` of all matrices. The block is the largest that fits a group, or 64.

    Chosen by their instructions, not measured yet. Few features of a warp take more instructions for each; few programs
    leave multiprocessors idle.
    """
    block = max(64, min(size & -size, LARGEST_BLOCK))
    if rows > FEW:
        return Tuning(block, 64, 4, 3)
    if features <= FEW_FEATURES:
        return Tuning(block, 32, 4, 4)
    return Tuning(block, 64, 2, 3 if block == 64 else 4, 224)


def int4_parts_for(rows: int, matrices: Sequence[GroupedMatrix]) -> Parts:
    """Where to write the parts of rows that `launch_int4_product` multiplies with these matrices."""
    data = matrices[0].data
    return empty_parts(rows, 2 * data.shape[1], FOURS, data.device)


def launch_linear_int4(x: Tensor, matrices: Sequence[GroupedMatrix]) -> Tensor:
    """(rows, sum of all features) float32. Shapes, dtypes and devices must have been checked."""
    rows = len(x)
    out = torch.empty(rows, sum(m.features for m in matrices), dtype=torch.float32, device=x.device)
    if not out.numel():
        return out
    parts = launch_parts(x, FOURS)
    begin = column = 0
    while begin < len(matrices):
        end = begin + 1
        while end < min(len(matrices), begin + MATRICES) and alike(matrices[begin], matrices[end]):
            end += 1
        some = matrices[begin:end]
        features = sum(m.features for m in some)
        launch_int4_product(parts, rows, some, out[:, column : column + features])
        begin, column = end, column + features
    return out


def alike(a: GroupedMatrix, b: GroupedMatrix) -> bool:
    """Whether one launch multiplies both."""
    has = [(m.offset is None, m.bias is None) for m in (a, b)]
    return a.size == b.size and a.scale.dtype == b.scale.dtype and has[0] == has[1]


def launch_int4_product(
    parts: Parts,
    rows: int,
    matrices: Sequence[GroupedMatrix],
    out: Tensor | None,
    norm: RowNorm | None = None,
    after: Gated | Added | None = None,
) -> None:
    """As `launch_product` of linear.py, of matrices that are `alike`."""
    first, data, gated = matrices[0], parts.data, isinstance(after, Gated)
    features = [m.features for m in matrices] + [0] * (MATRICES - len(matrices))
    tuning = tuning_of(first.size, rows, sum(features))
    blocks = tuning.blocks(features, gated)
    if not rows * blocks:
        return
    filled = [*matrices, *[first] * (MATRICES - len(matrices))]
    none = first.bias if out is None else out  # in place of what is not read
    none = data if none is None else none
    tensors, around_it, fills = around(out, norm, after, features[0], none)
    weights = [m.data.view(-1).view(torch.int16) for m in filled]
    apart = (weights[1].data_ptr() - weights[0].data_ptr()) // weights[0].element_size() if gated else 0
    stored = [
        *weights,
        *(m.scale for m in filled),
        *(m.scale if m.offset is None else m.offset for m in filled),
        *(none if m.bias is None else m.bias for m in filled),
    ]
    dependent = not fills and launches_dependent(data)
    padded, group, _ = parts.constants
    with torch.cuda.device_of(data):
        linear_int4[(len(data) * blocks,)](
            *(data, *stored, *tensors, apart, rows, *features, *(m.scale.stride(0) for m in filled)),
            *(2 * first.data.shape[1], padded, group, first.size, tuning.block, tuning.features),
            *(first.offset is not None, first.bias is not None, *around_it, dependent, tuning.lines(0.5)),
            **tuning.options(dependent),
        )


_TYPES = (
    dict.fromkeys(("out", "squares", "residual", "following", "squares_out"), "*fp32")
    | {"parts": "*bf16", "parts_out": "*bf16", "epsilon": "fp32", "out_stride": "i64", "apart": "i64:16"}
    | dict.fromkeys(_INTS, "i32")
    | {f"bias{i}": "*fp32" for i in range(MATRICES)}
    | {f"weight{i}": "*i16" for i in range(MATRICES)}
)


def _case(
    size: int,
    k: int = 4096,
    group: int = FEW,
    features: int = 12288,
    *,
    scale: str = "*bf16",
    offset: bool = True,
    bias: bool = False,
    after: dict[str, Any] = ALONE,
    arches: tuple[int, ...] = (80, 90),
) -> Case:
    types = _TYPES | {f"{name}{i}": scale for name in ("scale", "offset") for i in range(MATRICES)}
    tuning = tuning_of(size, group, features)
    constants = {"K": k, "PADDED": padded_length(k), "GROUP": group, "SIZE": size, "BLOCK": tuning.block}
    constants |= {"FEATURES": tuning.features, "OFFSET": offset, "BIAS": bias, **ALONE, **after}
    constants |= {"OUT_PAIRS": FOURS if after is not ALONE else 0}
    constants |= {"DEPENDENT": arches == (90,), "LINES": tuning.lines(0.5)}
    return Case(linear_int4, types, constants, tuning.options(arches == (90,)), arches)


COMPILE_CASES = [
    *(
        _case(size, group=group, features=features)
        for size in (32, 64, 128)
        for group, features in ((FEW, 12288), (FEW, FEW_FEATURES), (MANY, 12288))
    ),
    _case(32, 11040, features=FEW_FEATURES, scale="*fp32", bias=True),
    _case(128, 11008, bias=True),
    _case(128, offset=False),
    _case(256, scale="*fp16", offset=False, bias=True),
    *(
        _case(size, k, group, features, after=after, arches=arches)
        for size in (64, 128)
        for k, features, group, after in (
            (4096, 12288, FEW, NORMED),
            (4096, 22016, FEW, GATED),
            (4096, 22016, MANY, GATED),
            (11008, 4096, FEW, ADDED),
        )
        for arches in (((80,), (90,)) if size == 128 else ((90,),))
    ),
]
