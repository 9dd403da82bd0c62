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


def _in_panels_or_packed(matrix: Matrix) -> bool:
    if isinstance(matrix.weight, SmallWeights):
        return matrix.weight.type != "int8"
    return matrix.scale is not None and matrix.scale.dim() == 2


def linear_triton(x: Tensor, matrices: Sequence[Matrix]) -> Tensor:
    from fastdecode.triton_kernels.linear import launch_linear

    out: Tensor = launch_linear(x, [_in_bytes(matrix) for matrix in matrices])
    return out


def read_by_products(matrices: Sequence[Matrix]) -> list[Matrix] | None:
    """The matrices as `fastdecode.triton_kernels.linear.launch_product` takes them; None if it does not take them."""
    from fastdecode.triton_kernels.linear import takes_parts

    if any(_in_panels_or_packed(matrix) for matrix in matrices):
        return None
    found = [_in_bytes(matrix) for matrix in matrices]
    return found if takes_parts(found) else None
