"""`sample`: checks its arguments, chooses a backend, calls it."""

from __future__ import annotations

from fastdecode.ops.arguments import Sample, SampleArguments
from fastdecode.ops.arrays import Array
from fastdecode.ops.backends import choose_backend, record_backend
from fastdecode.ops.sample.checks import check_arguments, check_values
from fastdecode.ops.sample.cpu import sample_cpu
from fastdecode.ops.sample.cuda import sample_cuda
from fastdecode.ops.sample.reference import sample_reference
from fastdecode.ops.sample.traced import call_sample
from fastdecode.ops.sample.triton import sample_triton
from fastdecode.ops.token_sets import TokenSets
from fastdecode.ops.tracing import is_traced


def sample(
    logits: Array,
    *,
    streams: Array | None = None,
    weights: Array | None = None,
    allowed: TokenSets | list[list[tuple[int, int]]] | None = None,
    set_index: Array | None = None,
    temperature: float | Array = 1.0,
    top_k: int | Array = 0,
    top_p: float | Array = 1.0,
    min_p: float | Array = 0.0,
    penalty: float | Array = 1.0,
    seen: Array | None = None,
    contrast: tuple[float, int] | None = None,
    seed: int | Array = 0,
    step: int | Array = 0,
    noise: Array | None = None,
    backend: str | None = None,
) -> Sample:
    """Samples one token per group from a weighted sum of its streams' logits.

        logits       (rows, vocab) float32 | bfloat16 | float16; stride(1) == 1, any stride(0)
        streams      (groups, S) int32: row of each stream, −1 absent. None: one stream per row
        weights      (groups, S) float32. None: 1. Streams of weight 0 are not read
        allowed      TokenSets, or per set a list of half-open token ranges. None: the whole vocabulary
        set_index    (groups,) int32: the set of each group. None: 0
        temperature  scalar or (groups,) float32; 0 = greedy
        top_k        scalar or (groups,) int32; ≤ 0 = off
        top_p        scalar or (groups,) float32 in [0, 1]; 1 = off
        min_p        scalar or (groups,) float32 in [0, 1]; 0 = off
        penalty      scalar or (groups,) float32 > 0: repetition penalty of tokens in `seen`; 1 = off
        seen         (groups, ceil(vocab / 32)) int32: bit t & 31 of word t >> 5 is token t; see `seen_bits`
        contrast     (alpha, k): contrastive decoding
        seed, step   scalar or (groups,) int64: seed of the sequence, and number of the token in it. Groups
                     with equal seed and step get equal noise, so give each sequence its own seed
        noise        (groups, vocab) float32: Gumbel noise to use in place of generated noise
        backend      "reference" | "cpu" | "triton" | "cuda"; None picks by device, never "cuda"

    Returns new tensors on the device of the logits. Raises ValueError naming the argument, value
    and index for wrong shapes, dtypes, devices and values. On a GPU the backends triton and cuda do
    not wait to read the values in tensors: a group with a wrong value gets status 1. Zero groups give empty
    tensors.

    These steps, in float32 and in this order:
    1. z = Σ wₖ·ℓₖ over the allowed tokens. −inf in any weighted stream makes a token impossible.
    2. contrast keeps the tokens with p_expert ≥ alpha · (k-th largest p_expert). The expert is the
       group's first weighted stream.
    3. For tokens in `seen` z becomes z·penalty if z < 0, else z/penalty.
    4. z = z/T.
    5. top_k keeps z ≥ the k-th largest z. Then top_p keeps a token if the tokens above it hold less
       than top_p of the mass, and min_p those with p ≥ min_p · p(largest). Equal z stay together.
    6. Of the kept tokens, the one with the largest z + g; of equal ones the lowest. The Gumbel noise g
       depends on (seed, step, token) alone.
    T = 0 takes the largest z instead, of equal ones the lowest token, with logprob 0 and kept 1.

    A token whose z overflows to −inf is impossible. A NaN or +inf makes its group invalid. NaN in given
    noise counts as −inf; a token with noise −inf is sampled only if all kept tokens have it.

    The same arguments give the same bits on every backend and in every batch, in the floating-point
    mode that torch starts in, which does not flush denormals.
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
    args = check_arguments(
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
    backend = choose_backend(backend, "cpu" if args.logits.is_cpu else args.logits.device.type)
    sampled = _RUN[backend](args)
    record_backend(backend)
    return sampled


def _reference(args: SampleArguments) -> Sample:
    check_values(args)
    return sample_reference(args)


_RUN = {"reference": _reference, "cpu": sample_cpu, "triton": sample_triton, "cuda": sample_cuda}
