"""`sample` through the Triton kernels, which are imported, and compiled, when first used."""

from __future__ import annotations

from fastdecode.ops.arguments import Sample, SampleArguments
from fastdecode.ops.sample.checks import check_host_values


def sample_triton(args: SampleArguments) -> Sample:
    """Raises ValueError as `check_host_values` does; `launch_sample` says what happens to other bad values."""
    from fastdecode.triton_kernels.sample import launch_sample

    check_host_values(args)
    return Sample(*launch_sample(args))
