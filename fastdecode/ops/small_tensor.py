"""`SmallWeights` as the weight of a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from fastdecode.ops.embed import embed
from fastdecode.ops.linear import linear
from fastdecode.ops.small_weights import SmallWeights

_aten = torch.ops.aten


class SmallTensor(Tensor):
    """A matrix of small weights in the place of a module's weight, as a tensor of ``dtype``; no gradients.

    `F.linear` and `F.embedding` on it run our kernels. Any other operation runs on its values in ``dtype``, and so
    makes an ordinary tensor, except a copy or a move to another device or dtype. It cannot be changed in place
    (``ValueError``), nor saved: save the checkpoint that it was made from.
    """

    small: SmallWeights

    @staticmethod
    def __new__(cls, small: SmallWeights, dtype: torch.dtype = torch.float32) -> SmallTensor:
        if not dtype.is_floating_point:
            raise ValueError(f"dtype = {dtype}: must be a floating-point dtype")
        made: SmallTensor = Tensor._make_wrapper_subclass(cls, small.shape, dtype=dtype, device=small.data.device)
        made.small = small
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"SmallTensor({_width(self)}, {tuple(self.shape)}, {self.dtype}, device='{self.device}')"

    def _refuse(self) -> Any:
        raise ValueError(
            f"weights of {_width(self)} cannot be saved, nor shared with other processes: save the checkpoint that "
            "they were made from, and make them small again after loading it"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._refuse()

    def untyped_storage(self) -> Any:
        """``ValueError``: what saves tensors asks for it."""
        return self._refuse()

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(
            f"weights of {_width(self)} cannot be given to other libraries, which would read other numbers: give them "
            "values()"
        )

    storage = untyped_storage  # safetensors asks for it where there is no other

    def values(self) -> Tensor:
        """The weights as an ordinary tensor of the dtype."""
        return self.small.values().to(self.dtype)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.linear and isinstance(_second(args, kwargs), SmallTensor):
            return _linear(*args, **kwargs)
        if function is F.embedding and isinstance(_second(args, kwargs), SmallTensor):
            return _embedding(*args, **kwargs)
        if function is Tensor.__setitem__ and isinstance(args[0], SmallTensor):
            raise ValueError(
                f"weights of {_width(args[0])} cannot be changed in place, as an assignment to items would"
            )
        with torch._C.DisableTorchFunctionSubclass():  # results are no SmallTensors, but for those made below
            return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, SmallTensor):
            if func is _aten.detach.default:
                return SmallTensor(first.small, first.dtype)
            if func is _aten.clone.default:
                return SmallTensor(first.small.to(first.device, copy=True), first.dtype)
            if func is _aten._to_copy.default:
                dtype = kwargs.get("dtype") or first.dtype
                device = kwargs.get("device") or first.device
                if dtype.is_floating_point:
                    return SmallTensor(first.small.to(device, copy=True), dtype)
        for changed in _changed(func, args, kwargs):
            if isinstance(changed, SmallTensor):
                raise ValueError(f"weights of {_width(changed)} cannot be changed in place, as {func} would")
        args, kwargs = pytree.tree_map(_unpacked, (args, kwargs))
        return func(*args, **kwargs)


def _width(weight: SmallTensor) -> str:
    """What messages call it, however it lies."""
    return weight.small.type.removesuffix("x16")


def _second(args: Any, kwargs: dict[str, Any]) -> Any:
    """The weight of `F.linear` and `F.embedding`."""
    return args[1] if len(args) > 1 else kwargs.get("weight")


def _changed(func: Any, args: Any, kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operation writes to."""
    if not func._schema.is_mutable:
        return []
    given = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    return pytree.tree_leaves([given.get(a.name) for a in func._schema.arguments if a.is_write])


def _unpacked(value: Any) -> Any:
    return value.values() if isinstance(value, SmallTensor) else value


def _linear(input: Tensor, weight: SmallTensor, bias: Tensor | None = None) -> Tensor:
    x = _unpacked(input).detach()
    out = linear(x.reshape(-1, x.shape[-1]).float(), weight.small, None if bias is None else bias.detach().float())
    return out.reshape(*x.shape[:-1], len(weight.small)).to(x.dtype)


def _embedding(
    input: Tensor,
    weight: SmallTensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    *of_gradients: Any,
    **more_of_gradients: Any,
) -> Tensor:
    if max_norm is not None:
        raise ValueError(f"max_norm = {max_norm}: must be None for weights of {_width(weight)}, which never change")
    flat = embed(input.reshape(-1).long(), weight.small)
    return flat.view(*input.shape, weight.shape[1]).to(weight.dtype)
