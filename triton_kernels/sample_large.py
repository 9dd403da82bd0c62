"""`sample` for sets of any size: several programs per group, a few launches, z in scratch memory.

The hull of a group's set, from its first to its last token, is divided into chunks. One program works on a chunk, or on
a group:

    mix      chunk   z of each token and the largest z of the chunk; sets the bins of the search to zero
    search           the cuts of top-k and top-p, see sample_search.py; not launched where both are off
    draw     chunk   adds noise to the kept tokens; the chunk's best value, mass and count
    finish   group   the best of all chunks

With contrast, mix and search run once before all this, on the logits of the expert. Logits and outputs are those of
`sample_small`; scratch.py describes the scratch memory.
"""

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
    TOP_P,
    TYPES,
    bad_parameters,
    bad_ranges,
    expert_of,
    in_set,
    mixed,
    parameter,
    range_at,
    scaled,
    set_of,
)
from fastdecode.triton_kernels.numerics import INF, MASS_ONE, exp_f32, gumbel_noise, log_f32, mass_of
from fastdecode.triton_kernels.sample_search import BLOCK, OPTIONS, sample_collect, sample_histogram, sample_resolve
from fastdecode.triton_kernels.scratch import (
    BINS,
    ROW,
    bests_of,
    bin_counts_of,
    bin_masses_of,
    counts_of,
    cut_of,
    first_of,
    flags_of,
    length_of,
    make_scratch,
    masses_of,
    places_of,
    top_of,
    tops_of,
    z_of,
)

CHUNK = 1024
"""Tokens of one program: a vocabulary of 65,536 tokens takes 64 programs."""

_HAS_IDS = tl.constexpr(1)
_INVALID = tl.constexpr(2)
_NO_SET = tl.constexpr(4)
_NOWHERE = tl.constexpr(0x7FFFFFFF)


@triton.jit(do_not_specialize=INTS)
def sample_mix(
    logits, rows, row_stride: tl.int64, vocab,
    streams, weights, width,
    ranges, range_count, offsets, sets, set_index,
    temperatures, temperature_value, top_ps, top_p_value, min_ps, min_p_value,
    penalties, penalty_value, seen, words,
    contrast_alpha,
    given,
    floats, longs, ints, span, chunks,
    EXPERT: tl.constexpr, CONTRAST: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """EXPERT: z is the logits of the expert. CONTRAST: the k-th largest logit of the expert has been found."""
    group = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    for begin in range(chunk * ROW, BINS, chunks * ROW):
        at = begin + tl.arange(0, ROW)
        tl.store(bin_masses_of(longs, group, chunks) + at, tl.zeros((ROW,), tl.int64), mask=at < BINS)
        tl.store(bin_counts_of(ints, group, chunks) + at, tl.zeros((ROW,), tl.int32), mask=at < BINS)

    first, last, no_set = set_of(ranges, range_count, offsets, sets, set_index, vocab, group, given)
    no_set = no_set | bad_ranges(ranges, first, last, vocab, given, chunk, chunks)
    base = vocab * 0
    if first < last:
        base, _ = range_at(ranges, first, vocab, given)
    if chunk == 0:
        tl.store(length_of(ints, group, chunks), 0)
        tl.store(first_of(ints, group, chunks), base)

    position = chunk * CHUNK + tl.arange(0, CHUNK)
    ids = base + position
    member = in_set(ranges, first, last, vocab, given, ids)
    invalid = vocab * 0
    if EXPERT:
        z = expert_of(logits, rows, row_stride, streams, weights, width, group, given, ids, member)
    else:
        z, keep, invalid = mixed(logits, rows, row_stride, streams, weights, width, group, given, ids, member)
        if CONTRAST:
            expert = expert_of(logits, rows, row_stride, streams, weights, width, group, given, ids, member)
            top = tl.load(cut_of(floats, group, span, chunks) + 1)
            kth = tl.load(cut_of(floats, group, span, chunks) + 2)
            keep = keep & (expert > -INF) & (exp_f32(expert - top) >= contrast_alpha * exp_f32(kth - top))
        temperature = parameter(temperatures, temperature_value, group, given, TEMPERATURE)
        top_p = parameter(top_ps, top_p_value, group, given, TOP_P)
        min_p = parameter(min_ps, min_p_value, group, given, MIN_P)
        penalty = parameter(penalties, penalty_value, group, given, PENALTY)
        z = scaled(z, seen, words, group, given, penalty, temperature, ids, member)
        invalid = invalid | tl.max((keep & ~(z < INF)).to(tl.int32), 0)
        invalid = invalid | bad_parameters(temperature, top_p, min_p, penalty).to(tl.int32)
        z = tl.where(keep & (z < INF), z, -INF)
    tl.store(z_of(floats, group, span, chunks) + position, z)
    tl.store(tops_of(floats, group, span, chunks) + chunk, tl.max(z, 0))
    flags = tl.where(tl.max(member.to(tl.int32), 0) != 0, _HAS_IDS, 0)
    flags = flags | tl.where(invalid != 0, _INVALID, 0) | tl.where(no_set, _NO_SET, 0)
    tl.store(flags_of(ints, group, chunks) + chunk, flags)


@triton.jit(do_not_specialize=INTS)
def sample_draw(
    temperatures, temperature_value, min_ps, min_p_value,
    seeds, seed_value: tl.int64, steps, step_value: tl.int64, noise, noise_stride: tl.int64, given,
    floats, longs, ints, span, chunks,
    FILTERED: tl.constexpr, NOISE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """FILTERED: the cut has been found. For a greedy group it is −inf."""
    group = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    temperature = parameter(temperatures, temperature_value, group, given, TEMPERATURE)
    min_p = parameter(min_ps, min_p_value, group, given, MIN_P)
    top = top_of(floats, group, span, chunks)
    position = chunk * CHUNK + tl.arange(0, CHUNK)
    z = tl.load(z_of(floats, group, span, chunks) + position)
    keep = z > -INF
    if FILTERED:
        keep = keep & (z >= tl.load(cut_of(floats, group, span, chunks)))
    p = exp_f32(z - top)
    keep = keep & tl.where(temperature == 0, z == top, p >= min_p)
    count = tl.sum(keep.to(tl.int32), 0)
    best = tl.full((), -INF, tl.float32)
    place = tl.full((), _NOWHERE, tl.int32)
    if count > 0:
        value = z
        if temperature != 0:
            ids = tl.load(first_of(ints, group, chunks)) + position
            if NOISE:
                g = tl.load(noise + group * noise_stride + ids, mask=keep, other=0.0)
            else:
                seed = parameter(seeds, seed_value, group, given, SEED)
                step = parameter(steps, step_value, group, given, STEP)
                g = gumbel_noise(seed, step, ids)
            value = z + g
        value = tl.where(keep & (value == value), value, -INF)
        best = tl.max(value, 0)
        place = tl.min(tl.where(keep & (value == best), position, _NOWHERE), 0)
    tl.store(bests_of(floats, group, span, chunks) + chunk, best)
    tl.store(places_of(ints, group, chunks) + chunk, place)
    tl.store(counts_of(ints, group, chunks) + chunk, count)
    tl.store(masses_of(longs, group, chunks) + chunk, tl.sum(tl.where(keep, mass_of(p), 0), 0))


@triton.jit(do_not_specialize=INTS)
def sample_finish(
    temperatures, temperature_value, given,
    floats, longs, ints, span, chunks,
    token, logprob, kept, status,
):  # fmt: skip
    group = tl.program_id(0).to(tl.int64)
    temperature = parameter(temperatures, temperature_value, group, given, TEMPERATURE)
    top = top_of(floats, group, span, chunks)
    best = tl.full((), -INF, tl.float32)
    place = tl.full((), _NOWHERE, tl.int32)
    total = tl.full((), 0, tl.int64)
    count = tl.full((), 0, tl.int32)
    flags = tl.zeros((ROW,), tl.int32)
    for begin in range(0, chunks, ROW):
        at = begin + tl.arange(0, ROW)
        here = at < chunks
        flags = flags | tl.load(flags_of(ints, group, chunks) + at, mask=here, other=0)
        total += tl.sum(tl.load(masses_of(longs, group, chunks) + at, mask=here, other=0), 0)
        count += tl.sum(tl.load(counts_of(ints, group, chunks) + at, mask=here, other=0), 0)
        value = tl.load(bests_of(floats, group, span, chunks) + at, mask=here, other=-INF)
        where = tl.load(places_of(ints, group, chunks) + at, mask=here, other=_NOWHERE)
        # Of equal values the lowest position wins: the first block that has the value, and the first in it.
        most = tl.max(value, 0)
        where = tl.min(tl.where(value == most, where, _NOWHERE), 0)
        better = (most > best) | (place == _NOWHERE)
        best = tl.where(better, most, best)
        place = tl.where(better, where, place)
    has_ids = tl.max(flags & _HAS_IDS, 0) != 0
    no_set = tl.max(flags & _NO_SET, 0) != 0
    ok = has_ids & ~no_set & (tl.max(flags & _INVALID, 0) == 0) & (top > -INF)
    drawn = tl.full((), -1, tl.int64)
    result_logprob = tl.full((), -INF, tl.float32)
    result_kept = tl.full((), 0, tl.int32)
    if ok:
        drawn = (tl.load(first_of(ints, group, chunks)) + place).to(tl.int64)
        if temperature == 0:
            result_logprob = tl.full((), 0.0, tl.float32)
            result_kept = tl.full((), 1, tl.int32)
        else:
            z = tl.load(z_of(floats, group, span, chunks) + place)
            result_logprob = (z - top) - log_f32(total.to(tl.float32) * (1.0 / MASS_ONE))
            result_kept = count
    tl.store(token + group, drawn)
    tl.store(logprob + group, result_logprob)
    tl.store(kept + group, result_kept)
    empty = ~has_ids & ~no_set
    tl.store(status + group, tl.where(empty, 2, tl.where(ok, 0, 1)))


def launch_large(arguments: dict, groups: int, hull: int, chunk: int = CHUNK) -> None:
    """Samples for groups whose sets span up to `hull` tokens, from first to last. Writes the four outputs."""
    chunks = max(triton.cdiv(hull, chunk), 1)
    span = chunks * chunk
    named = arguments | make_scratch(groups, span, chunks, arguments["token"].device)
    named |= {"span": span, "chunks": chunks, "CHUNK": chunk, "EXPERT": False}

    def run(kernel, programs: int, **more) -> None:
        given = named | more
        kernel[(programs,)](**{name: given[name] for name in kernel.arg_names if name in given}, **OPTIONS)

    def search(**more) -> None:
        run(sample_histogram, groups * chunks, **more)
        run(sample_collect, groups * chunks, **more)
        run(sample_resolve, groups, BLOCK=BLOCK, **more)

    if arguments["CONTRAST"]:
        run(sample_mix, groups * chunks, EXPERT=True, CONTRAST=False)
        k = arguments["contrast_k"]
        search(EXPERT=True, temperature_value=1.0, top_k_value=k, top_p_value=1.0, given=0)
    run(sample_mix, groups * chunks)
    if arguments["FILTERED"]:
        search()
    run(sample_draw, groups * chunks)
    run(sample_finish, groups)


def _case(kernel, dtype: str = "*bf16", **constants) -> Case:
    return Case(kernel, TYPES | {"logits": dtype}, constants, OPTIONS)


COMPILE_CASES = [
    *(_case(sample_mix, dtype, EXPERT=False, CONTRAST=False, CHUNK=CHUNK) for dtype in ("*bf16", "*fp16", "*fp32")),
    _case(sample_mix, EXPERT=True, CONTRAST=False, CHUNK=CHUNK),
    _case(sample_mix, EXPERT=False, CONTRAST=True, CHUNK=CHUNK),
    *(_case(sample_draw, FILTERED=filtered, NOISE=False, CHUNK=CHUNK) for filtered in (True, False)),
    _case(sample_draw, FILTERED=True, NOISE=True, CHUNK=CHUNK),
    _case(sample_finish),
]
