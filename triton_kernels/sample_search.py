"""Finds the cuts of top-k and top-p for groups with several programs; a part of `sample_large`.

    histogram  chunk   counts and adds up the masses of z in each bin of (top − z)
    collect    chunk   lists the z in the bins that the cuts must be in
    resolve    group   finds both cuts exactly, among the listed z

Bins and list are in the scratch memory of the call. The sums of a bin are integers, so the order of the atomic
additions does not matter, and neither does the order of the list. If all z fall into one bin, all are listed: that is
slower, and still correct.
"""

import triton
import triton.language as tl

from fastdecode.triton_kernels.case import Case
from fastdecode.triton_kernels.group import INTS, TEMPERATURE, TOP_K, TOP_P, TYPES, parameter
from fastdecode.triton_kernels.numerics import INF, exp_f32, float_of_key, mass_of, order_key, top_p_limit
from fastdecode.triton_kernels.scratch import (
    BINS,
    bin_counts_of,
    bin_masses_of,
    bin_of,
    cut_of,
    length_of,
    listed_of,
    top_of,
    z_of,
)

OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}

BLOCK = 1024
"""Listed z that `resolve` reads at a time."""


@triton.jit
def _filters(temperatures, temperature_value, top_ks, top_k_value, top_ps, top_p_value, group, given):
    """(top_k, top_p) of the group; both are off for a greedy group."""
    greedy = parameter(temperatures, temperature_value, group, given, TEMPERATURE) == 0
    top_k = parameter(top_ks, top_k_value, group, given, TOP_K)
    top_p = parameter(top_ps, top_p_value, group, given, TOP_P)
    return tl.where(greedy, 0, top_k), tl.where(greedy, 1.0, top_p)


@triton.jit(do_not_specialize=INTS)
def sample_histogram(
    temperatures, temperature_value, top_ks, top_k_value, top_ps, top_p_value, given,
    floats, longs, ints, span, chunks,
    CHUNK: tl.constexpr,
):  # fmt: skip
    group = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    top_k, top_p = _filters(temperatures, temperature_value, top_ks, top_k_value, top_ps, top_p_value, group, given)
    top = top_of(floats, group, span, chunks)
    z = tl.load(z_of(floats, group, span, chunks) + chunk * CHUNK + tl.arange(0, CHUNK))
    possible = z > -INF
    at = bin_of(z, top)
    if top_k > 0:
        tl.atomic_add(bin_counts_of(ints, group, chunks) + at, 1, mask=possible, sem="relaxed")
    if top_p < 1:
        mass = mass_of(exp_f32(z - top))
        tl.atomic_add(bin_masses_of(longs, group, chunks) + at, mass, mask=possible & (mass > 0), sem="relaxed")


@triton.jit
def _first_reaching(weights, limit):
    """The first bin at which the running sum of the (BINS,) weights reaches the limit; BINS if none."""
    bins = tl.arange(0, BINS)
    return tl.min(tl.where(tl.cumsum(weights, 0) >= limit, bins, BINS), 0)


@triton.jit
def _k_bin(counts, top_k, EXPERT: tl.constexpr):
    """(bin, rank): the k-th largest z is the rank-th largest of that bin. bin is BINS where top-k keeps all.

    EXPERT: if there are fewer than k, the smallest z is found.
    """
    bins = tl.arange(0, BINS)
    total = tl.sum(counts, 0)
    if EXPERT:
        top_k = tl.minimum(top_k, total)
    at = tl.where((top_k > 0) & ((top_k < total) | EXPERT), _first_reaching(counts, top_k), BINS)
    return at, top_k - tl.sum(tl.where(bins < at, counts, 0), 0)


@triton.jit(do_not_specialize=INTS)
def sample_collect(
    temperatures, temperature_value, top_ks, top_k_value, top_ps, top_p_value, given,
    floats, longs, ints, span, chunks,
    EXPERT: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    group = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    top_k, top_p = _filters(temperatures, temperature_value, top_ks, top_k_value, top_ps, top_p_value, group, given)
    bins = tl.arange(0, BINS)
    k_bin, _ = _k_bin(tl.load(bin_counts_of(ints, group, chunks) + bins), top_k, EXPERT)
    p_first = k_bin
    p_last = k_bin
    if top_p < 1:
        # The mass that top-k keeps is at least that of the bins before k_bin, and at most that with k_bin.
        masses = tl.load(bin_masses_of(longs, group, chunks) + bins)
        least = tl.sum(tl.where(bins < k_bin, masses, 0), 0)
        most = tl.sum(tl.where(bins <= k_bin, masses, 0), 0)
        p_first = _first_reaching(masses, top_p_limit(top_p, least))
        p_last = _first_reaching(masses, top_p_limit(top_p, most))
    top = top_of(floats, group, span, chunks)
    z = tl.load(z_of(floats, group, span, chunks) + chunk * CHUNK + tl.arange(0, CHUNK))
    at = bin_of(z, top)
    wanted = (z > -INF) & ((at == k_bin) | ((at >= p_first) & (at <= p_last)))
    number = tl.sum(wanted.to(tl.int32), 0)
    if number > 0:
        place = tl.atomic_add(length_of(ints, group, chunks), number, sem="relaxed")
        place = place + tl.cumsum(wanted.to(tl.int32), 0) - 1
        tl.store(listed_of(floats, group, span, chunks) + place, z, mask=wanted)


@triton.jit
def _weight_from(listed, count, least, bin, top, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """int64 number, or mass where MASS is True, of the listed z of one bin that are ≥ least."""
    weight = tl.full((), 0, tl.int64)
    for begin in range(0, count, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        z = tl.load(listed + at, mask=at < count, other=-INF)
        chosen = (z >= least) & (z > -INF) & (bin_of(z, top) == bin)
        each = mass_of(exp_f32(z - top)) if MASS else tl.full((BLOCK,), 1, tl.int64)
        weight += tl.sum(tl.where(chosen, each, 0), 0)
    return weight


@triton.jit
def _cut(listed, count, limit, bin, top, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest c such that the listed z ≥ c of one bin have a count or mass of at least `limit`.

    All listed z of the bin together must reach `limit`. Bisects order keys in at most 33 steps.
    """
    lowest = tl.full((), INF, tl.float32)
    highest = tl.full((), -INF, tl.float32)
    for begin in range(0, count, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        z = tl.load(listed + at, mask=at < count, other=-INF)
        chosen = (z > -INF) & (bin_of(z, top) == bin)
        lowest = tl.minimum(lowest, tl.min(tl.where(chosen, z, INF), 0))
        highest = tl.maximum(highest, tl.max(tl.where(chosen, z, -INF), 0))
    lo = order_key(lowest)
    hi = order_key(highest) + 1
    while hi - lo > 1:
        middle = (lo + hi) >> 1
        enough = _weight_from(listed, count, float_of_key(middle), bin, top, MASS, BLOCK) >= limit
        lo = tl.where(enough, middle, lo)
        hi = tl.where(enough, hi, middle)
    return float_of_key(lo)


@triton.jit(do_not_specialize=INTS)
def sample_resolve(
    temperatures, temperature_value, top_ks, top_k_value, top_ps, top_p_value, given,
    floats, longs, ints, span, chunks,
    EXPERT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """EXPERT: stores the top and the k-th largest logit, for contrast. Otherwise stores the cut of top-k and top-p."""
    group = tl.program_id(0).to(tl.int64)
    top_k, top_p = _filters(temperatures, temperature_value, top_ks, top_k_value, top_ps, top_p_value, group, given)
    bins = tl.arange(0, BINS)
    top = top_of(floats, group, span, chunks)
    listed = listed_of(floats, group, span, chunks)
    count = tl.load(length_of(ints, group, chunks))
    k_bin, rank = _k_bin(tl.load(bin_counts_of(ints, group, chunks) + bins), top_k, EXPERT)
    cut = tl.full((), -INF, tl.float32)
    if k_bin < BINS:
        cut = _cut(listed, count, rank.to(tl.int64), k_bin, top, False, BLOCK)
    if top_p < 1:
        masses = tl.load(bin_masses_of(longs, group, chunks) + bins)
        total = tl.sum(tl.where(bins < k_bin, masses, 0), 0)
        if k_bin < BINS:
            total += _weight_from(listed, count, cut, k_bin, top, True, BLOCK)
        limit = top_p_limit(top_p, total)
        p_bin = _first_reaching(masses, limit)
        rest = limit - tl.sum(tl.where(bins < p_bin, masses, 0), 0)
        cut = tl.maximum(cut, _cut(listed, count, rest, p_bin, top, True, BLOCK))
    to = cut_of(floats, group, span, chunks)
    if EXPERT:
        tl.store(to + 1, top)
        tl.store(to + 2, cut)
    else:
        tl.store(to, cut)


def _case(kernel, **constants) -> Case:
    return Case(kernel, TYPES, constants, OPTIONS)


COMPILE_CASES = [
    _case(sample_histogram, CHUNK=1024),
    *(_case(sample_collect, EXPERT=expert, CHUNK=1024) for expert in (False, True)),
    *(_case(sample_resolve, EXPERT=expert, BLOCK=BLOCK) for expert in (False, True)),
]
