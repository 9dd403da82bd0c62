"""`linear` and `joint_linear` through their Triton kernels, which are imported, and compiled, when first used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from fastdecode.ops.int4_rows import Int4Rows
from fastdecode.ops.linear.matrix import Matrix
from fastdecode.ops.small_weights import SmallWeights


@dataclass(frozen=True)
class GroupedMatrix:
    """`Int4Rows` and a bias, with the attributes that their kernel's launcher reads."""

    features: int
    size: int
    data: Tensor
    scale: Tensor
    offset: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(cls, matrix: Matrix) -> GroupedMatrix:
        weight = matrix.weight
        assert isinstance(weight, Int4Rows)
        return cls(len(weight), weight.group, weight.data, weight.scale, weight.offset, matrix.bias)


def _in_rows(matrix: Matrix) -> bool:
    return isinstance(matrix.weight, Int4Rows)


def _in_bytes(matrix: Matrix) -> Matrix:
    """The kernel takes int8 weights and their scale apart."""
    weight = matrix.weight
    return Matrix(weight.data, matrix.bias, weight.scale) if isinstance(weight, SmallWeights) else matrix


def _in_panels_or_packed(matrix: Matrix) -> bool:
    if isinstance(matrix.weight, SmallWeights):
        return matrix.weight.type != "int8"
    return matrix.scale is not None and matrix.scale.dim() == 2


def linear_triton(x: Tensor, matrices: Sequence[Matrix]) -> Tensor:
    found = [_of_one_kernel(x, list(some)) for _, some in groupby(matrices, _in_rows)]
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def _of_one_kernel(x: Tensor, matrices: list[Matrix]) -> Tensor:
    out: Tensor
    if _in_rows(matrices[0]):
        from fastdecode.triton_kernels.linear_int4 import launch_linear_int4

        out = launch_linear_int4(x, [GroupedMatrix.of(matrix) for matrix in matrices])
    else:
        from fastdecode.triton_kernels.linear import launch_linear

        out = launch_linear(x, [_in_bytes(matrix) for matrix in matrices])
    return out


def read_by_products(matrices: Sequence[Matrix]) -> list[Any] | None:
    """The matrices as `fastdecode.triton_kernels.step_product.launch_product` takes them; None if it does not."""
    from fastdecode.triton_kernels.step_product import one_launch

    if any(_in_panels_or_packed(matrix) for matrix in matrices):
        return None
    found = [GroupedMatrix.of(matrix) if _in_rows(matrix) else _in_bytes(matrix) for matrix in matrices]
    return found if one_launch(found) else None
