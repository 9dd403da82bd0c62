"""Arrays that are no tensors: numpy's, and those of any library with DLPack, on the CPU.

Every operation takes them where it takes a tensor on the CPU, without a copy, and returns tensors.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

_DLPACK_CPU = 1


class SupportsDLPack(Protocol):
    """An array of a library with DLPack, as those of JAX, CuPy and Arrow. Tensors and numpy's arrays are some too."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, Any]: ...


Array = Tensor | np.ndarray[Any, Any] | SupportsDLPack
"""What an operation takes as a tensor."""


def is_array(value: object) -> bool:
    """Whether `as_tensor` can read it: a tensor, a numpy array, or an object with DLPack."""
    return hasattr(type(value), "__dlpack__")


def as_tensor(name: str, value: Any, written: bool = False) -> Tensor:
    """A tensor that shares the memory of an array; a tensor itself.

        value    a tensor, a numpy array, or an object with DLPack on the CPU
        written  whether the operation writes to it; then it must be a tensor or a numpy array that may be written

    Only a numpy array that torch cannot view is copied, which is one with a negative stride. ValueError naming the
    argument for anything else, and for a dtype that torch does not have.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return _from_numpy(name, value, written)
    if not is_array(value):
        raise ValueError(f"{name}: must be a tensor, got {type(value).__name__}")
    if written:
        raise ValueError(f"{name}: is written, so it must be a tensor or a numpy array, got {type(value).__name__}")
    try:
        device = int(value.__dlpack_device__()[0])
        if device == _DLPACK_CPU:
            return torch.from_dlpack(value)
    except (RuntimeError, BufferError, TypeError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{name}: DLPack cannot give torch this {type(value).__name__}: {first}") from error
    raise ValueError(
        f"{name}: this {type(value).__name__} is on a device of DLPack's type {device}; arrays must be on the CPU. "
        "Elsewhere give a tensor, as torch.from_dlpack makes it"
    )


def _from_numpy(name: str, array: np.ndarray[Any, Any], written: bool) -> Tensor:
    if isinstance(array, np.ma.MaskedArray):
        raise ValueError(f"{name}: is a masked array; must be a plain one, as .filled(value) makes it")
    if written and not array.flags.writeable:
        raise ValueError(f"{name}: is written, but this numpy array is read-only")
    if any(stride < 0 for stride in array.strides):
        if written:
            raise ValueError(f"{name}: is written, so its strides must not be negative, got {array.strides} bytes")
        array = array.copy()
    try:
        return torch.from_numpy(array if array.flags.writeable else np.asarray(_Readable(array)))
    except (TypeError, ValueError):  # the latter: strides that are no multiple of an element
        raise ValueError(
            f"{name}.dtype = {array.dtype}, strides {array.strides} bytes: torch has no such array"
        ) from None


class _Readable:
    """A read-only array as one that torch takes without a warning. It is only read, and lives as long as the view."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = array
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface
