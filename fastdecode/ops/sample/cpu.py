"""`sample` through the C++ library, which checks the values.

The fields are in the order in which csrc/python/module.cpp reads them.
"""

from __future__ import annotations

from typing import Any

import torch

from fastdecode.ops.arguments import Sample, SampleArguments
from fastdecode.ops.backends import core
from fastdecode.ops.checks import FLOAT_DTYPES
from fastdecode.ops.pointers import address
from fastdecode.ops.sample.checks import MAX_VOCAB


def new_sample(groups: int, device: torch.device | str = "cpu") -> Sample:
    """Tensors for the library to write to."""
    return Sample(
        torch.empty(groups, dtype=torch.int64, device=device),
        torch.empty(groups, dtype=torch.float32, device=device),
        torch.empty(groups, dtype=torch.int32, device=device),
        torch.empty(groups, dtype=torch.int32, device=device),
    )


REPEAT = -(1 << 63)
"""FASTDECODE_REPEAT: the stride of rows that are all the same one."""


def row_stride(rows: torch.Tensor) -> int:
    """The stride of (rows, vocab) as the library takes it; `with_separate_rows` has copied rows that overlap."""
    return REPEAT if rows.stride(0) == 0 else rows.stride(0)


def with_separate_rows(args: SampleArguments) -> SampleArguments:
    """Arguments whose logits and noise have rows that do not overlap, or that are all the same one."""
    for name in ("logits", "noise"):
        rows = getattr(args, name)
        if rows is not None and 0 < rows.stride(0) < rows.shape[1]:
            args = args._replace(**{name: rows.contiguous()})
    return args


def sample_fields(args: SampleArguments, out: Sample) -> tuple[Any, ...]:
    """The fields of fastdecode_sample_args, with addresses in place of tensors."""
    logits, allowed, contrast, noise = args.logits, args.allowed, args.contrast, args.noise
    rows, vocab = logits.shape
    return (
        logits.data_ptr(),
        FLOAT_DTYPES[logits.dtype],
        torch.get_num_threads(),
        rows,
        vocab,
        row_stride(logits),
        args.groups,
        args.width,
        address(args.streams),
        address(args.weights),
        0 if allowed is None else allowed.ranges.data_ptr(),
        0 if allowed is None else allowed.offsets.data_ptr(),
        0 if allowed is None else len(allowed),
        address(args.set_index),
        address(args.temperature[0]),
        address(args.top_k[0]),
        address(args.top_p[0]),
        address(args.min_p[0]),
        address(args.penalty[0]),
        address(args.seed[0]),
        address(args.step[0]),
        args.temperature[1],
        args.top_k[1],
        args.top_p[1],
        args.min_p[1],
        args.penalty[1],
        args.seed[1],
        args.step[1],
        0.0 if contrast is None else contrast[0],
        0 if contrast is None else min(contrast[1], MAX_VOCAB),
        address(args.seen),
        address(noise),
        0 if noise is None else row_stride(noise),
        out.token.data_ptr(),
        out.logprob.data_ptr(),
        out.kept.data_ptr(),
        out.status.data_ptr(),
    )


def sample_cpu(args: SampleArguments) -> Sample:
    """Runs on up to torch.get_num_threads() threads. Raises ValueError for bad values."""
    args = with_separate_rows(args)
    out = new_sample(args.groups)
    core().sample(sample_fields(args, out))
    return out
