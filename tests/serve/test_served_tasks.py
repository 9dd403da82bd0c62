"""Requests with a task: prompt and options are those of its recipe, for every family, but for what the request says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import (
    TEXT,
    emu3_processor,
    filled,
    janus_processor,
    liquid_tokenizer,
    saved,
    saved_liquid,
    tiny_emu3,
    tiny_janus,
    tiny_liquid,
    word_tokenizer,
)
from models_for_tests import picture
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

import fastdecode
from fastdecode.serve.pictures import to_data_url
from tests.serve.serving import Served, as_document, same, serving, streamed_document, to_picture

DRAW: dict[str, Any] = {"prompt": "In column 2 a red circle.", "task": "text-to-image", "seed": 3}


def by_recipe(model: Any, processor: Any, task: str, text: str, *given: Any, **options: Any) -> list[Any]:
    """The document of `fastdecode.generate` with the recipe's inputs and options."""
    recipe = fastdecode.recipe(model, task)
    inputs = recipe.inputs(processor, text, *given)
    out = fastdecode.generate(model, **inputs, **{**recipe.options, **options}, deterministic=True)
    [document] = fastdecode.to_documents(model, processor, out, start=inputs["input_ids"].shape[1])
    return document


def words(document: list[Any]) -> list[str]:
    return " ".join(document).split()


def test_the_prompt_and_the_options_are_the_recipes(blocks: tuple[Any, Any], served: Served) -> None:
    status, _, answer = served.post(DRAW)
    assert status == 200, answer
    drawn = as_document(answer["document"])
    assert same(drawn, by_recipe(*blocks, "text-to-image", DRAW["prompt"], seed=3))
    status, _, answer = served.post({"prompt": "", "task": "caption", "images": [to_data_url(drawn[0])]})
    assert (status, answer["document"]) == (200, [{"type": "text", "text": "In column 2 a red circle."}])


def test_the_request_goes_before_the_recipe(blocks: tuple[Any, Any], served: Served) -> None:
    own = {"guidance": 1, "image": {"temperature": 2.0}}
    document = as_document(served.post(DRAW | own)[2]["document"])
    options = {"guidance": 1, "image": {"temperature": 2.0, "top_p": 0.97}, "seed": 3}  # top_p is the recipe's
    assert same(document, by_recipe(*blocks, "text-to-image", DRAW["prompt"], **options))
    assert not same(document, by_recipe(*blocks, "text-to-image", DRAW["prompt"], seed=3))


def janus() -> tuple[Any, Any]:
    return tiny_janus(), janus_processor()


def emu3() -> tuple[Any, Any]:
    return tiny_emu3(max_position_embeddings=400), emu3_processor()


def liquid() -> tuple[Any, Any]:
    return tiny_liquid(), liquid_tokenizer()


@pytest.mark.parametrize(
    ("make", "task", "size", "wanted"),
    [
        (janus, "text-to-image", None, (8, 8)),
        (emu3, "text-to-image", (32, 48), (32, 48)),
        (liquid, "text-to-image", None, (16, 16)),
        (janus, "chat", None, None),
        (emu3, "caption", None, None),
        (liquid, "caption", None, None),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_every_family(make: Callable[[], tuple[Any, Any]], task: str, size: Any, wanted: Any) -> None:
    model, processor = make()
    shown = [picture(0, 24).resize((40, 30))] if task == "caption" else []
    body = {"prompt": "w20 w21", "task": task, "seed": 5, "images": [to_data_url(one) for one in shown]}
    body |= {} if size is None else {"image_size": size}
    body |= {} if wanted else {"max_new_tokens": 6}
    with serving(model, processor) as served:
        status, _, answer = served.post(body)
        assert status == 200, answer
        events = list(served.stream(body))
    options = {"seed": 5} | ({} if wanted else {"max_new_tokens": 6})
    expected = by_recipe(model, processor, task, "w20 w21", shown or None, size, **options)
    if wanted is None:
        assert words(as_document(answer["document"])) == words(expected) != []
    else:
        assert same(as_document(answer["document"]), expected)
    if wanted is not None:
        assert [part.size for part in expected] == [wanted]
        assert same(streamed_document(events), expected)


def test_a_picture_of_another_size_is_shown_while_it_grows() -> None:
    body = {"prompt": "w20", "task": "text-to-image", "image_size": [32, 48], "seed": 5}
    shown = []
    with serving(*emu3(), steps=2) as served:
        for name, content in served.stream(body):
            if name == "picture_part":
                shown.append(to_picture(content["png"]).size)
                assert 4 < content["tokens"] < content["total"] == 6 * 5 + 1
            if name != "begun":
                served.gate.open()
        assert name == "finished"
        assert "error" not in content
    assert shown
    assert set(shown) == {(32, 48)}


def test_a_model_of_text_chats() -> None:
    model = filled(LlamaForCausalLM(LlamaConfig(**TEXT)))
    tokenizer = word_tokenizer(TEXT["vocab_size"], {"<pad>": 0, "<bos>": 1, "<eos>": 2}, {}, pad_token="<pad>")
    tokenizer.chat_template = "<bos> w11 {{ messages[0]['content'] }} w12"
    with serving(model, tokenizer) as served:
        status, _, answer = served.post({"prompt": "w20", "task": "chat", "max_new_tokens": 5})
    assert status == 200, answer
    assert same(as_document(answer["document"]), by_recipe(model, tokenizer, "chat", "w20", max_new_tokens=5))


def test_pictures_without_a_task_go_through_the_familys_reader() -> None:
    model, tokenizer = liquid()
    shown = picture(0, 16)
    body = {"prompt": "w20 <image> w21", "mode": "text-only", "max_new_tokens": 5, "images": [to_data_url(shown)]}
    with serving(model, tokenizer) as served:
        _, _, answer = served.post(body)
        without = served.post({**body, "prompt": "w20 w21", "images": []})[2]
    read = fastdecode.models.liquid.picture_tokens(model, shown)
    out = fastdecode.generate(model, torch.tensor([[20, *read, 21]]), max_new_tokens=5)
    [document] = fastdecode.to_documents(model, tokenizer, out, start=len(read) + 2)
    assert same(as_document(answer["document"]), document)
    assert answer["document"] != without["document"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"task": "draw"}, ["task = 'draw'", "text-to-image"]),
        ({"task": "chat"}, ["blocks has no recipe for 'chat'", "trained for text-to-image"]),
        ({"task": None, "image_size": [64, 64]}, ["image_size needs a task"]),
        ({"image_size": [8]}, ["image_size must be the width and the height in pixels, such as [768, 512]"]),
        ({"image_size": "8x8"}, ["image_size must be the width"]),
        ({"image_size": [64.0, 64]}, ["image_size must be the width"]),
        ({"image_size": [0, 64]}, ["image_size=(0, 64)", "two whole numbers"]),
        ({"image_size": [32, 8]}, ["draws no pictures of 32x8", "only of 64x64"]),
        ({"task": "caption", "prompt": ""}, ["0 pictures were given for 1 prompt", "takes 1 for each"]),
        ({"task": "caption", "prompt": "", "image_size": [64, 64]}, ["'caption' of blocks draws no pictures"]),
        ({"prompt": "<image>a"}, ["text has <image>"]),
        ({"images": [to_data_url(Image.new("RGB", (64, 64)))]}, ["1 picture was given for 1 prompt"]),
        ({"max_new_tokens": 20}, ["no room for one picture"]),
        ({"mode": "text-only", "max_new_tokens": 0}, ["max_new_tokens=0"]),
    ],
    ids=str,
)
def test_wrong_tasks_are_422_with_one_sentence(served: Served, body: dict[str, Any], words: list[str]) -> None:
    status, _, answer = served.post({**DRAW, **body})
    assert status == 422
    for word in words:
        assert word in answer["error"]
    assert served.engine.statistics().submitted == 0


def test_captions_of_a_model_that_reads_vectors() -> None:
    model, processor = janus()
    shown = Image.new("RGB", (40, 30), "red")
    body = {"prompt": "w20", "task": "caption", "max_new_tokens": 6, "seed": 4, "images": [to_data_url(shown)]}
    with serving(model, processor) as served:
        status, _, answer = served.post(body)
    assert status == 200
    [expected] = by_recipe(model, processor, "caption", "w20", shown, seed=4, max_new_tokens=6)
    assert as_document(answer["document"]) == [expected]


def test_the_name_of_a_fine_tune(blocks: tuple[Any, Any]) -> None:
    with serving(*blocks, like="Anole") as served:
        assert served.post({**DRAW, "task": "edit"})[2]["error"].startswith("Anole has no recipe for 'edit'")


@pytest.mark.parametrize("name", ["janus", "emu3", "liquid"])
def test_a_checkpoint_from_a_folder(name: str, tmp_path: Path) -> None:
    vqgan = {}
    if name == "liquid":
        folder, vqgan["vqgan"] = saved_liquid(tmp_path)
    else:
        folder = saved(tmp_path / name, *{"janus": janus, "emu3": emu3}[name]())
    with serving(*fastdecode.load(folder, **vqgan)) as served:
        more = {"image_size": [16, 16]} if name == "emu3" else {}
        _, _, answer = served.post({"prompt": "w20", "task": "text-to-image", "seed": 1, **more})
    [drawn] = as_document(answer["document"])
    assert isinstance(drawn, Image.Image)
    assert drawn.size == {"janus": (8, 8), "emu3": (16, 16), "liquid": (16, 16)}[name]
