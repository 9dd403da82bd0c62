"""Scratch of one call of `sample` whose sets are shared out to several programs: where each part lies.

Three arrays, row by row for each group; with W = ids of all chunks, C = chunks:

    floats  (groups, 2·W + 2·C + 3)     z (W) · top of each chunk (C) · best value of each chunk (C) ·
                                        cut · expert's top and k-th · listed z (W)
    longs   (groups, BINS + C)          mass of each bin (BINS) · mass of each chunk (C)
    ints    (groups, BINS + 3·C + 2)    count of each bin (BINS) · flags (C), place of the best (C) and
                                        count (C) of each chunk · number of listed z · first id

A call allocates its own, and its kernels zero what must be zero: calls on other streams share nothing.
"""

import torch
import triton
import triton.language as tl

from fastdecode.triton_kernels.numerics import INF

BINS = tl.constexpr(1024)
"""Bins of top − z: 128 for each doubling of top − z + 2, up to 510, where the last begins."""

ROW = tl.constexpr(256)
"""Per-chunk results, and bins to be zeroed, that a program reads or writes at a time."""


def make_scratch(groups: int, width: int, chunks: int, device: torch.device) -> dict[str, torch.Tensor]:
    """The three arrays, by name, with nothing in them."""
    bins = BINS.value
    return {
        "floats": torch.empty(groups * (2 * width + 2 * chunks + 3), dtype=torch.float32, device=device),
        "longs": torch.empty(groups * (bins + chunks), dtype=torch.int64, device=device),
        "ints": torch.empty(groups * (bins + 3 * chunks + 2), dtype=torch.int32, device=device),
    }


@triton.jit
def z_of(floats, group, width, chunks):
    return floats + group * (2 * width + 2 * chunks + 3)


@triton.jit
def tops_of(floats, group, width, chunks):
    return z_of(floats, group, width, chunks) + width


@triton.jit
def bests_of(floats, group, width, chunks):
    return z_of(floats, group, width, chunks) + width + chunks


@triton.jit
def cut_of(floats, group, width, chunks):
    """The cut; the expert's top and k-th lie behind it."""
    return z_of(floats, group, width, chunks) + width + 2 * chunks


@triton.jit
def listed_of(floats, group, width, chunks):
    return z_of(floats, group, width, chunks) + width + 2 * chunks + 3


@triton.jit
def bin_masses_of(longs, group, chunks):
    return longs + group * (BINS + chunks)


@triton.jit
def masses_of(longs, group, chunks):
    return longs + group * (BINS + chunks) + BINS


@triton.jit
def bin_counts_of(ints, group, chunks):
    return ints + group * (BINS + 3 * chunks + 2)


@triton.jit
def flags_of(ints, group, chunks):
    return bin_counts_of(ints, group, chunks) + BINS


@triton.jit
def places_of(ints, group, chunks):
    return flags_of(ints, group, chunks) + chunks


@triton.jit
def counts_of(ints, group, chunks):
    return flags_of(ints, group, chunks) + 2 * chunks


@triton.jit
def length_of(ints, group, chunks):
    return flags_of(ints, group, chunks) + 3 * chunks


@triton.jit
def first_of(ints, group, chunks):
    return flags_of(ints, group, chunks) + 3 * chunks + 1


@triton.jit
def top_of(floats, group, width, chunks):
    """Largest z of the group: of its chunks' tops."""
    tops = tops_of(floats, group, width, chunks)
    top = tl.full((), -INF, tl.float32)
    for begin in range(0, chunks, ROW):
        at = begin + tl.arange(0, ROW)
        top = tl.maximum(top, tl.max(tl.load(tops + at, mask=at < chunks, other=-INF), 0))
    return top


@triton.jit
def bin_of(z, top):
    """int32 bin of z ≤ top: 0 for the top, rising as z falls."""
    depth = (top - z) + 2.0
    return tl.minimum((depth.to(tl.int32, bitcast=True) - 0x40000000) >> 16, BINS - 1)
