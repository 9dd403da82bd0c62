"""The operations of a step by the backend's kernels, one after another: for any dtype and any number of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastdecode import ops
from fastdecode.ops.pages import Pages

FEW_ROWS = 16
"""Up to this many rows our own kernel multiplies; with more rows cuBLAS is faster, and is used."""

HALVES = (torch.bfloat16, torch.float16)


def many_rows(x: Tensor, matrices: Sequence[ops.Matrix], product: Callable[..., Tensor] = torch.mm) -> Tensor:
    """`fastdecode.ops.joint_linear` in torch: rounds x to the weights' dtype, and sums in float32."""
    parts = []
    for weight, bias, _ in matrices:
        part = product(x.to(weight.data.dtype), weight.data.t(), out_dtype=torch.float32)
        parts.append(part if bias is None else part + bias)
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def by_torch(x: Tensor, matrices: Sequence[ops.Matrix]) -> bool:
    return x.is_cuda and len(x) > FEW_ROWS and all(m.weight.data.dtype in HALVES for m in matrices)


class StepOperations:
    """``backend``: of `fastdecode.ops`; None: the default of the device. ``epsilon``: of the norms. ``activation``: of
    `fastdecode.ops.swiglu`.
    """

    def __init__(self, backend: str | None, epsilon: float, activation: str) -> None:
        self.backend, self.epsilon, self.activation = backend, epsilon, activation

    def multiply(self, x: Tensor, *matrices: ops.Matrix) -> Tensor:
        """The products of ``x`` (rows, k) with the matrices, side by side."""
        if by_torch(x, matrices):
            return many_rows(x, matrices)
        return ops.joint_linear(x, matrices, backend=self.backend)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return ops.rms_norm(x, weight, self.epsilon, backend=self.backend)

    def norm_of_sum(self, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and the sum."""
        return ops.rms_norm(x, weight, self.epsilon, residual=residual, backend=self.backend)

    def swiglu(self, gate_up: Tensor) -> Tensor:
        return ops.swiglu(gate_up, activation=self.activation, backend=self.backend)

    def attend(self, queries: Tensor, pages: Pages, scale: float) -> Tensor:
        """(rows, heads · head_dim)."""
        return ops.attend(queries, *pages, scale, backend=self.backend).flatten(1)
