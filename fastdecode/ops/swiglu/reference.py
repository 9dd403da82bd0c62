"""`swiglu` as PyTorch code."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def swiglu_reference(gate_up: Tensor) -> Tensor:
    """out = gate / (1 + e^(−gate)) · up, in float32."""
    gate, up = gate_up.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up
