"""Reads a picture of the world back into a scene, by rule: nearest cell template, and a limit on the distance."""

from __future__ import annotations

import re

import numpy as np
from PIL import Image

from tools.blocks.world import CELL, CELLS, COLUMNS, HEIGHT, SIDE, Scene, put

_KEYS = list(CELLS)
_TEMPLATES = np.stack([CELLS[key] for key in _KEYS]).astype(np.float32)
LIMIT = 24.0
"""Largest root-mean-square difference (grey levels of 255) at which a cell still counts as recognised.
The closest two templates differ by more than this; see ``tests/tools``."""


def recognise(picture: Image.Image) -> Scene | None:
    """The scene that ``picture`` (64 x 64) shows, or ``None`` if a cell is unclear or a thing floats."""
    if picture.size != (SIDE, SIDE):
        raise ValueError(f"picture is {picture.size}; the recogniser reads {(SIDE, SIDE)}")
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    scene = []
    for x in range(COLUMNS):
        stack: list = []
        floating = False
        for y in range(HEIGHT):
            top = SIDE - (y + 1) * CELL
            cell = pixels[top : top + CELL, x * CELL : (x + 1) * CELL]
            distance = np.sqrt(((_TEMPLATES - cell) ** 2).mean((1, 2, 3)))
            best = int(distance.argmin())
            if distance[best] > LIMIT:
                return None
            thing = _KEYS[best]
            if thing is None:
                floating = True
            elif floating:
                return None
            else:
                stack.append(thing)
        scene.append(tuple(stack))
    return tuple(scene)


_ON_COLUMN = re.compile(r"Put an? (\w+) (\w+) in column ([1-4])\.")
_ON_THING = re.compile(r"Put an? (\w+) (\w+) on the (\w+) (\w+)\.")


def follow(scene: Scene, sentence: str) -> list[Scene]:
    """The scenes that ``sentence``, a step of an instruction, can lead to from ``scene``; empty if it makes no sense.

    "on the blue square" means a blue square that is on top of its column; there may be several.
    """
    if found := _ON_COLUMN.fullmatch(sentence):
        colour, shape, column = found.groups()
        columns = [int(column) - 1]
    elif found := _ON_THING.fullmatch(sentence):
        colour, shape, *below = found.groups()
        columns = [x for x, stack in enumerate(scene) if stack and stack[-1] == tuple(below)]
    else:
        return []
    thing = (colour, shape)
    if thing not in CELLS:
        return []
    return [put(scene, x, thing) for x in columns if len(scene[x]) < HEIGHT]
