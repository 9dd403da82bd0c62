"""Which modules compute exactly what their class defines, so that a kernel may replace them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def hooked(module: Any) -> bool:
    """Whether ``module`` has forward hooks."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def altered(module: Any) -> bool:
    """Whether ``module`` has hooks, or a ``forward`` that replaces that of its class."""
    return hooked(module) or "forward" in module.__dict__


def plain(module: Any, *classes: type[nn.Module]) -> bool:
    """Whether ``module`` is an instance of one of ``classes``, not of a subclass, and not `altered`."""
    return type(module) in classes and not altered(module)


def plain_linear(module: Any) -> bool:
    """Whether ``module`` is a `plain` linear layer whose weight is an ordinary tensor, not a subclass."""
    return plain(module, nn.Linear) and type(module.weight) in (Tensor, nn.Parameter)


DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The dtypes that the C++ library reads, with the numbers that it uses for them."""


def plain_tensor(value: Any, device: str = "cpu") -> bool:
    """Whether a kernel can read ``value`` in place: dense, of `DTYPES`, on this type of device, no tensor subclass."""
    return (
        type(value) in (Tensor, nn.Parameter)
        and value.layout is torch.strided
        and value.dtype in DTYPES
        and value.device.type == device
        and value.is_contiguous()
        and not value.is_neg()
    )
