"""A picture that is not finished yet, as far as it is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from PIL import Image

from fastdecode.models.pictures import decode_pictures
from fastdecode.vocabulary import Vocabulary


def paint_part(
    model: Any, tokens: Sequence[int], vocabulary: Vocabulary, before: Sequence[int] | None = None
) -> Image.Image:
    """The first image tokens of a picture, at least one, as an RGBA picture that is transparent where nothing is drawn.

    The VQ decoder needs a whole picture, and what is drawn depends on the rest too: that is taken from the picture
    ``before`` (all its tokens), which most often looks alike, or else is the most frequent token so far; then it is
    left blank. ValueError without tokens, or for more than a picture has.
    """
    total, layout = vocabulary.image_length, vocabulary.picture
    if not 1 <= len(tokens) <= total:
        raise ValueError(f"{len(tokens)} image tokens are no part of a picture of {total}: give 1 to {total}")
    if before is not None and len(before) != total:
        raise ValueError(f"the picture before has {len(before)} image tokens: it must have {total}")
    drawn = [token for token in tokens if token in vocabulary.image_ids]
    [(most, _)] = Counter(drawn or vocabulary.code_ids[:1]).most_common(1)
    rest = [most if token < 0 else token for token in layout.forced] if before is None else before
    [picture] = decode_pictures(model, [[*tokens, *rest[len(tokens) :]]], vocabulary)
    return blank_rest(picture, len(drawn), layout.columns, layout.rows)


def blank_rest(picture: Image.Image, drawn: int, columns: int, rows: int) -> Image.Image:
    """RGBA: opaque in the first ``drawn`` of ``rows`` of ``columns`` cells, row by row; transparent in the others."""
    cells = Image.new("L", (columns, rows))
    cells.putdata([255] * drawn + [0] * (rows * columns - drawn))
    found = picture.convert("RGBA")
    found.putalpha(cells.resize(picture.size, Image.Resampling.NEAREST))
    return found
