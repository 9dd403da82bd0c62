"""`linear`: a linear layer of few rows, its weights as they are stored; `joint_linear`: several of one input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastdecode.ops.backends import core, record_backend
from fastdecode.ops.checks import check_tensor
from fastdecode.ops.library import is_traced
from fastdecode.ops.step_checks import (
    BYTE_DTYPES,
    STORED_DTYPES,
    check_float_tensor,
    check_stored,
    choose_step_backend,
)
from fastdecode.ops.step_triton import linear_triton


class Matrix(NamedTuple):
    """weight (features, k), bias (features,) and scale (features,), as for `linear`."""

    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """(x · weightᵀ) · scale + bias: (rows, features) float32, for few rows; no gradients.

        x        (rows, k) float32
        weight   (features, k) float32 | bfloat16 | float16 | int8 | float8_e4m3fn, dense
        bias     (features,) float32. None: 0
        scale    (features,) float32, what a weight of one byte is to be multiplied by. None: 1
        backend  "reference" | "cpu" | "triton"; None picks by device. cpu has no weights of one byte

    Sums are float32; where the processor multiplies bfloat16, cpu rounds x to that for such weights. A row's result
    is the same bits whatever the other rows and the number of threads. triton reads the weights once for every 16 rows:
    many are better left to torch. Raises ValueError naming the argument.
    """
    if is_traced(x):
        traced: Tensor = torch.ops.fastdecode.linear(x, weight, bias, scale, backend=backend)
        return traced
    x = check_float_tensor("x", x, "rows, k")
    matrix = _checked(x, weight, bias, scale)
    backend = _choose(backend, matrix)
    record_backend(backend)
    if backend == "reference":
        return linear_reference(x, *matrix)
    if backend == "triton":
        return linear_triton(x, [matrix])
    return _linear_cpu(x, matrix)


def joint_linear(x: Tensor, matrices: Sequence[Matrix], *, backend: str | None = None) -> Tensor:
    """`linear` of ``x`` with each of the matrices, side by side: (rows, all their features). triton multiplies those of
    one dtype, with scales or without, in one launch, at most three.
    """
    if is_traced(x) or len(matrices) == 1:
        parts = [linear(x, *matrix, backend=backend) for matrix in matrices]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    x = check_float_tensor("x", x, "rows, k")
    matrices = [_checked(x, *matrix) for matrix in matrices]
    if _choose(backend, *matrices) != "triton":
        return torch.cat([linear(x, *matrix, backend=backend) for matrix in matrices], 1)
    record_backend("triton")
    return linear_triton(x, matrices)


def _checked(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Matrix:
    check_stored("weight", weight, "features, k", x.device, "x", STORED_DTYPES.keys() | BYTE_DTYPES)
    if weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight.shape = {tuple(weight.shape)}: must be (features, {x.shape[1]})")
    features = weight.shape[0]
    if bias is not None:
        bias = check_tensor("bias", bias, (features,), torch.float32, x.device, "x")
    if scale is not None:
        if weight.dtype not in BYTE_DTYPES:
            raise ValueError(f"scale: is for weights of int8 or float8_e4m3fn, not of {weight.dtype}")
        scale = check_tensor("scale", scale, (features,), torch.float32, x.device, "x")
    return Matrix(weight, bias, scale)


def _choose(backend: str | None, *matrices: Matrix) -> str:
    chosen = choose_step_backend(backend, matrices[0].weight.device)
    of_bytes = next((m.weight.dtype for m in matrices if m.weight.dtype in BYTE_DTYPES), None)
    if chosen != "cpu" or of_bytes is None:
        return chosen
    if backend is None:
        return "reference"
    raise ValueError(f"backend = {backend!r}: has no weights of {of_bytes}; must be triton or reference")


def _linear_cpu(x: Tensor, matrix: Matrix) -> Tensor:
    weight, bias, _ = matrix
    features = weight.shape[0]
    out = torch.empty(len(x), features, dtype=torch.float32, device="cpu")
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
def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None = None) -> Tensor:
    """out[r, f] = (Σᵢ x[r, i] · weight[f, i]) · scale[f] + bias[f], in float32."""
    if scale is None:
        return torch.nn.functional.linear(x, weight.float(), bias)
    product = torch.nn.functional.linear(x, weight.float()) * scale
    return product if bias is None else product + bias
