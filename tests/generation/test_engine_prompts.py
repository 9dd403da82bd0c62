"""Prompts that an engine gets as text: their pictures are read, and what a model expects in them is written."""

from __future__ import annotations

import pytest
import torch
from family_models import (
    LUMINA_TARGET,
    chameleon,
    emu3_processor,
    janus_processor,
    liquid_tokenizer,
    lumina_model,
    tiny_emu3,
    tiny_janus,
    tiny_liquid,
)
from models_for_tests import picture
from PIL import Image

import fastdecode
from fastdecode import Engine
from fastdecode.models import lumina
from fastdecode.models.families import family_of

SHORT = {"max_new_tokens": 3, "do_sample": False}
DRAW = {"multimodal_generation_mode": "image-only", "do_sample": False}


@pytest.fixture(autouse=True)
def small_targets(monkeypatch):
    monkeypatch.setattr(lumina, "TARGETS", (LUMINA_TARGET,))
    monkeypatch.setattr(lumina, "USUAL", LUMINA_TARGET)


def prompt_of(engine: Engine, *given, **options) -> list[int]:
    return engine.submit(*given, **options).result()[0].tolist()


def test_liquid_reads_pictures_with_its_tokenizer():
    model, shown = tiny_liquid(), picture(0, 24)
    engine = Engine(model, liquid_tokenizer())
    read = family_of(model).picture_tokens(model, shown)
    found = prompt_of(engine, "w20 <image> w21", images=shown, **SHORT)
    assert found[: len(read) + 2] == [20, *read, 21]
    before = prompt_of(engine, "w21", images=[shown], **SHORT)
    assert before[: len(read) + 1] == [*read, 21]
    [event, *_] = fastdecode.stream(model, liquid_tokenizer(), "w20 <image> w21", images=shown, **SHORT)
    assert list(event.tokens) == found[len(read) + 2 :][: len(event.tokens)]


def test_lumina_reads_pictures_with_their_sizes_and_ends_the_turn():
    model, processor = lumina_model()
    shown, names, sep = picture(0, 24), model.config.vocabulary_map, processor.tokenizer.sep_token_id
    read = family_of(model).picture_tokens(model, shown)
    found = prompt_of(Engine(model, processor), "w1 <image> w2", images=shown, **SHORT)
    assert found[: len(read) + 3] == [names["w1"], *read, names["w2"], sep]
    bare = prompt_of(Engine(model, processor.tokenizer), "w1 <image> w2", images=shown, **SHORT)
    assert bare[: len(read) + 2] == [names["w1"], *read, names["w2"]]


def test_pictures_that_nothing_reads_are_refused():
    shown = Image.new("RGB", (40, 30), "red")
    for model, processor in (chameleon(), (tiny_emu3(), emu3_processor()), (tiny_janus(), janus_processor())):
        engine = Engine(model, processor.tokenizer)
        with pytest.raises(
            ValueError, match=r"images were given, and a \w+ is a tokenizer, which reads text only: give"
        ):
            engine.submit("w1 <image>", images=shown, **SHORT)
        assert engine.statistics().submitted == 0
        assert engine.submit("w1", **SHORT).result().shape[0] == 1


def test_pictures_that_are_read_as_vectors():
    """The engine reads what `generate` reads of what the processor returns."""
    shown, model, processor = Image.new("RGB", (40, 30), "red"), tiny_janus(), janus_processor()
    inputs = processor(
        text="<image> w20".replace("<image>", processor.image_token), images=[shown], return_tensors="pt"
    )
    wanted = fastdecode.generate(model, **inputs, **SHORT)
    found = Engine(model, processor).submit("<image> w20", images=shown, **SHORT)
    assert torch.equal(found.result(), wanted)
    assert found.document() == fastdecode.to_documents(model, processor, wanted, inputs["input_ids"].shape[1])[0]


def emu3() -> tuple:
    return tiny_emu3(max_position_embeddings=400), emu3_processor()


@pytest.mark.parametrize("size", [(32, 48), (48, 16), [16, 16]])
def test_emu3s_prompt_tells_the_size(size):
    model, processor = emu3()
    handle = Engine(model, processor).submit("w20", image_size=size, **DRAW)
    width, height = size
    area = {"ratio": f"{width}:{height}", "image_area": width * height}
    wanted = processor(text="w20", return_tensors="pt", return_for_image_generation=True, **area)
    length = wanted["input_ids"].shape[1]
    assert handle.result()[0, :length].tolist() == wanted["input_ids"][0].tolist()
    assert [drawn.size for drawn in handle.document()] == [(width, height)]
    out = fastdecode.generate(model, **wanted, **DRAW)
    assert torch.equal(handle.result(), out)


def test_options_of_the_model_count(monkeypatch):
    model, processor = emu3()
    monkeypatch.setattr(model.generation_config, "image_size", (16, 24), raising=False)
    monkeypatch.setattr(model.generation_config, "multimodal_generation_mode", "image-only", raising=False)
    assert [drawn.size for drawn in Engine(model, processor).submit("w20", do_sample=False).document()] == [(16, 24)]


def test_emu3_without_an_image_size_asks_for_the_usual_one(monkeypatch):
    model, processor = emu3()
    monkeypatch.setattr(type(processor), "image_area", 64 * 64)
    assert [drawn.size for drawn in Engine(model, processor).submit("w20", **DRAW).document()] == [(64, 64)]


def test_a_prompt_of_emu3_that_has_its_size_stays_as_it_is():
    model, processor = emu3()
    text = "w20<|image start|>4*2<|image token|>"
    handle = Engine(model, processor).submit(text, image_size=(16, 32), **DRAW)
    wanted = processor(text=text, return_tensors="pt")["input_ids"][0].tolist()
    assert handle.result()[0, : len(wanted)].tolist() == wanted
    assert [drawn.size for drawn in handle.document()] == [(16, 32)]


def test_what_emu3_does_not_draw_from():
    model, processor = emu3()
    with pytest.raises(ValueError, match="a tokenizer, and a prompt of Emu3 ends with the size of the picture, which"):
        Engine(model, processor.tokenizer).submit("w20", image_size=(16, 16), **DRAW)
    engine = Engine(model, processor)
    with pytest.raises(ValueError, match="images were given, and Emu3 draws from a prompt of text alone"):
        engine.submit("w20 <image>", images=picture(0, 24), **DRAW)
    for wrong in ([(16, 16), (16, 16)], (0, 8), (8.0, 8), "8x8"):
        with pytest.raises(ValueError, match=r"image_size=.*: give \(width, height\)"):
            engine.submit("w20", image_size=wrong, **DRAW)
    with pytest.raises(ValueError, match="must be multiples of 8 pixels, such as 8x8"):
        engine.submit("w20", image_size=(12, 8), **DRAW)
    assert engine.statistics().submitted == 0
    assert engine.submit("w20", **SHORT).result().shape[1] == 2 + 3  # text as before: begin of sequence and one word
