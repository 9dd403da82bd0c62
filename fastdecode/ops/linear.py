"""`linear`: a linear layer of few rows, its weights as they are stored."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.backends import core, record_backend
from fastdecode.ops.checks import check_tensor
from fastdecode.ops.library import is_traced
from fastdecode.ops.step_checks import STORED_DTYPES, check_float_tensor, check_stored, choose_step_backend
from fastdecode.ops.step_triton import linear_triton


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """x · weightᵀ + bias: (rows, features) float32, for few rows; no gradients.

        x        (rows, k) float32
        weight   (features, k) float32 | bfloat16 | float16, dense
        bias     (features,) float32. None: 0
        backend  "reference" | "cpu" | "triton"; None picks by device

    Sums are float32; where the processor multiplies bfloat16, cpu rounds x to that for such weights. A row's result
    is the same bits whatever the other rows and the number of threads. triton reads the weights once for every 16 rows:
    many are better left to torch. Raises ValueError naming the argument.
    """
    if is_traced(x):
        traced: Tensor = torch.ops.fastdecode.linear(x, weight, bias, backend=backend)
        return traced
    x = check_float_tensor("x", x, "rows, k")
    check_stored("weight", weight, "features, k", x.device, "x")
    if weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight.shape = {tuple(weight.shape)}: must be (features, {x.shape[1]})")
    features = weight.shape[0]
    if bias is not None:
        bias = check_tensor("bias", bias, (features,), torch.float32, x.device, "x")
    backend = choose_step_backend(backend, x.device)
    record_backend(backend)
    if backend == "reference":
        return linear_reference(x, weight, bias)
    if backend == "triton":
        return linear_triton(x, weight, bias)
    out = torch.empty(len(x), features)
    core().linear(
        weight.data_ptr(),
        STORED_DTYPES[weight.dtype],
        0 if bias is None else bias.data_ptr(),
        x.data_ptr(),
        *x.shape,
        features,
        out.data_ptr(),
        features,
        torch.get_num_threads(),
    )
    return out


@torch.no_grad()
def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """out[r, f] = Σᵢ x[r, i] · weight[f, i] + bias[f], in float32."""
    return torch.nn.functional.linear(x, weight.float(), bias)
