"""A model's weights in 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fastdecode import ops
from fastdecode.decoder.family import family_of
from fastdecode.decoder.plain import plain

WIDTHS = ("int8", "int4")


def quantise(model: Any, weights: str, *, group: int = 32, symmetric: bool = True) -> Any:
    """Make the weights of a model small, in place, and return it.

        model      one that `generate` takes, on the CPU, with ordinary weights
        weights    "int8" (one scale for each feature) or "int4"
        group      of int4: the weights that share a scale, 32 or a multiple of 64
        symmetric  of int4: False gives each group an offset too, which takes 4 bytes more a group

    The linear layers of the language model, its head and its embeddings are made small; norms, biases and pictures'
    encoder and decoder stay as they are. The C++ step reads the weights as they lie, and rounds its inputs to int8
    (`fastdecode.ops.round_to_int8`). A head that shares its weights with the embeddings shares them afterwards. To load
    a checkpoint that does not fit into memory before, use ``fastdecode.load(…, weights=…)``.

    ``ValueError`` or ``TypeError``, before anything is changed, for another kind of model or weights.
    """
    if weights not in WIDTHS:
        raise ValueError(f"weights={weights!r}: give {' or '.join(map(repr, WIDTHS))}")
    family_of(model)
    places = list(modules_to_shrink(model))
    for name, module in places:
        _check(name, module, weights)
    head, embed = model.lm_head, model.model.embed_tokens
    tied = head.weight is embed.weight
    for _, module in places:
        if module is head and tied:
            head.weight = embed.weight
            continue
        small = ops.quantise(module.weight.detach(), weights, group=group, symmetric=symmetric)
        module.weight = nn.Parameter(ops.SmallTensor(small, module.weight.dtype), requires_grad=False)
    return model


def modules_to_shrink(model: Any) -> Iterator[tuple[str, Any]]:
    """Name and module of each linear layer of the language model's layers, of the head and of the embeddings."""
    yield "model.embed_tokens", model.model.embed_tokens
    for name, module in model.model.layers.named_modules():
        if isinstance(module, nn.Linear):
            yield f"model.layers.{name}", module
    yield "lm_head", model.lm_head


def _check(name: str, module: Any, weights: str) -> None:
    if not plain(module, nn.Linear, nn.Embedding):
        raise ValueError(
            f"{name} is a {type(module).__name__} with hooks or a forward of its own: quantise before that"
        )
    weight = module.weight
    if type(weight) not in (torch.Tensor, nn.Parameter):
        raise ValueError(f"{name}.weight is a {type(weight).__name__} already")
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        its = f"{str(weight.dtype).removeprefix('torch.')} on {weight.device}"
        raise ValueError(f"{name}.weight is {its}: it must be float32, bfloat16 or float16 on the CPU")
    if weights == "int4" and weight.shape[1] % 32:
        raise ValueError(f"{name}.weight has {weight.shape[1]} columns: int4 takes a multiple of 32; use int8")
