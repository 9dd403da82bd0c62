"""`swiglu` through the C++ library."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.backends import core
from fastdecode.ops.swiglu.activations import ACTIVATIONS


def swiglu_cpu(gate_up: Tensor, activation: str) -> Tensor:
    """Runs on up to torch.get_num_threads() threads."""
    rows, width = gate_up.shape
    out = torch.empty(rows, width // 2, dtype=torch.float32, device="cpu")
    number = ACTIVATIONS[activation]
    core().glu(gate_up.data_ptr(), number, rows, width // 2, out.data_ptr(), torch.get_num_threads())
    return out
