"""What `Engine.submit` takes as a prompt: text with pictures, what a processor returned, or tokens."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastdecode.models.families import text_vocabulary_of
from fastdecode.models.pictures import why_no_pixels, with_placeholders
from fastdecode.wording import kind_of


def check_processor(processor: Any) -> None:
    """``TypeError`` unless ``processor`` is None, a processor or a tokenizer."""
    tokenizer = getattr(processor, "tokenizer", processor)
    if processor is not None and not (callable(processor) and hasattr(tokenizer, "decode")):
        raise TypeError(f"processor is {kind_of(processor)}; give the model's processor, or its tokenizer")


def prompt_inputs(model: Any, processor: Any, inputs: Any, images: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt that `Engine.submit` was given, as keyword arguments of `fastdecode.generate`.

        inputs     text, a mapping, tokens, or None
        images     PIL pictures for a text
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
        pictures = [] if images is None else _pictures(images)
        if pictures and (reason := why_no_pixels(model)):
            raise ValueError(f"images were given, but {reason}")
        if not text_vocabulary_of(model).has_pictures:
            return dict(processor(text=inputs, return_tensors="pt"))
        text = with_placeholders(inputs, len(pictures), "images")
        return dict(processor(text=text, images=pictures or None, return_tensors="pt"))
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


def _pictures(images: Any) -> list[Image.Image]:
    """``images`` as a list. ValueError naming the first that is no PIL picture."""
    pictures = [images] if isinstance(images, Image.Image) else images
    if not isinstance(pictures, (list, tuple)):
        raise ValueError(f"images is {kind_of(images)}: give a PIL picture, or a list of them")
    for number, picture in enumerate(pictures):
        if not isinstance(picture, Image.Image):
            raise ValueError(f"images[{number}] is {kind_of(picture)}: give PIL pictures")
    return list(pictures)
