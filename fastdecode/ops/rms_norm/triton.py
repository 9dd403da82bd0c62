"""`rms_norm` through its Triton kernel, which is imported, and compiled, when it is first used."""

from __future__ import annotations

from torch import Tensor


def rms_norm_triton(
    x: Tensor, weight: Tensor, epsilon: float, residual: Tensor | None
) -> Tensor | tuple[Tensor, Tensor]:
    from fastdecode.triton_kernels.rms_norm import launch_rms_norm

    out: Tensor | tuple[Tensor, Tensor] = launch_rms_norm(x, weight, epsilon, residual)
    return out
