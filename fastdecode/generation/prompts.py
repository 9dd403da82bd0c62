"""What `Engine.submit` takes as a prompt: text with pictures, what a processor returned, or tokens."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdecode.generation.generate_options import GenerateOptions
from fastdecode.models.families import family_of, text_vocabulary_of, vocabulary_of
from fastdecode.models.image_sizes import one_size
from fastdecode.models.picture_files import pictures_of
from fastdecode.models.pictures import reads_vectors, why_no_pixels, with_placeholders
from fastdecode.models.reading import read_prompt, takes_pictures
from fastdecode.wording import kind_of


def check_processor(processor: Any) -> None:
    """``TypeError`` unless ``processor`` is None, a processor or a tokenizer."""
    tokenizer = getattr(processor, "tokenizer", processor)
    if processor is not None and not (callable(processor) and hasattr(tokenizer, "decode")):
        raise TypeError(f"processor is {kind_of(processor)}; give the model's processor, or its tokenizer")


def prompt_inputs(model: Any, processor: Any, inputs: Any, images: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt that `Engine.submit` was given, as keyword arguments of `fastdecode.generate`.

        inputs     text, a mapping, tokens, or None
        images     for a text: see `pictures_of`
        options    the other options, to see what was given twice

    ValueError for another kind of prompt or picture, and for what was given twice.
    """
    if images is not None and not isinstance(inputs, str):
        raise ValueError("images were given without a text: give the prompt as text, with an <image> for each")
    if isinstance(inputs, str):
        if processor is None:
            raise ValueError("a prompt given as text needs a processor: give one to the Engine, or submit tokens")
        if options.get("input_ids") is not None:
            raise ValueError("input_ids was given twice: the prompt as text, and as an option")
        return text_inputs(model, processor, inputs, images, options)
    if isinstance(inputs, (bytes, bytearray)):
        raise ValueError("the prompt is bytes: give text, what the processor returned, or tokens")
    if isinstance(inputs, Mapping):
        double = sorted(set(inputs) & set(options))
        if double:
            raise ValueError(f"{double[0]} was given twice: in the inputs, and as an option")
        return {name: value for name, value in inputs.items() if value is not None}
    if inputs is None:
        return {}
    if not isinstance(inputs, Tensor):
        try:
            given = list(inputs)
            if isinstance(inputs, (set, frozenset)) or any(isinstance(token, (bool, np.bool_)) for token in given):
                raise TypeError
            inputs = torch.tensor([operator.index(token) for token in given], dtype=torch.long)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"the prompt is of type {type(inputs).__name__}: give text, what the processor returned, "
                "or tokens (integers)"
            ) from None
    return {"input_ids": inputs[None] if inputs.ndim == 1 else inputs}


def text_inputs(
    model: Any, processor: Any, text: str, images: Any, options: Mapping[str, Any], given_as: str = "images"
) -> dict[str, Any]:
    """A text and its pictures as keyword arguments of `fastdecode.generate`.

        images     for the ``<image>`` of the text, before it if it has none: see `pictures_of`
        options    those of the call: a model that draws what its prompt asks for has the size written into it
        given_as   the option that had the pictures, for messages

    ValueError for another number of pictures, for pictures that nothing reads, and for a tokenizer where the model's
    processor writes a part of the prompt.
    """
    pictures, family = pictures_of(images), family_of(model)
    if pictures and family.picture_tokens is None and (reason := why_no_pixels(model)):
        raise ValueError(f"{given_as} were given, but {reason}")
    if not text_vocabulary_of(model).has_pictures and not reads_vectors(model):
        return read_prompt(processor, text, [])
    prompt = with_placeholders(text, len(pictures), given_as)
    if family.size_in_prompt is not None and _found(model, options).multimodal_generation_mode == "image-only":
        return _sized(model, processor, prompt, len(pictures), options)
    return read_prompt(processor, prompt, pictures, _reader(model))


def _reader(model: Any) -> Any:
    """What makes tokens of a picture, for families that read pictures themselves; else None."""
    read = family_of(model).picture_tokens
    return None if read is None else partial(read, model)


def _found(model: Any, options: Mapping[str, Any]) -> GenerateOptions:
    given = {name: options.get(name) for name in ("multimodal_generation_mode", "image_size")}
    return GenerateOptions.found(model, options.get("generation_config"), given)


def _sized(model: Any, processor: Any, prompt: str, pictures: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt that asks for a picture of the call's image_size, as the model's processor writes it."""
    if pictures:
        raise ValueError(
            f"images were given, and {family_of(model).name} draws from a prompt of text alone: leave them out, or "
            "give multimodal_generation_mode='text-only'"
        )
    if not takes_pictures(processor):
        raise ValueError(
            f"the engine has {kind_of(processor)}, a tokenizer, and a prompt of {family_of(model).name} ends with the "
            "size of the picture, which the model's processor writes: give the Engine the processor that "
            "fastdecode.load returns"
        )
    begin, size = getattr(processor, "image_start_token", None), one_size(_found(model, options).image_size)
    if begin is not None and begin in prompt:
        return read_prompt(processor, prompt, [])  # the caller has written the size
    asked: dict[str, Any] = {"return_for_image_generation": True}
    if size is None:
        return read_prompt(processor, prompt, [], **asked)
    vocabulary_of(model).sized(*size)
    made = read_prompt(processor, prompt, [], **asked, ratio=f"{size[0]}:{size[1]}", image_area=size[0] * size[1])
    return {name: value for name, value in made.items() if name != "image_sizes"}
