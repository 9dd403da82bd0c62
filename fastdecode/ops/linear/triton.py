"""`linear` and `joint_linear` through their Triton kernel, which is imported, and compiled, when it is first used."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastdecode.ops.linear.matrix import Matrix


def linear_triton(x: Tensor, matrices: Sequence[Matrix]) -> Tensor:
    from fastdecode.triton_kernels.linear import launch_linear

    out: Tensor = launch_linear(x, matrices)
    return out
