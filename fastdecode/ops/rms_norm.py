"""`rms_norm`: the RMS norm of rows, or of their sum with a residual."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from fastdecode.ops.backends import core, record_backend
from fastdecode.ops.checks import check_tensor
from fastdecode.ops.library import is_traced
from fastdecode.ops.step_checks import check_float_tensor, choose_step_backend
from fastdecode.ops.step_triton import rms_norm_triton


@overload
def rms_norm(
    x: Tensor, weight: Tensor, epsilon: float = ..., residual: None = ..., *, backend: str | None = ...
) -> Tensor: ...
@overload
def rms_norm(
    x: Tensor, weight: Tensor, epsilon: float = ..., *, residual: Tensor, backend: str | None = ...
) -> tuple[Tensor, Tensor]: ...
def rms_norm(
    x: Tensor,
    weight: Tensor,
    epsilon: float = 1e-5,
    residual: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The RMS norm of every row: (rows, n) float32; with a residual that of x + residual, and this sum; no gradients.

        x         (rows, n) float32
        weight    (n,) float32
        epsilon   added to the mean of squares
        residual  (rows, n) float32, or None
        backend   "reference" | "cpu" | "triton"; None picks by device

    A row's result is the same bits whatever the other rows and the number of threads. Raises ValueError naming the
    argument.
    """
    if is_traced(x):
        return _traced(x, weight, epsilon, residual, backend)
    x = check_float_tensor("x", x, "rows, n")
    weight = check_tensor("weight", weight, (x.shape[1],), torch.float32, x.device, "x")
    if residual is not None:
        residual = check_tensor("residual", residual, tuple(x.shape), torch.float32, x.device, "x")
    backend = choose_step_backend(backend, x.device)
    record_backend(backend)
    if backend == "reference":
        return rms_norm_reference(x, weight, epsilon, residual)
    if backend == "triton":
        return rms_norm_triton(x, weight, epsilon, residual)
    out = torch.empty(x.shape, dtype=torch.float32, device="cpu")
    total = None if residual is None else torch.empty_like(out)
    core().rms_norm(
        x.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        weight.data_ptr(),
        epsilon,
        *x.shape,
        0 if total is None else total.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out if total is None else (out, total)


def _traced(
    x: Tensor, weight: Tensor, epsilon: float, residual: Tensor | None, backend: str | None
) -> Tensor | tuple[Tensor, Tensor]:
    if residual is None:
        normed: Tensor = torch.ops.fastdecode.rms_norm(x, weight, epsilon, backend=backend)
        return normed
    both: tuple[Tensor, Tensor] = torch.ops.fastdecode.add_rms_norm(x, residual, weight, epsilon, backend=backend)
    return both


@torch.no_grad()
def rms_norm_reference(
    x: Tensor, weight: Tensor, epsilon: float, residual: Tensor | None
) -> Tensor | tuple[Tensor, Tensor]:
    """y = x + residual, or x; out = y / √(mean of y² in its row + epsilon) · weight. In float32."""
    y = x if residual is None else x + residual
    out = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + epsilon) * weight
    return out if residual is None else (out, y)
