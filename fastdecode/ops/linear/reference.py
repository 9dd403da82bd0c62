"""`linear` as PyTorch code."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.int4_rows import Int4Rows
from fastdecode.ops.small_weights import SmallWeights


@torch.no_grad()
def linear_reference(
    x: Tensor, weight: Tensor | SmallWeights | Int4Rows, bias: Tensor | None, scale: Tensor | None = None
) -> Tensor:
    """out[r, f] = (Σᵢ x[r, i] · weight[f, i]) · scale[f] + bias[f], in float32. ``x`` is not rounded."""
    if isinstance(weight, SmallWeights | Int4Rows):
        weight = weight.values()
    if scale is None:
        return torch.nn.functional.linear(x, weight.float(), bias)
    product = torch.nn.functional.linear(x, weight.float()) * scale
    return product if bias is None else product + bias
