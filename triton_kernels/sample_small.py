"""`sample` for sets of up to 8,192 tokens: one program per group, one launch, everything in registers.

    logits       (rows, vocab) float32 | bfloat16 | float16 at a row stride
    ranges       (n, 2) int32; set s has the ranges offsets[s] to offsets[s + 1]
    token, logprob, kept, status    (groups,) int64, float32, int32, int32: written

Reads each logit of the weighted streams once; with contrast those of the first stream twice. The cuts are found by
bisection over order keys, with at most 33 sums. For an array that is not there any pointer of its type may be passed;
`given` says which are there.
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
    TOP_K,
    TOP_P,
    TYPES,
    bad_parameters,
    bad_ranges,
    expert_of,
    ids_at,
    mixed,
    parameter,
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

BLOCKS = (256, 1024, 4096, 8192)
"""Numbers of tokens that a program can hold; the kernel is compiled for each."""

LARGEST = BLOCKS[-1]

_LEAST_KEY = tl.constexpr(-0x7F800000)  # the key of the lowest finite float32


def warps_of(block: int) -> int:
    """4 tokens per thread, or up to 16 where that would take more than 16 warps. More do not fit into registers."""
    return min(max(block // 128, 1), 16)


@triton.jit
def _cut(z, weight, limit, top, COUNTS: tl.constexpr):
    """The largest c such that the weights of all z ≥ c add up to at least `limit`.

    1 ≤ limit ≤ the weight of all finite z. COUNTS: the weights are 0 or 1; then the result may be any c that selects
    the same z.
    """
    lo = tl.full((), _LEAST_KEY, tl.int64)
    hi = order_key(top) + 1
    while hi - lo > 1:
        middle = (lo + hi) >> 1
        reached = tl.sum(tl.where(z >= float_of_key(middle), weight, 0), 0)
        lo = tl.where(reached >= limit, middle, lo)
        hi = tl.where(reached >= limit, hi, middle)
        if COUNTS:
            hi = tl.where(reached == limit, lo + 1, hi)
    return float_of_key(lo)


@triton.jit
def _likely(expert, alpha, k):
    """Step 2 of `sample`: tokens whose expert probability is at least alpha times the k-th largest of the set."""
    possible = expert > -INF
    count = tl.sum(possible.to(tl.int32), 0)
    if count > 0:
        top = tl.max(expert, 0)
        cut = _cut(expert, possible.to(tl.int32), tl.minimum(k, count), top, True)
        kth = tl.min(tl.where(expert >= cut, expert, INF), 0)
        possible = possible & (exp_f32(expert - top) >= alpha * exp_f32(kth - top))
    return possible


@triton.jit(do_not_specialize=INTS)
def sample_small(
    logits, rows, row_stride: tl.int64, vocab,
    streams, weights, width,
    ranges, range_count, offsets, sets, set_index,
    temperatures, temperature_value, top_ks, top_k_value, top_ps, top_p_value, min_ps, min_p_value,
    penalties, penalty_value, seen, words,
    contrast_alpha, contrast_k,
    seeds, seed_value: tl.int64, steps, step_value: tl.int64, noise, noise_stride: tl.int64,
    token, logprob, kept, status,
    given,
    CONTRAST: tl.constexpr, NOISE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0).to(tl.int64)
    temperature = parameter(temperatures, temperature_value, group, given, TEMPERATURE)
    top_p = parameter(top_ps, top_p_value, group, given, TOP_P)
    min_p = parameter(min_ps, min_p_value, group, given, MIN_P)
    penalty = parameter(penalties, penalty_value, group, given, PENALTY)
    top_k = parameter(top_ks, top_k_value, group, given, TOP_K)

    first, last, no_set = set_of(ranges, range_count, offsets, sets, set_index, vocab, group, given)
    ids, member, size = ids_at(ranges, first, last, vocab, given, tl.arange(0, BLOCK))
    no_set = no_set | (size > BLOCK) | bad_ranges(ranges, first, last, vocab, given, 0, 1)
    likely = member
    if CONTRAST:
        # Read separately from the mix to save registers, which limit the size of the sets.
        expert = expert_of(logits, rows, row_stride, streams, weights, width, group, given, ids, member)
        likely = _likely(expert, contrast_alpha, contrast_k)
    z, keep, invalid = mixed(logits, rows, row_stride, streams, weights, width, group, given, ids, member)
    keep = keep & likely
    z = scaled(z, seen, words, group, given, penalty, temperature, ids, member)
    invalid = invalid | tl.max((keep & ~(z < INF)).to(tl.int32), 0) | no_set.to(tl.int32)
    invalid = invalid | bad_parameters(temperature, top_p, min_p, penalty).to(tl.int32)
    z = tl.where(keep & (z < INF), z, -INF)  # from here on z = -inf means dropped
    top = tl.max(z, 0)

    drawn = tl.full((), -1, tl.int32)
    result_logprob = tl.full((), -INF, tl.float32)
    count = tl.full((), 0, tl.int32)
    ok = (invalid == 0) & (top > -INF)
    if ok:
        if temperature == 0:
            drawn = tl.min(tl.where(z == top, ids, 0x7FFFFFFF), 0)
            result_logprob = tl.full((), 0.0, tl.float32)
            count = tl.full((), 1, tl.int32)
        else:
            one = (z > -INF).to(tl.int32)
            if (top_k > 0) & (top_k < tl.sum(one, 0)):
                z = tl.where(z >= _cut(z, one, top_k, top, True), z, -INF)
            if top_p < 1:
                mass = mass_of(exp_f32(z - top))
                limit = top_p_limit(top_p, tl.sum(mass, 0))
                z = tl.where(z >= _cut(z, mass, limit, top, False), z, -INF)
            z = tl.where(exp_f32(z - top) >= min_p, z, -INF)
            keep = z > -INF
            total = tl.sum(mass_of(exp_f32(z - top)), 0)
            count = tl.sum(keep.to(tl.int32), 0)
            # Computed again to save registers.
            ids, _, _ = ids_at(ranges, first, last, vocab, given, tl.arange(0, BLOCK))
            if NOISE:
                g = tl.load(noise + group * noise_stride + ids, mask=keep, other=0.0)
            else:
                seed = parameter(seeds, seed_value, group, given, SEED)
                step = parameter(steps, step_value, group, given, STEP)
                g = gumbel_noise(seed, step, ids)
            value = z + g
            value = tl.where(keep & (value == value), value, -INF)
            drawn = tl.min(tl.where(keep & (value == tl.max(value, 0)), ids, 0x7FFFFFFF), 0)
            z_drawn = tl.max(tl.where(ids == drawn, z, -INF), 0)
            result_logprob = (z_drawn - top) - log_f32(total.to(tl.float32) * (1.0 / MASS_ONE))
    tl.store(token + group, drawn.to(tl.int64))
    tl.store(logprob + group, result_logprob)
    tl.store(kept + group, count)
    empty = (size == 0) & ~no_set
    tl.store(status + group, tl.where(empty, 2, tl.where(ok, 0, 1)))


def launch_small(arguments: dict, groups: int, largest: int) -> None:
    """Samples for groups whose sets have up to `largest` ≤ LARGEST tokens. Writes the four outputs."""
    block = next(block for block in BLOCKS if block >= largest)
    named = {name: arguments[name] for name in sample_small.arg_names if name in arguments}
    sample_small[(groups,)](**named, BLOCK=block, num_warps=warps_of(block), enable_fp_fusion=False)


def _case(dtype: str, block: int, contrast: bool = False, noise: bool = False) -> Case:
    constants = {"CONTRAST": contrast, "NOISE": noise, "BLOCK": block}
    options = {"num_warps": warps_of(block), "enable_fp_fusion": False}
    return Case(sample_small, TYPES | {"logits": dtype}, constants, options)


COMPILE_CASES = [
    *(_case("*bf16", block) for block in BLOCKS),
    _case("*fp32", LARGEST),
    _case("*fp16", LARGEST),
    _case("*fp32", LARGEST, contrast=True, noise=True),
]
