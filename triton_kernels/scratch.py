"""Scratch memory of one call of `sample` with large sets, whose groups are worked on by several programs each.

Three arrays with a row for each group. W is the number of tokens in all chunks, C the number of chunks:

    floats  (groups, 2·W + 2·C + 3)     z (W) · top of each chunk (C) · best value of each chunk (C) ·
                                        cut · expert's top and k-th · listed z (W)
    longs   (groups, BINS + C)          mass of each bin (BINS) · mass of each chunk (C)
    ints    (groups, BINS + 3·C + 2)    count of each bin (BINS) · flags (C), position of the best (C) and
                                        count (C) of each chunk · number of listed z · first token

Each call allocates its own scratch, so calls on different CUDA streams share nothing. The kernels write the zeros that
they need.
"""

import torch
import triton
import triton.language as tl

from fastdecode.triton_kernels.numerics import INF

BINS = tl.constexpr(1024)
"""Number of bins of top − z: 128 for each doubling of top − z + 2. The last bin holds all from top − z = 510 on."""

ROW = tl.constexpr(256)
"""Number of per-chunk results that a program reads at a time, and of bins that it sets to zero at a time."""


def make_scratch(groups: int, width: int, chunks: int, device: torch.device) -> dict[str, torch.Tensor]:
    """The three arrays by name, not initialised."""
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
    """Address of the cut, which the expert's top and k-th largest logit follow."""
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
    """The largest z of the group, from the largest of each chunk."""
    tops = tops_of(floats, group, width, chunks)
    top = tl.full((), -INF, tl.float32)
    for begin in range(0, chunks, ROW):
        at = begin + tl.arange(0, ROW)
        top = tl.maximum(top, tl.max(tl.load(tops + at, mask=at < chunks, other=-INF), 0))
    return top


@triton.jit
def bin_of(z, top):
    """int32 bin of z ≤ top: 0 for z = top, and higher for lower z."""
    depth = (top - z) + 2.0
    return tl.minimum((depth.to(tl.int32, bitcast=True) - 0x40000000) >> 16, BINS - 1)
