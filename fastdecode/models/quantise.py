"""A model's weights in 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastdecode import ops
from fastdecode.decoder.classes import EMBEDDINGS, classes_of, inner_of
from fastdecode.decoder.plain import plain
from fastdecode.models.move_weights import move_weights

WIDTHS = ("int8", "int4")
_LARGEST = 7.5 * 65504.0
"""Weights of int4 have scales of at most their range / 15 in float16."""


@dataclass(frozen=True)
class Width:
    """``type``, ``group`` and ``symmetric`` as `fastdecode.ops.quantise` takes them. ``ValueError`` says what is wrong.

    ``int8`` has one scale for each feature, so that its ``group`` and ``symmetric`` stay as they are here.
    """

    type: str
    group: int = 32
    symmetric: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.type, str) or self.type not in WIDTHS:
            raise ValueError(f"weights={self.type!r}: give {' or '.join(map(repr, WIDTHS))}")
        group = self.group
        if isinstance(group, bool) or not isinstance(group, int) or (group != 32 and (group < 64 or group % 64)):
            raise ValueError(f"group={group!r}: give 32 or a multiple of 64")
        if not isinstance(self.symmetric, bool):
            raise ValueError(f"symmetric={self.symmetric!r}: give True or False")
        if self.type == "int8" and (group != 32 or not self.symmetric):
            raise ValueError("group and symmetric are for int4: int8 has one scale for each feature and no offset")

    @classmethod
    def of(cls, weights: Any) -> Width:
        """From "int8", "int4", or a dict of ``type``, ``group`` and ``symmetric``."""
        if not isinstance(weights, Mapping):
            return cls(weights)
        unknown = sorted(map(str, set(weights) - {"type", "group", "symmetric"}))
        if unknown or "type" not in weights:
            raise ValueError(f"weights={dict(weights)!r}: a dict gives type, and for int4 group and symmetric too")
        return cls(**weights)

    def _stored(self, k: int) -> str:
        """The type of small weights with k columns: in panels, where there are any."""
        return "int8x16" if self.type == "int8" and k % 32 == 0 else self.type

    def bytes_of(self, features: int, k: int) -> int:
        """The memory of a matrix of this width."""
        panel = ops.small_weights.SMALL_TYPES[self._stored(k)].panel
        stored = -(-features // panel) * panel
        if self.type == "int8":
            return stored * (k + 4)
        return stored * (k // 2 + -(-k // self.group) * (2 if self.symmetric else 6))

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """``ValueError`` unless a matrix (features, k) can have this width."""
        if self.type == "int4" and shape[1] % 32:
            raise ValueError(f"{name} has {shape[1]} columns: int4 takes a multiple of 32; use int8")
        if self.type == "int4" and shape[1] % self.group:
            raise ValueError(
                f"{name} has {shape[1]} columns, which groups of {self.group} do not divide: give group=32"
            )

    def check_values(self, name: str, weight: Tensor) -> None:
        """``ValueError`` if the matrix has infinity, NaN, or values beyond the scales of its width."""
        if not weight.numel():
            return
        low, high = (float(most) for most in weight.aminmax())
        if not (abs(low) < float("inf") and abs(high) < float("inf")):  # also for NaN
            raise ValueError(f"{name} cannot be made {self.type}: it has infinity or NaN")
        if self.type == "int4" and max(-low, high) > _LARGEST:
            raise ValueError(f"{name} cannot be made int4: it has weights beyond {_LARGEST:g}")

    def made(self, name: str, weight: Tensor) -> nn.Parameter:
        """A parameter of the matrix in this width. ``name`` is for errors."""
        self.check(name, tuple(weight.shape))
        self.check_values(name, weight)
        small = ops.quantise(weight, self._stored(weight.shape[1]), group=self.group, symmetric=self.symmetric)
        return small_parameter(small, weight.dtype)


def small_parameter(small: ops.SmallWeights, dtype: torch.dtype) -> nn.Parameter:
    """Small weights as the weight of a module of ``dtype``."""
    return nn.Parameter(ops.SmallTensor(small, dtype), requires_grad=False)


def quantise(model: Any, weights: str, *, group: int = 32, symmetric: bool = True) -> Any:
    """Make the weights of a model small, in place, and return it.

        model      one that `generate` takes, on the CPU, with ordinary weights
        weights    "int8" (one scale for each feature) or "int4"
        group      of int4: the weights that share a scale, 32 or a multiple of 64, which divides the columns of every
                   matrix
        symmetric  of int4: False gives each group an offset too, which takes 4 bytes more a group

    The linear layers of the language model, its head and its embeddings are made small; norms, biases and pictures'
    encoder and decoder stay as they are. The C++ step reads the weights as they lie, and rounds its inputs to int8
    (`fastdecode.ops.round_to_int8`). A head that shares its weights with the embeddings shares them afterwards. To load
    a checkpoint that does not fit into memory before, use ``fastdecode.load(…, weights=…)``.

    ``ValueError`` or ``TypeError``, before anything is changed, for another kind of model or weights.
    """
    width = Width(weights, group, symmetric)
    classes_of(model)
    places = list(modules_to_shrink(model))
    for name, module in places:
        _check(f"{name}.weight", module, width)
    shrink(model, places, width)
    move_weights(module.weight for _, module in places)
    return model


def shrink(model: Any, places: Iterable[tuple[str, Any]], width: Width) -> None:
    """Make the weights of these modules small. A head that shares the embeddings' weight shares it afterwards."""
    head, embed = model.lm_head, inner_of(model).embed_tokens
    tied = head.weight is embed.weight
    for name, module in places:
        if not (module is head and tied):
            module.weight = width.made(f"{name}.weight", module.weight.detach())
    if tied:
        head.weight = embed.weight


def modules_to_shrink(model: Any) -> Iterator[tuple[str, Any]]:
    """Name and module of each linear layer of the language model's layers, of the head and of the embeddings."""
    yield f"{_path(model)}.embed_tokens", inner_of(model).embed_tokens
    yield from linears_of(model)
    yield "lm_head", model.lm_head


def linears_of(model: Any) -> Iterator[tuple[str, Any]]:
    """Name and module of each linear layer of the language model's layers."""
    for name, module in inner_of(model).layers.named_modules():
        if isinstance(module, nn.Linear):
            yield f"{_path(model)}.layers.{name}", module


def _path(model: Any) -> str:
    """The name of the language model within ``model``."""
    return ".".join(classes_of(model).path)


def _check(name: str, module: Any, width: Width) -> None:
    if not plain(module, nn.Linear, *EMBEDDINGS):
        kind = type(module).__name__
        raise ValueError(f"{name} is of a {kind} with hooks or a forward of its own: quantise before that")
    weight = module.weight
    if type(weight) not in (torch.Tensor, nn.Parameter):
        raise ValueError(f"{name} is a {type(weight).__name__} already: quantise the checkpoint's own weights")
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        its = f"{str(weight.dtype).removeprefix('torch.')} on {weight.device}"
        raise ValueError(f"{name} is {its}: it must be float32, bfloat16 or float16 on the CPU")
    width.check(name, tuple(weight.shape))
    width.check_values(name, weight.detach())
