"""Tensors of 4 bits that torchao has made, as our own int4 weights.

``Int4Tensor`` (plain packing) holds signed half bytes, the even column of each pair in the low half, with scales and
zero points (groups, features): a weight is value · scale + zero point. ``IntxUnpackedToInt8Tensor`` holds a byte for
each value, with scales and zero points (features, groups): a weight is (value − zero point) · scale.

A GPU's kernels read an ``Int4Tensor`` as it lies. The CPU's kernels have another order of values, and read a copy.
It is kept as long as the tensor lives, and made anew when the tensor's values change.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from fastdecode import ops
from fastdecode.ops.checks import FLOAT_DTYPES

_CLASSES = ("Int4Tensor", "IntxUnpackedToInt8Tensor")
_TYPES = tuple(f"torch.int{bits}" for bits in range(1, 5))

_copies = WeakTensorKeyDictionary()
"""By tensor of torchao: the versions of its parts, and the copy that was made of them."""


def of_int4(weight: Any) -> bool:
    """Whether ``weight`` is of a class that this file reads; `unsupported_int4` checks its contents."""
    return type(weight).__name__ in _CLASSES and type(weight).__module__.partition(".")[0] == "torchao"


def unsupported_int4(weight: Any) -> str | None:
    """Why `int4_of` cannot read this tensor that `of_int4` accepts; None if it can."""
    reason = _unsupported(weight, "cpu")
    if reason is not None:
        return reason
    scale = weight.scale.float()
    if not torch.equal(scale.half().float(), scale):
        return "with scales that are no float16 numbers (give it scale_dtype=torch.float16, or bfloat16 weights)"
    return None


def unsupported_in_place(weight: Any, device: str) -> str | None:
    """Why `rows_of` cannot read this tensor that `of_int4` accepts; None if it can."""
    if type(weight).__name__ != _CLASSES[0]:
        return f"with a byte for each value: on a GPU {_CLASSES[0]} is read, whose bytes hold two"
    reason = _unsupported(weight, device)
    if reason is not None:
        return reason
    data, scale, zero = weight.qdata, weight.scale, weight.zero_point
    if not (data.is_contiguous() and scale.is_contiguous() and zero.is_contiguous()):
        return f"not dense on {device}"
    if scale.dtype != zero.dtype or scale.dtype not in FLOAT_DTYPES:
        its = " and ".join(str(part.dtype).removeprefix("torch.") for part in (scale, zero))
        return f"with scales and zero points of {its}, not both of float32, bfloat16 or float16"
    odd = data.data_ptr() % 2 or data.storage_offset() % 2
    return "that begins at an odd address" if odd else None


def _unsupported(weight: Any, device: str) -> str | None:
    """What is wrong with it for all kernels."""
    unpacked = type(weight).__name__ == _CLASSES[1]
    if unpacked and str(weight.target_dtype) not in _TYPES:
        return f"of {str(weight.target_dtype).removeprefix('torch.')}, not of 4 bits"
    parts = (weight.qdata, weight.scale, weight.zero_point)
    if any(part.device.type != device or part.dim() != 2 for part in parts):
        return f"not dense on {device}"
    if (
        getattr(weight, "activation_quantization", None) is not None
        or getattr(weight, "act_pre_scale", None) is not None
        or getattr(weight, "activation_dtype", torch.bfloat16) != torch.bfloat16
    ):
        return "with activations made smaller too, which is not weight-only"
    features, k = weight.shape
    block = tuple(weight.block_size)
    if block[0] != 1 or (block[1] != 32 and (block[1] < 64 or block[1] % 64)) or k % 32:
        return f"of blocks of {block} weights in rows of {k}: groups of 32 or a multiple of 64 are read"
    groups = -(-k // block[1])
    shape = (features, groups) if unpacked else (groups, features)
    if tuple(weight.scale.shape) != shape or tuple(weight.zero_point.shape) != shape:
        return f"with scales of {tuple(weight.scale.shape)}, not {shape}"
    return None


def rows_of(weight: Any) -> ops.Int4Rows:
    """An ``Int4Tensor`` as it lies, if `unsupported_in_place` finds nothing wrong with it."""
    return ops.Int4Rows(weight.qdata, weight.scale, weight.zero_point, weight.block_size[1])


def int4_of(weight: Any) -> ops.SmallWeights:
    """A copy of a tensor that `unsupported_int4` finds nothing wrong with."""
    versions = tuple((part.data_ptr(), part._version) for part in (weight.qdata, weight.scale, weight.zero_point))
    known = _copies.get(weight)
    if known is None or known[0] != versions:
        known = versions, _copied(weight)
        _copies[weight] = known
    small: ops.SmallWeights = known[1]
    return small


@torch.no_grad()
def _copied(weight: Any) -> ops.SmallWeights:
    features, k = weight.shape
    scale, zero = weight.scale.float(), weight.zero_point.float()
    if type(weight).__name__ == _CLASSES[0]:
        packed = weight.qdata.view(torch.uint8) ^ 0x88  # half bytes from 0 to 15
        values = torch.stack((packed & 15, packed >> 4), -1).view(features, k)
        scale, offset = scale.t().contiguous(), zero.t().contiguous()
    else:
        values = (weight.qdata + 8).view(torch.uint8)
        offset = -zero * scale
    some: Tensor | None = offset.contiguous() if bool(offset.any()) else None
    return ops.small_weights.int4_weights(values, scale.half(), some, weight.block_size[1])
