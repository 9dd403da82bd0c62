"""One matrix of `linear` and `joint_linear`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fastdecode.ops.int4_rows import Int4Rows
from fastdecode.ops.small_weights import SmallWeights


class Matrix(NamedTuple):
    """weight (features, k), bias (features,) and scale (features,), as for `linear`."""

    weight: Tensor | SmallWeights | Int4Rows
    bias: Tensor | None = None
    scale: Tensor | None = None

    def rows(self, lo: int, hi: int) -> Matrix:
        """The features [lo, hi), without copying them."""
        bias, scale = (None if part is None else part[lo:hi] for part in (self.bias, self.scale))
        return Matrix(self.weight[lo:hi], bias, scale)
