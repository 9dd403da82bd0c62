"""`embed` as PyTorch code."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.embed.checks import check_tokens
from fastdecode.ops.small_weights import SmallWeights


@torch.no_grad()
def embed_reference(tokens: Tensor, weight: Tensor | SmallWeights) -> Tensor:
    """out[r] = weight[tokens[r]]. Raises ValueError for a token outside the vocabulary."""
    check_tokens(tokens, len(weight))
    if isinstance(weight, SmallWeights):
        return weight.of(tokens).values()
    return weight[tokens].float()
