"""The norm of each head's queries or keys."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class HeadNorm(NamedTuple):
    """weight and bias (heads, head_dim) float32. Both: a layer norm. weight alone: an RMS norm. Neither: no norm."""

    weight: Tensor | None
    bias: Tensor | None
