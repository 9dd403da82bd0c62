"""The operations of a step by the backend's kernels, and how the result of one is handed to the product after it.

Triton's product of few rows reads x as bfloat16 parts (`fastdecode.triton_kernels.parts`). Whatever computes x writes
its parts too, so that no launch is needed for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdecode import ops
from fastdecode.ops.attend.triton import attend_triton
from fastdecode.ops.backends import choose_step_backend
from fastdecode.ops.linear.operation import linear_of_parts
from fastdecode.ops.linear.triton import parts_for
from fastdecode.ops.pages import Pages
from fastdecode.ops.rms_norm.triton import rms_norm_triton
from fastdecode.ops.swiglu.triton import swiglu_triton

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


class Factor(NamedTuple):
    """``x`` (rows, k) float32 of a product, and its parts, if it has them."""

    x: Tensor
    parts: Any = None


class StepOperations:
    """``backend``: of `fastdecode.ops`; None: the default of the device. ``epsilon``: of the norms. ``activation``: of
    `fastdecode.ops.swiglu`.

    ``after``: the matrices that the result is multiplied with.
    """

    def __init__(self, backend: str | None, epsilon: float, activation: str) -> None:
        self.backend, self.epsilon, self.activation = backend, epsilon, activation

    def multiply(self, factor: Factor, *matrices: ops.Matrix) -> Tensor:
        """The products of ``factor.x`` (rows, k) with the matrices, side by side."""
        x, parts = factor
        if parts is not None:
            return linear_of_parts(x, matrices, parts)
        if self._by_torch(x, matrices):
            return many_rows(x, matrices)
        return ops.joint_linear(x, matrices, backend=self.backend)

    def norm(self, x: Tensor, weight: Tensor, after: Sequence[ops.Matrix] = ()) -> Factor:
        parts = self._parts(x, x.shape[1], after)
        if parts is None:
            return Factor(ops.rms_norm(x, weight, self.epsilon, backend=self.backend))
        normed = rms_norm_triton(x.contiguous(), weight, self.epsilon, None, parts)
        assert isinstance(normed, Tensor)
        return Factor(normed, parts)

    def norm_of_sum(
        self, x: Tensor, residual: Tensor, weight: Tensor, after: Sequence[ops.Matrix] = ()
    ) -> tuple[Factor, Tensor]:
        """The norm of x + residual, and the sum."""
        parts = self._parts(x, x.shape[1], after)
        if parts is None:
            normed, total = ops.rms_norm(x, weight, self.epsilon, residual=residual, backend=self.backend)
        else:
            normed, total = rms_norm_triton(x.contiguous(), weight, self.epsilon, residual.contiguous(), parts)
        return Factor(normed, parts), total

    def swiglu(self, gate_up: Tensor, after: ops.Matrix) -> Factor:
        parts = self._parts(gate_up, gate_up.shape[1] // 2, [after])
        if parts is None:
            return Factor(ops.swiglu(gate_up, activation=self.activation, backend=self.backend))
        return Factor(swiglu_triton(gate_up, self.activation, parts), parts)

    def attend(self, queries: Tensor, pages: Pages, scale: float, after: ops.Matrix) -> Factor:
        """(rows, heads · head_dim). With parts, ``pages`` must have passed the checks of `fastdecode.ops`."""
        parts = self._parts(queries, queries.shape[1] * queries.shape[2], [after])
        if parts is None:
            found = ops.attend(queries, *pages, scale, backend=self.backend)
        else:
            found = attend_triton(queries, pages, scale, parts)
        return Factor(found.flatten(1), parts)

    def _by_torch(self, x: Tensor, matrices: Sequence[ops.Matrix]) -> bool:
        return x.is_cuda and len(x) > FEW_ROWS and all(m.weight.data.dtype in HALVES for m in matrices)

    def _parts(self, x: Tensor, k: int, after: Sequence[ops.Matrix]) -> Any:
        """Where to write the parts of rows of k elements, as many as x has; None if they are not needed."""
        if not after or self._by_torch(x, after) or choose_step_backend(self.backend, x.device) != "triton":
            return None
        return parts_for(len(x), k, after, x.device)
