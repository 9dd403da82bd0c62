"""`linear` and `joint_linear` through their Triton kernel, which is imported, and compiled, when it is first used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
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


def linear_triton(x: Tensor, matrices: Sequence[Matrix], parts: Any = None) -> Tensor:
    """``parts``: those of x, from `parts_for`, which another operation has written."""
    from fastdecode.triton_kernels.linear import launch_linear

    out: Tensor = launch_linear(x, [_in_bytes(matrix) for matrix in matrices], parts)
    return out


def parts_for(rows: int, k: int, matrices: Sequence[Matrix], device: torch.device) -> Any:
    """Where an operation writes the parts of its result (rows, k) for a product with these matrices.

    None if there is nothing to write: no rows, or weights that are multiplied without, or not by Triton.
    """
    from fastdecode.triton_kernels.linear import parts_for

    if not rows or any(_in_panels_or_packed(matrix) for matrix in matrices):
        return None
    return parts_for(rows, k, [_in_bytes(matrix) for matrix in matrices], device)
