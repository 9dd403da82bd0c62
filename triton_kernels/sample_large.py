"""`sample` for sets of any size: several programs per group, few launches, all searches in scratch.

A group's hull, from the first id of its set to the last, is cut into chunks, one program each:

    mix        chunk   z of each id to scratch, the chunk's largest; zeroes the bins
    histogram  chunk   counts and masses of z by bin of (top − z)
    collect    chunk   lists the z of the bins in which the cuts of top-k and top-p must lie
    resolve    group   finds both cuts exactly among those
    draw       chunk   noise for what is kept; the chunk's best value, mass and count
    finish     group   the best of the chunks

Without top-k and top-p there is no histogram, collect and resolve; with contrast these run once
more before, on the expert's logits. Sums by bin are of integers, so the order of the atomic
additions does not matter; nor does the order of the list.

Scratch of one call, row by row for each group (W = ids of all chunks, C = chunks):

    floats  (groups, 2·W + 2·C + 4)     z, each chunk's top and best value, cut, expert's top and k-th, list
    longs   (groups, BINS + C)          mass by bin, mass of each chunk
    ints    (groups, BINS + 3·C + 2)    count by bin, each chunk's flags, best position and count,
                                        length of the list, first id of the hull
"""

import torch
import triton
import triton.language as tl

from fastdecode.triton_kernels.case import Case
from fastdecode.triton_kernels.group import (
    INTS,
    MIN_P,
    PENALTY,
    SEED,
    STEP,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    TYPES,
    bad_parameters,
    bad_ranges,
    in_set,
    mixed,
    parameter,
    range_at,
    scaled,
    set_of,
)
from fastdecode.triton_kernels.numerics import (
    INF,
    MASS_ONE,
    exp_f32,
    float_of_key,
    gumbel_noise,
    log_f32,
    mass_of,
    order_key,
    top_p_limit,
)

BINS = tl.constexpr(1024)
CHUNK = 2048
"""Ids of a program: a vocabulary of 65,536 is shared out to 32 programs."""

RESOLVE_BLOCK = 1024
"""Listed z that the search for a cut reads at a time."""

OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}

_ROW = tl.constexpr(256)
"""Per-chunk results, and bins to be zeroed, that are read or written at a time."""

_HAS_IDS = tl.constexpr(1)
_INVALID = tl.constexpr(2)
_NO_SET = tl.constexpr(4)
_NONE = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _rows_of(floats, longs, ints, group, width, chunks):
    """Where the group's rows of the three scratch arrays begin; group is int64."""
    return (
        floats + group * (2 * width + 2 * chunks + 4),
        longs + group * (BINS + chunks),
        ints + group * (BINS + 3 * chunks + 2),
    )


@triton.jit
def _bin_of(z, top):
    """int32 bin of top − z ≥ 0, 0 for the top: 128 bins for each doubling of top − z + 2."""
    depth = (top - z) + 2.0
    return tl.minimum((depth.to(tl.int32, bitcast=True) - 0x40000000) >> 16, BINS - 1)


@triton.jit
def _top_of(tops, chunks):
    """Largest of the chunks' tops."""
    top = tl.full((), -INF, tl.float32)
    for begin in range(0, chunks, _ROW):
        at = begin + tl.arange(0, _ROW)
        top = tl.maximum(top, tl.max(tl.load(tops + at, mask=at < chunks, other=-INF), 0))
    return top


@triton.jit
def _filters(temperatures, temperature_value, top_ks, top_k_value, top_ps, top_p_value, group, given):
    """(top_k, top_p) of the group, both off for a greedy one."""
    greedy = parameter(temperatures, temperature_value, group, given, TEMPERATURE) == 0
    top_k = parameter(top_ks, top_k_value, group, given, TOP_K)
    top_p = parameter(top_ps, top_p_value, group, given, TOP_P)
    return tl.where(greedy, 0, top_k), tl.where(greedy, 1.0, top_p)


@triton.jit(do_not_specialize=INTS)
def sample_mix(
    logits, rows, row_stride: tl.int64, vocab,
    streams, weights, width,
    ranges, range_count, offsets, sets, set_index,
    temperatures, temperature_value, top_ps, top_p_value, min_ps, min_p_value,
    penalties, penalty_value, seen, words,
    contrast_alpha,
    given,
    floats, longs, ints, hull, chunks,
    EXPERT: tl.constexpr, CONTRAST: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """EXPERT: z is the first stream alone. CONTRAST: the k-th of those is known."""
    group = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    floats, longs, ints = _rows_of(floats, longs, ints, group, hull, chunks)
    for begin in range(chunk * _ROW, BINS, chunks * _ROW):
        at = begin + tl.arange(0, _ROW)
        tl.store(longs + at, tl.zeros((_ROW,), tl.int64), mask=at < BINS)
        tl.store(ints + at, tl.zeros((_ROW,), tl.int32), mask=at < BINS)

    first, last, no_set = set_of(ranges, range_count, offsets, sets, set_index, vocab, group, given)
    no_set = no_set | bad_ranges(ranges, first, last, vocab, given, chunk, chunks)
    base = vocab * 0
    if first < last:
        base, _ = range_at(ranges, first, vocab, given)
    if chunk == 0:
        tl.store(ints + BINS + 3 * chunks, 0)
        tl.store(ints + BINS + 3 * chunks + 1, base)

    position = chunk * CHUNK + tl.arange(0, CHUNK)
    ids = base + position
    member = in_set(ranges, first, last, vocab, given, ids)
    z, keep, invalid, expert = mixed(
        logits, rows, row_stride, streams, weights, width, group, given, ids, member, EXPERT or CONTRAST
    )
    if EXPERT:
        z = expert + 0.0
        keep = member
    else:
        if CONTRAST:
            expert_top = tl.load(floats + hull + 2 * chunks + 1)
            kth = tl.load(floats + hull + 2 * chunks + 2)
            threshold = contrast_alpha * exp_f32(kth - expert_top)
            keep = keep & (expert > -INF) & (exp_f32((expert + 0.0) - expert_top) >= threshold)
        temperature = parameter(temperatures, temperature_value, group, given, TEMPERATURE)
        top_p = parameter(top_ps, top_p_value, group, given, TOP_P)
        min_p = parameter(min_ps, min_p_value, group, given, MIN_P)
        penalty = parameter(penalties, penalty_value, group, given, PENALTY)
        z = scaled(z, seen, words, group, given, penalty, temperature, ids, member)
        invalid = invalid | tl.max((keep & ~(z < INF)).to(tl.int32), 0)
        invalid = invalid | bad_parameters(temperature, top_p, min_p, penalty).to(tl.int32)
    z = tl.where(keep & (z > -INF) & (z < INF), z, -INF)
    tl.store(floats + position, z)
    tl.store(floats + hull + chunk, tl.max(z, 0))
    flags = tl.where(tl.max(member.to(tl.int32), 0) != 0, _HAS_IDS, 0)
    flags = flags | tl.where(invalid != 0, _INVALID, 0) | tl.where(no_set, _NO_SET, 0)
    tl.store(ints + BINS + chunk, flags)


@triton.jit(do_not_specialize=INTS)
def sample_histogram(
    temperatures, temperature_value, top_ks, top_k_value, top_ps, top_p_value, given,
    floats, longs, ints, hull, chunks,
    CHUNK: tl.constexpr,
):  # fmt: skip
    group = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    floats, longs, ints = _rows_of(floats, longs, ints, group, hull, chunks)
    top_k, top_p = _filters(temperatures, temperature_value, top_ks, top_k_value, top_ps, top_p_value, group, given)
    top = _top_of(floats + hull, chunks)
    z = tl.load(floats + chunk * CHUNK + tl.arange(0, CHUNK))
    possible = z > -INF
    at = _bin_of(z, top)
    if top_k > 0:
        tl.atomic_add(ints + at, 1, mask=possible, sem="relaxed")
    if top_p < 1:
        mass = mass_of(exp_f32(z - top))
        tl.atomic_add(longs + at, mass, mask=possible & (mass > 0), sem="relaxed")


@triton.jit
def _first_reaching(weights, limit):
    """The first bin at which the running sum of the (BINS,) weights reaches the limit; BINS if none."""
    bins = tl.arange(0, BINS)
    return tl.min(tl.where(tl.cumsum(weights, 0) >= limit, bins, BINS), 0)


@triton.jit
def _k_bin(counts, top_k, EXPERT: tl.constexpr):
    """(bin, rank): the k-th largest z is the rank-th of that bin; BINS where top-k spares all.

    EXPERT: of fewer than k the last is taken.
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
    floats, longs, ints, hull, chunks,
    EXPERT: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    group = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    floats, longs, ints = _rows_of(floats, longs, ints, group, hull, chunks)
    top_k, top_p = _filters(temperatures, temperature_value, top_ks, top_k_value, top_ps, top_p_value, group, given)
    bins = tl.arange(0, BINS)
    k_bin, _ = _k_bin(tl.load(ints + bins), top_k, EXPERT)
    p_first = k_bin
    p_last = k_bin
    if top_p < 1:
        # What top-k leaves weighs no less than the bins before k_bin, no more than these and it.
        masses = tl.load(longs + bins)
        least = tl.sum(tl.where(bins < k_bin, masses, 0), 0)
        most = tl.sum(tl.where(bins <= k_bin, masses, 0), 0)
        p_first = _first_reaching(masses, top_p_limit(top_p, least))
        p_last = _first_reaching(masses, top_p_limit(top_p, most))
    top = _top_of(floats + hull, chunks)
    z = tl.load(floats + chunk * CHUNK + tl.arange(0, CHUNK))
    at = _bin_of(z, top)
    wanted = (z > -INF) & ((at == k_bin) | ((at >= p_first) & (at <= p_last)))
    number = tl.sum(wanted.to(tl.int32), 0)
    if number > 0:
        place = tl.atomic_add(ints + BINS + 3 * chunks, number, sem="relaxed")
        place = place + tl.cumsum(wanted.to(tl.int32), 0) - 1
        tl.store(floats + hull + 2 * chunks + 4 + place, z, mask=wanted)


@triton.jit
def _weight_from(listed, count, least, bin, top, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """int64 weight of the listed z ≥ least of one bin: their number, or their mass."""
    weight = tl.full((), 0, tl.int64)
    for begin in range(0, count, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        z = tl.load(listed + at, mask=at < count, other=-INF)
        chosen = (z >= least) & (z > -INF) & (_bin_of(z, top) == bin)
        each = mass_of(exp_f32(z - top)) if MASS else tl.full((BLOCK,), 1, tl.int64)
        weight += tl.sum(tl.where(chosen, each, 0), 0)
    return weight


@triton.jit
def _cut(listed, count, limit, bin, top, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest c such that the listed z ≥ c of one bin weigh at least `limit`, no more than all do."""
    lowest = tl.full((), INF, tl.float32)
    highest = tl.full((), -INF, tl.float32)
    for begin in range(0, count, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        z = tl.load(listed + at, mask=at < count, other=-INF)
        chosen = (z > -INF) & (_bin_of(z, top) == bin)
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
    floats, longs, ints, hull, chunks,
    EXPERT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """EXPERT: notes the top and the k-th, for contrast; otherwise the cut of top-k and top-p."""
    group = tl.program_id(0).to(tl.int64)
    floats, longs, ints = _rows_of(floats, longs, ints, group, hull, chunks)
    top_k, top_p = _filters(temperatures, temperature_value, top_ks, top_k_value, top_ps, top_p_value, group, given)
    bins = tl.arange(0, BINS)
    top = _top_of(floats + hull, chunks)
    listed = floats + hull + 2 * chunks + 4
    count = tl.load(ints + BINS + 3 * chunks)
    k_bin, rank = _k_bin(tl.load(ints + bins), top_k, EXPERT)
    cut = tl.full((), -INF, tl.float32)
    if k_bin < BINS:
        cut = _cut(listed, count, rank.to(tl.int64), k_bin, top, False, BLOCK)
    if top_p < 1:
        masses = tl.load(longs + bins)
        total = tl.sum(tl.where(bins < k_bin, masses, 0), 0)
        if k_bin < BINS:
            total += _weight_from(listed, count, cut, k_bin, top, True, BLOCK)
        limit = top_p_limit(top_p, total)
        p_bin = _first_reaching(masses, limit)
        rest = limit - tl.sum(tl.where(bins < p_bin, masses, 0), 0)
        cut = tl.maximum(cut, _cut(listed, count, rest, p_bin, top, True, BLOCK))
    if EXPERT:
        tl.store(floats + hull + 2 * chunks + 1, top)
        tl.store(floats + hull + 2 * chunks + 2, cut)
    else:
        tl.store(floats + hull + 2 * chunks, cut)


@triton.jit(do_not_specialize=INTS)
def sample_draw(
    temperatures, temperature_value, min_ps, min_p_value,
    seeds, seed_value: tl.int64, steps, step_value: tl.int64, noise, noise_stride: tl.int64, given,
    floats, longs, ints, hull, chunks,
    FILTERED: tl.constexpr, NOISE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    group = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    floats, longs, ints = _rows_of(floats, longs, ints, group, hull, chunks)
    temperature = parameter(temperatures, temperature_value, group, given, TEMPERATURE)
    min_p = parameter(min_ps, min_p_value, group, given, MIN_P)
    top = _top_of(floats + hull, chunks)
    position = chunk * CHUNK + tl.arange(0, CHUNK)
    z = tl.load(floats + position)
    keep = z > -INF
    if FILTERED:
        keep = keep & (z >= tl.load(floats + hull + 2 * chunks))  # -inf if greedy
    p = exp_f32(z - top)
    keep = keep & tl.where(temperature == 0, z == top, p >= min_p)
    count = tl.sum(keep.to(tl.int32), 0)
    best = tl.full((), -INF, tl.float32)
    best_at = tl.full((), _NONE, tl.int32)
    if count > 0:
        value = z
        if temperature != 0:
            ids = tl.load(ints + BINS + 3 * chunks + 1) + position
            if NOISE:
                g = tl.load(noise + group * noise_stride + ids, mask=keep, other=0.0)
            else:
                seed = parameter(seeds, seed_value, group, given, SEED)
                step = parameter(steps, step_value, group, given, STEP)
                g = gumbel_noise(seed, step, ids)
            value = z + g
        value = tl.where(keep & (value == value), value, -INF)
        best = tl.max(value, 0)
        best_at = tl.min(tl.where(keep & (value == best), position, _NONE), 0)
    tl.store(floats + hull + chunks + chunk, best)
    tl.store(longs + BINS + chunk, tl.sum(tl.where(keep, mass_of(p), 0), 0))
    tl.store(ints + BINS + chunks + chunk, best_at)
    tl.store(ints + BINS + 2 * chunks + chunk, count)


@triton.jit(do_not_specialize=INTS)
def sample_finish(
    temperatures, temperature_value, given,
    floats, longs, ints, hull, chunks,
    token, logprob, kept, status,
):  # fmt: skip
    group = tl.program_id(0).to(tl.int64)
    floats, longs, ints = _rows_of(floats, longs, ints, group, hull, chunks)
    temperature = parameter(temperatures, temperature_value, group, given, TEMPERATURE)
    top = tl.full((), -INF, tl.float32)
    best = tl.full((), -INF, tl.float32)
    best_at = tl.full((), _NONE, tl.int32)
    total = tl.full((), 0, tl.int64)
    count = tl.full((), 0, tl.int32)
    invalid = tl.full((), 0, tl.int32)
    has_ids = tl.full((), 0, tl.int32)
    no_set = tl.full((), 0, tl.int32)
    for begin in range(0, chunks, _ROW):
        at = begin + tl.arange(0, _ROW)
        here = at < chunks
        top = tl.maximum(top, tl.max(tl.load(floats + hull + at, mask=here, other=-INF), 0))
        flags = tl.load(ints + BINS + at, mask=here, other=0)
        has_ids = has_ids | tl.max(flags & _HAS_IDS, 0)
        invalid = invalid | tl.max(flags & _INVALID, 0)
        no_set = no_set | tl.max(flags & _NO_SET, 0)
        total += tl.sum(tl.load(longs + BINS + at, mask=here, other=0), 0)
        count += tl.sum(tl.load(ints + BINS + 2 * chunks + at, mask=here, other=0), 0)
        value = tl.load(floats + hull + chunks + at, mask=here, other=-INF)
        where = tl.load(ints + BINS + chunks + at, mask=here, other=_NONE)
        # A chunk of nothing but -inf counts if it kept an id; ids ascend, so a tie stays with the first.
        value = tl.where(where < _NONE, value, -INF)
        most = tl.max(value, 0)
        most_at = tl.min(tl.where(value == most, where, _NONE), 0)
        better = (most > best) | (best_at == _NONE)
        best = tl.where(better, most, best)
        best_at = tl.where(better, most_at, best_at)
    ok = (has_ids != 0) & (invalid == 0) & (no_set == 0) & (top > -INF)
    drawn = tl.full((), -1, tl.int64)
    result_logprob = tl.full((), -INF, tl.float32)
    result_kept = tl.full((), 0, tl.int32)
    if ok:
        drawn = (tl.load(ints + BINS + 3 * chunks + 1) + best_at).to(tl.int64)
        if temperature == 0:
            result_logprob = tl.full((), 0.0, tl.float32)
            result_kept = tl.full((), 1, tl.int32)
        else:
            z = tl.load(floats + best_at)
            result_logprob = (z - top) - log_f32(total.to(tl.float32) * (1.0 / MASS_ONE))
            result_kept = count
    tl.store(token + group, drawn)
    tl.store(logprob + group, result_logprob)
    tl.store(kept + group, result_kept)
    empty = (has_ids == 0) & (no_set == 0)
    tl.store(status + group, tl.where(empty, 2, tl.where(ok, 0, 1)))


def launch_large(arguments: dict, groups: int, hull: int, chunk: int = CHUNK) -> None:
    """Samples groups whose sets lie within `hull` ids from their first; writes the four outputs."""
    chunks = max(triton.cdiv(hull, chunk), 1)
    width = chunks * chunk
    like = arguments["token"]
    bins = BINS.value
    filtered = arguments["filtered"]

    def scratch(size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(groups * size, dtype=dtype, device=like.device)

    named = arguments | {
        "floats": scratch(2 * width + 2 * chunks + 4, torch.float32),
        "longs": scratch(bins + chunks, torch.int64),
        "ints": scratch(bins + 3 * chunks + 2, torch.int32),
        "hull": width,
        "chunks": chunks,
        "CHUNK": chunk,
        "EXPERT": False,
    }

    def run(kernel, programs: int, **more) -> None:
        given = named | more
        kernel[(programs,)](**{name: given[name] for name in kernel.arg_names if name in given}, **OPTIONS)

    def search(**more) -> None:
        run(sample_histogram, groups * chunks, **more)
        run(sample_collect, groups * chunks, **more)
        run(sample_resolve, groups, BLOCK=RESOLVE_BLOCK, **more)

    if arguments["CONTRAST"]:
        run(sample_mix, groups * chunks, EXPERT=True, CONTRAST=False)
        expert = {"temperature_value": 1.0, "top_k_value": arguments["contrast_k"], "top_p_value": 1.0, "given": 0}
        search(EXPERT=True, **expert)
    run(sample_mix, groups * chunks)
    if filtered:
        search()
    run(sample_draw, groups * chunks, FILTERED=filtered)
    run(sample_finish, groups)


def _case(kernel, dtype: str = "*bf16", **constants) -> Case:
    return Case(kernel, TYPES | {"logits": dtype}, constants, OPTIONS)


COMPILE_CASES = [
    *(_case(sample_mix, dtype, EXPERT=False, CONTRAST=False, CHUNK=CHUNK) for dtype in ("*bf16", "*fp16", "*fp32")),
    _case(sample_mix, EXPERT=True, CONTRAST=False, CHUNK=CHUNK),
    _case(sample_mix, EXPERT=False, CONTRAST=True, CHUNK=CHUNK),
    _case(sample_histogram, CHUNK=CHUNK),
    _case(sample_collect, EXPERT=False, CHUNK=CHUNK),
    _case(sample_collect, EXPERT=True, CHUNK=CHUNK),
    _case(sample_resolve, EXPERT=False, BLOCK=RESOLVE_BLOCK),
    _case(sample_resolve, EXPERT=True, BLOCK=RESOLVE_BLOCK),
    _case(sample_draw, FILTERED=True, NOISE=False, CHUNK=CHUNK),
    _case(sample_draw, FILTERED=False, NOISE=False, CHUNK=CHUNK),
    _case(sample_draw, FILTERED=True, NOISE=True, CHUNK=CHUNK),
    _case(sample_finish),
]
