"""`rms_norm` as PyTorch code."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def rms_norm_reference(
    x: Tensor, weight: Tensor, epsilon: float, residual: Tensor | None
) -> Tensor | tuple[Tensor, Tensor]:
    """y = x + residual, or x; out = y / √(mean of y² in its row + epsilon) · weight. In float32."""
    y = x if residual is None else x + residual
    out = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + epsilon) * weight
    return out if residual is None else (out, y)
