"""Sizes of pictures as callers give them: (width, height) in pixels."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from fastdecode.ops.scalars import shown

Size = tuple[int, int]
RIGHT = "give (width, height) in pixels, or one such pair for each prompt"


def check_image_size(value: Any) -> None:
    """``ValueError`` unless ``value`` is None, (width, height) or a list of such pairs."""
    if value is not None:
        pairs_of(value)


def pairs_of(value: Any) -> list[Size] | Size:
    """The pair, or the pairs, of whole numbers above 0 that ``value`` is. ``ValueError`` for anything else."""
    given = listed(value)
    sides = given if isinstance(given, (list, tuple)) else ()
    if any(map(_below_1, sides)) or any(isinstance(pair, (list, tuple)) and any(map(_below_1, pair)) for pair in sides):
        raise ValueError(f"image_size={shown(value)} has a side below 1 pixel: {RIGHT}")
    if is_pair(given):
        return int(given[0]), int(given[1])
    if isinstance(given, (list, tuple)) and given and all(map(is_pair, given)):
        return [(int(width), int(height)) for width, height in given]
    raise ValueError(f"image_size={shown(value)}: {RIGHT}")


def one_size(value: Any) -> Size | None:
    """``value`` as the one size of all pictures of a call; None stays None. ``ValueError`` for anything else."""
    if value is None:
        return None
    given = listed(value)
    if not is_pair(given):
        raise ValueError(f"image_size={shown(value)}: give (width, height), two whole numbers of pixels")
    return int(given[0]), int(given[1])


def is_pair(value: Any) -> bool:
    """Whether ``value`` is a list or tuple of two whole numbers above 0."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return False
    return all(is_side(side) and int(side) > 0 for side in value)


def listed(value: Any) -> Any:
    """``value`` as lists, if it is a tensor or an array."""
    if isinstance(value, str) or not hasattr(value, "tolist"):
        return value
    try:
        return value.tolist()
    except RuntimeError:  # of a sparse tensor, or of one on the meta device
        return value


def is_side(value: Any) -> bool:
    """Whether it is a whole number, of any type."""
    return not isinstance(value, bool) and isinstance(value, Integral)


def _below_1(value: Any) -> bool:
    return is_side(value) and int(value) < 1
