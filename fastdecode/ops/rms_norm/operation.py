"""`rms_norm`: checks its arguments, chooses a backend, calls it."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from fastdecode.ops.arrays import Array
from fastdecode.ops.backends import choose_step_backend, record_backend
from fastdecode.ops.checks import check_float_tensor, check_tensor
from fastdecode.ops.rms_norm.cpu import rms_norm_cpu
from fastdecode.ops.rms_norm.reference import rms_norm_reference
from fastdecode.ops.rms_norm.triton import rms_norm_triton
from fastdecode.ops.scalars import real_number
from fastdecode.ops.tracing import is_traced

_RUN = {"reference": rms_norm_reference, "cpu": rms_norm_cpu, "triton": rms_norm_triton}


@overload
def rms_norm(
    x: Array, weight: Array, epsilon: float = ..., residual: None = ..., *, backend: str | None = ...
) -> Tensor: ...
@overload
def rms_norm(
    x: Array, weight: Array, epsilon: float = ..., *, residual: Array, backend: str | None = ...
) -> tuple[Tensor, Tensor]: ...
def rms_norm(
    x: Array,
    weight: Array,
    epsilon: float = 1e-5,
    residual: Array | None = None,
    *,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The RMS norm of every row of x: (rows, n) float32; no gradients.

    With a residual: the norm of x + residual, and the sum x + residual.

        x         (rows, n) float32
        weight    (n,) float32
        epsilon   added to the mean of squares
        residual  (rows, n) float32, or None
        backend   "reference" | "cpu" | "triton"; None picks by device

    The bits of a row's result do not depend on the other rows or the number of threads. Raises ValueError naming the
    argument.
    """
    if is_traced(x):
        return _traced(x, weight, epsilon, residual, backend)
    epsilon = real_number("epsilon", epsilon)
    x = check_float_tensor("x", x, "rows, n")
    weight = check_tensor("weight", weight, (x.shape[1],), torch.float32, x.device, "x")
    if residual is not None:
        residual = check_tensor("residual", residual, tuple(x.shape), torch.float32, x.device, "x")
    backend = choose_step_backend(backend, x.device)
    record_backend(backend)
    return _RUN[backend](x, weight, epsilon, residual)


def _traced(
    x: Tensor, weight: Array, epsilon: float, residual: Array | None, backend: str | None
) -> Tensor | tuple[Tensor, Tensor]:
    if residual is None:
        normed: Tensor = torch.ops.fastdecode.rms_norm(x, weight, epsilon, backend=backend)
        return normed
    both: tuple[Tensor, Tensor] = torch.ops.fastdecode.add_rms_norm(x, residual, weight, epsilon, backend=backend)
    return both
