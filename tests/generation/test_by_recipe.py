"""What a command or a server makes of a recipe and of the caller's options."""

import pytest
from family_models import glm_image_processor, tiny_glm_image

import fastdecode
from fastdecode.generation.by_recipe import check_served, request_by_recipe


@pytest.fixture(scope="module")
def blocks():
    return fastdecode.load("blocks")


def options_of(blocks, task: str, given: dict) -> dict:
    model, processor = blocks
    recipe = fastdecode.recipe(model, task)
    inputs, options = request_by_recipe(recipe, processor, "Build a tree in column 1.", None, None, given)
    assert not set(inputs) & set(options)
    return options


def test_who_chooses_a_temperature_samples(blocks):
    assert options_of(blocks, "interleaved", {})["text"] == {"do_sample": False}
    for chosen in ({"temperature": 0.9}, {"top_p": 0.5}):
        options = options_of(blocks, "interleaved", {"text": chosen})
        assert options["text"] == chosen
        assert options["do_sample"] is True
    assert options_of(blocks, "interleaved", {"text": {"repetition_penalty": 1.2}})["text"]["do_sample"] is False
    both = {"temperature": 0.9, "do_sample": False}
    assert options_of(blocks, "interleaved", {"text": both})["text"] == both


def test_none_is_not_given(blocks):
    assert options_of(blocks, "interleaved", {"image": None}) == options_of(blocks, "interleaved", {})


def test_a_recipe_that_tells_its_length():
    model, processor = tiny_glm_image(), glm_image_processor()
    recipe = fastdecode.recipe(model, "text-to-image")
    inputs, options = request_by_recipe(recipe, processor, "w20", None, (64, 96), {})
    assert "max_new_tokens" not in inputs
    room = recipe.vocabulary.context - inputs["input_ids"].shape[1]
    assert options["max_new_tokens"] == min(3 * 2 + 19 * 13 + 1, room)
    with pytest.raises(ValueError, match="GLM-Image needs image_grid_thw, which an engine does not take: call"):
        check_served(model)
