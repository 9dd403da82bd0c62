"""Numbers and devices as arguments. Each check raises ValueError naming the argument and its value, `shown`."""

from __future__ import annotations

import operator
from typing import Any

import torch

LARGEST_FLOAT = torch.finfo(torch.float32).max
"""Of float32, in which the sampler computes."""


def shown(value: Any) -> str:
    """``repr`` of a wrong argument for an error, about 100 characters of it. Python prints no very long integers."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except ValueError:  # of such an integer inside
        return f"a {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:100]}…"


def whole_number(name: str, value: Any) -> int:
    """An integer, of Python or of numpy."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except (TypeError, RuntimeError):  # the latter: of a tensor on the meta device
        pass
    raise ValueError(f"{name} = {shown(value)}: must be a whole number")


def real_number(name: str, value: Any) -> float:
    """A number, of Python or of numpy, or a tensor of one element."""
    if isinstance(value, float):
        return value
    try:
        if not isinstance(value, (bool, str, bytes, bytearray)):
            return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        pass
    raise ValueError(f"{name} = {shown(value)}: must be a number")


def check_device(device: Any) -> torch.device:
    """A device of torch, or its name."""
    try:
        return torch.device(device)
    except (TypeError, RuntimeError):
        raise ValueError(f"device = {device!r}: must be a device of torch, such as 'cpu' or 'cuda:0'") from None
