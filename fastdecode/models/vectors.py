"""Pictures that a model reads as vectors, not as tokens: Janus and LLaVA."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from fastdecode.decoder.vectors import numbers_of
from fastdecode.models.pictures import encoder_of
from fastdecode.ops.scalars import shown


class VectorReader:
    """Computes the vectors of a call's pictures once, when it is first asked to.

    pixels   (pictures, …) as the processor returns them
    sizes    ``image_sizes`` beside them, (pictures, 2), where it returns some
    """

    def __init__(self, model: Any, pixels: Tensor, sizes: Any = None) -> None:
        self.model, self.pixels, self.sizes = model, pixels, _checked_sizes(model, pixels, sizes)
        self._found: Tensor | None = None

    def __call__(self, one_by_one: bool = False) -> Tensor:
        """The vectors (n, hidden) of all pictures, in order. ``one_by_one``: the encoder gets one picture at a time, so
        that a picture's vectors do not depend on the others by rounding.
        """
        if self._found is None:
            several = range(len(self.pixels)) if one_by_one else (slice(None),)
            parts = [slice(i, i + 1) if isinstance(i, int) else i for i in several]
            self._found = torch.cat([self._read(part) for part in parts])
        return self._found

    def _read(self, part: slice) -> Tensor:
        pixels = self.pixels[part]
        try:
            return read_vectors(self.model, pixels, None if self.sizes is None else self.sizes[part])
        except Exception as error:
            raise ValueError(
                f"{type(self.model).__name__} cannot read pixel_values of {tuple(pixels.shape)} "
                f"({type(error).__name__}: {error}): pass all that its processor returned"
            ) from error


def _checked_sizes(model: Any, pixels: Tensor, sizes: Any) -> Tensor | None:
    """``image_sizes`` as (pictures, 2) int64; None for a model that takes none."""
    parameter = inspect.signature(encoder_of(model)).parameters.get("image_sizes")
    if sizes is None and (parameter is None or parameter.default is not parameter.empty):
        return None
    found = _whole(sizes)
    if parameter is None or found is None or found.shape != (len(pixels), 2) or int(found.min()) < 1:
        wanted = "takes no image_sizes" if parameter is None else f"takes image_sizes ({len(pixels)}, 2), at least 1"
        raise ValueError(
            f"image_sizes={shown(sizes)}: {type(model).__name__} {wanted}: pass all that its processor returned"
        )
    return found


def _whole(value: Any) -> Tensor | None:
    """``value`` as a tensor int64; None unless it is made of whole numbers."""
    try:
        found = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return None if found.is_floating_point() or found.dtype == torch.bool or found.is_meta else found.long()


@torch.no_grad()
def read_vectors(model: Any, pixels: Tensor, sizes: Tensor | None = None) -> Tensor:
    """The vectors (n, hidden) of pictures, as the model's own ``get_image_features`` computes them."""
    given = {} if sizes is None else {"image_sizes": sizes.to(model.device)}
    found = encoder_of(model)(pixel_values=pixels.to(model.device), **given)
    found = getattr(found, "pooler_output", found)
    parts = found if isinstance(found, (list, tuple)) else [found]
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def fill_vectors(input_ids: Tensor, vectors: Tensor, placeholder: int | None) -> tuple[Tensor, dict[int, Tensor]]:
    """``input_ids`` (batch, length) with the number of a vector in place of each placeholder, in order; and the
    ``vectors`` (n, hidden) by their numbers. ``ValueError`` unless there are n placeholders.
    """
    here = torch.eq(input_ids, -1 if placeholder is None else placeholder)
    if int(here.sum()) != len(vectors):
        raise ValueError(
            f"the prompts have {int(here.sum())} <image> placeholder tokens, and their pictures take {len(vectors)}: "
            "give one picture for each <image> in the text, all through the processor"
        )
    numbers = numbers_of(vectors)
    filled = input_ids.long().clone()
    filled[here] = torch.tensor(numbers, dtype=filled.dtype, device=filled.device)
    return filled, dict(zip(numbers, vectors, strict=True))
