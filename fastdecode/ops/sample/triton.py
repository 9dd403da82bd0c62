"""`sample` through the Triton kernels, which are imported, and compiled, when first used."""

from __future__ import annotations

from fastdecode.ops.arguments import FloatParameter, Sample, SampleArguments
from fastdecode.ops.sample.checks import check_values


def sample_triton(args: SampleArguments) -> Sample:
    """Raises ValueError as `check_host_values` does; `launch_sample` says what happens to other bad values."""
    from fastdecode.triton_kernels.sample import launch_sample

    check_host_values(args)
    return Sample(*launch_sample(args))


def check_host_values(args: SampleArguments) -> None:
    """Raises ValueError for bad numbers, and on the CPU also for bad values in tensors."""
    check_values(args if args.logits.device.type == "cpu" else _numbers_of(args))


def _number(parameter: FloatParameter) -> FloatParameter:
    """The parameter; 1, which is valid for all of them, in place of a tensor."""
    return parameter if parameter[0] is None else (None, 1.0)


def _numbers_of(args: SampleArguments) -> SampleArguments:
    """The arguments without the tensors, whose values the host could only read by waiting for the device."""
    allowed = args.allowed if args.allowed is not None and args.allowed.checked else None
    return args._replace(
        streams=None,
        weights=None,
        allowed=allowed,
        set_index=None,
        temperature=_number(args.temperature),
        top_p=_number(args.top_p),
        min_p=_number(args.min_p),
        penalty=_number(args.penalty),
    )
