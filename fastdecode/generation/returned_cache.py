"""The cache that ``return_dict_in_generate=True`` returns, as transformers' own loop does."""

from __future__ import annotations

import inspect
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.generation import GenerateDecoderOnlyOutput

from fastdecode.decoder.own_tokens import OwnParts
from fastdecode.decoder.vectors import embedded
from fastdecode.generation.prepared import Prepared

_FIELDS = {field.name for field in fields(GenerateDecoderOnlyOutput)}
FIELD = "cache" if "cache" in _FIELDS else "past_key_values"
"""What this version of transformers calls a cache, in a model's forward and in outputs."""


def wanted(call: Prepared) -> bool:
    """Whether the result of ``call`` has a cache: text with return_dict_in_generate, unless use_cache is False or there
    is a kv_pool, which bounds the memory of keys and values.
    """
    config = call.config
    drawn = call.grammar.draws or call.told_sizes is not None
    return bool(config.return_dict_in_generate and config.use_cache and not drawn and call.pool is None)


@torch.no_grad()
def returned_cache(call: Prepared, sequences: Tensor) -> Any:
    """The keys and values of ``sequences`` (batch, length) int64 but for the last token, by one call of the model's own
    forward. As in transformers, padding before a prompt is masked and padding after an end is not. Vectors of pictures,
    and image tokens with embeddings of their own, which that forward does not take, are given to it as embeddings.
    """
    ids = sequences[:, :-1].clone()
    width = call.prompts.shape[1]
    mask = torch.ones_like(ids)
    if call.mask is not None:
        mask[:, :width] = call.mask.to(mask)[:, : ids.shape[1]]
    for row, kept, s in zip(ids, mask, call.sequences, strict=True):  # pictures in place of their placeholders
        row[:width][kept[:width] != 0] = torch.tensor(s.tokens[: s.prompt_length], device=ids.device)
    model = call.model
    options: dict[str, Any] = {"use_cache": True}
    accepted = inspect.signature(model.forward).parameters
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = 1
    if call.mask is not None:
        options["attention_mask"] = mask
        options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    own, embed = OwnParts.of(model), model.get_input_embeddings()
    if not (ids < 0).any() and (own is None or not (ids >= own.first).any()):
        return model(input_ids=ids, **options)[FIELD]
    if own is not None:
        embed = partial(own.embeddings, of_text=embed, product=lambda module, x: module(x))
    vectors = {number: vector for s in call.sequences for number, vector in s.vectors.items()}
    return model(inputs_embeds=embedded(ids, vectors, embed), **options)[FIELD]
