"""`linear` and `joint_linear` for few rows. A program has some features of one matrix of up to three, and 4 or 16 rows.

    x               (rows, K) float32
    parts           the parts of x: see parts.py
    weight0, …      (features0, K), …, all of one dtype
    scale0, …       (features0,), … float32; not read where SCALED is False
    bias0, …        (features0,), … float32; not read where BIAS is False
    out             (rows, features0 + features1 + features2) float32: written; by `linear_parts` at a row stride

`linear_parts` multiplies bfloat16 and bytes (int8, or float8_e4m3fn as uint8; with PAIRS two of either as int16) with
the parts of x, and adds the products of the three parts last, the smallest first. It also computes what comes before
and after a product in a decode step, see epilogue.py; with GATED the first two matrices are gate and up, and a program
has the same features of both. `linear` multiplies float32 and float16, takes x apart itself, and is slower. Neither
rounds x.

The weights are read once for every 16 rows. 16 rows are always multiplied together, missing ones as zeros, because
tensor cores take no fewer. Each BLOCK of k is summed on the tensor cores, and the blocks are added in float32, which
rounds where tensor cores truncate. BLOCK depends on the dtype alone, so every row is summed over k in the same order,
whatever the other rows and matrices are. With fewer than three matrices the others have 0 features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdecode.triton_kernels.arguments import Matrix
from fastdecode.triton_kernels.byte_weights import of_bytes, of_pairs
from fastdecode.triton_kernels.case import Case
from fastdecode.triton_kernels.dependent import begin_dependent, launches_dependent, prefetch
from fastdecode.triton_kernels.epilogue import Added, Gated, RowNorm, around, finish
from fastdecode.triton_kernels.parts import FEW, MANY, Parts, empty_parts, launch_parts, padded_length
from fastdecode.triton_kernels.products import ON_TENSOR_CORES, float_of, product

ROWS = tl.constexpr(16)
MATRICES = 3

_INTS = ("rows", "features0", "features1", "features2")
_PARTS_INTS = (*_INTS, "out_stride")


@triton.jit
def _pick(first, second, a, b, c):
    return tl.where(first, a, tl.where(second, b, c))


@triton.jit
def _place(block, features0, features1, features2, FEATURES: tl.constexpr, GATED: tl.constexpr):
    """Of a block of FEATURES: whether it is in the first matrix, and in the first or second (with GATED of each
    feature); its features; how many its matrix has; and their columns of the result.
    """
    if GATED:
        j = tl.arange(0, FEATURES)
        first, second = j < FEATURES // 2, j >= 0
        f = block * (FEATURES // 2) + j % (FEATURES // 2)
        features, column = features0, f
    else:
        begin1 = tl.cdiv(features0, FEATURES)
        begin2 = begin1 + tl.cdiv(features1, FEATURES)
        first, second = block < begin1, block < begin2
        f = (block - _pick(first, second, 0, begin1, begin2)) * FEATURES + tl.arange(0, FEATURES)
        features = _pick(first, second, features0, features1, features2)
        column = _pick(first, second, 0, features0, features0 + features1) + f
    return first, second, f, features, column


@triton.jit
def _rows_of(
    first, second, f, features, weight0, weight1, weight2, apart,
    WIDTH: tl.constexpr, FEATURES: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Addresses (1, FEATURES) of the weights of features f."""
    if GATED:
        # Not by a choice of addresses, of which Triton does not know that they are divisible by 16.
        weight = weight0 + (tl.arange(0, FEATURES) // (FEATURES // 2)).to(tl.int64) * apart
    else:
        weight = _pick(first, second, weight0, weight1, weight2)
    return (weight + tl.minimum(f, features - 1).to(tl.int64) * WIDTH)[None, :]


@triton.jit
def _folded(total, total1, total2, GROUP: tl.constexpr):
    """The sum of the products of the three parts, the smallest first: (GROUP, features)."""
    if GROUP == ROWS:
        total += total1 + total2
    else:
        # (parts, GROUP, features) with a fourth part of zeros. The last dimension is what `split` takes apart.
        folded = total.reshape(2, 2, GROUP, total.shape[1]).permute(2, 3, 0, 1)
        even, odd = folded.split()
        total, total2 = even.split()
        total1, _ = odd.split()
        total += total1 + total2
    return total


@triton.jit
def _begin(weight_rows, WIDTH: tl.constexpr, LINES: tl.constexpr, DEPENDENT: tl.constexpr):
    """Asks for the first LINES of 128 bytes of each feature, and waits for the kernels before."""
    if DEPENDENT:
        PER_LINE: tl.constexpr = 1024 // weight_rows.dtype.element_ty.primitive_bitwidth
        prefetch(weight_rows + tl.minimum(tl.arange(0, LINES) * PER_LINE, WIDTH - 1)[:, None])
    begin_dependent(DEPENDENT)


@triton.jit
def _add(total, part, there, low, high, PADDED: tl.constexpr, PAIRS: tl.constexpr):
    """total + (16 rows of parts) · weights, of which there are two with PAIRS: even and odd elements."""
    a = tl.load(part, mask=there, other=0.0)
    if PAIRS:
        b = tl.load(part + PADDED // 2, mask=there, other=0.0)
        if ON_TENSOR_CORES:
            total += tl.dot(b, high, tl.dot(a, low))
        else:
            total += _interpreted(a, low) + _interpreted(b, high)
    elif ON_TENSOR_CORES:
        # The limit says nothing for bfloat16. With it Triton does not make `total` what the tensor cores add to.
        total += tl.dot(a, low, max_num_imprecise_acc=a.shape[1])
    else:
        total += _interpreted(a, low)
    return total


@triton.jit
def _interpreted(a, w):
    """a · w. The interpreter cannot multiply bfloat16; the order in which numpy's product sums depends on the row."""
    return tl.sum(float_of(a)[:, :, None] * float_of(w)[None, :, :], 1)


@triton.jit(do_not_specialize=_PARTS_INTS)
def linear_parts(
    parts, weight0, weight1, weight2, scale0, scale1, scale2, bias0, bias1, bias2,
    out, out_stride: tl.int64, squares, epsilon, residual, following, parts_out, squares_out,
    apart: tl.int64, rows, features0, features1, features2,
    K: tl.constexpr, PADDED: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, FEATURES: tl.constexpr,
    PAIRS: tl.constexpr, FLOAT8: tl.constexpr, CONVERTS: tl.constexpr, SCALED: tl.constexpr, BIAS: tl.constexpr,
    PARTIALS: tl.constexpr, GATED: tl.constexpr, ACTIVATION: tl.constexpr, ADD: tl.constexpr, SQUARES: tl.constexpr,
    OUT_PADDED: tl.constexpr, OUT_PAIRS: tl.constexpr, DEPENDENT: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """FLOAT8: weights are float8_e4m3fn. CONVERTS: see `of_pairs`. LINES: of 128 bytes of each feature, which are read
    first and prefetched if the launch is DEPENDENT, see dependent.py. ``apart``: elements from weight0 to weight1, with
    GATED. The others: see epilogue.py.
    """
    tl.static_assert(PADDED % BLOCK == 0)
    WIDTH: tl.constexpr = K // 2 if PAIRS else K
    STEP: tl.constexpr = BLOCK // 2 if PAIRS else BLOCK
    groups = tl.cdiv(rows, GROUP)
    group = tl.program_id(0) % groups
    block = tl.program_id(0) // groups
    first, second, f, features, column = _place(block, features0, features1, features2, FEATURES, GATED)
    weight_rows = _rows_of(
        first, second, f, features, weight0, weight1, weight2, apart, WIDTH, FEATURES, GATED
    )  # fmt: skip
    _begin(weight_rows, WIDTH, LINES, DEPENDENT)

    r = group * GROUP + tl.arange(0, GROUP)
    t = tl.arange(0, ROWS)
    known = ((t % GROUP < rows - group * GROUP) & (t < 3 * GROUP))[:, None]
    part_rows = parts + group.to(tl.int64) * (3 * GROUP * PADDED) + t[:, None] * PADDED
    total = tl.zeros((ROWS, FEATURES), tl.float32)
    total1 = tl.zeros((ROWS, FEATURES), tl.float32)
    total2 = tl.zeros((ROWS, FEATURES), tl.float32)
    for begin in range(0, WIDTH, STEP):
        i = begin + tl.arange(0, STEP)
        if WIDTH % STEP == 0:
            w = tl.load(weight_rows + i[:, None])
        else:
            w = tl.load(weight_rows + i[:, None], mask=(i < WIDTH)[:, None], other=0)
        if PAIRS:
            low, high = of_pairs(w, FLOAT8, CONVERTS)
        else:
            low = w if w.dtype == tl.bfloat16 else of_bytes(w)
            high = low
        part = part_rows + i[None, :]
        total = _add(total, part, known, low, high, PADDED, PAIRS)
        if GROUP == ROWS:
            total1 = _add(total1, part + ROWS * PADDED, known, low, high, PADDED, PAIRS)
            total2 = _add(total2, part + 2 * ROWS * PADDED, known, low, high, PADDED, PAIRS)
    total = _folded(total, total1, total2, GROUP)
    if SCALED:
        total *= tl.load(_pick(first, second, scale0, scale1, scale2) + f, mask=f < features, other=0.0)[None, :]
    finish(
        total, r, f, column, rows, features, block, _pick(first, second, bias0, bias1, bias2), squares, epsilon,
        residual, following, out, out_stride, parts_out, squares_out,
        K, GROUP, BIAS, PARTIALS, GATED, ACTIVATION, ADD, SQUARES, OUT_PADDED, OUT_PAIRS,
    )  # fmt: skip


@triton.jit(do_not_specialize=_INTS)
def linear(
    x, weight0, weight1, weight2, scale0, scale1, scale2, bias0, bias1, bias2, out,
    rows, features0, features1, features2,
    K: tl.constexpr, BLOCK: tl.constexpr, FEATURES: tl.constexpr, SCALED: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(rows, ROWS)
    r = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    block = tl.program_id(0) // blocks
    first, second, f, features, column = _place(block, features0, features1, features2, FEATURES, False)
    weight = _pick(first, second, weight0, weight1, weight2)

    x_rows = x + r.to(tl.int64)[:, None] * K
    weight_rows = weight + f.to(tl.int64)[None, :] * K
    total = tl.zeros((ROWS, FEATURES), tl.float32)
    for begin in range(0, K, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        part = tl.load(x_rows + i[None, :], mask=(r < rows)[:, None] & (i < K)[None, :], other=0.0)
        w = tl.load(weight_rows + i[:, None], mask=(f < features)[None, :] & (i < K)[:, None], other=0)
        total += product(part, w)
    there = f < features
    if SCALED:
        total *= tl.load(_pick(first, second, scale0, scale1, scale2) + f, mask=there, other=0.0)[None, :]
    if BIAS:
        total += tl.load(_pick(first, second, bias0, bias1, bias2) + f, mask=there, other=0.0)[None, :]
    at = r.to(tl.int64)[:, None] * (features0 + features1 + features2) + column[None, :]
    tl.store(out + at, total, mask=(r < rows)[:, None] & there[None, :])


class Tuning(NamedTuple):
    """Elements of k and features of a program's tiles, and launch options, chosen so that nothing spills.

    An H200 needs about 33 KB of loads in flight on each multiprocessor to use its memory bandwidth.
    """

    block: int
    features: int
    warps: int
    stages: int
    registers: int = 0
    """The most for each thread; 0: the compiler decides, and sometimes spills to have fewer than it needs."""

    def options(self, dependent: bool = False) -> dict[str, Any]:
        options = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": False}
        options |= {"maxnreg": self.registers} if self.registers else {}
        return options | {"launch_pdl": True} if dependent else options

    def blocks(self, features: Sequence[int], gated: bool) -> int:
        """Programs for each group of rows."""
        if gated:
            return triton.cdiv(features[0], self.features // 2)
        return sum(triton.cdiv(n, self.features) for n in features)

    def lines(self, itemsize: float) -> int:
        """Lines of 128 bytes of a feature that are in flight, rounded down to a power of two."""
        return 1 << max(int(self.block * itemsize * self.stages) // 128, 1).bit_length() - 1


WHOLE = (torch.float32, torch.float16)
"""Weights that `linear` multiplies."""

MANY_FEATURES = 16384
FEW_FEATURES = 4224
"""Of an H200's 132 multiprocessors each has 32 features of such a product, or fewer."""


def tuning_of(dtype: torch.dtype, rows: int, features: int) -> Tuning:
    """The fastest of those that were measured on an H200, for ``features`` of all matrices. Their blocks depend on the
    dtype alone.
    """
    if dtype == torch.float32:
        return Tuning(32, 32, 4, 8)
    if dtype == torch.float16:
        return Tuning(64, 32, 8, 6)
    if dtype.itemsize == 1:
        return Tuning(256, 64, 4, 3) if rows > FEW or features >= MANY_FEATURES else Tuning(256, 32, 4, 4, 168)
    if rows > FEW:
        return Tuning(128, 64, 4, 3 if features >= MANY_FEATURES else 4)
    if features >= MANY_FEATURES:
        return Tuning(128, 64, 4, 4, 160)
    return Tuning(128, 16, 2, 6) if features <= FEW_FEATURES else Tuning(128, 32, 4, 5)


def takes_parts(matrices: Sequence[Matrix]) -> bool:
    """Whether `launch_product` multiplies these matrices in one launch."""
    first = matrices[0]
    return first.weight.dtype not in WHOLE and len(matrices) <= MATRICES and all(_alike(first, m) for m in matrices)


def parts_for(rows: int, matrices: Sequence[Matrix]) -> Parts:
    """Where to write the parts of rows that `launch_product` multiplies with these matrices."""
    weight = matrices[0].weight
    return empty_parts(rows, weight.shape[1], _in_pairs(weight), weight.device)


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


def _in_pairs(weight: Tensor) -> bool:
    """Whether two bytes of a row can be read as one int16."""
    even = weight.shape[1] % 2 == weight.storage_offset() % 2 == weight.data_ptr() % 2 == 0
    return weight.dtype in (torch.int8, torch.float8_e4m3fn) and even


def _alike(a: Matrix, b: Matrix) -> bool:
    biases, scales = (a.bias is None) == (b.bias is None), (a.scale is None) == (b.scale is None)
    return a.weight.dtype == b.weight.dtype and biases and scales and _in_pairs(a.weight) == _in_pairs(b.weight)


def _readable(weight: Tensor) -> Tensor:
    if _in_pairs(weight):
        return weight.view(-1).view(torch.int16)  # a single row may have any stride
    return weight.view(torch.uint8) if weight.dtype == torch.float8_e4m3fn else weight


def launch_product(
    parts: Parts,
    rows: int,
    matrices: Sequence[Matrix],
    out: Tensor | None,
    norm: RowNorm | None = None,
    after: Gated | Added | None = None,
) -> None:
    """A product of matrices of one kind with the parts of ``rows`` rows, and what comes ``after`` it.

    ``out`` (rows, sum of all features) float32, at any row stride, is written, but with `Gated`, which has two matrices
    of as many features.
    """
    first, data = matrices[0], parts.data
    k, dtype, pairs = first.weight.shape[1], first.weight.dtype, parts.pairs
    features = [len(m.weight) for m in matrices] + [0] * (MATRICES - len(matrices))
    tuning = tuning_of(dtype, rows, sum(features))
    gated = isinstance(after, Gated)
    blocks = tuning.blocks(features, gated)
    if not rows * blocks:
        return
    filled = [*matrices, *[first] * (MATRICES - len(matrices))]
    unused = first.scale if out is None else out
    none = data if unused is None else unused  # in place of what is not read
    scales = [none if m.scale is None else m.scale for m in filled]
    biases = [none if m.bias is None else m.bias for m in filled]
    tensors, constants, fills = around(out, norm, after, features[0], none)
    float8 = dtype == torch.float8_e4m3fn
    converts = float8 and data.is_cuda and torch.cuda.get_device_capability(data.device) >= (8, 9)
    dependent = not fills and launches_dependent(data)
    padded, group, _ = parts.constants
    weights = [_readable(m.weight) for m in filled]
    apart = (weights[1].data_ptr() - weights[0].data_ptr()) // weights[0].element_size() if gated else 0
    with torch.cuda.device_of(data):
        linear_parts[(len(data) * blocks,)](
            *(data, *weights, *scales, *biases, *tensors, apart, rows, *features),
            *(k, padded, group, tuning.block, tuning.features, bool(pairs), float8, converts),
            *(first.scale is not None, first.bias is not None, *constants),
            *(dependent, tuning.lines(dtype.itemsize)),
            **tuning.options(dependent),
        )


def _launch(x: Tensor, matrices: Sequence[Matrix], out: Tensor) -> None:
    (rows, k), first = x.shape, matrices[0]
    dtype = first.weight.dtype
    if dtype not in WHOLE:
        launch_product(launch_parts(x, _in_pairs(first.weight)), rows, matrices, out)
        return
    features = [len(m.weight) for m in matrices] + [0] * (MATRICES - len(matrices))
    tuning = tuning_of(dtype, rows, sum(features))
    blocks = tuning.blocks(features, False)
    if not blocks:
        return
    filled = [*matrices, *[first] * (MATRICES - len(matrices))]
    scales = [x if m.scale is None else m.scale for m in filled]
    biases = [x if m.bias is None else m.bias for m in filled]
    has = (first.scale is not None, first.bias is not None)
    with torch.cuda.device_of(x):
        linear[(triton.cdiv(rows, MANY) * blocks,)](
            *(x, *(m.weight for m in filled), *scales, *biases, out, rows, *features, k),
            *(tuning.block, tuning.features, *has),
            **tuning.options(),
        )


_TYPES = (
    dict.fromkeys(("x", "out", "squares", "residual", "following", "squares_out"), "*fp32")
    | {f"{name}{i}": "*fp32" for name in ("scale", "bias") for i in range(MATRICES)}
    | dict.fromkeys(_INTS, "i32")
    | {"out_stride": "i64", "parts": "*bf16", "parts_out": "*bf16", "epsilon": "fp32", "apart": "i64:16"}
)
ALONE = {"PARTIALS": 0, "GATED": False, "ACTIVATION": 0, "ADD": False, "SQUARES": False, "OUT_PADDED": 0}
NORMED = {"PARTIALS": 256}
GATED = NORMED | {"GATED": True, "OUT_PADDED": 11008}
ADDED = {"ADD": True, "SQUARES": True, "OUT_PADDED": 4096}


def _case(
    dtype: torch.dtype,
    name: str,
    k: int,
    group: int = FEW,
    features: int = 12288,
    *,
    bias: bool = False,
    after: dict[str, Any] = ALONE,
    arches: tuple[int, ...] = (80, 90),
) -> Case:
    types = _TYPES | {f"weight{i}": name for i in range(MATRICES)}
    tuning, scaled, float8 = tuning_of(dtype, group, features), dtype.itemsize == 1, dtype == torch.float8_e4m3fn
    constants = {"K": k, "BLOCK": tuning.block, "FEATURES": tuning.features, "SCALED": scaled, "BIAS": bias}
    if dtype in WHOLE:
        return Case(linear, types, constants, tuning.options())
    pairs, dependent = name == "*i16", arches == (90,)
    constants |= {"PADDED": padded_length(k), "GROUP": group, "PAIRS": pairs, "FLOAT8": float8}
    constants |= ALONE | after | {"OUT_PAIRS": pairs, "DEPENDENT": dependent, "LINES": tuning.lines(dtype.itemsize)}
    constants |= {"CONVERTS": float8 and 80 not in arches}
    return Case(linear_parts, types, constants, tuning.options(dependent), arches)


COMPILE_CASES = [
    _case(torch.bfloat16, "*bf16", 4096),
    _case(torch.bfloat16, "*bf16", 4096, MANY),
    _case(torch.bfloat16, "*bf16", 4096, MANY, MANY_FEATURES),
    _case(torch.bfloat16, "*bf16", 4096, features=MANY_FEATURES),
    _case(torch.bfloat16, "*bf16", 11008, features=FEW_FEATURES, bias=True),
    _case(torch.bfloat16, "*bf16", 301),
    _case(torch.float16, "*fp16", 4096),
    _case(torch.float32, "*fp32", 4096),
    _case(torch.int8, "*i16", 4096),
    _case(torch.int8, "*i16", 4096, MANY),
    _case(torch.int8, "*i16", 4096, features=MANY_FEATURES),
    _case(torch.int8, "*i8", 301),
    *(
        _case(torch.float8_e4m3fn, "*i16", 4096, group, arches=arches)
        for group in (FEW, MANY)
        for arches in ((80,), (90,))
    ),
    _case(torch.float8_e4m3fn, "*u8", 301),
    # As a decode step launches them.
    *(
        _case(torch.bfloat16, "*bf16", k, group, features, after=after, arches=arches)
        for k, features, after in ((4096, 12288, NORMED), (4096, 22016, GATED), (11008, 4096, ADDED))
        for group in (FEW, MANY)
        for arches in ((80,), (90,))
    ),
    *(
        _case(dtype, "*i16", k, group, features, after=after, arches=(90,))
        for dtype in (torch.int8, torch.float8_e4m3fn)
        for k, features, group, after in (
            (4096, 12288, FEW, NORMED),
            (4096, 22016, FEW, GATED),
            (4096, 22016, MANY, GATED),
            (11008, 4096, FEW, ADDED),
        )
    ),
    *(
        _case(torch.bfloat16, "*bf16", k, FEW, features, bias=bias, after=after, arches=(90,))
        for k, features, bias, after in (
            (4096, 11264, False, GATED),
            (4096, 3072, True, NORMED),
            (8192, 44032, False, {"GATED": True, "OUT_PADDED": 22016}),
            (8192, 8192, False, {"SQUARES": True}),
            (11008, 4096, False, {"ADD": True}),
            (5120, 5120, False, ADDED | {"OUT_PADDED": 5120}),
        )
    ),
    *(_case(dtype, "*i16", 4096, FEW, 22016, after=GATED, arches=(80,)) for dtype in (torch.int8, torch.float8_e4m3fn)),
]
