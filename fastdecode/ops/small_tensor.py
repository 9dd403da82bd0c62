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
    makes an ordinary tensor, except a copy or a move to another device or dtype. It cannot be saved: save the
    checkpoint that it was made from.
    """

    small: SmallWeights

    @staticmethod
    def __new__(cls, small: SmallWeights, dtype: torch.dtype = torch.float32) -> SmallTensor:
        made: SmallTensor = Tensor._make_wrapper_subclass(cls, small.shape, dtype=dtype, device=small.data.device)
        made.small = small
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"SmallTensor({self.small.type}, {tuple(self.shape)}, {self.dtype}, device='{self.device}')"

    def _refuse(self) -> Any:
        raise ValueError(
            f"weights of {self.small.type} cannot be saved, nor shared with other processes: save the checkpoint that "
            "they were made from, and make them small again after loading it"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._refuse()

    def untyped_storage(self) -> Any:
        """``ValueError``: what saves tensors asks for it."""
        return self._refuse()

    storage = untyped_storage  # safetensors asks for it where there is no other

    def values(self) -> Tensor:
        """The weights as an ordinary tensor of the dtype."""
        return self.small.values().to(self.dtype)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.linear and isinstance(kwargs.get("weight", args[1] if len(args) > 1 else None), SmallTensor):
            return _linear(*args, **kwargs)
        if function is F.embedding and len(args) > 1 and isinstance(args[1], SmallTensor):
            return _embedding(*args, **kwargs)
        return super().__torch_function__(function, types, args, kwargs)

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
        args, kwargs = pytree.tree_map(_unpacked, (args, kwargs))
        return func(*args, **kwargs)


def _unpacked(value: Any) -> Any:
    return value.values() if isinstance(value, SmallTensor) else value


def _linear(x: Tensor, weight: SmallTensor, bias: Tensor | None = None) -> Tensor:
    flat = x.detach().reshape(-1, x.shape[-1]).float()
    out = linear(flat, weight.small, None if bias is None else bias.detach().float())
    return out.view(*x.shape[:-1], len(weight.small)).to(x.dtype)


def _embedding(tokens: Tensor, weight: SmallTensor, *rest: Any, **options: Any) -> Tensor:
    flat = embed(tokens.reshape(-1).long(), weight.small)
    return flat.view(*tokens.shape, weight.shape[1]).to(weight.dtype)
