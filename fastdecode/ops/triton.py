"""`sample` through the Triton kernels, which are imported, and compiled, when they are first used."""

from __future__ import annotations

from fastdecode.ops.arguments import FloatParameter, Sample, SampleArguments
from fastdecode.ops.checks import check_values


def sample_triton(args: SampleArguments) -> Sample:
    """Raises ValueError for bad values that the host can see; see `launch_sample` for the others."""
    from fastdecode.triton_kernels.sample import launch_sample

    check_host_values(args)
    return Sample(*launch_sample(args))


def check_host_values(args: SampleArguments) -> None:
    """Raises ValueError for bad numbers, and on the CPU for bad values in tensors too."""
    check_values(args if args.logits.device.type == "cpu" else _numbers_of(args))


def _number(parameter: FloatParameter) -> FloatParameter:
    """1, which is valid everywhere, in place of a tensor."""
    return parameter if parameter[0] is None else (None, 1.0)


def _numbers_of(args: SampleArguments) -> SampleArguments:
    """The arguments without tensors on a device, which are not waited for on the host."""
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
