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

from fastdecode.layout import Grid
from fastdecode.models.recipe import Recipe
from fastdecode.vocabulary import Vocabulary
from fastdecode.wording import kind_of

READING = ("pixels", "lengths", "read", "features")
"""The functions of a family that reads pictures."""


@dataclass(frozen=True)
class Family:
    """How the models of one family read and draw pictures.

    name            as people call it
    matches         whether a model belongs to it
    vocabulary      the tokens of a model. ValueError names what is missing for pictures
    paint           grids of codes to RGB pictures, as many, one at a time; None: nothing makes pictures of its tokens
    missing         names of weights that painting lacks; empty if the model can paint
    advice          what to do about missing weights, as a sentence
    recipes         what is usual for the tasks that it was trained for, by task
    size_in_prompt  (rows, columns) of the picture that the tokens of a prompt ask for; None if they do not tell. None:
                    prompts never tell in tokens
    told_sizes      for models that place the tokens of pictures by what the call tells, beside the tokens: reads that,
                    for the prompts (batch, length) and each of them several times, and returns what
                    `fastdecode.decoder.aligned.AlignedDecoder.places` is told of each. Such models take no guidance
    own_generate    whether the class has a ``generate`` of its own that takes a generation_mode ("text" or "image")

    Pictures in prompts; all four, or none for a family that reads none:

    pixels          checks pixel_values, (pictures, channels, H, W) float, and moves them to the model's encoder. Errors
                    as of `fastdecode.generate`
    lengths         the numbers of placeholders of pictures that are given as pixels and sizes, as for ``read``
    read            pixels, and the sizes that the processor gave with them (or None), to the tokens that take the
                    places of placeholders, one (n,) int64 for each picture
    features        the same from what transformers' ``get_image_features`` returned

    Where no processor of transformers reads pictures for the model:

    picture_tokens  a PIL picture to tokens, begin and end included

    ``ValueError`` for a part of another kind, and for some of the four functions without the others.
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
    size_in_prompt: Callable[[Any, Sequence[int]], tuple[int, int] | None] | None = None
    told_sizes: Callable[[Any, Tensor, dict[str, Any], int], list[list[tuple[int, int]]] | None] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name of a Family is {kind_of(self.name)}: give a str that is not empty")
        needed = ("matches", "vocabulary", "missing", "recipes")
        for name in (*needed, *READING, "paint", "picture_tokens", "size_in_prompt", "told_sizes"):
            value = getattr(self, name)
            if not callable(value) and (value is not None or name in needed):
                raise ValueError(f"{name} of the family {self.name} is {kind_of(value)}: give a function")
        if not isinstance(self.advice, str):
            raise ValueError(f"advice of the family {self.name} is {kind_of(self.advice)}: give a str")
        given = [name for name in READING if getattr(self, name) is not None]
        if given and len(given) != len(READING):
            raise ValueError(
                f"the family {self.name} has {', '.join(given)} without "
                f"{', '.join(name for name in READING if name not in given)}: to read pictures it needs all four"
            )
