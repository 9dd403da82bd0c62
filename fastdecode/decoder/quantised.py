"""Matrices for our kernels: ordinary weights, small weights of our own, or weights that torchao has made small.

torchao's weight-only int8 and float8 tensors store a byte for each weight in ``qdata`` and a factor for each feature in
``scale``. The kernels read both in place. `torchao_int4` has those of 4 bits, which only a GPU's kernels read in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdecode import ops
from fastdecode.decoder.torchao_int4 import int4_of, of_int4, rows_of, unsupported_in_place, unsupported_int4
from fastdecode.ops.checks import BYTE_DTYPES

_CLASSES = ("Int8Tensor", "Float8Tensor")


def of_torchao(weight: Any) -> bool:
    """Whether ``weight`` is an int8 or float8 tensor of torchao; `unsupported_bytes` checks its contents."""
    return type(weight).__name__ in _CLASSES and type(weight).__module__.partition(".")[0] == "torchao"


def unsupported_bytes(weight: Any, device: str) -> str | None:
    """Why our kernels cannot read this tensor of torchao; None if they can."""
    if not of_torchao(weight):
        return "not of int8 or float8_e4m3fn"
    data, scale = weight.qdata, weight.scale
    zero = getattr(weight, "zero_point", None)
    if data.dtype not in BYTE_DTYPES:
        return f"of {str(data.dtype).removeprefix('torch.')}, not int8 or float8_e4m3fn"
    if data.device.type != device or data.dim() != 2 or not data.is_contiguous():
        return f"not dense on {device}"
    if list(weight.block_size) != [1, data.shape[1]] or scale.numel() != data.shape[0]:
        return f"of blocks of {tuple(weight.block_size)} weights, not with one scale for each feature"
    if any(getattr(weight, name, None) is not None for name in ("act_quant_kwargs", "act_pre_scale")):
        return "with activations made smaller too, which is not weight-only"
    if zero is not None and bool(zero.any()):
        return "with zero points"
    return None


def of_small(weight: Any) -> bool:
    """Whether ``weight`` is a `SmallTensor`, or one of torchao: `unsupported_small` checks its contents."""
    return type(weight) is ops.SmallTensor or of_torchao(weight) or of_int4(weight)


def small_of(weight: Any) -> ops.SmallWeights:
    """The small weights of a tensor that `of_small` accepts and `unsupported_small` finds nothing wrong with."""
    if isinstance(weight, ops.SmallTensor):
        return weight.small
    if of_int4(weight):
        return int4_of(weight)
    scale = weight.scale.detach().float().reshape(-1).contiguous()
    return ops.SmallWeights("int8", weight.qdata.shape[1], weight.qdata, scale)


def unsupported_small(weight: Any) -> str | None:
    """Why the CPU kernels cannot read this tensor that `of_small` accepts; None if they can."""
    if isinstance(weight, ops.SmallTensor):
        return None if weight.device.type == "cpu" else f"on {weight.device}"
    if of_int4(weight):
        return unsupported_int4(weight)
    if weight.qdata.dtype != torch.int8:
        return f"of {str(weight.qdata.dtype).removeprefix('torch.')}, not int8"
    return unsupported_bytes(weight, "cpu")


def unsupported_stored(weight: Any, device: str) -> str | None:
    """Why `matrix_of` cannot give this tensor that `of_small` accepts to a GPU's kernels; None if it can."""
    if isinstance(weight, ops.SmallTensor):
        kind = weight.small.type.removesuffix("x16")
        return f"of {kind} on {weight.device}: fastdecode's own small weights are for CPUs"
    return unsupported_in_place(weight, device) if of_int4(weight) else unsupported_bytes(weight, device)


def matrix_of(module: Any) -> ops.Matrix:
    """A linear module's weight and scales as they lie, but for a scale of bytes that is not float32, and a copy of its
    bias. For weights that a GPU's kernels read.
    """
    bias: Tensor | None = (
        None if module.bias is None else module.bias.detach().to(torch.float32, copy=True).contiguous()
    )
    if isinstance(module.weight, ops.SmallTensor):
        return ops.Matrix(module.weight.small, bias)
    if of_int4(module.weight):
        return ops.Matrix(rows_of(module.weight), bias)
    if not of_torchao(module.weight):
        return ops.Matrix(module.weight.detach(), bias)
    return ops.Matrix(module.weight.qdata, bias, module.weight.scale.detach().float().reshape(-1).contiguous())
