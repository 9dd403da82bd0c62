"""`sample`: mix streams, mask, penalise, filter and draw one token per group."""

from __future__ import annotations

from torch import Tensor

from fastdecode.ops import checks
from fastdecode.ops.arguments import Sample, SampleArguments
from fastdecode.ops.backends import choose_backend, record_backend
from fastdecode.ops.cpu import sample_cpu
from fastdecode.ops.library import call_sample, is_traced
from fastdecode.ops.reference import sample_reference
from fastdecode.ops.token_sets import TokenSets
from fastdecode.ops.triton import sample_triton


def sample(
    logits: Tensor,
    *,
    streams: Tensor | None = None,
    weights: Tensor | None = None,
    allowed: TokenSets | list[list[tuple[int, int]]] | None = None,
    set_index: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    penalty: float | Tensor = 1.0,
    seen: Tensor | None = None,
    contrast: tuple[float, int] | None = None,
    seed: int | Tensor = 0,
    step: int | Tensor = 0,
    noise: Tensor | None = None,
    backend: str | None = None,
) -> Sample:
    """Draws one token per group from a weighted sum of its streams' logits.

        logits       (rows, vocab) float32 | bfloat16 | float16; stride(1) == 1, any stride(0)
        streams      (groups, S) int32: row of each stream, −1 absent. None: one stream per row
        weights      (groups, S) float32. None: 1. Streams of weight 0 are not read
        allowed      TokenSets, or per set a list of half-open id ranges. None: whole vocabulary
        set_index    (groups,) int32: the set of each group. None: 0
        temperature  scalar or (groups,) float32; 0 = greedy
        top_k        scalar or (groups,) int32; ≤ 0 = off
        top_p        scalar or (groups,) float32 in [0, 1]; 1 = off
        min_p        scalar or (groups,) float32 in [0, 1]; 0 = off
        penalty      scalar or (groups,) float32 > 0: repetition penalty of ids in `seen`; 1 = off
        seen         (groups, ceil(vocab / 32)) int32: bit t & 31 of word t >> 5 is id t; see `seen_bits`
        contrast     (alpha, k): contrastive decoding
        seed, step   scalar or (groups,) int64: of the request, and of the token in its sequence. Groups of
                     equal seed and step have equal noise: give each its own
        noise        (groups, vocab) float32: Gumbel noise in place of drawn noise
        backend      "reference" | "cpu" | "triton"; None picks by device

    Returns new tensors on the device of the logits. Raises ValueError naming the argument, value
    and index for wrong shapes, dtypes, devices and values; the triton backend does not wait for a GPU
    to see what tensors there hold, but gives a group with a wrong value status 1. Zero groups give
    empty tensors.

    In float32 and in this order: z = Σ wₖ·ℓₖ over the allowed ids (−inf in any weighted stream
    makes an id impossible); contrast keeps p_expert ≥ alpha · (k-th largest p_expert), the expert
    being the first weighted stream; seen ids get z·penalty if z < 0, else z/penalty; z = z/T. Top-k
    keeps z ≥ the k-th largest, top-p the ids with less than top_p of the mass above them, min-p
    those with p ≥ min_p · p(largest); ties stay together. The answer is the kept id of largest
    z + g, lowest id on a tie, where the Gumbel noise g depends on (seed, step, id) alone. T = 0
    takes the largest z, lowest id on a tie, with logprob 0 and kept 1.

    An id whose z overflows to −inf on the way is impossible; a NaN or +inf makes its group invalid.
    NaN in given noise counts as −inf, and ids with −inf are drawn only if every kept id has it.

    Same arguments, same bits, on every backend and in every batch; in the floating-point mode that
    torch starts in, which does not flush denormals.
    """
    if is_traced(logits):
        if allowed is not None and not isinstance(allowed, TokenSets):
            raise ValueError("allowed: must be TokenSets under torch.compile, made outside")
        return call_sample(
            logits,
            streams=streams,
            weights=weights,
            allowed=allowed,
            set_index=set_index,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            penalty=penalty,
            seen=seen,
            contrast=contrast,
            seed=seed,
            step=step,
            noise=noise,
            backend=backend,
        )
    args = checks.check_arguments(
        logits,
        streams,
        weights,
        allowed,
        set_index,
        temperature,
        top_k,
        top_p,
        min_p,
        penalty,
        seen,
        contrast,
        seed,
        step,
        noise,
    )
    backend = choose_backend(backend, "cpu" if logits.is_cpu else logits.device.type)
    drawn = _RUN[backend](args)
    record_backend(backend)
    return drawn


def _reference(args: SampleArguments) -> Sample:
    checks.check_values(args)
    return sample_reference(args)


_RUN = {"reference": _reference, "cpu": sample_cpu, "triton": sample_triton}
