"""Addresses of tensors, as the C library takes them."""

from __future__ import annotations

from torch import Tensor

from fastdecode.ops.checks import FLOAT_DTYPES
from fastdecode.ops.small_weights import SMALL_TYPES, SmallWeights


def address(tensor: Tensor | None) -> int:
    """Of the tensor's first element; 0, C's null pointer, for None."""
    return 0 if tensor is None else tensor.data_ptr()


def stored(weight: Tensor | SmallWeights) -> tuple[int, int, int, int, int, int]:
    """The address of the weights, and the fields of ``fastdecode_weights``: type, group, scale, offset and first."""
    if isinstance(weight, SmallWeights):
        number = SMALL_TYPES[weight.type].number
        parts = address(weight.scale), address(weight.offset)
        return weight.data.data_ptr(), number, weight.group, *parts, weight.first
    return weight.data_ptr(), FLOAT_DTYPES[weight.dtype], 0, 0, 0, 0
