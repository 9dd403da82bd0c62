"""GLM-Image: tokens of previews and pictures, placed in grids. Expected tokens are those of transformers' generate."""

import re

import pytest
import torch
from family_models import GLM_BEGIN, GLM_END, GLM_IMAGE_TOKEN, GLM_OUTPUTS, GLM_PAD, glm_image_processor, tiny_glm_image

import fastdecode
from fastdecode.decoder.places import Places, places_after
from fastdecode.models.families import family_of

SIZES = [[(4, 6), (2, 3)], [(5, 3), (3, 2)]]
LENGTH = 4 * 6 + 2 * 3 + 1
SHORT = 5 * 3 + 3 * 2 + 1
GREEDY = {"max_new_tokens": LENGTH, "do_sample": False, "fallback": "error"}
DRAWN = {"max_new_tokens": LENGTH, "do_sample": True, "temperature": 0.9, "top_p": 0.75}


def inputs_of(*numbers: int) -> dict[str, torch.Tensor]:
    """Prompts of two lengths with a picture and a preview, as the processor returns them."""
    prompts = [[200, 201, 202, 203, GLM_BEGIN], [205, 206, 210, 211, 212, 213, GLM_BEGIN]]
    chosen = [prompts[number] for number in numbers]
    width = max(map(len, chosen))
    ids = torch.tensor([[GLM_PAD] * (width - len(row)) + row for row in chosen])
    grids = torch.tensor([[1, rows, columns] for number in numbers for rows, columns in SIZES[number]])
    mask, counts = (ids != GLM_PAD).long(), torch.tensor([2] * len(chosen))
    return {"input_ids": ids, "attention_mask": mask, "image_grid_thw": grids, "images_per_sample": counts}


def theirs(model, inputs, length: int = LENGTH) -> torch.Tensor:
    model.model.rope_deltas = model.model._cached_decode_position_ids = None  # what the last call left there
    return model.generate(**inputs, max_new_tokens=length, do_sample=False)


@pytest.mark.parametrize(("numbers", "length"), [((0,), LENGTH), ((1,), SHORT), ((0, 1), LENGTH)])
def test_greedy_tokens(numbers: tuple[int, ...], length: int):
    model, inputs, options = tiny_glm_image(), inputs_of(*numbers), GREEDY | {"max_new_tokens": length}
    found = fastdecode.generate(model, **inputs, **options)
    assert torch.equal(found, theirs(model, inputs, length))
    plain = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    unplaced = fastdecode.generate(model, **plain, **options)
    assert torch.equal(unplaced, theirs(model, plain, length))
    assert not torch.equal(unplaced, found)
    new = found[:, inputs["input_ids"].shape[1] :]
    assert new.unique().numel() > 5
    assert bool(((new < GLM_OUTPUTS) | (new == GLM_PAD)).all())


def test_a_seed_draws_the_same_alone_and_in_a_batch():
    model = tiny_glm_image()
    together = fastdecode.generate(model, **inputs_of(0, 1), **DRAWN, seed=[3, 4])
    assert torch.equal(together, fastdecode.generate(model, **inputs_of(0, 1), **DRAWN, seed=[3, 4]))
    for number, length in ((0, 5), (1, 7)):
        alone = fastdecode.generate(model, **inputs_of(number), **DRAWN, seed=3 + number)[0, length:]
        assert torch.equal(alone, together[number, 7 : 7 + len(alone)])
    several = fastdecode.generate(model, **inputs_of(0, 1), **DRAWN, seed=[3, 4], num_return_sequences=2)
    for number in (0, 1):
        one = several[2 * number]
        width = min(one.shape[0], together.shape[1])
        assert torch.equal(one[:width], together[number, :width])


def test_sequences_that_take_turns(monkeypatch):
    """In a pool too small for both, prompts and what follows are computed anew."""
    begun, begin = [], Places.begin
    monkeypatch.setattr(Places, "begin", lambda self, row, ids: (begun.append(len(ids)), begin(self, row, ids)))
    model, inputs = tiny_glm_image(), inputs_of(0, 1)
    pool = fastdecode.new_pool(model, pages=7, page_slots=8)
    assert torch.equal(fastdecode.generate(model, **inputs, **GREEDY, kv_pool=pool), theirs(model, inputs))
    assert max(begun) > inputs["input_ids"].shape[1]


def test_places():
    places = places_after(5, [(2, 3), (1, 2)])
    assert places.tolist() == [
        [5, 5, 5, 5, 5, 5, 8, 8, 10],
        [5, 5, 5, 6, 6, 6, 8, 8, 10],
        [5, 6, 7, 5, 6, 7, 8, 9, 10],
    ]
    places, row = Places(), object()
    places.tell([7, 8, 9], [(1, 2)])
    places.begin(row, [7, 8])
    assert places.positions([row, object()], torch.tensor([[1, 2, 4], [3, 4, 5]])).tolist() == [
        [[1, 2, 3], [3, 4, 5]],
        [[1, 2, 3], [3, 4, 5]],
        [[1, 2, 4], [3, 4, 5]],
    ]
    with pytest.raises(ValueError, match="two equal prompts have different image_grid_thw"):
        places.tell([7, 8, 9], [(2, 1)])


def test_the_recipe_and_its_prompt():
    model, processor = tiny_glm_image(), glm_image_processor()
    recipe = fastdecode.recipe(model, "text-to-image")
    assert (recipe.options["temperature"], recipe.options["top_p"]) == (0.9, 0.75)
    assert recipe.sources["top_p"] == "zai-org/GLM-Image, README"
    usual = recipe.inputs(processor, "w20 w21")
    assert usual["max_new_tokens"] == 36 * 24 + 19 * 13 + 1
    inputs = recipe.inputs(processor, ["w20 w21", "w22"], image_size=(64, 96))
    assert inputs["image_grid_thw"].tolist() == [[1, 3, 2], [1, 19, 13]] * 2
    assert inputs["images_per_sample"].tolist() == [2, 2]
    assert inputs["max_new_tokens"] == 3 * 2 + 19 * 13 + 1
    written = [302, 313, 312, 303, 302, 329, 323, 303, GLM_BEGIN]  # <sop> 3 2 <eop> <sop> 19 13 <eop>
    assert inputs["input_ids"][:, -9:].tolist() == [written] * 2
    assert ((inputs["input_ids"] != GLM_PAD) == inputs["attention_mask"].bool()).all()
    assert inputs["attention_mask"].sum(1).tolist() == [15, 12]
    found = fastdecode.generate(model, **inputs, **recipe.options, seed=1)
    assert found.shape[1] <= inputs["input_ids"].shape[1] + inputs["max_new_tokens"]
    with pytest.raises(ValueError, match="width and height must be multiples of 32 pixels"):
        recipe.inputs(processor, "w20", image_size=(60, 96))
    processor.chat_template = None
    with pytest.raises(ValueError, match=r"this GlmImageProcessor has no chat template"):
        recipe.inputs(processor, "w20")
    assert family_of(model).name == "GLM-Image"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance": 2.0}, "GLM-Image draws without guidance: leave it out"),
        ({"image_grid_thw": torch.ones(2, 3)}, "image_grid_thw is (2, 3) torch.float32: give integers (pictures, 3)"),
        ({"image_grid_thw": [[1, 2, 3]]}, "image_grid_thw is a list: give integers (pictures, 3), as the processor"),
        ({"image_grid_thw": torch.ones(3, 3).long()}, "image_grid_thw is (3, 3) and images_per_sample [2], for 1 prom"),
        ({"image_grid_thw": torch.ones(2, 3, dtype=torch.bool)}, "image_grid_thw is (2, 3) torch.bool: give integers"),
        ({"images_per_sample": torch.tensor([3, -1])}, "image_grid_thw is (2, 3) and images_per_sample [3, -1], for 1"),
        (
            {"image_grid_thw": torch.ones(0, 3).long()},
            "image_grid_thw is (0, 3) and images_per_sample [2], for 1 prompt",
        ),
        (
            {"image_grid_thw": torch.tensor([[1, 10**6, 10**6], [1, 2, 3]])},
            "image_grid_thw tells of more than 1,048,576",
        ),
        ({"image_grid_thw": None}, "images_per_sample was given without image_grid_thw: pass all that the processor"),
        ({"input_ids": torch.tensor([[200, GLM_END, 7, 202, GLM_BEGIN]])}, "prompt 0 shows a picture, and fastdecode"),
        ({"input_ids": torch.tensor([[200, GLM_IMAGE_TOKEN, 7, 2, GLM_BEGIN]])}, "prompt 0 shows a picture, and fast"),
        ({"pixel_values": torch.zeros(4, 768)}, "fastdecode draws with GLM-Image from texts alone; give no pictures"),
        ({"multimodal_generation_mode": "image-only"}, "this model writes text only"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_refusals(change: dict, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        fastdecode.generate(tiny_glm_image(), **(inputs_of(0) | {"fallback": "error", "max_new_tokens": 5} | change))


def test_an_engine_refuses_grids():
    with pytest.raises(ValueError, match=r"^an engine takes no image_grid_thw: draw with"):
        fastdecode.Engine(tiny_glm_image()).submit(inputs_of(0), max_new_tokens=5)
