"""Which modules do just what their class says, so that their work may be done by other means."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def altered(module: Any) -> bool:
    """Whether calling ``module`` does something else than the ``forward`` of its class: hooks, or a replaced one."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def plain(module: Any, *classes: type[nn.Module]) -> bool:
    """Whether ``module`` is of one of ``classes`` itself, not of a subclass, and not `altered`."""
    return type(module) in classes and not altered(module)


def plain_linear(module: Any) -> bool:
    """Whether ``module`` is a `plain` linear layer, with weights that are tensors like any others."""
    return plain(module, nn.Linear) and type(module.weight) in (Tensor, nn.Parameter)


DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""What the C++ library reads, with its numbers for them."""


def plain_tensor(value: Any, device: str = "cpu") -> bool:
    """Whether a kernel can read ``value`` where it lies: dense, of `DTYPES`, on that kind of device, no subclass."""
    return (
        type(value) in (Tensor, nn.Parameter)
        and value.layout is torch.strided
        and value.dtype in DTYPES
        and value.device.type == device
        and value.is_contiguous()
        and not value.is_neg()
    )
