"""Pictures on their way in and out: pixels, placeholders of a prompt, and painted tokens."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastdecode.decoder.classes import known_classes
from fastdecode.models.families import family_of, text_vocabulary_of, token_count
from fastdecode.models.returned import checked_lengths, checked_list, checked_names, checked_pictures, checked_tokens
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
    found = family.pixels(model, pixels)
    if not isinstance(found, Tensor):
        raise ValueError(f"pixels of the family {family.name} returned {kind_of(found)}: it must return a tensor")
    return found


def pixel_tensor(model: Any, pixel_values: Any) -> Tensor:
    """Pixels as a tensor. ``ValueError`` unless they are a dense tensor, or a numpy array, of finite floats. Their
    shape is left to `check_pixels`.
    """
    reason = why_no_pixels(model) if family_of(model).pixels is None else ""
    if reason:
        raise ValueError(f"pixel_values were given, but {reason}")
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
    """Whether the model takes pictures that do not become tokens."""
    takes = "pixel_values" in inspect.signature(type(model).forward).parameters
    return takes and family_of(model).pixels is None


def placeholder_of(model: Any) -> int | None:
    """The token that stands for each vector of a picture in a prompt; None if the model does not say, has no
    ``get_image_features``, or may read vectors otherwise than one after another.
    """
    found = getattr(model.config, "image_token_id", None)
    known = known_classes(model) is not None and encoder_of(model) is not None
    return found if isinstance(found, int) and known else None


def encoder_of(model: Any) -> Any:
    """The function of the model, or of the model inside, that makes vectors of pixels; None without one."""
    inside = getattr(model, "model", None)
    return getattr(model, "get_image_features", getattr(inside, "get_image_features", None))


def why_no_pixels(model: Any) -> str:
    """Why the model cannot be given pictures as pixels, and what to do; empty if it can."""
    kind, family, vocabulary = type(model).__name__, family_of(model), text_vocabulary_of(model)
    if reads_vectors(model):
        if placeholder_of(model) is not None:
            return ""
        return f"this {kind} does not say which token stands for a picture: its own generate takes pictures"
    if vocabulary.problem is not None:
        return vocabulary.problem
    if family.pixels is not None:
        return ""
    if family.picture_tokens is not None:
        return (
            f"{family.name} reads pictures as tokens of the prompt: give what fastdecode.recipe(model, task).inputs("
            "processor, text, images) returns, for a task that reads pictures"
        )
    return f"{kind} {'draws pictures and reads none' if vocabulary.has_pictures else 'reads and writes text only'}"


def lengths_of(model: Any, pixels: Tensor, sizes: Any = None) -> list[int]:
    """The number of placeholders of each picture. Arguments as `read_pictures`."""
    family = family_of(model)
    assert family.lengths is not None
    return checked_lengths(f"lengths of the family {family.name}", family.lengths(model, pixels, sizes), len(pixels))


def read_pictures(model: Any, pixels: Tensor, sizes: Any = None) -> list[Tensor]:
    """The tokens of pictures, (n,) int64 each, that take the places of placeholders. ``sizes``: what the processor gave
    with ``pixels``. ``ValueError`` if the model reads no pictures as tokens.
    """
    pixels, family = check_pixels(model, pixels), family_of(model)
    assert family.read is not None
    found = family.read(model, pixels, sizes)
    return checked_tokens(f"read of the family {family.name}", found, len(pixels), token_count(model))


def encoded_pictures(model: Any, encoded: Any) -> list[Tensor]:
    """As `read_pictures`, of what transformers' ``get_image_features`` returned."""
    family = family_of(model)
    assert family.features is not None
    return checked_tokens(
        f"features of the family {family.name}", family.features(model, encoded), None, token_count(model)
    )


def picture_tokens(model: Any, picture: Image.Image) -> list[int]:
    """The tokens of a picture, begin and end included, where the family makes them of PIL pictures."""
    family = family_of(model)
    assert family.picture_tokens is not None
    found = family.picture_tokens(model, picture)
    return checked_list(f"picture_tokens of the family {family.name}", found, token_count(model))


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
    """``ValueError`` unless ``input_ids`` holds placeholders for pictures of ``lengths`` tokens, and all those of a
    picture in one prompt.
    """
    if vocabulary.placeholder < 0 or not vocabulary.has_pictures:
        if lengths:
            reason = "this model reads and writes text only"
            if vocabulary.has_pictures:
                reason = "prompts of this model have no placeholder for pictures"
            raise ValueError(f"{len(lengths)} pictures were given, but {vocabulary.problem or reason}")
        return
    here = (input_ids == vocabulary.placeholder).sum(-1)
    found = int(here.sum())
    if found != sum(lengths):
        one = lengths[0] if lengths else vocabulary.image_length
        many = vocabulary.any_size or vocabulary.sizes is not None
        room = "" if many and not lengths else f" (room for {found / one:g} pictures of {one})"
        raise ValueError(
            f"the prompt has {found} <image> placeholder tokens{room}, but pixel_values holds {len(lengths)} pictures: "
            f"{vocabulary.how_to_read}"
        )
    ends = set(accumulate(lengths))
    for number, end in enumerate(accumulate(here.reshape(-1).tolist())):
        if end and end not in ends:
            raise ValueError(
                f"the <image> placeholder tokens of prompt {number} end inside a picture: the pictures of pixel_values "
                f"take {', '.join(map(str, lengths))} of them: {vocabulary.how_to_read}"
            )


# --- drawing ----------------------------------------------------------------------------------------------------


def missing_decoder_keys(model: Any) -> list[str]:
    """The names of what ``model`` lacks for painting: weights, or the ``paint`` of its family; empty if it can draw."""
    family = family_of(model)
    if family.paint is None:
        return [f"paint of the family {family.name}"]
    return checked_names(f"missing of the family {family.name}", family.missing(model))


def check_can_draw(model: Any) -> None:
    """``ValueError`` that names the missing weights if ``model`` has no decoder of pictures."""
    family, missing = family_of(model), missing_decoder_keys(model)
    if family.paint is None:
        vocabulary = text_vocabulary_of(model)
        if not vocabulary.has_pictures:
            raise ValueError(vocabulary.problem or f"{type(model).__name__} writes text only")
        raise ValueError(
            f"the family {family.name} has no paint, so image tokens cannot become pictures: register it with one, or "
            "choose 'text-only'"
        )
    if missing:
        some = missing if len(missing) < 4 else [*missing[:2], f"… {missing[-1]}"]
        count = "1 weight is" if len(missing) == 1 else f"{len(missing)} weights are"
        raise ValueError(
            f"this model has no VQ decoder, so its picture tokens cannot become pictures: {count} missing "
            f"({', '.join(some)}). Text works without them. {family.advice}".rstrip()
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
    family = family_of(model)
    assert family.paint is not None
    found = family.paint(model, [grid for grid in grids if grid is not None])
    return checked_pictures(f"paint of the family {family.name}", found, len(grids))
