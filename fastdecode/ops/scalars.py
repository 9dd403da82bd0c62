"""Numbers and devices as arguments. Each check raises ValueError naming the argument and its value."""

from __future__ import annotations

import operator
from typing import Any

import torch


def whole_number(name: str, value: Any) -> int:
    """An integer, of Python or of numpy."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except (TypeError, RuntimeError):  # the latter: of a tensor on the meta device
        pass
    raise ValueError(f"{name} = {value!r}: must be a whole number")


def real_number(name: str, value: Any) -> float:
    """A number, of Python or of numpy, or a tensor of one element."""
    if isinstance(value, float):
        return value
    try:
        if not isinstance(value, (bool, str, bytes, bytearray)):
            return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        pass
    raise ValueError(f"{name} = {value!r}: must be a number")


def check_device(device: Any) -> torch.device:
    """A device of torch, or its name."""
    try:
        return torch.device(device)
    except (TypeError, RuntimeError):
        raise ValueError(f"device = {device!r}: must be a device of torch, such as 'cpu' or 'cuda:0'") from None
