"""Previews of unfinished pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastdecode.models.families import vocabulary_of
from fastdecode.models.pictures import decode_pictures
from fastdecode.serve.preview import blank_rest, paint_part


@pytest.mark.parametrize("drawn", [0, 1, 5, 16])
def test_the_rest_is_transparent(drawn: int) -> None:
    picture = Image.new("RGB", (32, 32), (10, 20, 30))
    pixels = np.asarray(blank_rest(picture, drawn, 4, 4))
    assert pixels.shape == (32, 32, 4)
    cells = pixels[..., 3].reshape(4, 8, 4, 8).transpose(0, 2, 1, 3).reshape(16, 64)
    assert (cells == np.where(np.arange(16) < drawn, 255, 0)[:, None]).all()
    assert (pixels[..., :3] == (10, 20, 30)).all()


def test_what_is_drawn_is_the_decoders(blocks: tuple[Any, Any]) -> None:
    model, _ = blocks
    vocabulary = vocabulary_of(model)
    a, b = vocabulary.code_ids[3], vocabulary.code_ids[40]
    tokens = [a, b, b, *[a] * 9]
    found = paint_part(model, tokens, vocabulary)
    [whole] = decode_pictures(model, [[*tokens, *[a] * 52]], vocabulary)
    assert found.size == whole.size
    assert (np.asarray(found)[..., :3] == np.asarray(whole)).all()
    assert (np.asarray(found)[:8, :, 3] == 255).all()
    assert (np.asarray(found)[16:, :, 3] == 0).all()


def test_the_rest_is_of_the_picture_before(blocks: tuple[Any, Any]) -> None:
    model, _ = blocks
    vocabulary = vocabulary_of(model)
    before = list(vocabulary.code_ids[:64])
    found = paint_part(model, before[:20], vocabulary, before)
    [whole] = decode_pictures(model, [before], vocabulary)
    assert (np.asarray(found)[..., :3] == np.asarray(whole)).all()
    with pytest.raises(ValueError, match="must have 64"):
        paint_part(model, before[:20], vocabulary, before[:63])


@pytest.mark.parametrize("count", [0, 65])
def test_no_part_of_a_picture(blocks: tuple[Any, Any], count: int) -> None:
    vocabulary = vocabulary_of(blocks[0])
    with pytest.raises(ValueError, match="1 to 64"):
        paint_part(blocks[0], [vocabulary.code_ids[0]] * count, vocabulary)
