"""`linear` through the C++ library."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.backends import core
from fastdecode.ops.checks import FLOAT_DTYPES
from fastdecode.ops.linear.matrix import Matrix
from fastdecode.ops.pointers import address


def linear_cpu(x: Tensor, matrix: Matrix) -> Tensor:
    """Runs on up to torch.get_num_threads() threads. For a matrix without a scale."""
    weight, bias, _ = matrix
    features = weight.shape[0]
    out = torch.empty(len(x), features, dtype=torch.float32, device="cpu")
    core().linear(
        weight.data_ptr(),
        FLOAT_DTYPES[weight.dtype],
        address(bias),
        x.data_ptr(),
        *x.shape,
        features,
        out.data_ptr(),
        features,
        torch.get_num_threads(),
    )
    return out
