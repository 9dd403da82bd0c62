"""`sample` on a GPU, or in Triton's interpreter: small sets in one launch, large ones in a few.

The kernels read all parameters, sets and logits from device memory when they run, and the host reads
nothing, so a call can be captured in a CUDA graph. One exception: TokenSets that came as tensors without
a bound of their size are read once by the host.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastdecode.triton_kernels import group as bits
from fastdecode.triton_kernels.arguments import SampleArguments, TokenSets
from fastdecode.triton_kernels.sample_large import CHUNK, launch_large
from fastdecode.triton_kernels.sample_small import LARGEST, launch_small

_MAX_K = 1 << 22


def _float(value: float) -> float:
    """Rounded to float32, as it would be in a tensor."""
    return float(np.float32(value))


def _hull(allowed: TokenSets | None, vocab: int) -> int:
    """Distance from the first to the last token of a set, for the widest set; vocab where the host does not know it."""
    if allowed is None or not allowed.checked:
        return vocab
    return max(ranges[-1][1] - ranges[0][0] if ranges else 0 for ranges in allowed)


def launch_sample(
    args: SampleArguments, *, _largest: int = LARGEST, _chunk: int = CHUNK
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(token, logprob, kept, status) for arguments of checked shapes, dtypes, devices and numbers.

    The host does not check the values in tensors. A group gets status 1 if its values are wrong: a row
    outside [−1, rows), a weight that is not finite, a set that does not exist or whose ranges are not
    sorted, disjoint and inside the vocabulary, or a parameter out of range. Nothing is read out of range.
    """
    logits, groups = args.logits, args.groups
    rows, vocab = logits.shape
    device = logits.device
    token = torch.empty(groups, dtype=torch.int64, device=device)
    logprob = torch.empty(groups, dtype=torch.float32, device=device)
    kept = torch.empty(groups, dtype=torch.int32, device=device)
    status = torch.empty(groups, dtype=torch.int32, device=device)
    if groups == 0:
        return token, logprob, kept, status

    given = 0
    arguments = {}

    def optional(name: str, tensor: Tensor | None, bit: int, absent: Tensor) -> None:
        nonlocal given
        given |= 0 if tensor is None else bit
        arguments[name] = absent if tensor is None else tensor

    allowed = args.allowed
    optional("streams", args.streams, bits.STREAMS.value, status)
    optional("weights", args.weights, bits.WEIGHTS.value, logprob)
    optional("ranges", None if allowed is None else allowed.ranges, bits.SETS.value, status)
    optional("offsets", None if allowed is None else allowed.offsets, bits.SETS.value, status)
    optional("set_index", args.set_index, bits.SET_INDEX.value, status)
    optional("temperatures", args.temperature[0], bits.TEMPERATURE.value, logprob)
    optional("top_ks", args.top_k[0], bits.TOP_K.value, status)
    optional("top_ps", args.top_p[0], bits.TOP_P.value, logprob)
    optional("min_ps", args.min_p[0], bits.MIN_P.value, logprob)
    optional("penalties", args.penalty[0], bits.PENALTY.value, logprob)
    optional("seen", args.seen, bits.SEEN.value, status)
    optional("seeds", args.seed[0], bits.SEED.value, token)
    optional("steps", args.step[0], bits.STEP.value, token)
    alpha, k = (0.0, 1) if args.contrast is None else args.contrast
    arguments |= {
        "logits": logits,
        "rows": rows,
        "row_stride": logits.stride(0),
        "vocab": vocab,
        "width": args.width,
        "range_count": 1 if allowed is None else len(allowed.ranges),
        "sets": 1 if allowed is None else len(allowed),
        "temperature_value": _float(args.temperature[1]),
        "top_k_value": args.top_k[1],
        "top_p_value": _float(args.top_p[1]),
        "min_p_value": _float(args.min_p[1]),
        "penalty_value": _float(args.penalty[1]),
        "words": (vocab + 31) // 32,
        "contrast_alpha": _float(alpha),
        "contrast_k": min(k, _MAX_K),
        "seed_value": args.seed[1],
        "step_value": args.step[1],
        "noise": logprob if args.noise is None else args.noise,
        "noise_stride": 0 if args.noise is None else args.noise.stride(0),
        "token": token,
        "logprob": logprob,
        "kept": kept,
        "status": status,
        "given": given,
        "CONTRAST": args.contrast is not None,
        "NOISE": args.noise is not None,
        "FILTERED": args.top_k[0] is not None or args.top_k[1] > 0 or args.top_p[0] is not None or args.top_p[1] < 1,
    }

    largest = vocab if allowed is None else allowed.largest
    with torch.cuda.device_of(logits):
        if largest <= _largest:
            launch_small(arguments, groups, largest)
        else:
            launch_large(arguments, groups, _hull(allowed, vocab), _chunk)
    return token, logprob, kept, status
