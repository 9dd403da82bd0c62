"""Pictures as text: out of a request, and into an answer."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence

from PIL import Image, UnidentifiedImageError

from fastdecode.serve.limits import Limits, Refused

DATA_URL = "data:image/png;base64,"
FORMATS = ("PNG", "JPEG")
MAX_RATIO = 100
"""Of a picture's longer side to its shorter one. A model's processor scales the shorter side to a fixed length, so a
strip of few pixels would become one of very many."""


def to_data_url(picture: Image.Image) -> str:
    """A picture as a PNG in a data URL."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    return DATA_URL + base64.b64encode(data.getvalue()).decode()


def open_pictures(texts: Sequence[str], limits: Limits) -> list[Image.Image]:
    """PNG or JPEG in base64 (or data URLs of them) to RGB pictures.

    `Refused`: 413 for too many or too large ones, which are not decompressed; 422 for what is no picture.
    """
    if len(texts) > limits.images:
        raise Refused(413, f"images: {len(texts)} pictures were given, and this server takes at most {limits.images}")
    return [_open(text, f"images.{number}", limits) for number, text in enumerate(texts)]


def _open(text: str, where: str, limits: Limits) -> Image.Image:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, f"{where} is not base64: give a PNG or JPEG in base64, or a data URL") from None
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            size = f"{picture.width} x {picture.height} pixels"
            if picture.width * picture.height > limits.image_pixels:
                raise Refused(413, f"{where} is too large: {size}, and this server takes at most {limits.image_pixels}")
            if max(picture.size) > MAX_RATIO * min(picture.size):
                raise Refused(
                    422, f"{where} is too narrow: {size}; one side may be {MAX_RATIO} times the other at most"
                )
            return picture.convert("RGB")
    except Refused:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, before it tells the size
        raise Refused(413, f"{where} is too large: this server takes at most {limits.image_pixels} pixels") from None
    except UnidentifiedImageError:
        raise Refused(422, f"{where} is not a PNG or JPEG that can be read") from None
    except Exception:  # Pillow raises many kinds for broken files
        raise Refused(422, f"{where} is a broken PNG or JPEG: it ends too early, or a part of it is wrong") from None
