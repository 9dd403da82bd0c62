"""Recipes: prompts as the models' own code writes them, and every task run with small random weights."""

from __future__ import annotations

import pytest
import torch
from family_models import (
    JANUS_BEGIN,
    LIQUID,
    LUMINA_TARGET,
    TEXT,
    chameleon,
    emu3_processor,
    emu3_vocabulary,
    filled,
    janus_processor,
    liquid_tokenizer,
    lumina_model,
    tiny_emu3,
    tiny_janus,
    tiny_liquid,
    word_tokenizer,
)
from models_for_tests import picture
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

import fastdecode
from fastdecode.models import lumina
from fastdecode.models.families import vocabulary_of
from fastdecode.models.pixels import cropped, squared


@pytest.fixture(autouse=True)
def small_targets(monkeypatch):
    monkeypatch.setattr(lumina, "TARGETS", (LUMINA_TARGET,))
    monkeypatch.setattr(lumina, "USUAL", LUMINA_TARGET)


def run(model, processor, task: str, text, images=None, size=None, **more):
    """(inputs, new tokens of each row, documents)."""
    recipe = fastdecode.recipe(model, task)
    inputs = recipe.inputs(processor, text, images, size)
    options = {**recipe.options, **more}
    found = fastdecode.generate(model, **inputs, **options)
    width = inputs["input_ids"].shape[1]
    return inputs, found[:, width:].tolist(), fastdecode.to_documents(model, processor, found, start=width)


# --- Chameleon --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "leloy/Anole-7b-v0.1-hf", "PKU-Alignment/AA-chameleon-7b-base"])
def test_chameleon(name: str):
    model, processor = chameleon(name)
    sep, names = processor.tokenizer.sep_token_id, model.config.vocabulary_map
    inputs, _, documents = run(model, processor, "text-to-image", ["w1 w2", "w3"], seed=[1, 2])
    assert inputs["input_ids"][0].tolist()[-3:] == [names["w1"], names["w2"], sep]
    assert [[part.size for part in document] for document in documents] == [[(8, 8)], [(8, 8)]]
    inputs, _, documents = run(model, processor, "interleaved", "w1 w2", seed=1, max_new_tokens=60)
    assert sep not in inputs["input_ids"][0].tolist()
    inputs, new, _ = run(model, processor, "caption", "w3", picture(0), seed=1, max_new_tokens=9)
    assert inputs["pixel_values"].shape == (1, 3, 8, 8)
    assert not set(new[0]) & vocabulary_of(model).image_ids
    _, new, _ = run(model, processor, "chat", "w3", seed=1, max_new_tokens=9)
    assert len(new[0]) <= 9


def test_temperatures_are_those_of_each_fine_tune():
    found = {name: fastdecode.recipe(chameleon(name)[0], "interleaved").options for name in ("", "GAIR/Anole-7b")}
    assert found[""]["text"] == {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2}
    assert found["GAIR/Anole-7b"]["text"] == {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.2}
    for options in found.values():
        assert options["guidance"] == fastdecode.Guidance.instruct(text=3.0, image=1.2)
        assert options["image"] == {"temperature": 0.7, "top_p": 0.9}


def test_thinking_with_generated_images():
    model, processor = chameleon("GAIR/twgi-critique-anole-7b")
    recipe = fastdecode.recipe(model, "interleaved")
    inputs = recipe.inputs(processor, "w1 w2")
    streams = inputs["guidance"].streams
    assert [stream.kind for stream in streams] == ["full", "images", "unconditional", "prompt", "prompt"]
    assert list(streams[4].ids) == inputs["input_ids"][0].tolist()
    # z = u + 2 (f - i) + 1.2 (i - u) - 0 (n - u) + 5 (o - u)
    assert inputs["guidance"].weights == pytest.approx((2.0, -0.8, 1 - 1.2 + 0.0 - 5.0, 0.0, 5.0))
    _, _, documents = run(model, processor, "interleaved", "w1 w2", seed=2, max_new_tokens=40)
    assert documents
    with pytest.raises(ValueError, match="takes one prompt: its guidance repeats it"):
        recipe.inputs(processor, ["w1", "w2"])
    # normal: z = u + 2 (f - u) + 1.2 (i - u)
    normal = fastdecode.recipe(model, "text-to-image").options["guidance"]
    assert normal.weights == pytest.approx((2.0, 1.2, -2.2))
    assert not normal.streams[2].bos
    _, _, documents = run(model, processor, "text-to-image", "w1 w2", seed=2)
    assert documents[0][0].size == (8, 8)


def test_the_embedded_model_draws_edits_and_describes():
    model, processor = fastdecode.load("blocks")
    _, _, [[drawn]] = run(model, processor, "text-to-image", "In column 2 a red circle.", seed=0)
    _, _, [said] = run(model, processor, "caption", "", drawn)
    assert said == ["In column 2 a red circle."]
    _, _, [[edited]] = run(model, processor, "edit", "Paint the red circle green.", drawn, seed=0)
    _, _, [said] = run(model, processor, "caption", "", edited)
    assert said == ["In column 2 a green circle."]
    _, _, [document] = run(model, processor, "interleaved", "Build a tree in column 1.", seed=0)
    assert sum(isinstance(part, Image.Image) for part in document) >= 2


# --- Janus ------------------------------------------------------------------------------------------------------


def test_janus():
    model, processor = tiny_janus(), janus_processor()
    inputs, new, documents = run(model, processor, "text-to-image", ["w20 w21", "w30"], seed=[1, 2])
    assert inputs["input_ids"][:, -1].tolist() == [JANUS_BEGIN] * 2
    assert inputs["attention_mask"].sum(1).tolist() == [5, 4]  # <|User|>: … <|Assistant|>: and the begin
    assert [[part.size for part in document] for document in documents] == [[(8, 8)], [(8, 8)]]
    explained = fastdecode.explain(model, **inputs, **fastdecode.recipe(model, "text-to-image").options)
    assert [line.split(",")[0] for line in explained.streams[0]] == ["+5 x full", "-4 x blank"]
    _, new, _ = run(model, processor, "chat", "w20", max_new_tokens=6)
    assert len(new[0]) <= 6


def test_janus_describes_pictures():
    model, processor = tiny_janus(), janus_processor()
    inputs = fastdecode.recipe(model, "caption").inputs(processor, "w20", Image.new("RGB", (40, 30), "red"))
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    options = {"max_new_tokens": 8, "do_sample": False}
    found = fastdecode.generate(model, **inputs, **options)
    assert torch.equal(found, model.generate(**inputs, **options))
    explained = fastdecode.explain(model, **inputs, **options)
    assert explained.decoded_by == "fastdecode"


# --- Emu3 -------------------------------------------------------------------------------------------------------


def test_emu3_draws():
    model, processor, names = tiny_emu3(max_position_embeddings=400), emu3_processor(), emu3_vocabulary()
    inputs, new, documents = run(model, processor, "text-to-image", ["w20 w21", "w30"], None, (32, 48), seed=[1, 2])
    assert inputs["image_sizes"].tolist() == [[6, 4]] * 2
    assert inputs["input_ids"][:, -1].tolist() == [names["<|image token|>"]] * 2
    assert inputs["negative_prompt_ids"][:, -1].tolist() == [names["<|image token|>"]] * 2
    assert [[part.size for part in document] for document in documents] == [[(32, 48)], [(32, 48)]]
    assert [len(row) for row in new] == [6 * 5 + 2] * 2


def test_emu3_describes_pictures():
    model, processor = tiny_emu3(max_position_embeddings=400), emu3_processor()
    shown = [Image.new("RGB", (40, 30), "red")] * 2
    inputs, new, _ = run(model, processor, "caption", ["w20", "w21 w22"], shown, max_new_tokens=7)
    assert fastdecode.explain(model, **inputs, max_new_tokens=7).decoded_by == "fastdecode"
    wanted = model.generate(**inputs, max_new_tokens=7, do_sample=False)
    assert new == wanted[:, inputs["input_ids"].shape[1] :].tolist()


def test_emu3s_checkpoints_have_one_kind_of_task():
    model = tiny_emu3()
    model.config.name_or_path = "BAAI/Emu3-Gen-hf"
    with pytest.raises(ValueError, match=r"Emu3 has no recipe for 'caption': it was trained for text-to-image$"):
        fastdecode.recipe(model, "caption")


# --- Lumina-mGPT ------------------------------------------------------------------------------------------------


def test_lumina_draws_the_size_that_its_prompt_names():
    model, processor = lumina_model()
    recipe = fastdecode.recipe(model, "text-to-image")
    asked = "Generate an image of 32x16 according to the following prompt:\na cat<reserved08706>"
    assert recipe.prompt("a cat", (32, 16)) == asked
    assert recipe.prompt("a cat").startswith("Generate an image of 24x24 ")
    inputs, new, [[drawn]] = run(model, processor, "text-to-image", "w1", None, (32, 16), seed=1)
    assert drawn.size == (32, 16)
    assert inputs["input_ids"][0, -1] == processor.tokenizer.sep_token_id
    assert len(new[0]) == 4 * 9 + 4
    with pytest.raises(ValueError, match="draws no pictures of 48x8 pixels"):
        recipe.inputs(processor, "w1", image_size=(48, 8))


def test_lumina_reads_pictures_with_their_size_and_rows():
    model, processor = lumina_model()
    names = model.config.vocabulary_map
    shown = picture(0, 32).resize((64, 30))
    inputs = fastdecode.recipe(model, "caption").inputs(processor, "", shown)
    ids = inputs["input_ids"][0].tolist()
    begin = ids.index(names["<racm3:break>"])
    assert ids[begin + 1 : begin + 3] == [names["<reserved08800>"] + 2, names["<reserved08800>"] + 4]  # 16 x 32 pixels
    v = vocabulary_of(model)
    block = ids[begin + 1 : ids.index(names["<eoss>"])]
    grid = v.grid(block)
    assert (grid.rows, grid.columns) == (4, 8)
    pixels = torch.tensor(list(cropped(shown, 32, 16).tobytes())).view(1, 16, 32, 3).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        codes = model.model.vqmodel.encode(pixels, return_dict=True).image_tokens.flatten().tolist()
    assert list(grid.codes) == codes
    assert "pixel_values" not in inputs
    _, new, _ = run(model, processor, "caption", "", shown, seed=1, max_new_tokens=6)
    assert len(new[0]) <= 6
    with pytest.raises(ValueError, match="Lumina-mGPT reads pictures with sizes and rows"):
        fastdecode.generate(model, **processor(text="<image>w1", images=shown, return_tensors="pt"), max_new_tokens=3)


def test_lumina_omni_edits():
    model, processor = lumina_model(f"Lumina-mGPT-7B-{LUMINA_TARGET}-Omni")
    _, _, [[edited]] = run(model, processor, "edit", "w2", picture(0, 24), seed=1)
    assert edited.size == (24, 24)


# --- Liquid -----------------------------------------------------------------------------------------------------


def test_liquid_draws():
    model, tokenizer = tiny_liquid(), liquid_tokenizer()
    _, new, documents = run(model, tokenizer, "text-to-image", ["w20", "w21 w22"], seed=[1, 2])
    assert [[part.size for part in document] for document in documents] == [[(16, 16)], [(16, 16)]]
    for row in new:
        assert (row[0], row[-1], len(row)) == (LIQUID["begin"], LIQUID["end"], 18)
        assert all(300 <= token < 324 for token in row[1:-1])


@torch.no_grad()
def test_liquids_pictures_are_those_of_a_loop_by_hand():
    """u + s (c - u), with the prompt <unconditional><boi> for u; the likeliest of the image tokens."""
    model = tiny_liquid(1)
    ids = [1, 20, 21, 22]
    found = fastdecode.generate(
        model, torch.tensor([ids]), multimodal_generation_mode="image-only", guidance=7.0, do_sample=False
    )[0].tolist()
    c, u = [*ids, LIQUID["begin"]], [1, LIQUID["unconditional"], LIQUID["begin"]]
    for _ in range(16):
        of_c, of_u = (model(torch.tensor([row])).logits[0, -1] for row in (c, u))
        token = 300 + int((of_u + 7.0 * (of_c - of_u))[300:324].argmax())
        c, u = [*c, token], [*u, token]
    assert found == [*c, LIQUID["end"]]


def test_liquid_reads_pictures():
    model, tokenizer = tiny_liquid(), liquid_tokenizer()
    shown = picture(0, 24).resize((24, 12))
    inputs, new, _ = run(model, tokenizer, "caption", "w20", shown, max_new_tokens=6)
    ids = inputs["input_ids"][0].tolist()
    block = ids[ids.index(LIQUID["begin"]) + 1 : ids.index(LIQUID["end"])]
    pixels = squared(shown, 16, (122, 116, 104)).tobytes()
    pixels = torch.tensor(list(pixels)).view(1, 16, 16, 3).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        codes = model.vqmodel.encode(pixels, return_dict=True).image_tokens.flatten()
    assert block == (codes + 300).tolist()
    wanted = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, len(ids) :].tolist()
    assert new[0] == wanted


# --- models of text ---------------------------------------------------------------------------------------------


def test_the_chat_of_a_text_model():
    model = filled(LlamaForCausalLM(LlamaConfig(**TEXT)))
    tokenizer = word_tokenizer(TEXT["vocab_size"], {"<pad>": 0, "<bos>": 1, "<eos>": 2}, {}, pad_token="<pad>")
    recipe = fastdecode.recipe(model, "chat")
    with pytest.raises(ValueError, match="has no chat template, so that 'chat' has no prompt format"):
        recipe.inputs(tokenizer, "w20")
    tokenizer.chat_template = "<bos> w11 {{ messages[0]['content'] }} w12"
    ids = recipe.inputs(tokenizer, ["w20", "w21 w22"])["input_ids"].tolist()
    assert ids == [[0, 1, 11, 20, 12], [1, 11, 21, 22, 12]]
    _, new, _ = run(model, tokenizer, "chat", "w20", max_new_tokens=5, do_sample=False)
    assert len(new[0]) == 5
