"""Pictures that a model reads as vectors, not as tokens: Janus and LLaVA."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdecode.decoder.vectors import numbers_of
from fastdecode.wording import kind_of


def placeholder_of(model: Any) -> int | None:
    """The token that stands for each vector of a picture in a prompt; None if the model does not say."""
    found = getattr(model.config, "image_token_id", None)
    return found if isinstance(found, int) and hasattr(model, "get_image_features") else None


def check_vector_pixels(model: Any, pixels: Any) -> None:
    """``ValueError`` unless ``pixels`` are a dense tensor of finite floats."""
    wanted = f"what the processor of {type(model).__name__} makes of pictures"
    if not isinstance(pixels, Tensor) or not pixels.is_floating_point() or pixels.is_meta:
        raise ValueError(f"pixel_values is {kind_of(pixels)}: give {wanted}, a tensor of floats")
    if not pixels.numel() or not pixels.isfinite().all():
        raise ValueError(f"pixel_values holds {'NaN or infinity' if pixels.numel() else 'no picture'}: give {wanted}")


@torch.no_grad()
def read_vectors(model: Any, pixels: Tensor, sizes: Any = None) -> Tensor:
    """The vectors (n, hidden) of all pictures, in order, as the model's own ``get_image_features`` computes them.

    pixels   as the processor returns them
    sizes    ``image_sizes`` beside them, where it returns some
    """
    given = {} if sizes is None else {"image_sizes": torch.as_tensor(sizes).to(model.device)}
    found = model.get_image_features(pixel_values=pixels.to(model.device), **given)
    found = getattr(found, "pooler_output", found)
    parts = found if isinstance(found, (list, tuple)) else [found]
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def fill_vectors(input_ids: Tensor, vectors: Tensor, placeholder: int) -> tuple[Tensor, dict[int, Tensor]]:
    """``input_ids`` (batch, length) with the number of a vector in place of each placeholder, in order; and the
    ``vectors`` (n, hidden) by their numbers. ``ValueError`` unless there are n placeholders.
    """
    here = input_ids == placeholder
    if int(here.sum()) != len(vectors):
        raise ValueError(
            f"the prompts have {int(here.sum())} <image> placeholder tokens, and their pictures take {len(vectors)}: "
            "give one picture for each <image> in the text, all through the processor"
        )
    numbers = numbers_of(vectors)
    filled = input_ids.clone()
    filled[here] = torch.tensor(numbers, dtype=filled.dtype, device=filled.device)
    return filled, dict(zip(numbers, vectors, strict=True))
