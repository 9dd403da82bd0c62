"""`swiglu` as PyTorch code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def swiglu_reference(gate_up: Tensor, activation: str) -> Tensor:
    """out = activation(gate) · up, in float32."""
    gate, up = gate_up.chunk(2, -1)
    if activation == "silu":
        return F.silu(gate) * up
    return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none") * up
