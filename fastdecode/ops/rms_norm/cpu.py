"""`rms_norm` through the C++ library."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.backends import core
from fastdecode.ops.pointers import address


def rms_norm_cpu(x: Tensor, weight: Tensor, epsilon: float, residual: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
    """Runs on up to torch.get_num_threads() threads."""
    out = torch.empty(x.shape, dtype=torch.float32, device="cpu")
    total = None if residual is None else torch.empty_like(out)
    core().rms_norm(
        x.data_ptr(),
        address(residual),
        weight.data_ptr(),
        epsilon,
        *x.shape,
        address(total),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out if total is None else (out, total)
