"""Addresses of tensors, as the C library takes them."""

from __future__ import annotations

from torch import Tensor


def address(tensor: Tensor | None) -> int:
    """Of the tensor's first element; 0, C's null pointer, for None."""
    return 0 if tensor is None else tensor.data_ptr()
