"""Pictures as callers have them: PIL, paths, arrays."""

from pathlib import Path

import numpy as np
import pytest
from models_for_tests import picture, tiny_model, tiny_processor
from PIL import Image

import fastdecode
from fastdecode.models.picture_files import pictures_of


def same(found: list[Image.Image], wanted: list[Image.Image]) -> bool:
    return [np.array(one.convert("RGB")).tolist() for one in found] == [np.array(one).tolist() for one in wanted]


def test_all_kinds_are_the_same_pictures(tmp_path: Path):
    shown = [picture(0).convert("RGB"), picture(1).convert("RGB")]
    files = [tmp_path / f"{number}.png" for number in range(2)]
    for one, file in zip(shown, files, strict=True):
        one.save(file)
    arrays = [np.array(one) for one in shown]
    mixed = [shown[0], str(files[1])]
    for given in (shown, tuple(shown), files, list(map(str, files)), arrays, np.stack(arrays), mixed):
        assert same(pictures_of(given), shown)
    for one in (shown[0], files[0], str(files[0]), arrays[0]):
        assert same(pictures_of(one), shown[:1])
    assert same(pictures_of(arrays[0][:, ::-1]), [shown[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    assert pictures_of(arrays[0][..., 0])[0].getpixel((1, 2)) == (arrays[0][2, 1, 0],) * 3
    assert pictures_of(None) == []


def test_recipes_and_engines_take_them(tmp_path: Path):
    model, processor, file = tiny_model(), tiny_processor(), tmp_path / "shown.png"
    picture(0).save(file)
    recipe = fastdecode.recipe(model, "caption")
    wanted = recipe.inputs(processor, "w1", picture(0))
    for given in (file, np.array(picture(0).convert("RGB"))):
        found = recipe.inputs(processor, "w1", given)
        assert found["pixel_values"].equal(wanted["pixel_values"])
    with fastdecode.Engine(model, processor) as engine:
        texts = [
            engine.submit("w1", images=given, max_new_tokens=4, do_sample=False).result().tolist()
            for given in (picture(0), file, [str(file)])
        ]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (5, "images is an int: give a PIL picture, the path of a file, or an array"),
        ([None], r"images\[0\] is a NoneType: give a PIL picture"),
        ("no such.png", "images 'no such.png': there is no such file"),
        ([__file__], r"images\[0\] '.*test_picture_files.py' is not a picture that can be read"),
        (np.zeros((4, 4, 3)), r"images is an array \(4, 4, 3\) of float64: give"),
        (np.zeros((4, 4, 4), np.uint8), r"images is an array \(4, 4, 4\) of uint8: give"),
        (np.zeros((0, 4, 3), np.uint8), r"images is an array \(0, 4, 3\) of uint8: give"),
        (np.zeros((2, 4, 4, 2), np.uint8), r"images\[0\] is an array \(4, 4, 2\) of uint8: give"),
    ],
)
def test_what_is_none(wrong, message: str):
    with pytest.raises(ValueError, match=message):
        pictures_of(wrong)
