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
class _Grouped:
    """`Int4Rows` and a bias, with the attributes that their kernel's launcher reads."""

    features: int
    size: int
    data: Tensor
    scale: Tensor
    offset: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(cls, matrix: Matrix) -> _Grouped:
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


def linear_triton(x: Tensor, matrices: Sequence[Matrix], parts: Any = None) -> Tensor:
    """``parts``: those of x, from `parts_for`, which another operation has written."""
    found = [_of_one_kernel(x, list(some), parts) for _, some in groupby(matrices, _in_rows)]
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def _of_one_kernel(x: Tensor, matrices: list[Matrix], parts: Any) -> Tensor:
    out: Tensor
    if _in_rows(matrices[0]):
        from fastdecode.triton_kernels.linear_int4 import launch_linear_int4

        out = launch_linear_int4(x, [_Grouped.of(matrix) for matrix in matrices], parts)
    else:
        from fastdecode.triton_kernels.linear import launch_linear

        out = launch_linear(x, [_in_bytes(matrix) for matrix in matrices], parts)
    return out


def parts_for(rows: int, k: int, matrices: Sequence[Matrix], device: torch.device) -> Any:
    """Where an operation writes the parts of its result (rows, k) for a product with these matrices.

    None if there is nothing to write: no rows, or weights that are multiplied without, or not by Triton.
    """
    from fastdecode.triton_kernels.linear import parts_for
    from fastdecode.triton_kernels.linear_int4 import int4_parts

    if not rows or any(_in_panels_or_packed(matrix) for matrix in matrices):
        return None
    if any(map(_in_rows, matrices)):
        return int4_parts(rows, k, device) if all(map(_in_rows, matrices)) else None
    return parts_for(rows, k, [_in_bytes(matrix) for matrix in matrices], device)
