"""Tensors of 4 bits that torchao has made, as our own int4 weights.

``Int4Tensor`` (plain packing) holds signed half bytes, the even column of each pair in the low half, with scales and
zero points (groups, features): a weight is value · scale + zero point. ``IntxUnpackedToInt8Tensor`` holds a byte for
each value, with scales and zero points (features, groups): a weight is (value − zero point) · scale.

The order of values differs from our kernels', so that a copy is read. It is kept as long as the tensor lives, and made
anew when the tensor's values change.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from fastdecode import ops

_CLASSES = ("Int4Tensor", "IntxUnpackedToInt8Tensor")
_TYPES = tuple(f"torch.int{bits}" for bits in range(1, 5))

_copies = WeakTensorKeyDictionary()
"""By tensor of torchao: the versions of its parts, and the copy that was made of them."""


def of_int4(weight: Any) -> bool:
    """Whether ``weight`` is of a class that this file reads; `unsupported_int4` checks its contents."""
    return type(weight).__name__ in _CLASSES and type(weight).__module__.partition(".")[0] == "torchao"


def unsupported_int4(weight: Any) -> str | None:
    """Why our kernels cannot read this tensor that `of_int4` accepts; None if they can."""
    unpacked = type(weight).__name__ == _CLASSES[1]
    if unpacked and str(weight.target_dtype) not in _TYPES:
        return f"of {str(weight.target_dtype).removeprefix('torch.')}, not of 4 bits"
    parts = (weight.qdata, weight.scale, weight.zero_point)
    if any(part.device.type != "cpu" or part.dim() != 2 for part in parts):
        return "not dense on cpu"
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
    scale = weight.scale.float()
    if not torch.equal(scale.half().float(), scale):
        return "with scales that are no float16 numbers (give it scale_dtype=torch.float16, or bfloat16 weights)"
    return None


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
