"""GLM-Image's first half: a preview and a picture as tokens, which a diffusion transformer of diffusers paints.

Tokens below ``vision_vocab_size`` are codes of pictures, their begin and end; the head has no others. The processor
writes the sizes of picture and preview into the prompt, and returns them as ``image_grid_thw``: they place the tokens.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastdecode.decoder.places import PLACED_MODELS, Shape
from fastdecode.models.family import Family
from fastdecode.models.recipe import Recipe, by_task
from fastdecode.models.text import without_pictures
from fastdecode.wording import kind_of

NAMES = ("image_grid_thw", "images_per_sample")
"""What the processor returns beside the prompts: (pictures, 3) time, rows and columns; how many of them each has."""


def told_sizes(model: Any, input_ids: Tensor, given: dict[str, Any], repeats: int) -> list[list[Shape]] | None:
    """(rows, columns) of the pictures that follow each of the prompts ``input_ids`` (batch, length), first to last;
    None without ``image_grid_thw``. Takes `NAMES` out of ``given``. Everything is there ``repeats`` times.

    ValueError for other kinds and shapes, and for prompts that show pictures.
    """
    thw, count = (given.pop(name, None) for name in NAMES)
    if thw is None:
        if count is not None:
            raise ValueError("images_per_sample was given without image_grid_thw: pass all that the processor returned")
        return None
    for name, value, shape in ((NAMES[0], thw, "(pictures, 3)"), (NAMES[1], count, "(prompts,)")):
        whole = isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool
        good = whole and value.ndim == (2 if value is thw else 1)
        if value is not None and not good:
            what = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else kind_of(value)
            raise ValueError(f"{name} is {what}: give integers {shape}, as the processor returns them")
    thw, prompts = thw[::repeats].cpu(), len(input_ids) // repeats
    counts = [len(thw) // prompts] * prompts if count is None else count[::repeats].tolist()
    if thw.shape[1:] != (3,) or len(counts) != prompts or sum(counts) != len(thw) or min(counts) < 1 or (thw < 1).any():
        raise ValueError(
            f"image_grid_thw is {tuple(thw.shape)} and images_per_sample {counts}, for {prompts} prompts: give three "
            "numbers of at least 1 for each picture, and as many pictures as images_per_sample says"
        )
    if int(thw.prod(1, dtype=torch.float64).sum()) > MOST:
        raise ValueError(f"image_grid_thw tells of more than {MOST:,} tokens: give what the processor returned")
    shows = (input_ids == model.config.image_end_token_id) | (input_ids == model.config.image_token_id)
    if shows.any():
        raise ValueError(
            f"prompt {int(shows.nonzero()[0, 0]) // repeats} shows a picture, and fastdecode draws with GLM-Image from "
            "texts alone: use transformers' own generate for edits"
        )
    sizes = [[(rows, columns) for _, rows, columns in part.tolist()] for part in torch.split(thw, counts)]
    return [own[::-1] for own in sizes for _ in range(repeats)]  # the preview stands last, and is drawn first


def recipes(model: Any) -> dict[str, Recipe]:
    """By task."""
    options = {"multimodal_generation_mode": "text-only", "do_sample": True, "temperature": 0.9, "top_p": 0.75}
    named = Recipe.of("GLM-Image", "text-to-image", "{text}", options, "zai-org/GLM-Image, README", tokens_of=tokens)
    return by_task([replace(named, sources={**named.sources, "prompt": "diffusers, GlmImagePipeline"})])


MOST = 2**20
"""Tokens of the pictures of a call."""

CELL = 32
"""The pixels of a token's side."""


def tokens(processor: Any, text: str, size: tuple[int, int] | None) -> dict[str, Any]:
    """What GlmImagePipeline of diffusers gives the model for ``text``, and the length of preview, picture and end.

    ``size``: width and height in pixels; None: the processor's usual one. ``ValueError`` unless they are multiples of
    `CELL`.
    """
    wanted: dict[str, Any] = {} if size is None else {"target_w": size[0], "target_h": size[1]}
    if any(side < CELL or side % CELL for side in wanted.values()):
        raise ValueError(f"image_size={size}: width and height must be multiples of {CELL} pixels")
    asked = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    if not getattr(processor, "chat_template", None):
        raise ValueError(
            f"this {type(processor).__name__} has no chat template, so that the prompt has no format: give the model's "
            "own processor"
        )
    method = processor.apply_chat_template
    if "processor_kwargs" in inspect.signature(method).parameters:
        wanted = {"processor_kwargs": wanted}
    made = dict(method(asked, tokenize=True, return_dict=True, return_tensors="pt", **wanted))
    return made | {"max_new_tokens": int(made["image_grid_thw"].prod(-1).sum()) + 1}


GLM_IMAGE = Family(
    "GLM-Image",
    lambda model: isinstance(model, PLACED_MODELS),
    without_pictures,
    recipes=recipes,
    told_sizes=told_sizes,
)
