"""Reads a prompt of text and pictures: through the model's processor, or with its family's own reader of pictures."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from fastdecode.wording import kind_of

PICTURE = "<image>"
"""Stands for a picture in a prompt that is text."""

PictureTokens = Callable[[Image.Image], list[int]]
"""The tokens of a picture, begin and end included."""


def takes_pictures(processor: Any) -> bool:
    """Whether ``processor`` reads pictures too. A tokenizer reads text only, and drops pictures without a word."""
    if hasattr(processor, "tokenizer") or hasattr(processor, "image_processor"):
        return True
    try:
        return "images" in inspect.signature(processor).parameters
    except (TypeError, ValueError):
        return False


def read_prompt(
    processor: Any,
    prompt: str,
    pictures: list[Image.Image],
    picture_tokens: PictureTokens | None = None,
    **options: Any,
) -> dict[str, Any]:
    """What ``processor`` makes of one prompt: ``input_ids`` (1, length), and what else it returns.

        prompt           has an ``<image>`` for each of the pictures
        picture_tokens   of the model's family, if it reads pictures itself
        options          further arguments of a processor; a tokenizer gets none

    ``ValueError`` for pictures that nothing reads.
    """
    if pictures and picture_tokens is not None:
        return {"input_ids": torch.tensor([_spliced(processor, prompt, pictures, picture_tokens, options)])}
    if not takes_pictures(processor):
        if pictures:
            raise ValueError(
                f"images were given, and {kind_of(processor)} is a tokenizer, which reads text only: give the model's "
                "processor, which fastdecode.load returns with the model"
            )
        return dict(processor(text=prompt, return_tensors="pt"))
    if pictures:
        options["images"] = pictures
        prompt = prompt.replace(PICTURE, getattr(processor, "image_token", PICTURE))
    return dict(processor(text=prompt, return_tensors="pt", **options))


def _spliced(
    processor: Any, prompt: str, pictures: list[Image.Image], picture_tokens: PictureTokens, options: dict[str, Any]
) -> list[int]:
    """The tokens of a prompt with those of its pictures in their places, and what the processor ends prompts with."""
    tokenizer = getattr(processor, "tokenizer", processor)
    found: list[int] = []
    parts = prompt.split(PICTURE)
    for number, part in enumerate(parts):
        if number:
            found += picture_tokens(pictures[number - 1])
        found += tokenizer(part, add_special_tokens=number == 0)["input_ids"]
    if takes_pictures(processor):
        plain = list(tokenizer(parts[-1])["input_ids"])
        whole = [int(token) for token in processor(text=parts[-1], return_tensors="pt", **options)["input_ids"][0]]
        found += whole[len(plain) :] if whole[: len(plain)] == plain else []
    return found
