"""Pictures as callers have them: PIL pictures, paths of files, arrays of levels."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastdecode.wording import kind_of

RIGHT = "a PIL picture, the path of a file, or an array (height, width, 3) uint8"


def pictures_of(images: Any) -> list[Image.Image]:
    """``images`` as a list of PIL pictures; None is an empty one. Takes one, or a list of them: PIL pictures, paths of
    files (str or Path), and arrays, (height, width, 3) or (height, width) uint8. ``ValueError`` names the first that is
    none of them, or a file that cannot be read.
    """
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return [picture_of(picture, f"images[{number}]") for number, picture in enumerate(images)]
    if isinstance(images, np.ndarray) and images.ndim == 4:
        return [picture_of(picture, f"images[{number}]") for number, picture in enumerate(images)]
    return [picture_of(images, "images")]


def picture_of(value: Any, name: str) -> Image.Image:
    """One of them, called ``name`` in errors."""
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, (str, os.PathLike)):
        file = os.fsdecode(value)
        return _read(Path(file), f"{name} {(file if len(file) <= 200 else file[:200] + '…')!r}")
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{name} is {kind_of(value)}: give {RIGHT}")
    grey, coloured = value.ndim == 2, value.ndim == 3 and value.shape[2] == 3
    if value.dtype != np.uint8 or not (grey or coloured) or not value.size:
        raise ValueError(f"{name} is an array {value.shape} of {value.dtype}: give {RIGHT}")
    return Image.fromarray(np.ascontiguousarray(value)).convert("RGB")


def _read(file: Path, name: str) -> Image.Image:
    """The picture of a file, in RGB. ``ValueError``, which begins with ``name``, for one that cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as picture:
                return picture.convert("RGB")
    except FileNotFoundError:
        raise ValueError(f"{name}: there is no such file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"{name} is too large: a picture may have {Image.MAX_IMAGE_PIXELS} pixels") from None
    except MemoryError:
        raise ValueError(f"{name} is too large for this machine's memory") from None
    except Exception as error:  # Pillow raises many kinds for broken files
        said = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{name} is not a picture that can be read: {said}") from None
