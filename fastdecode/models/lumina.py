"""Lumina-mGPT: Chameleon's tokens; a picture tells its size in two tokens, and a token ends each of its rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from PIL import Image
from torch import Tensor

from fastdecode.layout import Layout, SizeTokens
from fastdecode.models.chameleon import CHAMELEON, read
from fastdecode.models.chameleon_recipes import END
from fastdecode.models.pixels import as_pixels, cropped
from fastdecode.models.recipe import PLAIN, Recipe, by_task
from fastdecode.models.vocabulary_map import named_tokens
from fastdecode.vocabulary import Vocabulary

ROW_END, FIRST_SIZE = "<reserved08799>", "<reserved08800>"
UNIT = 2
"""Image tokens of a step of size."""

TARGETS = (512, 768, 1024)
"""Sides of the square pictures that the checkpoints are trained for; others have about the same area."""

USUAL = 768

RATIO = 4
"""The longer side of a picture is at most so many times the shorter one."""

HOW_TO_READ = "give what fastdecode.recipe(model, 'caption').inputs(processor, text, images) returns"


def is_lumina(config: Mapping[str, Any], name: str = "") -> bool:
    """Whether a Chameleon's ``config`` is that of a Lumina-mGPT. Its vocabulary and layers are those of Chameleon, so
    that only names tell: of its class, of a setting of its training, and of the checkpoint.
    """
    trained = any("XLLMX" in kind for kind in config.get("architectures") or []) or "z_loss_weight" in config
    return trained or re.search(r"lumina[-_]?mgpt", name, re.IGNORECASE) is not None


def target_of(name: str) -> int | None:
    """The side of a square picture, told by the name of the checkpoint; None if it does not tell."""
    return next((target for target in TARGETS if re.search(rf"(?<!\d){target}(?!\d)", name)), None)


@lru_cache(maxsize=16)
def sizes_of(side: int) -> frozenset[tuple[int, int]]:
    """(rows, columns) of the pictures that a checkpoint draws: along the edge of what has no more than ``side`` x
    ``side`` image tokens, in steps of 2 and up to a ratio of 4.
    """
    most = (side // UNIT) ** 2
    wide, high, found = most, 1, set()
    while wide > 0:
        if max(wide, high) <= RATIO * min(wide, high):
            found.add((high * UNIT, wide * UNIT))
        if (high + 1) * wide <= most:
            high += 1
        else:
            wide -= 1
    return frozenset(found)


def vocabulary(model: Any) -> Vocabulary:
    """That of Chameleon, with pictures of several sizes. ``ValueError`` names what is missing."""
    known, why = CHAMELEON.vocabulary(model), "with them Lumina-mGPT writes rows and sizes of pictures"
    ids = named_tokens(model.config, (ROW_END, FIRST_SIZE), known.size, why)
    cell = 2 ** (len(model.config.vq_config.channel_multiplier) - 1)
    target = target_of(model.config.name_or_path)
    sizes = frozenset(size for each in ((target,) if target else TARGETS) for size in sizes_of(each // cell))
    side = (target or USUAL) // cell
    tokens = SizeTokens(ids[FIRST_SIZE], UNIT, 1 + max(max(size) for size in sizes) // UNIT)
    layout = Layout(side, side, ids[ROW_END], tokens.of(side, side))
    longest = max(rows * (columns + 1) for rows, columns in sizes)
    return replace(
        known,
        image_length=len(layout),
        layout=layout,
        size_tokens=tokens,
        sizes=sizes,
        cell=cell,
        context=known.context if longest + 4 < known.context else 2 * known.context,  # as its own code goes on
        unconditional="bare",
        how_to_read=HOW_TO_READ,
    )


SOLVER = "Alpha-VLLM/Lumina-mGPT, inference_solver.py"
README = "Alpha-VLLM/Lumina-mGPT, README"


def recipes(model: Any) -> dict[str, Recipe]:
    """By task. Editing is for the checkpoints called Omni."""
    both = {"do_sample": True, "text": {"temperature": 1.0, "top_k": 10}}
    drawn = {
        "multimodal_generation_mode": "image-only",
        "guidance": 4.0,
        **both,
        "image": {"temperature": 1.0, "top_k": 2000},
    }
    edited = {**drawn, "guidance": 1.0, "image": {"temperature": 1.0, "top_k": 200}}
    said = {"multimodal_generation_mode": "text-only", **both, "max_new_tokens": 1024}
    asked = "Generate an image of {width}x{height} according to the following prompt:\n{text}"
    tasks = [
        ("text-to-image", asked, drawn, README),
        ("caption", "Describe the image in detail. <image>", said, SOLVER),
        ("chat", "{text}", said, SOLVER),
    ]
    if "omni" in model.config.name_or_path.lower():
        tasks.append(("edit", "{text} <image>", edited, README))
    found = [
        Recipe.of("Lumina-mGPT", task, template + END, options, source, processor=PLAIN)
        for task, template, options, source in tasks
    ]
    return by_task(found)


def picture_tokens(model: Any, picture: Image.Image) -> list[int]:
    """The tokens of a picture, begin and end included: cropped to the nearest of the sizes, rows with their ends."""
    known = vocabulary(model)
    assert known.sizes is not None

    def closeness(size: tuple[int, int]) -> float:
        wide, high = size[1] * known.cell / picture.width, size[0] * known.cell / picture.height
        return min(wide, high) / max(wide, high)

    rows, columns = max(sorted(known.sizes), key=closeness)
    of_size = known.resized(rows, columns)
    pixels = as_pixels(cropped(picture, columns * known.cell, rows * known.cell))
    weight = model.model.vqmodel.quant_conv.weight
    [tokens] = read(model, pixels.to(weight.device, weight.dtype), None)
    layout, image = of_size.picture, iter(tokens.tolist())
    inside = [next(image) if token < 0 else token for token in layout.forced]
    return [known.begin_image, *inside, known.end_image]


def _matches(model: Any) -> bool:
    return CHAMELEON.matches(model) and is_lumina(vars(model.config), model.config.name_or_path)


def check_pixels(model: Any, pixels: Tensor) -> Tensor:
    """``ValueError``: transformers' processor of Chameleon makes neither sizes nor rows."""
    raise ValueError(
        "pixel_values were given, and Lumina-mGPT reads pictures with sizes and rows, which Chameleon's processor does "
        f"not make: {HOW_TO_READ}"
    )


LUMINA = replace(
    CHAMELEON,
    name="Lumina-mGPT",
    matches=_matches,
    vocabulary=vocabulary,
    pixels=check_pixels,
    recipes=recipes,
    picture_tokens=picture_tokens,
)
