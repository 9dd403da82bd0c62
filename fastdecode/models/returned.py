"""Checks of what the functions of a family returned. ``name``: the function's, with that of its family. Each raises
ValueError that says what was returned, and what should be.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fastdecode.ops.scalars import shown
from fastdecode.wording import kind_of


def _one_for_each(name: str, found: Any, count: int | None, what: str) -> list[Any]:
    """``found`` as a list of ``count`` items, or of any number."""
    if not isinstance(found, (list, tuple)):
        raise ValueError(f"{name} returned {kind_of(found)}: it must return a list with {what} of each picture")
    if count not in (None, len(found)):
        items, pictures = f"{len(found)} item{'s' * (len(found) != 1)}", f"{count} picture{'s' * (count != 1)}"
        raise ValueError(f"{name} returned {items} for {pictures}: it must return a list with {what} of each")
    return list(found)


def checked_lengths(name: str, found: Any, pictures: int) -> list[int]:
    """Numbers of placeholders, of so many pictures."""
    lengths = _one_for_each(name, found, pictures, "the number of placeholders")
    for number, length in enumerate(lengths):
        if type(length) is not int or length < 1:
            raise ValueError(f"{name} returned {shown(length)} for picture {number}: it must be an int of at least 1")
    return lengths


def checked_tokens(name: str, found: Any, pictures: int | None, size: int) -> list[Tensor]:
    """Tokens of so many pictures (None: of any number), each one of ``size``."""
    each = _one_for_each(name, found, pictures, "the tokens")
    for number, tokens in enumerate(each):
        if not isinstance(tokens, Tensor) or tokens.ndim != 1 or tokens.dtype != torch.long or not len(tokens):
            kind = f"{tuple(tokens.shape)} {tokens.dtype}" if isinstance(tokens, Tensor) else kind_of(tokens)
            raise ValueError(f"{name} returned {kind} for picture {number}: it must return tokens, (n,) int64")
        low, high = (int(bound) for bound in tokens.aminmax())
        if low < 0 or high >= size:
            raise ValueError(
                f"{name} returned {low if low < 0 else high} in picture {number}, which is not a token of this "
                f"checkpoint (0 to {size - 1})"
            )
    return each


def checked_list(name: str, found: Any, size: int) -> list[int]:
    """Tokens of a picture in a list, each one of ``size``."""
    if not isinstance(found, (list, tuple)) or not all(type(token) is int for token in found):
        raise ValueError(f"{name} returned {shown(found)}: it must return a list of tokens")
    for token in found:
        if not 0 <= token < size:
            raise ValueError(
                f"{name} returned {shown(token)}, which is not a token of this checkpoint (0 to {size - 1})"
            )
    return list(found)


def checked_names(name: str, found: Any) -> list[str]:
    """Names of weights."""
    if not isinstance(found, (list, tuple)) or not all(isinstance(weight, str) for weight in found):
        raise ValueError(f"{name} returned {shown(found)}: it must return a list of names of weights")
    return list(found)


def checked_pictures(name: str, found: Any, grids: int) -> list[Image.Image]:
    """Pictures of so many grids."""
    pictures = _one_for_each(name, found, grids, "a PIL picture")
    for number, picture in enumerate(pictures):
        if not isinstance(picture, Image.Image):
            raise ValueError(f"{name} returned {kind_of(picture)} for picture {number}: it must be a PIL picture")
    return pictures
