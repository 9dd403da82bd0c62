"""`embed` through the C++ library, which checks the tokens' values."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.backends import core
from fastdecode.ops.pointers import stored
from fastdecode.ops.small_weights import SmallWeights


def embed_cpu(tokens: Tensor, weight: Tensor | SmallWeights) -> Tensor:
    """Runs on up to torch.get_num_threads() threads. Raises ValueError for a token outside the vocabulary."""
    vocab, hidden = weight.shape
    out = torch.empty(len(tokens), hidden, dtype=torch.float32, device="cpu")
    core().embed(
        tokens.data_ptr(),
        len(tokens),
        *stored(weight),
        vocab,
        hidden,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out
