"""`swiglu` through the C++ library."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.backends import core


def swiglu_cpu(gate_up: Tensor) -> Tensor:
    """Runs on up to torch.get_num_threads() threads."""
    rows, width = gate_up.shape
    out = torch.empty(rows, width // 2, dtype=torch.float32, device="cpu")
    core().swiglu(gate_up.data_ptr(), rows, width // 2, out.data_ptr(), torch.get_num_threads())
    return out
