"""`sample` through libfastdecode_cuda.so."""

from __future__ import annotations

from fastdecode.ops.arguments import Sample, SampleArguments
from fastdecode.ops.cuda_library import cuda_library
from fastdecode.ops.sample.checks import check_host_values
from fastdecode.ops.sample.cpu import new_sample, sample_fields, with_separate_rows


def largest_set(args: SampleArguments) -> int:
    """The most tokens of a set, at least 1: to the library 0 is the whole vocabulary."""
    return args.logits.shape[1] if args.allowed is None else max(args.allowed.largest, 1)


def sample_cuda(args: SampleArguments) -> Sample:
    """Raises ValueError as `check_host_values` does; a group with another bad value gets status 1."""
    check_host_values(args)
    args = with_separate_rows(args)
    device = args.logits.device
    out = new_sample(args.groups, device)
    cuda_library().sample(sample_fields(args, out), largest_set(args), device)
    return out
