"""The rows of x as bfloat16 parts, which linear.py multiplies: written once, and read by all programs of a product.

    x       (rows, K) float32
    parts   (groups, 3, GROUP, padded) bfloat16: written

Part p of row r, as products.py has it, is parts[r // GROUP, p, r % GROUP]. GROUP is 4 where there are no more rows, so
that a tile of 16 rows holds all three parts; else 16, and a tile holds one part of 16 rows. ``padded`` is K rounded up
to a multiple of 256; what is behind K is 0. Rows that x does not have are not written, and must not be read. Operations
whose result is multiplied next write its parts themselves, by `store_parts`.

With PAIRS = 1, elements with even numbers are in the first half of the padded row, and the others in the second. With
PAIRS = 2 each fourth element is in one quarter of it. So weights that are read two or four at a time meet theirs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdecode.triton_kernels.case import Case
from fastdecode.triton_kernels.products import split

FEW = 4
MANY = 16
FOURS = 2
"""PAIRS for weights of which four are read at once."""

_MULTIPLE = 256
_BLOCK = tl.constexpr(1024)
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def store_parts(parts, row, i, value, there, PADDED: tl.constexpr, GROUP: tl.constexpr, PAIRS: tl.constexpr):
    """Store elements i of a row, those that are ``there``. ``value`` must be 0 from K to PADDED."""
    at = parts + (row // GROUP * 3 * GROUP + row % GROUP).to(tl.int64) * PADDED
    if PAIRS:
        STRETCHES: tl.constexpr = 2 * PAIRS
        at += i % STRETCHES * (PADDED // STRETCHES) + i // STRETCHES
    else:
        at += i
    part0, part1, part2 = split(value)
    tl.store(at, part0.to(tl.bfloat16), mask=there)
    tl.store(at + GROUP * PADDED, part1.to(tl.bfloat16), mask=there)
    tl.store(at + 2 * GROUP * PADDED, part2.to(tl.bfloat16), mask=there)


@triton.jit
def write_parts(x, parts, K: tl.constexpr, PADDED: tl.constexpr, GROUP: tl.constexpr, PAIRS: tl.constexpr):
    """One program for each 1,024 elements of a row."""
    blocks = tl.cdiv(PADDED, _BLOCK)
    row = tl.program_id(0) // blocks
    i = tl.program_id(0) % blocks * _BLOCK + tl.arange(0, _BLOCK)
    value = tl.load(x + row.to(tl.int64) * K + i, mask=i < K, other=0.0)
    store_parts(parts, row, i, value, i < PADDED, PADDED, GROUP, PAIRS)


def padded_length(k: int) -> int:
    return triton.cdiv(k, _MULTIPLE) * _MULTIPLE


class Parts(NamedTuple):
    """``data`` (groups, 3, GROUP, padded) bfloat16. ``pairs``: the order of its elements, PAIRS above."""

    data: Tensor
    pairs: int

    @property
    def constants(self) -> tuple[int, int, int]:
        """PADDED, GROUP and PAIRS."""
        return self.data.shape[3], self.data.shape[2], self.pairs


NO_PARTS = (0, 0, False)
"""PADDED, GROUP and PAIRS of a kernel that writes none."""


def empty_parts(rows: int, k: int, pairs: int, device: torch.device) -> Parts:
    """Not initialised."""
    group = FEW if rows <= FEW else MANY
    shape = (triton.cdiv(rows, group), 3, group, padded_length(k))
    return Parts(torch.empty(shape, dtype=torch.bfloat16, device=device), pairs)


def launch_parts(x: Tensor, pairs: int) -> Parts:
    """The parts of x (rows, k), of at least one row."""
    rows, k = x.shape
    parts = empty_parts(rows, k, pairs, x.device)
    grid = rows * triton.cdiv(padded_length(k), _BLOCK.value)
    with torch.cuda.device_of(x):
        write_parts[(grid,)](x, parts.data, k, *parts.constants, **_OPTIONS)
    return parts


COMPILE_CASES = [
    Case(
        write_parts,
        {"x": "*fp32", "parts": "*bf16"},
        {"K": k, "PADDED": padded_length(k), "GROUP": group, "PAIRS": pairs},
        _OPTIONS,
    )
    for k, group, pairs in ((4096, FEW, False), (11008, MANY, True), (301, FEW, False), (4096, FEW, FOURS))
]
