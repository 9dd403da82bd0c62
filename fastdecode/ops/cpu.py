"""`sample` through the C++ library: passes pointers; the library checks the values."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.arguments import Sample, SampleArguments
from fastdecode.ops.backends import core
from fastdecode.ops.checks import LOGITS_DTYPES, MAX_VOCAB


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def sample_cpu(args: SampleArguments) -> Sample:
    """Runs on up to torch.get_num_threads() threads. Raises ValueError for bad values."""
    logits, groups, allowed, noise = args.logits, args.groups, args.allowed, args.noise
    token = torch.empty(groups, dtype=torch.int64)
    logprob = torch.empty(groups, dtype=torch.float32)
    kept = torch.empty(groups, dtype=torch.int32)
    status = torch.empty(groups, dtype=torch.int32)
    rows, vocab = logits.shape
    core().sample(
        logits.data_ptr(),
        LOGITS_DTYPES[logits.dtype],
        torch.get_num_threads(),
        rows,
        vocab,
        logits.stride(0),
        groups,
        args.width,
        _address(args.streams),
        _address(args.weights),
        0 if allowed is None else allowed.ranges.data_ptr(),
        0 if allowed is None else allowed.offsets.data_ptr(),
        0 if allowed is None else len(allowed),
        _address(args.set_index),
        _address(args.temperature[0]),
        _address(args.top_k[0]),
        _address(args.top_p[0]),
        _address(args.min_p[0]),
        _address(args.penalty[0]),
        _address(args.seed[0]),
        _address(args.step[0]),
        args.temperature[1],
        args.top_k[1],
        args.top_p[1],
        args.min_p[1],
        args.penalty[1],
        args.seed[1],
        args.step[1],
        *((0.0, 0) if args.contrast is None else (args.contrast[0], min(args.contrast[1], MAX_VOCAB))),
        _address(args.seen),
        _address(noise),
        0 if noise is None else noise.stride(0),
        token.data_ptr(),
        logprob.data_ptr(),
        kept.data_ptr(),
        status.data_ptr(),
    )
    return Sample(token, logprob, kept, status)
