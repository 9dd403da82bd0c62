"""`linear` and `joint_linear` through their Triton kernel, which is imported, and compiled, when it is first used."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastdecode.ops.linear.matrix import Matrix
from fastdecode.ops.small_weights import SmallWeights


def _in_bytes(matrix: Matrix) -> Matrix:
    """The kernel takes int8 weights and their scale apart."""
    weight = matrix.weight
    return Matrix(weight.data, matrix.bias, weight.scale) if isinstance(weight, SmallWeights) else matrix


def linear_triton(x: Tensor, matrices: Sequence[Matrix]) -> Tensor:
    from fastdecode.triton_kernels.linear import launch_linear

    out: Tensor = launch_linear(x, [_in_bytes(matrix) for matrix in matrices])
    return out
