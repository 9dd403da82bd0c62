"""One matrix of `linear` and `joint_linear`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Matrix(NamedTuple):
    """weight (features, k), bias (features,) and scale (features,), as for `linear`."""

    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None
