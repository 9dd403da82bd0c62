"""Whether a call is being traced: then it must become one operation of the graph, `torch.ops.fastdecode.…`.

An operation in `fastdecode.ops` asks `is_traced` first and, if so, calls `torch.ops.fastdecode` in place of a backend.
The graph runs that later; `fastdecode.ops.registration` then calls the function again, on `plain` tensors.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack


def is_traced(tensor: Any) -> TypeGuard[Tensor]:
    """Whether torch.compile, torch.jit.trace or a dispatch mode is active, or the tensor is a FakeTensor or similar.

    Then it must be a tensor: a graph has no other arrays.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or _len_torch_dispatch_stack() > 0
        or (type(tensor) is not Tensor and isinstance(tensor, Tensor) and not isinstance(tensor, torch.nn.Parameter))
    )


def plain(tensor: Tensor) -> Tensor:
    """The same tensor without its subclass, so that a call on it runs and is not traced again."""
    return tensor.as_subclass(Tensor)
