"""What the engine and its callers need to know of a family of models, besides the layers that a decoder reads.

A family is one file of this folder: it says as data, and with few functions, which tokens there are, how pictures
become tokens and tokens pictures, and what is usual for a task. `fastdecode.models.families` finds that of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from fastdecode.models.recipe import Recipe
from fastdecode.vocabulary import Grid, Vocabulary


@dataclass(frozen=True)
class Family:
    """How the models of one family read and draw pictures.

    name        as people call it
    matches     whether a model (with layers that `fastdecode.decoder` knows) belongs to it
    vocabulary  the tokens of a model. ValueError names what is missing for pictures
    paint       grids of codes to RGB pictures, one at a time; None: it draws none
    missing     names of weights that painting lacks; empty if the model can paint
    advice      what to do about missing weights, as a sentence
    pixels      checks pixel_values, (pictures, channels, H, W) float, and moves them to the model's encoder. Errors
                as of `fastdecode.generate`. None: it reads no pictures
    lengths     the numbers of placeholders of pictures that are given as pixels and sizes, as for ``read``
    read        pixels and the sizes that the processor gave with them (or None) to the tokens that take the places
                of placeholders, one (n,) int64 for each picture. None: its pictures are no tokens
    recipes        what is usual for the tasks that it was trained for, by task
    picture_tokens a PIL picture to tokens, begin and end included, where no processor of transformers does that
    own_generate   whether the class has a ``generate`` of its own that takes a generation_mode ("text" or "image")
    features    the same from what transformers' ``get_image_features`` returned
    """

    name: str
    matches: Callable[[Any], bool]
    vocabulary: Callable[[Any], Vocabulary]
    paint: Callable[[Any, Sequence[Grid]], list[Image.Image]] | None = None
    missing: Callable[[Any], list[str]] = lambda model: []
    advice: str = ""
    pixels: Callable[[Any, Tensor], Tensor] | None = None
    lengths: Callable[[Any, Tensor, Any], list[int]] | None = None
    read: Callable[[Any, Tensor, Any], list[Tensor]] | None = None
    features: Callable[[Any, Any], list[Tensor]] | None = None
    own_generate: bool = False
    recipes: Callable[[Any], dict[str, Recipe]] = lambda model: {}
    picture_tokens: Callable[[Any, Image.Image], list[int]] | None = None
