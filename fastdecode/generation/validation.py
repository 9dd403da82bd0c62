"""Checks of the options of `generate`. Each raises an error that names the option. They change nothing."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig, StoppingCriteriaList
from transformers.generation import StopStringCriteria

from fastdecode.generation.unsupported import Unsupported
from fastdecode.wording import kind_of

CACHES = ("cache", "past_key_values", "cache_params")
"""What transformers' versions call a cache that the caller gives or gets."""

UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "num_beams": (1, "beam search"),
    "assistant_model": (None, "assisted decoding"),
    "prompt_lookup_num_tokens": (None, "prompt lookup decoding"),
    "assistant_early_exit": (None, "assisted decoding"),
    "use_mtp": (None, "multi-token prediction"),
    "watermarking_config": (None, "watermarking"),
    "dola_layers": (None, "DoLa decoding"),
    "penalty_alpha": (None, "contrastive search"),
    "constraints": (None, "constrained beam search"),
    "force_words_ids": (None, "constrained beam search"),
    "token_healing": (False, "token healing"),
    "cache_implementation": (None, "a choice of cache"),
    "prefill_chunk_size": (None, "chunked prefill"),
    "compile_config": (None, "compilation"),
    "output_attentions": (False, "returning attentions"),
    "output_hidden_states": (False, "returning hidden states"),
    "inputs_embeds": (None, "prompts given as embeddings"),
    **{name: (None, "filling a cache, or continuing from it") for name in CACHES},
    "is_assistant": (False, "drafting for another model"),
    "synced_gpus": (False, "synchronised decoding"),
    "custom_generate": (None, "another decoding loop"),
}
"""Options that fastdecode's loop does not have: the value they must have, and what they ask for."""

FORWARD = frozenset(
    (
        *("input_ids", "attention_mask", "position_ids", "pixel_values", "mm_encoder_outputs", "use_cache"),
        *(
            "logits_to_keep",
            "cache_position",
            "return_dict",
            "image_sizes",
            "output_attentions",
            "output_hidden_states",
        ),
        *CACHES,
    )
)
"""Arguments of a model's forward that are read, checked elsewhere, or without effect on the tokens."""


OTHER_NAMES = {
    "mode": "multimodal_generation_mode",
    "negative_prompt": "guidance=Guidance.two_way(scale, negative_prompt_ids=…)",
    "generator": "seed",
    "num_images_per_prompt": "num_return_sequences",
    "height": "image_size=(width, height)",
    "width": "image_size=(width, height)",
}
"""Names that options have elsewhere, on our command line or in diffusers, and their names here."""

DRAWING_MODES = ("image-only", "interleaved-text-image")
"""The modes that ask for pictures; ``unrestricted`` only allows them."""

LENGTHS = frozenset({"max_length", "max_new_tokens"})


def option(model: Any, options: Mapping[str, Any], name: str) -> Any:
    """The value of ``name``: from the call, else its generation_config, else the model's; None if none sets it."""
    found = options.get(name)
    for config in (options.get("generation_config"), model.generation_config):
        found = getattr(config, name, None) if found is None else found
    return found


def chosen_options(model: Any, options: Mapping[str, Any]) -> frozenset[str]:
    """The names of the options that are set: in the call, its generation_config or the model's."""
    names = {key for key, value in options.items() if value is not None}
    for config in (options.get("generation_config"), model.generation_config):
        if config is not None:
            names |= {key for key, value in config.to_dict().items() if value is not None}
    return frozenset(names)


def set_option(options: dict[str, Any], name: str, value: Any) -> None:
    """Set an option of transformers: where there is a generation_config in a copy of that, as transformers warns of
    options beside one.
    """
    config = options.get("generation_config")
    if config is None:
        options[name] = value
        return
    options.pop(name, None)
    options["generation_config"] = copy.deepcopy(config)
    setattr(options["generation_config"], name, value)


def read_stop_strings(model: Any, options: dict[str, Any]) -> None:
    """Take the tokenizer and stop_strings out of ``options``, and add the criterion that they make: transformers does
    not pass the tokenizer to a custom loop. ``ValueError`` if it cannot be made.
    """
    tokenizer = options.pop("tokenizer", None)
    stop_strings = option(model, options, "stop_strings")
    if stop_strings is None:
        return
    if tokenizer is None:
        raise ValueError("stop_strings needs tokenizer=…, to know how tokens spell them")
    try:
        more = StopStringCriteria(tokenizer=tokenizer, stop_strings=stop_strings)
    except Exception as error:
        raise ValueError(
            f"stop_strings={stop_strings!r}: transformers cannot tell how this {type(tokenizer).__name__} spells "
            f"its tokens ({type(error).__name__}: {error}); leave stop_strings out, or give a criterion of "
            "your own, which decodes the tokens"
        ) from error
    options["stopping_criteria"] = StoppingCriteriaList([*(options.get("stopping_criteria") or []), more])
    set_option(options, "stop_strings", None)


def check_names(model: Any, options: Mapping[str, Any]) -> None:
    """``ValueError`` for an option that has another name elsewhere, unless it is an argument of the model's forward."""
    for name, right in OTHER_NAMES.items():
        if name in options and name not in inspect.signature(type(model).forward).parameters:
            raise ValueError(f"{name} is not an option of generate: do you mean {right}?")


def check_config(config: Any) -> None:
    """``ValueError`` unless ``config`` is None or a `GenerationConfig`."""
    if config is not None and not isinstance(config, GenerationConfig):
        raise ValueError(
            f"generation_config is {kind_of(config)}: give a transformers.GenerationConfig, or its entries as "
            "arguments of the call"
        )


def check_options(model: Any, options: Mapping[str, Any], *, made_by_transformers: bool = False) -> None:
    """`Unsupported` that names the first option of a call, or of its generation_config, that fastdecode's loop does
    not have. ``made_by_transformers``: an empty cache is not the caller's, and means nothing.
    """
    for name, (neutral, what) in UNSUPPORTED.items():
        value = option(model, options, name)
        if value is None or value is neutral or value == neutral:
            continue
        if name == "cache_implementation" and value == "dynamic":  # what transformers takes by itself
            continue
        if name in CACHES and made_by_transformers and getattr(value, "get_seq_length", lambda: 1)() == 0:
            continue
        shown = value if isinstance(value, (int, float, str, bool)) else type(value).__name__
        raise Unsupported(
            f"{name}={shown!r} asks for {what}, which fastdecode does not support",
            "leave it out" + (f" (or {name}={neutral!r})" if neutral is not None else ""),
        )
    scale = option(model, options, "guidance_scale")
    if options.get("negative_prompt_ids") is not None and scale in (None, 1):
        raise Unsupported(
            f"negative_prompt_ids was given with guidance_scale={scale!r}: it has an effect only with another scale "
            "than 1",
            "give one, such as guidance_scale=3.0",
        )


def check_forward(model_kwargs: Mapping[str, Any]) -> None:
    """`Unsupported` that names an argument of the model's own forward which would have an effect there."""
    for name, value in model_kwargs.items():
        if value is not None and name not in FORWARD:
            raise Unsupported(
                f"{name} is an argument of the model's own forward, which fastdecode does not call", "leave it out"
            )
