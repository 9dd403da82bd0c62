"""Pictures as pixels, for models whose processor does not read pictures."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor


def as_pixels(picture: Image.Image) -> Tensor:
    """(1, 3, height, width) float32 in [-1, 1]."""
    rgb = picture.convert("RGB")
    levels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8).view(1, rgb.height, rgb.width, 3)
    return levels.permute(0, 3, 1, 2).float() / 127.5 - 1


def cropped(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of ``picture``, scaled so that it just fills width x height."""
    scale = max(width / picture.width, height / picture.height)
    size = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    scaled = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return scaled.crop((left, top, left + width, top + height))


def squared(picture: Image.Image, side: int, colour: tuple[int, int, int]) -> Image.Image:
    """``picture`` in the middle of a square of ``colour``, scaled to side x side."""
    longest = max(picture.size)
    square = Image.new("RGB", (longest, longest), colour)
    square.paste(picture.convert("RGB"), ((longest - picture.width) // 2, (longest - picture.height) // 2))
    return square.resize((side, side), Image.Resampling.LANCZOS)
