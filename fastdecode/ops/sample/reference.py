"""The definition of `sample` as PyTorch code, on any device: every backend returns these results, bit for bit.

It sorts where the kernels search. It works on all groups at once, on the tokens from the first to the last of any set
(the hull), and needs the memory of a few float32 (groups, hull) tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.arguments import (
    STATUS_EMPTY_SET,
    STATUS_INVALID_LOGITS,
    STATUS_OK,
    FloatParameter,
    IntParameter,
    Sample,
    SampleArguments,
)
from fastdecode.ops.numerics import MASS_ONE, exp_f32, gumbel_noise, log_f32, mass_of

_INF = float("inf")


def _masked(z: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep, z, -_INF)


def _first(where: Tensor) -> Tensor:
    """(groups,) position of the first True of each row; the row's length if there is none."""
    positions = torch.arange(where.shape[1], device=where.device)
    return torch.where(where, positions, where.shape[1]).amin(1)


def _allowed(args: SampleArguments) -> tuple[int, int, Tensor]:
    """(lo, hi, mask): the hull of all sets, and for each group which of its tokens are allowed."""
    device, vocab = args.logits.device, args.logits.shape[1]
    if args.allowed is None:
        return 0, vocab, torch.ones(args.groups, vocab, dtype=torch.bool, device=device)
    lo = min((first for ranges in args.allowed for first, _ in ranges), default=0)
    hi = args.allowed.stop
    mask = args.allowed.mask(hi)[:, lo:]
    if args.set_index is None:
        return lo, hi, mask[:1].expand(args.groups, -1)
    return lo, hi, mask[args.set_index.long()]


def _mix(logits: Tensor, streams: Tensor, weights: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Step 1: (z, possible tokens, invalid groups).

    A group is invalid if one of its weighted streams holds a NaN or +inf, or if it has no weighted stream.
    """
    z = torch.zeros(allowed.shape, dtype=torch.float32, device=logits.device)
    possible = allowed
    reads = (streams >= 0) & (weights != 0)
    invalid = ~reads.any(1)
    begun = torch.zeros_like(reads[:, :1])
    for k in range(streams.shape[1]):
        read = reads[:, k : k + 1]
        stream = logits[streams[:, k].clamp_min(0)].to(torch.float32)
        invalid = invalid | (read & allowed & ~(stream < _INF)).any(1)
        possible = possible & ~(read & (stream == -_INF))
        term = weights[:, k : k + 1] * stream
        z = torch.where(read, torch.where(begun, z + term, term), z)
        begun = begun | read
    return z, possible, invalid


def likely_tokens(expert: Tensor, alpha: float, k: int) -> Tensor:
    """(groups, vocab) bool: where the softmax of ``expert`` (groups, vocab) float32 is at least alpha times its k-th
    largest value. Tokens outside the group's set are -inf in ``expert``.
    """
    ranked = expert.sort(1, descending=True).values
    top = ranked[:, :1]
    count = (expert > -_INF).sum(1, keepdim=True)
    kth = ranked.gather(1, (count.clamp_max(k) - 1).clamp_min(0))
    threshold = torch.full_like(top, alpha) * exp_f32(kth - top)
    return (expert > -_INF) & (exp_f32(expert - top) >= threshold)


def _contrast(logits: Tensor, streams: Tensor, weights: Tensor, allowed: Tensor, alpha: float, k: int) -> Tensor:
    """Step 2: tokens whose expert probability is at least alpha times the k-th largest of the set.

    The expert is the group's first weighted stream.
    """
    reads = (streams >= 0) & (weights != 0)
    first = _first(reads).clamp_max(reads.shape[1] - 1).unsqueeze(1)
    row = streams.gather(1, first).squeeze(1).clamp_min(0)
    return likely_tokens(_masked(logits[row].to(torch.float32), allowed), alpha, k)


def _seen_bits(seen: Tensor, lo: int, hi: int) -> Tensor:
    tokens = torch.arange(lo, hi, device=seen.device)
    return (seen[:, tokens >> 5] >> (tokens & 31).to(torch.int32)) & 1 != 0


def _top_k_cut(ranked: Tensor, top_k: Tensor) -> Tensor:
    """(groups, 1) the k-th of the z in descending order; −inf where top-k is off or keeps all."""
    count = ranked.shape[1]
    kth = ranked.gather(1, (top_k - 1).clamp(0, count - 1))
    return torch.where((top_k > 0) & (top_k <= count), kth, -_INF)


def _top_p_cut(ranked: Tensor, masses: Tensor, top_p: Tensor) -> Tensor:
    """(groups, 1) the smallest z that top-p keeps, from z and masses in descending order of z.

    A token stays if the mass above it is < top_p · total, where the product is rounded once in float64. Masses are
    integers, so comparing with the ceiling of the product is the same. Of equal z only the first has exactly the mass
    above it in its running sum; that one decides, and the others stay or go with it, since the cut is a value of z.
    """
    total = masses.sum(1, keepdim=True)
    limit = torch.ceil(top_p.double() * total.double()).long().clamp_min(1)
    above = masses.cumsum(1) - masses
    last = (above < limit).sum(1, keepdim=True) - 1
    cut = ranked.gather(1, last.clamp_min(0))
    return torch.where(top_p < 1, cut, -_INF)


def sample_reference(args: SampleArguments) -> Sample:
    """`sample` for checked arguments and values."""
    groups, device = args.groups, args.logits.device
    lo, hi, allowed = _allowed(args)
    failed = Sample(
        torch.full((groups,), -1, dtype=torch.int64, device=device),
        torch.full((groups,), -_INF, dtype=torch.float32, device=device),
        torch.zeros(groups, dtype=torch.int32, device=device),
        torch.where(allowed.any(1), STATUS_INVALID_LOGITS, STATUS_EMPTY_SET).to(torch.int32),
    )
    if allowed.numel() == 0 or len(args.logits) == 0:
        return failed

    def column(parameter: FloatParameter | IntParameter, dtype: torch.dtype) -> Tensor:
        per_group, value = parameter
        if per_group is None:
            return torch.full((groups, 1), value, dtype=dtype, device=device)
        return per_group.to(dtype).unsqueeze(1)

    logits = args.logits[:, lo:hi]
    rows = torch.arange(groups, device=device).unsqueeze(1)
    streams = rows if args.streams is None else args.streams.long()
    weights = torch.ones(streams.shape, dtype=torch.float32, device=device) if args.weights is None else args.weights
    temperature, top_p = column(args.temperature, torch.float32), column(args.top_p, torch.float32)
    greedy = temperature == 0

    # 1. Mix.  2. Contrast.  3. Penalise.  4. Temperature.
    z, keep, invalid = _mix(logits, streams, weights, allowed)
    if args.contrast is not None:
        keep = keep & _contrast(logits, streams, weights, allowed, *args.contrast)
    if args.seen is not None:
        penalty = column(args.penalty, torch.float32)
        penalised = torch.where(z < 0, z * penalty, z / penalty)
        z = torch.where(_seen_bits(args.seen, lo, hi), penalised, z)
    z = torch.where(greedy, z, z / temperature)
    z = z + 0.0  # −0 becomes +0: they are ties

    invalid = invalid | (keep & ~(z < _INF)).any(1)
    keep = keep & (z > -_INF)
    ok = keep.any(1) & ~invalid
    keep = keep & ok.unsqueeze(1)
    z = _masked(z, keep)

    # 5. Top-k.  6. Top-p.  7. Min-p.
    ranked = z.sort(1, descending=True).values
    top = ranked[:, :1]
    cut = _top_k_cut(ranked, column(args.top_k, torch.int64))
    stays = (ranked >= cut) & (ranked > -_INF)
    cut = torch.maximum(cut, _top_p_cut(ranked, mass_of(exp_f32(_masked(ranked - top, stays))), top_p))
    p = exp_f32(_masked(z - top, keep))
    keep = keep & (greedy | ((z >= cut) & (p >= column(args.min_p, torch.float32))))

    # 8. Sample. NaN in given noise counts as −inf; such a token is sampled only if all kept tokens are such.
    noisy = torch.where(greedy, z, -_INF)
    group, position = (keep & ~greedy).nonzero(as_tuple=True)
    if args.noise is None:
        seed, step = column(args.seed, torch.int64), column(args.step, torch.int64)
        noise = gumbel_noise(seed[group, 0], step[group, 0], position + lo)
    else:
        noise = args.noise[group, position + lo]
    value = z[group, position] + noise
    noisy[group, position] = torch.where(value.isnan(), -_INF, value)
    sampled = _first(keep & (noisy == noisy.amax(1, keepdim=True)))

    mass = mass_of(torch.where(keep, p, 0.0)).sum(1)
    log_total = log_f32(mass.to(torch.float32) * (1.0 / MASS_ONE))
    z_sampled = z.gather(1, sampled.clamp_max(hi - lo - 1).unsqueeze(1)).squeeze(1)
    is_greedy = greedy.squeeze(1)
    return Sample(
        torch.where(ok, sampled + lo, failed.token),
        torch.where(
            ok & ~is_greedy,
            (z_sampled - top.squeeze(1)) - log_total,
            torch.where(ok, 0.0, failed.logprob),
        ),
        torch.where(ok, torch.where(is_greedy, 1, keep.sum(1)), 0).to(torch.int32),
        torch.where(ok, STATUS_OK, failed.status),
    )
