"""`linear` and `joint_linear`: check their arguments, choose a backend, call it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdecode.ops.arrays import Array
from fastdecode.ops.backends import choose_step_backend, record_backend
from fastdecode.ops.checks import BYTE_DTYPES, FLOAT_DTYPES, check_float_tensor, check_stored, check_tensor
from fastdecode.ops.int4_rows import Int4Rows
from fastdecode.ops.linear.cpu import linear_cpu
from fastdecode.ops.linear.matrix import Matrix
from fastdecode.ops.linear.reference import linear_reference
from fastdecode.ops.linear.triton import linear_triton
from fastdecode.ops.small_weights import SmallWeights
from fastdecode.ops.tracing import is_traced


def linear(
    x: Array,
    weight: Array | SmallWeights | Int4Rows,
    bias: Array | None = None,
    scale: Array | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """(x · weightᵀ) · scale + bias: (rows, features) float32, for few rows; no gradients.

        x        (rows, k) float32
        weight   (features, k) float32 | bfloat16 | float16 | int8 | float8_e4m3fn, dense; or `SmallWeights`,
                 or `Int4Rows`
        bias     (features,) float32. None: 0
        scale    (features,) float32: factor of weights of one byte (int8, float8_e4m3fn). None: 1. (panels, 16)
                 float32: ``weight`` is (panels, 16 · k) int8 in panels, as `SmallWeights` of int8x16 have it, of
                 16 · panels features
        backend  "reference" | "cpu" | "triton"; None picks by device. cpu has no float8; of `SmallWeights` triton has
                 int8 only, and of `Int4Rows` cpu has none

    Sums are float32. The cpu backend rounds x: with bfloat16 weights to bfloat16, where the processor can multiply
    bfloat16; with int8 and `SmallWeights` to int8, as `round_to_int8` does. The bits of a row's result do not depend on
    the other rows or the number of threads. The triton backend reads the weights once for every 16 rows, so torch is
    faster for many rows. Raises ValueError naming the argument.
    """
    if is_traced(x):
        if isinstance(weight, Int4Rows):
            raise ValueError("weight: a graph of torch cannot hold Int4Rows")
        if isinstance(weight, SmallWeights):
            return _in_graph(x, weight, bias, backend)
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


def _in_graph(x: Array, weight: SmallWeights, bias: Array | None, backend: str | None) -> Tensor:
    """`linear` as an operation of a graph, which holds tensors only."""
    run = torch.ops.fastdecode.linear
    if weight.type == "int8x16":
        whole: Tensor = run(x, weight.data, None, weight.scale, backend=backend)
        found = whole[:, weight.first : weight.first + len(weight)]
        if bias is None:
            return found
        assert isinstance(bias, Tensor)
        return found + bias
    if weight.type != "int8":
        raise ValueError(f"weight: a graph of torch cannot hold {weight.type} weights; only those of int8")
    product: Tensor = run(x, weight.data, bias, weight.scale, backend=backend)
    return product


def _checked(x: Tensor, weight: Array | SmallWeights | Int4Rows, bias: Array | None, scale: Array | None) -> Matrix:
    if isinstance(weight, Tensor) and isinstance(scale, Tensor) and scale.dim() == 2:
        weight, scale = SmallWeights("int8x16", x.shape[1], weight, scale), None
    features = _features(x, weight)
    if bias is not None:
        bias = check_tensor("bias", bias, (features,), torch.float32, x.device, "x")
    if isinstance(weight, SmallWeights | Int4Rows):
        if scale is not None:
            raise ValueError(f"scale: must be None for {type(weight).__name__}, which have theirs")
        if weight.data.device != x.device:
            raise ValueError(f"weight.device = {weight.data.device}: must be {x.device}, as for x")
        return Matrix(weight, bias)
    weight = check_stored("weight", weight, "features, k", x.device, "x", FLOAT_DTYPES.keys() | BYTE_DTYPES)
    if scale is not None:
        if weight.dtype not in BYTE_DTYPES:
            raise ValueError(f"scale: is for weights of int8 or float8_e4m3fn, not of {weight.dtype}")
        scale = check_tensor("scale", scale, (features,), torch.float32, x.device, "x")
    return Matrix(weight, bias, scale)


def _features(x: Tensor, weight: Array | SmallWeights | Int4Rows) -> int:
    """How many there are, for a weight that fits x."""
    if not isinstance(weight, SmallWeights | Int4Rows):
        weight = check_stored("weight", weight, "features, k", x.device, "x", FLOAT_DTYPES.keys() | BYTE_DTYPES)
    features, k = weight.shape
    if k != x.shape[1]:
        raise ValueError(f"weight.shape = {features, k}: must be (features, {x.shape[1]})")
    return int(features)


def _choose(backend: str | None, *matrices: Matrix) -> str:
    """The backend; where none is asked for, the reference for weights that the device's backend does not read."""
    device = matrices[0].weight.data.device
    chosen = choose_step_backend(backend, device)
    unread = next((name for name in (_unread(m.weight, chosen) for m in matrices) if name is not None), None)
    if unread is None or backend is None:
        return chosen if unread is None else "reference"
    other = "triton" if chosen == "cpu" else "cpu"
    raise ValueError(f"backend = {backend!r}: has no weights of {unread}; must be {other} or reference")


def _unread(weight: Tensor | SmallWeights | Int4Rows, backend: str) -> str | None:
    """What these weights are, if the backend does not read them."""
    if isinstance(weight, Int4Rows):
        return "int4 in rows" if backend == "cpu" else None
    if isinstance(weight, SmallWeights):
        return weight.type if backend == "triton" and weight.type != "int8" else None
    return "torch.float8_e4m3fn" if backend == "cpu" and weight.dtype == torch.float8_e4m3fn else None
