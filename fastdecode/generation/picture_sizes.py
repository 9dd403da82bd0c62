"""The size of the pictures that a call draws: image_size, or what Emu3's processor returns as image_sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastdecode.models.image_sizes import RIGHT, Size, is_pair, is_side, listed, pairs_of
from fastdecode.ops.scalars import shown
from fastdecode.vocabulary import Vocabulary


def sized_vocabularies(
    vocabulary: Vocabulary, image_size: Any, image_sizes: Any, told: Sequence[Size | None], *, draws: bool
) -> list[Vocabulary]:
    """The vocabulary of each prompt, for pictures of the size that is asked for. ``ValueError`` names a size that the
    model cannot draw, or that is not the one in the prompt.

        image_size    of the call: (width, height) in pixels, one or for each prompt; None: the model's own
        image_sizes   rows and columns of the picture of each prompt, as Emu3's processor returns them; or None
        told          rows and columns that each prompt tells; None where it tells none
        draws         whether the mode draws pictures
    """
    if not draws:
        if image_size is None:
            return [vocabulary] * len(told)
        raise ValueError(
            f"image_size={shown(image_size)} is the size of pictures, and multimodal_generation_mode='text-only' draws "
            "none: leave it out, or choose a mode that draws"
        )
    for number, said in enumerate(told):
        pair = isinstance(said, tuple) and len(said) == 2 and all(map(is_side, said))
        if said is not None and not pair:
            raise ValueError(
                f"size_in_prompt of the model's family returned {shown(said)} for prompt {number}: it must return "
                "(rows, columns), or None"
            )
    if image_size is not None and image_sizes is not None:
        raise ValueError("image_size and image_sizes were given: give one of them")
    asked = _by_pixels(vocabulary, image_size, len(told)) or _of_processor(image_sizes, len(told))
    cell, made = vocabulary.cell, dict[Size, Vocabulary]()
    sizes = []
    for number, said in enumerate(told):
        size = said if asked is None else asked[number]
        if size is not None and said not in (None, size):
            rows, columns = said
            raise ValueError(
                f"prompt {number} asks for a picture of {columns * cell}x{rows * cell} pixels ({rows} rows of "
                f"{columns} tokens), and the call for one of {size[1] * cell}x{size[0] * cell}: give both the same size"
            )
        sizes.append(size)
        if size is not None and size not in made:
            made[size] = vocabulary.resized(*size)
    return [vocabulary if size is None else made[size] for size in sizes]


def _by_pixels(vocabulary: Vocabulary, image_size: Any, prompts: int) -> list[Size] | None:
    """(rows, columns) of each prompt's picture."""
    if image_size is None:
        return None
    pairs = pairs_of(image_size)
    pairs = [pairs] * prompts if isinstance(pairs, tuple) else pairs
    if len(pairs) != prompts:
        raise ValueError(
            f"image_size has {len(pairs)} size{'s' * (len(pairs) != 1)} for {prompts} prompt{'s' * (prompts != 1)}: "
            f"{RIGHT}"
        )
    layouts = [vocabulary.sized(*pair).picture for pair in pairs]
    return [(layout.rows, layout.columns) for layout in layouts]


def _of_processor(image_sizes: Any, prompts: int) -> list[Size] | None:
    if image_sizes is None:
        return None
    found = listed(image_sizes)
    if not isinstance(found, (list, tuple)) or not all(map(is_pair, found)) or len(found) not in (1, prompts):
        raise ValueError(
            f"image_sizes={shown(image_sizes)}: without pixel_values it must hold rows and columns of the picture of "
            f"each of {prompts} prompt{'s' * (prompts != 1)}, as the processor returns them with "
            "return_for_image_generation=True"
        )
    pairs = [(int(rows), int(columns)) for rows, columns in found]
    return pairs * prompts if len(pairs) == 1 else pairs
