"""Pictures on their way in and out: pixels, placeholders of a prompt, and painted tokens."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastdecode.models.families import family_of
from fastdecode.vocabulary import Vocabulary
from fastdecode.wording import kind_of

PLACEHOLDER = "<image>"


def check_pixels(model: Any, pixel_values: Any) -> Tensor:
    """``pixel_values`` as a tensor of the dtype and on the device of the model's encoder of pictures. A numpy array
    will do. ``ValueError`` for another kind, dtype or shape, and for pixels that are NaN or infinite.
    """
    family = family_of(model)
    pixels = pixel_tensor(model, pixel_values)
    assert family.pixels is not None
    return family.pixels(model, pixels)


def pixel_tensor(model: Any, pixel_values: Any) -> Tensor:
    """Pixels as a tensor. ``ValueError`` unless they are a dense tensor, or a numpy array, of finite floats. Their
    shape is left to `check_pixels`.
    """
    family = family_of(model)
    if family.pixels is None:
        reason = "reads and writes text only"
        if reads_vectors(model):
            reason = "reads pictures as vectors, and fastdecode reads them as tokens: its own generate takes pictures"
        raise ValueError(f"pixel_values were given, but {type(model).__name__} {reason}")
    wanted = "(pictures, channels, height, width) float, as its processor makes them"
    if isinstance(pixel_values, np.ndarray) and pixel_values.dtype.kind in "fiub":
        pixel_values = torch.from_numpy(np.array(pixel_values))
    if not isinstance(pixel_values, Tensor):
        raise ValueError(f"pixel_values is {kind_of(pixel_values)}; this checkpoint takes {wanted} from PIL pictures")
    if pixel_values.is_meta or pixel_values.layout is not torch.strided:
        kind = "on the meta device, without values" if pixel_values.is_meta else "sparse"
        raise ValueError(f"pixel_values is {kind}; this checkpoint takes dense {wanted}")
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values is {tuple(pixel_values.shape)} {str(pixel_values.dtype).removeprefix('torch.')}; this "
            f"checkpoint takes {wanted}"
        )
    if not pixel_values.numel():
        raise ValueError("pixel_values holds no picture: leave it out")
    if not pixel_values.isfinite().all():
        picture = int(pixel_values.isfinite().logical_not().nonzero()[0, 0]) if pixel_values.ndim else 0
        raise ValueError(f"pixel_values of picture {picture} are not all finite: they hold NaN or infinity")
    return pixel_values


def reads_vectors(model: Any) -> bool:
    """Whether the model takes pictures, and fastdecode cannot read them, since they do not become tokens."""
    takes = "pixel_values" in inspect.signature(type(model).forward).parameters
    return takes and family_of(model).pixels is None


def lengths_of(model: Any, pixels: Tensor, sizes: Any = None) -> list[int]:
    """The number of placeholders of each picture. Arguments as `read_pictures`."""
    lengths = family_of(model).lengths
    assert lengths is not None
    return lengths(model, pixels, sizes)


def read_pictures(model: Any, pixels: Tensor, sizes: Any = None) -> list[Tensor]:
    """The tokens of pictures, (n,) int64 each, that take the places of placeholders. ``sizes``: what the processor gave
    with ``pixels``. ``ValueError`` if the model reads no pictures as tokens.
    """
    pixels, read = check_pixels(model, pixels), family_of(model).read
    assert read is not None
    return read(model, pixels, sizes)


def encode_pictures(model: Any, pixel_values: Tensor) -> Tensor:
    """Encode pixels ``(n, 3, H, W)`` float to image tokens ``(n, image_length)`` int64, on the model's device."""
    return torch.stack(read_pictures(model, pixel_values))


def fill_placeholders(input_ids: Tensor, pictures: Sequence[Tensor], vocabulary: Vocabulary) -> Tensor:
    """Replace placeholders in ``input_ids`` (batch, length) with the tokens of ``pictures``, (n,) each, in order.

    ``ValueError`` if the pictures do not fill the placeholders exactly. Returns a new tensor.
    """
    check_placeholders(input_ids, [len(picture) for picture in pictures], vocabulary)
    if not pictures:
        return input_ids
    here = input_ids == vocabulary.placeholder
    return input_ids.masked_scatter(here, torch.cat(list(pictures)).to(input_ids.device))


def with_placeholders(text: str, pictures: int, given_as: str) -> str:
    """``text`` with an ``<image>`` for each of so many ``pictures``; without any they go before the text.

    ``ValueError`` if it has another number of them. ``given_as``: the option that had the pictures.
    """
    if pictures and PLACEHOLDER not in text:
        return PLACEHOLDER * pictures + text
    if text.count(PLACEHOLDER) != pictures:
        raise ValueError(
            f"the prompt has {text.count(PLACEHOLDER)} {PLACEHOLDER}, but {pictures} pictures were given with "
            f"{given_as}: give one for each"
        )
    return text


def check_picture_count(input_ids: Tensor, pictures: int, vocabulary: Vocabulary) -> None:
    """``ValueError`` unless ``input_ids`` holds placeholders for as many ``pictures``, of the model's usual size."""
    check_placeholders(input_ids, [vocabulary.image_length] * pictures, vocabulary)


def check_placeholders(input_ids: Tensor, lengths: Sequence[int], vocabulary: Vocabulary) -> None:
    """``ValueError`` unless ``input_ids`` holds placeholders for pictures of ``lengths`` tokens."""
    if not vocabulary.has_pictures:
        if lengths:
            raise ValueError(f"{len(lengths)} pictures were given, but this model reads and writes text only")
        return
    found = int((input_ids == vocabulary.placeholder).sum())
    if found != sum(lengths):
        one = lengths[0] if lengths else vocabulary.image_length
        raise ValueError(
            f"the prompt has {found} <image> placeholder tokens (room for {found / one:g} "
            f"pictures of {one}), but pixel_values holds {len(lengths)} pictures: give one picture "
            "for each <image> in the text, all through the processor"
        )


# --- drawing ----------------------------------------------------------------------------------------------------


def missing_decoder_keys(model: Any) -> list[str]:
    """The names of the weights for painting that ``model`` lacks; empty if it can draw."""
    family = family_of(model)
    if family.paint is None:
        raise ValueError(f"{type(model).__name__} writes text only")
    return family.missing(model)


def check_can_draw(model: Any) -> None:
    """``ValueError`` that names the missing weights if ``model`` has no decoder of pictures."""
    missing = missing_decoder_keys(model)
    if missing:
        raise ValueError(
            f"this model has no VQ decoder, so its picture tokens cannot become pictures: {len(missing)} weights are "
            f"missing ({missing[0]}, {missing[1]}, … {missing[-1]}). Text works without them. {family_of(model).advice}"
        )


def decode_pictures(model: Any, blocks: Sequence[Sequence[int]], vocabulary: Vocabulary) -> list[Image.Image]:
    """Decode blocks, each the tokens between begin and end of one whole picture, to RGB pictures.

    One at a time: several in one pass are rounded otherwise, and a picture must not depend on its neighbours.
    """
    if not blocks:
        return []
    check_can_draw(model)
    grids = [vocabulary.grid(block) for block in blocks]
    for block, grid in zip(blocks, grids, strict=True):
        if grid is None:
            raise ValueError(f"{len(block)} tokens make no whole picture of {vocabulary.image_length}")
    paint = family_of(model).paint
    assert paint is not None
    return paint(model, [grid for grid in grids if grid is not None])
