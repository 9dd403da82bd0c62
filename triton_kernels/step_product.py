"""Products of a decode step, of whatever weights: linear.py or linear_int4.py multiplies them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdecode.triton_kernels import linear
from fastdecode.triton_kernels.epilogue import PIECE, Added, Gated, RowNorm
from fastdecode.triton_kernels.linear_int4 import alike, int4_parts_for, launch_int4_product
from fastdecode.triton_kernels.parts import Parts

StepMatrix = Any
"""A `Matrix` or a `GroupedMatrix` of arguments.py."""


def _grouped(matrix: StepMatrix) -> bool:
    return hasattr(matrix, "size")


def features_of(matrix: StepMatrix) -> int:
    return int(matrix.features) if _grouped(matrix) else len(matrix.weight)


def one_launch(matrices: Sequence[StepMatrix]) -> bool:
    """Whether `launch_product` takes these matrices together."""
    first = matrices[0]
    if not any(map(_grouped, matrices)):
        return linear.takes_parts(matrices)
    return len(matrices) <= linear.MATRICES and all(_grouped(m) and alike(first, m) for m in matrices)


def parts_for(rows: int, matrices: Sequence[StepMatrix]) -> Parts:
    """Where to write the parts of rows that `launch_product` multiplies with these matrices."""
    return int4_parts_for(rows, matrices) if _grouped(matrices[0]) else linear.parts_for(rows, matrices)


def new_squares(rows: int, matrix: StepMatrix, device: torch.device) -> Tensor:
    """Not initialised: for `Added` by a product of ``rows`` rows and one matrix."""
    return torch.empty(rows, -(-features_of(matrix) // PIECE.value), dtype=torch.float32, device=device)


def launch_product(
    parts: Parts,
    rows: int,
    matrices: Sequence[StepMatrix],
    out: Tensor | None,
    norm: RowNorm | None = None,
    after: Gated | Added | None = None,
) -> None:
    """See linear.py."""
    launch = launch_int4_product if _grouped(matrices[0]) else linear.launch_product
    launch(parts, rows, matrices, out, norm, after)
