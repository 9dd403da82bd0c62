"""Weights in pages of 2 MB, from which the steps read them faster."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fastdecode.ops import SmallTensor
from fastdecode.ops.huge_pages import copied

_FIELDS = ("data", "scale", "offset")


def move_weights(parameters: Iterable[Any]) -> None:
    """Copy these parameters to huge pages, in place. Those that are not on the CPU stay where they are, and so do those
    that are not contiguous, and tensors of other libraries.
    """
    found = {id(parameter): parameter for parameter in parameters}  # a parameter may have two names
    owned = [(parameter, field) for parameter in found.values() for field in _fields(parameter)]
    for matrices in (True, False):  # apart: matrices may be made small later, and their memory must be free then
        some = [of for of in owned if (_value(*of).dim() == 2) is matrices]
        for number, value in copied(_value(*of) for of in some):
            parameter, field = some[number]
            if isinstance(parameter, SmallTensor):
                changed: dict[str, Any] = {field: value}
                parameter.small = replace(parameter.small, **changed)
            else:
                parameter.data = value


def _fields(parameter: Any) -> Iterable[str]:
    if parameter.device.type != "cpu":
        return ()
    if isinstance(parameter, SmallTensor):
        return [field for field in _FIELDS if getattr(parameter.small, field) is not None]
    return ("data",) if type(parameter) in (Tensor, nn.Parameter) and parameter.is_contiguous() else ()


@torch.no_grad()
def _value(parameter: Any, field: str) -> Tensor:
    value: Tensor = getattr(parameter.small if isinstance(parameter, SmallTensor) else parameter, field)
    return value
