"""Checks of the kinds and ranges of a call's options, before transformers reads them.

transformers ignores some wrong values without a word, and fails on others deep inside. What it honours passes here.
None always means "not given".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from fastdecode.generation.token_options import check_token_options
from fastdecode.grammar import MODES
from fastdecode.guidance import Guidance, guidance_from
from fastdecode.kv.page_pool import PagePool
from fastdecode.models.families import supported, token_count
from fastdecode.models.image_sizes import check_image_size
from fastdecode.ops.scalars import LARGEST_FLOAT, shown
from fastdecode.wording import kind_of

WHOLE: dict[str, int] = {
    "max_new_tokens": 1,
    "max_length": 1,
    "num_return_sequences": 1,
    "num_beams": 1,
    "min_new_tokens": 0,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "top_k": 0,
}
"""Options that are whole numbers, with the smallest allowed value."""

PLAIN_INTEGERS = ("min_new_tokens", "min_length", "no_repeat_ngram_size", "top_k")
"""Of these, those for which transformers accepts a Python int only."""

NUMBERS: dict[str, tuple[float, float]] = {
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "top_h": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "epsilon_cutoff": (0.0, 1.0),
    "eta_cutoff": (0.0, 1.0),
    "repetition_penalty": (math.ulp(0.0), LARGEST_FLOAT),
    "guidance_scale": (-LARGEST_FLOAT, LARGEST_FLOAT),
    "max_time": (-LARGEST_FLOAT, LARGEST_FLOAT),
}
"""Options that are numbers, with their smallest and largest value."""

SWITCHES = (
    *("do_sample", "use_cache", "return_dict_in_generate", "output_scores", "output_logits"),
    *("output_attentions", "output_hidden_states", "renormalize_logits", "remove_invalid_values"),
)
STRICT_SWITCHES = ("renormalize_logits", "remove_invalid_values")
"""Of these, those for which transformers reads 1 as False."""


def check_call(model: Any, inputs: Any, options: Mapping[str, Any]) -> None:
    """``ValueError`` that names the first option of transformers' `generate` whose kind or value is wrong.

    ``inputs``: the prompt, if it was given by position. ``options``: the other arguments, with generation_config. They
    go before its entries, and those before the entries of the model's own config.
    """
    config = options.get("generation_config")
    if config is not None and not isinstance(config, GenerationConfig):
        raise ValueError(
            f"generation_config is {kind_of(config)}: give a transformers.GenerationConfig, or its entries as "
            "arguments of the call"
        )
    _check_model_has_weights(model)
    for name, value in (("inputs", inputs), ("input_ids", options.get("input_ids"))):
        check_tensor(name, value, "integer")
    check_tensor("attention_mask", options.get("attention_mask"), "mask")
    positions = options.get("position_ids")
    if positions is not None and not isinstance(positions, Tensor):
        raise ValueError(f"position_ids is {kind_of(positions)}: give a tensor, or leave it out")

    def value_of(name: str) -> Any:
        found = options.get(name)
        for source in (config, model.generation_config):
            found = getattr(source, name, None) if found is None else found
        return found

    for name, smallest in WHOLE.items():
        check_whole(name, value_of(name), smallest, plain=name in PLAIN_INTEGERS)
    _check_temperature(value_of("temperature"), value_of("do_sample"))
    for name, (low, high) in NUMBERS.items():
        check_number(name, value_of(name), low, high)
    for name in SWITCHES:
        check_switch(name, value_of(name), strict=name in STRICT_SWITCHES)
    _check_decay(value_of("exponential_decay_length_penalty"))
    given = {name: value for source in (config, options) for name, value in _entries(source) if value is not None}
    check_token_options(value_of, given, token_count(model))
    _check_callables(options)
    _check_stop_strings(value_of("stop_strings"), options.get("tokenizer"))
    check_negative_prompt(options.get("negative_prompt_ids"), options.get("negative_prompt_attention_mask"))


def check_is_model(model: Any) -> None:
    """``TypeError`` unless ``model`` is a model, or a wrapper of one, with a generation_config."""
    if isinstance(model, nn.Module):
        config = getattr(model, "generation_config", None)
        if isinstance(config, GenerationConfig):
            return
        if hasattr(model, "generation_config"):
            raise TypeError(
                f"model.generation_config is {kind_of(config)}: give the model a transformers.GenerationConfig"
            )
    supported(model)
    raise TypeError(f"model is {kind_of(model)}, which has no generation_config: give a model of transformers")


def checked_prefix(allowed: Callable[[int, Tensor], Any], model: Any) -> Callable[[int, Tensor], list[int]]:
    """``allowed`` with a check of what it returns. ``ValueError`` unless that are tokens of the checkpoint."""
    size = token_count(model)

    def checked(number: int, tokens: Tensor) -> list[int]:
        said = allowed(number, tokens)
        found = said.tolist() if isinstance(said, (Tensor, np.ndarray)) else said
        good = isinstance(found, Iterable) and not isinstance(found, (str, bytes, Mapping))
        found = list(found) if good else []
        if not found or not all(_is_integer(token) and 0 <= token < size for token in found):
            raise ValueError(
                f"prefix_allowed_tokens_fn returned {shown(said)} for prompt {number}: give a list of at least one "
                f"token of this checkpoint (0 to {size - 1})"
            )
        return found

    return checked


def _entries(source: Any) -> Iterable[tuple[str, Any]]:
    if source is None:
        return ()
    return source.items() if isinstance(source, Mapping) else vars(source).items()


def check_own(options: Any) -> None:
    """``ValueError`` or ``TypeError`` that names the first of fastdecode's own options whose kind or value is wrong.

    ``options``: a `fastdecode.generation.generate_options.GenerateOptions`.
    """
    mode = options.multimodal_generation_mode
    if mode is not None and (not isinstance(mode, str) or mode not in MODES):
        raise ValueError(f"multimodal_generation_mode={shown(mode)} is unknown; choose one of {', '.join(MODES)}")
    if not isinstance(options.guidance, Guidance):
        guidance_from(options.guidance)
    for name in ("text", "image"):
        values = getattr(options, name)
        if values is not None and not isinstance(values, Mapping):
            raise TypeError(
                f"{name}={shown(values)}: give a dict of sampling parameters, such as {name}=dict(top_p=0.9)"
            )
    if mode in (None, "text-only") and any(value is not None for value in (options.image or {}).values()):
        raise ValueError(
            f"image={shown(options.image)} sets how pictures are sampled, and multimodal_generation_mode='text-only' "
            "draws none: leave it out, or choose a mode that draws"
        )
    check_image_size(options.image_size)
    if isinstance(options.seed, (set, frozenset, Mapping)) or getattr(options.seed, "dtype", None) == torch.bool:
        raise ValueError(
            f"seed={shown(options.seed)}: it must be an integer, or one integer per prompt, in their order"
        )
    if getattr(options.seed, "ndim", 0) > 1:
        shape = tuple(options.seed.shape)
        raise ValueError(
            f"seed has the shape {shape}: it must be an integer, or one integer per prompt, in a flat list"
        )
    seeds = options.seed if isinstance(options.seed, (list, tuple)) else [options.seed]
    for seed in seeds:
        if isinstance(seed, (bool, np.bool_)):
            raise ValueError(f"seed={shown(options.seed)}: it must be an integer, or one integer per prompt")
    for name in ("progress", "deterministic"):
        value = getattr(options, name)
        if value is not None and not isinstance(value, bool):
            raise ValueError(f"{name}={shown(value)}: give True or False")
    if options.kv_pool is not None and not isinstance(options.kv_pool, PagePool):
        pool = options.kv_pool
        raise ValueError(
            f"kv_pool is {shown(pool)}, {kind_of(pool)}: it must be what fastdecode.new_pool(model) returns"
        )


# --- one kind each ----------------------------------------------------------------------------------------------


def check_whole(name: str, value: Any, smallest: int, *, plain: bool = False) -> None:
    """``ValueError`` unless ``value`` is None or a 64-bit whole number of at least ``smallest``. ``plain``: an int."""
    if value is None:
        return
    number = isinstance(value, int) if plain else isinstance(value, Integral) or _is_scalar_tensor(value)
    if not number or isinstance(value, bool) or not smallest <= int(value) < 2**63:
        kind = "" if number or not isinstance(value, Integral) else " (a Python int)"
        raise ValueError(f"{name}={shown(value)}: give a whole number of at least {smallest}{kind}")


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """``ValueError`` unless ``value`` is None or a number between ``low`` and ``high``; a bool and NaN are none."""
    if value is None:
        return
    if isinstance(value, Tensor):  # transformers reads some, and refuses the others by name
        value = value.item() if value.numel() == 1 else "a tensor"
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= cast(float, value) <= high:
        lowest = {0.0: "0", -LARGEST_FLOAT: ""}.get(low, "above 0")
        right = "a finite number" if high == LARGEST_FLOAT else f"a number between {low:g} and {high:g}"
        right += f" of at least {lowest}" if high == LARGEST_FLOAT and lowest == "0" else ""
        right += " above 0" if lowest == "above 0" else ""
        raise ValueError(f"{name}={shown(value)}: give {right}")


def check_switch(name: str, value: Any, *, strict: bool = False) -> None:
    """``ValueError`` unless ``value`` is None, True or False; where not ``strict`` also 0 or 1."""
    if (
        value is None
        or isinstance(value, (bool, np.bool_))
        or (not strict and isinstance(value, int) and value in (0, 1))
    ):
        return
    raise ValueError(f"{name}={shown(value)}: give True or False")


def check_tensor(name: str, value: Any, kind: str) -> None:
    """``ValueError`` if ``value`` is a tensor without readable values, or a prompt of bools. Others pass."""
    if not isinstance(value, Tensor):
        return
    if value.is_meta:
        raise ValueError(f"{name} is on the meta device, where tensors have no values: give one on the model's device")
    if value.layout is not torch.strided:
        raise ValueError(f"{name} has the layout {str(value.layout).removeprefix('torch.')}: give a dense tensor")
    if kind == "integer" and (value.dtype == torch.bool or value.is_complex()):
        raise ValueError(
            f"{name} is {str(value.dtype).removeprefix('torch.')}: give tokens, (batch, length) integers; bools belong "
            "into attention_mask"
        )


def _is_integer(value: Any) -> bool:
    """Whether ``value`` is an integer and no bool, of Python, numpy or torch."""
    whole: Any = Integral  # mypy takes a bool for no Integral
    return (isinstance(value, whole) and not isinstance(value, bool)) or _is_scalar_tensor(value)


def _is_scalar_tensor(value: Any) -> bool:
    """Whether ``value`` is an integer in a tensor of no dimension, which transformers accepts."""
    return isinstance(value, Tensor) and value.ndim == 0 and value.dtype in (torch.int64, torch.int32)


# --- what belongs to the call alone -----------------------------------------------------------------------------


def _check_temperature(value: Any, do_sample: Any) -> None:
    """transformers takes 0 where nothing is sampled, and has no use for it there."""
    try:
        check_number("temperature", value, 0.0 if not do_sample else math.ulp(0.0), LARGEST_FLOAT)
    except ValueError:
        raise ValueError(
            f"temperature={shown(value)}: give a finite number above 0; for the likeliest token leave do_sample out"
        ) from None


def _check_decay(value: Any) -> None:
    if value is None:
        return
    good = isinstance(value, (tuple, list)) and len(value) == 2
    good = good and isinstance(value[0], int) and not isinstance(value[0], bool)
    good = good and isinstance(value[1], (int, float)) and 0 < value[1] <= LARGEST_FLOAT
    if not good:
        raise ValueError(
            f"exponential_decay_length_penalty={shown(value)}: give (first, factor): the number of new tokens after "
            "which it acts, and a number above 0, as in (20, 1.05)"
        )


def _check_callables(options: Mapping[str, Any]) -> None:
    for name, what in (("logits_processor", "logits processors"), ("stopping_criteria", "stopping criteria")):
        value = options.get(name)
        if value is None:
            continue
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{name} is {kind_of(value)}: give a list of {what}")
        for number, member in enumerate(value):
            if not callable(member) or isinstance(member, type):
                raise ValueError(f"{name}[{number}] is {shown(member)}, which cannot be called: give {what}")
    allowed = options.get("prefix_allowed_tokens_fn")
    if allowed is not None and not callable(allowed):
        raise ValueError(f"prefix_allowed_tokens_fn={shown(allowed)} cannot be called: give a function")
    check_streamer(options.get("streamer"))


def check_streamer(streamer: Any) -> None:
    """``ValueError`` unless ``streamer`` is None or has the methods of transformers' streamers."""
    methods = all(callable(getattr(streamer, name, None)) for name in ("put", "end"))
    if streamer is not None and (not methods or isinstance(streamer, type)):
        raise ValueError(
            f"streamer is {shown(streamer)}, not an object with the methods put and end: give one of transformers' "
            "streamers, such as TextStreamer(tokenizer)"
        )


def _check_stop_strings(value: Any, tokenizer: Any) -> None:
    if value is None:
        return
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, (list, tuple)) or not all(isinstance(s, str) and s for s in strings):
        raise ValueError(f"stop_strings={shown(value)}: give a string, or a list of strings, none of them empty")
    if tokenizer is not None and not callable(getattr(tokenizer, "get_vocab", None)):
        raise ValueError(f"tokenizer is {kind_of(tokenizer)}: give the model's tokenizer")


def check_negative_prompt(tokens: Any, mask: Any) -> None:
    """``ValueError`` unless negative_prompt_ids and their mask are None, or fit together."""
    if tokens is None:
        if mask is not None:
            raise ValueError("negative_prompt_attention_mask was given without negative_prompt_ids: give both, or none")
        return
    for name, value in (("negative_prompt_ids", tokens), ("negative_prompt_attention_mask", mask)):
        if value is not None and (not isinstance(value, Tensor) or value.ndim != 2):
            what = f"{tuple(value.shape)}" if isinstance(value, Tensor) else kind_of(value)
            raise ValueError(f"{name} is {what}: give a tensor (batch, length) of integers")
        check_tensor(name, value, "integer" if value is tokens else "mask")
    if tokens.is_floating_point():
        raise ValueError("negative_prompt_ids are floats: give a tensor (batch, length) of integers")
    if mask is not None and mask.shape != tokens.shape:
        raise ValueError(
            f"negative_prompt_attention_mask is {tuple(mask.shape)}: it must be {tuple(tokens.shape)}, as "
            "negative_prompt_ids"
        )


def _check_model_has_weights(model: Any) -> None:
    embed = _embedding(model)
    weight = getattr(embed, "weight", None)
    if isinstance(weight, Tensor) and weight.is_meta and not hasattr(embed, "_hf_hook"):
        raise ValueError(
            "the model's weights are on the meta device, where tensors have no values: load the checkpoint, as with "
            "fastdecode.load or from_pretrained"
        )


def _embedding(model: Any) -> Any:
    find: Callable[[], Any] | None = getattr(model, "get_input_embeddings", None)
    return None if find is None else find()
