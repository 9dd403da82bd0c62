"""Recipes: their parts, what they refuse, tokenizers in place of processors, names of fine-tunes, sizes, words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from family_models import (
    LUMINA_TARGET,
    chameleon,
    emu3_processor,
    janus_processor,
    lumina_model,
    tiny_emu3,
    tiny_janus,
)
from models_for_tests import picture
from transformers.utils.logging import get_logger

import fastdecode
from fastdecode.guidance import FULL, UNCONDITIONAL, Guidance, Stream
from fastdecode.models import lumina
from fastdecode.models.chameleon_recipes import NAMES
from fastdecode.models.recipe import TASKS
from fastdecode.models.recipe_words import as_python


@pytest.fixture(autouse=True)
def small_targets(monkeypatch):
    monkeypatch.setattr(lumina, "TARGETS", (LUMINA_TARGET,))
    monkeypatch.setattr(lumina, "USUAL", LUMINA_TARGET)


# --- what is refused --------------------------------------------------------------------------------------------


def test_wrong_prompts():
    model, processor = chameleon()
    recipe = fastdecode.recipe(model, "caption")
    with pytest.raises(ValueError, match="0 pictures were given for 1 prompt: the task 'caption' of Chameleon"):
        recipe.inputs(processor, "w1")
    with pytest.raises(ValueError, match="1 picture was given for 2 prompts: the task 'caption' of Chameleon"):
        recipe.inputs(processor, ["w1", "w2"], picture(0))
    with pytest.raises(ValueError, match="2 pictures were given for 1 prompt:"):
        recipe.inputs(processor, "w1", [picture(0), picture(1)])
    with pytest.raises(ValueError, match=r"images\[0\] 'cat.png': there is no such file"):
        recipe.inputs(processor, "w1", ["cat.png"])
    with pytest.raises(ValueError, match="images is an int: give a PIL picture, the path of a file, or an array"):
        recipe.inputs(processor, "w1", 5)
    with pytest.raises(ValueError, match="text has <image>: give pictures with images="):
        recipe.inputs(processor, "<image>w1", picture(0))
    with pytest.raises(ValueError, match="text is an int: give the prompt as a str"):
        recipe.inputs(processor, [3], picture(0))
    for wrong, kind in (
        (None, "a NoneType"),
        (5, "an int"),
        ({"a": 1}, "a dict"),
        (b"w1", "a bytes"),
        ({"w1"}, "a set"),
    ):
        with pytest.raises(ValueError, match=f"text is {kind}: give a prompt as a str, or a list of them"):
            recipe.inputs(processor, wrong, picture(0))
    with pytest.raises(ValueError, match="text is an empty list: give at least one prompt"):
        recipe.inputs(processor, [])
    for wrong in (None, "processor", 3, type(processor)):
        with pytest.raises(ValueError, match=r"processor is .*: give the model's processor, which fastdecode\.load"):
            recipe.inputs(wrong, "w1", picture(0))
    drawing = fastdecode.recipe(model, "text-to-image")
    with pytest.raises(ValueError, match=r"draws no pictures of 32x8 pixels \(width x height\): only of 8x8"):
        drawing.inputs(processor, "w1", image_size=(32, 8))
    with pytest.raises(ValueError, match="the task 'caption' of Chameleon draws no pictures; leave it out"):
        recipe.inputs(processor, "w1", picture(0), (8, 8))
    loose = fastdecode.Recipe.of("mine", "chat", "{text}", {}, "me")
    with pytest.raises(ValueError, match="this recipe belongs to no model"):
        loose.inputs(processor, "w1")


@pytest.mark.parametrize("size", [8, (8,), "8x", "ab", [(8, 8)], (8.0, 8), (0, 0), (True, 8), {}, (8, -8), (8, 8, 8)])
def test_wrong_sizes(size):
    model, processor = lumina_model()
    recipe = fastdecode.recipe(model, "text-to-image")
    for call in (lambda: recipe.prompt("w1", size), lambda: recipe.inputs(processor, "w1", None, size)):
        with pytest.raises(ValueError, match=r"image_size=.*: give \(width, height\), two whole numbers of pixels"):
            call()
    wanted = recipe.inputs(processor, "w1", None, (32, 16))
    for same in ([32, 16], np.array([32, 16]), torch.tensor([32, 16])):
        assert recipe.inputs(processor, "w1", None, same)["image_size"] == wanted["image_size"] == (32, 16)


def test_a_text_that_has_no_place():
    model, processor = fastdecode.load("blocks")
    with pytest.raises(ValueError, match=r"'caption' of blocks is always '<image>Describe .*, without a text of yours"):
        fastdecode.recipe(model, "caption").inputs(processor, "w1", picture(0, 64))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"task": "draw"}, "task='draw' is unknown; choose one of text-to-image, interleaved"),
        ({"task": None}, "task of a Recipe is a NoneType: give a str"),
        ({"family": 3}, "family of a Recipe is an int: give a str"),
        ({"template": ["{text}"]}, "template of a Recipe is a list: give a str"),
        ({"template": "{txt}"}, r"template has \{txt\}: a Recipe fills in \{text\}, \{width\} and \{height\} only"),
        ({"template": "{} {text}"}, r"template has \{\}: a Recipe fills"),
        ({"template": "{text} {width}"}, r"template has one of \{width\} and \{height\}: give both"),
        ({"template": "<Image>{text}"}, "template has <Image>: a picture that the caller gives is written <image>"),
        ({"template": "<images>{text}"}, "template has <images>: a picture"),
        ({"options": [1]}, "options of a Recipe is a list: give a dict"),
        ({"negative": "<image>"}, "negative has <image>: a negative prompt is text only"),
        ({"processor": 3}, "processor of a Recipe is an int: give a dict"),
    ],
    ids=str,
)
def test_recipes_of_wrong_parts(parts, message: str):
    good = {"family": "mine", "task": "chat", "template": "{text}", "options": {}, "source": "me"}
    with pytest.raises(ValueError, match=message):
        fastdecode.Recipe.of(**good | parts)
    assert fastdecode.Recipe.of(**good | {"template": 'f({"a": {text}}) {0'}).prompt("w") == 'f({"a": w}) {0'


# --- processors and tokenizers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "task", "why"),
    [
        (lambda: (tiny_emu3(), emu3_processor()), "text-to-image", "the model's processor writes a part of the prompt"),
        (lambda: (tiny_emu3(), emu3_processor()), "chat", "the model's processor writes a part of the prompt"),
        (lambda: (tiny_emu3(), emu3_processor()), "caption", "the model's processor writes a part of the prompt"),
        (
            lambda: (tiny_janus(), janus_processor()),
            "text-to-image",
            "the model's processor writes a part of the prompt",
        ),
        (lambda: (tiny_janus(), janus_processor()), "caption", "shows pictures, which a tokenizer does not read"),
        (chameleon, "caption", "shows pictures, which a tokenizer does not read"),
    ],
)
def test_tokenizers_that_would_lose_a_part_are_refused(make, task: str, why: str):
    model, processor = make()
    shown = picture(0, 24) if task == "caption" else None
    recipe = fastdecode.recipe(model, task)
    with pytest.raises(ValueError, match=rf"processor is a \w+, a tokenizer, and .*'{task}' .*{why}.*: give the model"):
        recipe.inputs(processor.tokenizer, "w1", shown)
    assert recipe.inputs(processor, "w1", shown)["input_ids"].shape[0] == 1


@pytest.mark.parametrize(
    "name", ["", "GAIR/Anole-7b", "GAIR/twgi-critique-anole-7b", "blocks", "Lumina-mGPT-7B-24-Omni"]
)
def test_a_tokenizer_makes_the_prompts_of_the_processor(name: str):
    model, processor = lumina_model(name) if "Lumina" in name else chameleon(name)
    sep, tried = processor.tokenizer.sep_token_id, 0
    for task in TASKS:
        try:
            recipe = fastdecode.recipe(model, task)
        except ValueError:
            continue
        shown = [picture(0, 24)] * recipe.pictures
        text = ["w1 w2"] if "{text}" in recipe.template else [""]
        whole = recipe.inputs(processor, text, shown)
        ends = whole["input_ids"][0, -1] == sep
        assert ends == (task != "interleaved" or name.startswith(("GAIR/twgi", "blocks")))
        if recipe.pictures and "Lumina" not in name:
            continue  # these need the processor
        bare = recipe.inputs(processor.tokenizer, text, shown)
        assert bare["input_ids"].tolist() == whole["input_ids"].tolist()
        tried += 1
    assert tried >= 2


def test_janus_and_liquid_chat_with_a_tokenizer():
    recipe = fastdecode.recipe(tiny_janus(), "chat")
    processor = janus_processor()
    wanted = recipe.inputs(processor, "w20")["input_ids"]
    assert torch.equal(recipe.inputs(processor.tokenizer, "w20")["input_ids"], wanted)


# --- names, sizes, words ----------------------------------------------------------------------------------------


def test_a_fine_tune_by_its_name(caplog):
    model, _ = chameleon("/checkpoints/mine")
    logger = get_logger("fastdecode.models.chameleon_recipes")
    logger.warning_once.cache_clear()
    caplog.set_level("WARNING")
    logger.addHandler(caplog.handler)
    try:
        assert fastdecode.recipe(model, "chat").family == "Chameleon"
        assert fastdecode.recipe(model, "interleaved").family == "Chameleon"
        [said] = {record.getMessage() for record in caplog.records}
        assert said.startswith("the name of this checkpoint, '/checkpoints/mine', does not tell which Chameleon it is")
        caplog.clear()
        for name in NAMES:
            found = fastdecode.recipe(model, "text-to-image", like=name)
            assert found.family == name
        anole = fastdecode.recipe(model, "interleaved", like="Anole")
        assert anole == fastdecode.recipe(chameleon("leloy/Anole-7b-v0.1-hf")[0], "interleaved")
        fastdecode.recipe(chameleon("facebook/chameleon-7b")[0], "chat")
        assert not caplog.records
    finally:
        logger.removeHandler(caplog.handler)
    for wrong in ("anole", "", 3, ["Anole"]):
        with pytest.raises(ValueError, match=r"like=.*: choose one of Chameleon, Anole, AA-Chameleon, Thinking with"):
            fastdecode.recipe(model, "chat", like=wrong)
    with pytest.raises(ValueError, match="like='Anole' names a Chameleon, and this model is of the family Janus"):
        fastdecode.recipe(tiny_janus(), "chat", like="Anole")


def test_sizes():
    lumina_sizes = fastdecode.recipe(lumina_model()[0], "text-to-image").sizes
    assert (24, 24) in lumina_sizes
    assert (32, 16) in lumina_sizes
    assert (48, 8) not in lumina_sizes
    assert lumina_sizes == sorted(lumina_sizes)
    model, processor = lumina_model()
    for size in lumina_sizes:
        assert fastdecode.recipe(model, "text-to-image").inputs(processor, "w1", None, size)["image_size"] == size
    assert fastdecode.recipe(lumina_model()[0], "caption").sizes == []
    assert fastdecode.recipe(tiny_emu3(), "text-to-image").sizes is None
    assert fastdecode.recipe(tiny_janus(), "text-to-image").sizes == [(8, 8)]
    assert fastdecode.recipe(chameleon()[0], "interleaved").sizes == [(8, 8)]


def test_a_recipe_tells_its_parts_as_python():
    recipe = fastdecode.recipe(chameleon("GAIR/Anole-7b")[0], "interleaved")
    shown = str(recipe).splitlines()
    assert shown[0] == "Anole, interleaved"
    anole = "(GAIR-NLP/anole, chameleon/inference/chameleon.py)"
    assert f"  prompt: '{{text}}' {anole}" in shown
    assert f"  processor: return_for_text_completion=True {anole}" in shown
    assert f"  guidance=Guidance.instruct(text=3.0, image=1.2) {anole}" in shown
    thinking = str(fastdecode.recipe(chameleon("twgi")[0], "interleaved"))
    assert "guidance: made of each prompt, and returned by inputs (GAIR-NLP/thinking" in thinking
    assert "0x" not in thinking


@pytest.mark.parametrize(
    ("guidance", "words"),
    [
        (Guidance.none(), "Guidance.none()"),
        (Guidance.two_way(3.0), "Guidance.two_way(3.0)"),
        (Guidance.two_way(3.3, everywhere=True), "Guidance.two_way(3.3, everywhere=True)"),
        (Guidance.two_way(3.0, [4, 5]), "Guidance.two_way(3.0, [4, 5])"),
        (Guidance.instruct(4.1, 1.3), "Guidance.instruct(text=4.1, image=1.3)"),
        (
            Guidance((FULL, Stream("unconditional", bos=False)), (2.0, -1.0)),
            "Guidance((Stream('full'), Stream('unconditional', bos=False)), (2.0, -1.0))",
        ),
        (Guidance((FULL,), (2.0,)), "Guidance((Stream('full'),), (2.0,))"),
        (Guidance.five_way([4], [5, 6]), None),
        (Guidance.two_way(fastdecode.Schedule.linear(5.0, 2.0)), None),
        (Guidance((FULL,), (1.0,), everywhere=True), None),
        (Guidance((FULL, UNCONDITIONAL), (2.0, -0.5)), None),
    ],
    ids=str,
)
def test_guidance_as_python(guidance, words):
    shown = as_python(guidance)
    assert words is None or shown == words
    names = {name: getattr(fastdecode, name) for name in ("Guidance", "Stream", "Schedule")}
    made = eval(shown, names)
    assert (made.streams, made.everywhere) == (guidance.streams, guidance.everywhere)
    assert guidance.scheduled == made.scheduled
    if guidance.scheduled:
        assert made == guidance
    else:
        assert made.weights == pytest.approx(guidance.weights)


@pytest.mark.parametrize(
    "value",
    [
        Guidance.none(),
        Guidance.two_way(3.0),
        Guidance.two_way(3.0, [4, 5]),
        Guidance.two_way(3.0, text_scale=1.5),
        Guidance.instruct(text=3.0, image=1.2),
        Guidance.contrastive(0.1, 2),
        Guidance.contrastive(0.2, 1, negative_prompt_ids=[7], everywhere=True),
    ],
    ids=str,
)
def test_guidance_in_words_is_python_that_makes_it(value: Guidance):
    found = eval(as_python(value), {"Guidance": Guidance, "Stream": Stream})
    assert (found.streams, found.contrast, found.everywhere) == (value.streams, value.contrast, value.everywhere)
    assert found.weights == pytest.approx(value.weights)
    assert found.text_weights == (None if value.text_weights is None else pytest.approx(value.text_weights))
