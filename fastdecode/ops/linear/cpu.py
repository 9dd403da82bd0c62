"""`linear` through the C++ library."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.backends import core
from fastdecode.ops.int4_rows import Int4Rows
from fastdecode.ops.linear.matrix import Matrix
from fastdecode.ops.pointers import address, stored
from fastdecode.ops.small_weights import SmallWeights


def linear_cpu(x: Tensor, matrix: Matrix) -> Tensor:
    """Runs on up to torch.get_num_threads() threads."""
    weight, bias, scale = matrix
    if isinstance(weight, Tensor) and weight.dtype == torch.int8:
        weight = SmallWeights("int8", x.shape[1], weight, torch.ones(len(weight)) if scale is None else scale)
    features = len(weight)
    assert not isinstance(weight, Int4Rows), "the CPU's kernels do not read it"
    out = torch.empty(len(x), features, dtype=torch.float32, device="cpu")
    core().linear(
        *stored(weight),
        address(bias),
        x.data_ptr(),
        *x.shape,
        features,
        out.data_ptr(),
        features,
        torch.get_num_threads(),
    )
    return out
