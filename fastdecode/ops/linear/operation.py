"""`linear` and `joint_linear`: check their arguments, choose a backend, call it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdecode.ops.arrays import Array
from fastdecode.ops.backends import choose_step_backend, record_backend
from fastdecode.ops.checks import BYTE_DTYPES, FLOAT_DTYPES, check_float_tensor, check_stored, check_tensor
from fastdecode.ops.linear.cpu import linear_cpu
from fastdecode.ops.linear.matrix import Matrix
from fastdecode.ops.linear.reference import linear_reference
from fastdecode.ops.linear.triton import linear_triton
from fastdecode.ops.tracing import is_traced


def linear(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    scale: Array | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """(x · weightᵀ) · scale + bias: (rows, features) float32, for few rows; no gradients.

        x        (rows, k) float32
        weight   (features, k) float32 | bfloat16 | float16 | int8 | float8_e4m3fn, dense
        bias     (features,) float32. None: 0
        scale    (features,) float32: factor of weights of one byte (int8, float8_e4m3fn). None: 1
        backend  "reference" | "cpu" | "triton"; None picks by device. cpu has no weights of one byte

    Sums are float32. With bfloat16 weights the cpu backend rounds x to bfloat16 where the processor can multiply
    bfloat16. The bits of a row's result do not depend on the other rows or the number of threads. The triton backend
    reads the weights once for every 16 rows, so torch is faster for many rows. Raises ValueError naming the argument.
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
    return linear_cpu(x, matrix)


def joint_linear(x: Array, matrices: Sequence[Matrix], *, backend: str | None = None) -> Tensor:
    """`linear` of ``x`` with each matrix, the results side by side: (rows, sum of all features) float32.

    The triton backend multiplies up to three matrices in one launch if they follow each other, have one dtype, and all
    or none have a scale, and likewise a bias. Raises ValueError naming the argument.
    """
    _check_list(matrices)
    if is_traced(x) or len(matrices) == 1:
        parts = [linear(x, *matrix, backend=backend) for matrix in matrices]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    x = check_float_tensor("x", x, "rows, k")
    matrices = [_checked(x, *matrix) for matrix in matrices]
    if _choose(backend, *matrices) != "triton":
        return torch.cat([linear(x, *matrix, backend=backend) for matrix in matrices], 1)
    record_backend("triton")
    return linear_triton(x, matrices)


def _check_list(matrices: Sequence[Matrix]) -> None:
    if isinstance(matrices, Matrix) or not isinstance(matrices, Sequence) or len(matrices) == 0:
        raise ValueError(
            f"matrices: must be a sequence of at least one Matrix, got {type(matrices).__name__}"
            + (" of none" if isinstance(matrices, Sequence) and len(matrices) == 0 else "")
        )
    for number, matrix in enumerate(matrices):
        if not isinstance(matrix, Matrix):
            raise ValueError(f"matrices[{number}]: must be a Matrix, got {type(matrix).__name__}")


def _checked(x: Tensor, weight: Array, bias: Array | None, scale: Array | None) -> Matrix:
    weight = check_stored("weight", weight, "features, k", x.device, "x", FLOAT_DTYPES.keys() | BYTE_DTYPES)
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
