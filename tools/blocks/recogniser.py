"""Reads a picture of the world back into a scene, by rule: nearest cell template, and a limit on the distance."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tools.blocks.world import CELL, CELLS, COLUMNS, HEIGHT, SIDE, Scene

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
