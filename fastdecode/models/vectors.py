"""Pictures that a model reads as vectors, not as tokens: Janus and LLaVA."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdecode.decoder.vectors import numbers_of
from fastdecode.models.pictures import encoder_of


@torch.no_grad()
def read_vectors(model: Any, pixels: Tensor, sizes: Any = None) -> Tensor:
    """The vectors (n, hidden) of all pictures, in order, as the model's own ``get_image_features`` computes them.

    pixels   as the processor returns them
    sizes    ``image_sizes`` beside them, where it returns some
    """
    given = {} if sizes is None else {"image_sizes": torch.as_tensor(sizes).to(model.device)}
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
    filled = input_ids.clone()
    filled[here] = torch.tensor(numbers, dtype=filled.dtype, device=filled.device)
    return filled, dict(zip(numbers, vectors, strict=True))
