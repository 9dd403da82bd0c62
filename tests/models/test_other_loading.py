"""`load` of models that are not Chameleons, and of Lumina-mGPT and Liquid, whose VQ-GAN is in a file of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from family_models import (
    LIQUID,
    LUMINA_TARGET,
    TEXT,
    emu3_processor,
    filled,
    janus_processor,
    saved,
    taming,
    tiny_emu3,
    tiny_janus,
    tiny_liquid,
    tiny_lumina,
    word_tokenizer,
)
from models_for_tests import tiny_processor, tiny_tokenizer
from safetensors.torch import load_file, save_file
from transformers import JanusForConditionalGeneration, LlamaConfig, LlamaForCausalLM

import fastdecode
from fastdecode.models import lumina
from fastdecode.models.families import family_of
from fastdecode.models.janus import name_begin
from fastdecode.models.pictures import missing_decoder_keys


@pytest.mark.parametrize("name", ["janus", "emu3"])
def test_janus_and_emu3(tmp_path: Path, name: str):
    made = {"janus": (tiny_janus, janus_processor), "emu3": (tiny_emu3, emu3_processor)}[name]
    original, processor = made[0](), made[1]()
    model, read = fastdecode.load(saved(tmp_path / name, original, processor))
    assert not model.training
    assert family_of(model).name.lower() == name
    for (key, got), (_, expected) in zip(model.state_dict().items(), original.state_dict().items(), strict=True):
        assert torch.equal(got, expected), key
    recipe = fastdecode.recipe(model, "text-to-image")
    size = (16, 16) if name == "emu3" else None
    inputs = recipe.inputs(read, "w20 w21", image_size=size)
    found = fastdecode.generate(model, **inputs, **recipe.options, seed=1)
    assert torch.equal(found, fastdecode.generate(original, **inputs, **recipe.options, seed=1))
    [[picture]] = fastdecode.to_documents(model, read, found, start=inputs["input_ids"].shape[1])
    assert picture.size == ((16, 16) if size else (8, 8))


def test_a_janus_whose_file_does_not_say_what_begins_a_picture(tmp_path: Path):
    """transformers loses it when it reads the file."""
    folder = saved(tmp_path / "janus", tiny_janus(), janus_processor())
    plain = JanusForConditionalGeneration.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"has no 'boi_token_id', the token that begins a picture: load the"):
        fastdecode.generate(plain, torch.tensor([[1, 20, 6]]), generation_mode="image")
    model, _ = fastdecode.load(folder)
    assert model.generation_config.generation_kwargs == {"boi_token_id": 6}
    word_tokenizer(TEXT["vocab_size"], {"<pad>": 0}, {}, pad_token="<pad>").save_pretrained(folder)
    broken = janus_processor()
    broken.image_start_token = "<none>"
    with pytest.raises(ValueError, match="the tokenizer has no '<none>', the token that begins a picture"):
        name_begin(plain, broken)


def test_models_of_text_and_small_weights(tmp_path: Path):
    original = filled(LlamaForCausalLM(LlamaConfig(**(TEXT | {"intermediate_size": 128}))))
    tokenizer = word_tokenizer(TEXT["vocab_size"], {"<pad>": 0, "<bos>": 1, "<eos>": 2}, {}, pad_token="<pad>")
    folder = saved(tmp_path / "llama", original, tokenizer)
    model, read = fastdecode.load(folder, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert read("w20")["input_ids"] == [20]
    small, _ = fastdecode.load(folder, weights="int8")
    assert small.model.layers[1].mlp.up_proj.weight.small.type.startswith("int8")
    ids = torch.tensor([[1, 20, 30]])
    assert fastdecode.generate(small, ids, max_new_tokens=4, do_sample=False).shape == (1, 7)
    with pytest.raises(ValueError, match=r"gguf= is for Chameleons, and .* is of type 'llama': leave it out"):
        fastdecode.load(folder, gguf="llama.gguf")
    vqgan = taming(tmp_path / "vqgan.ckpt", tiny_lumina().model.vqmodel)
    with pytest.raises(ValueError, match=r"vqgan= is for Chameleons, and .* is of type 'llama': leave it out"):
        fastdecode.load(folder, vqgan=vqgan)


def test_lumina_takes_its_vqgan_from_metas_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its checkpoints hold the language model alone."""
    monkeypatch.setattr(lumina, "TARGETS", (LUMINA_TARGET,))  # else it has too few tokens for sizes
    original = tiny_lumina(context=400)
    processor = tiny_processor()
    processor.tokenizer = tiny_tokenizer(original.config.vocabulary_map)
    folder = saved(tmp_path / f"Lumina-mGPT-7B-{LUMINA_TARGET}", original, processor)
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "vqmodel" not in k}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"is incomplete: it lacks .* the encoder of pictures; give Meta's vqgan"):
        fastdecode.load(folder)
    vqgan = taming(tmp_path / "vqgan.ckpt", original.model.vqmodel)
    model, _ = fastdecode.load(folder, vqgan=vqgan)
    assert family_of(model).name == "Lumina-mGPT"
    assert missing_decoder_keys(model) == []
    for (key, got), (_, expected) in zip(model.state_dict().items(), original.state_dict().items(), strict=True):
        assert torch.equal(got, expected), key
    state = torch.load(vqgan)["state_dict"]
    torch.save({"state_dict": state | {"encoder.conv_in.bias": torch.zeros(3)}}, vqgan)
    with pytest.raises(ValueError, match=r"vqgan= has model\.vqmodel\.encoder\.conv_in\.bias of \(3,\); config"):
        fastdecode.load(folder, vqgan=vqgan)
    del state["encoder.conv_in.bias"]
    torch.save({"state_dict": state}, vqgan)
    with pytest.raises(ValueError, match=r"it lacks 1 weights of the model \(model\.vqmodel\.encoder\.conv_in\.bias"):
        fastdecode.load(folder, vqgan=vqgan)


def liquid(folder: Path):
    original = tiny_liquid()
    vqmodel = original.vqmodel
    del original.vqmodel
    original.config.picture_tokens = {**LIQUID, "first": TEXT["vocab_size"] - 24}
    special = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<boi>": 7, "<eoi>": 8, "<unconditional>": 9}
    tokenizer = word_tokenizer(TEXT["vocab_size"] - 24, special, {}, pad_token="<pad>", bos_token="<bos>")
    return original, vqmodel, saved(folder, original, tokenizer)


def test_liquid_takes_its_vqgan_from_metas_file(tmp_path: Path):
    original, vqmodel, folder = liquid(tmp_path / "liquid")
    vqgan = taming(tmp_path / "vqgan.ckpt", vqmodel)
    model, tokenizer = fastdecode.load(folder, vqgan=vqgan)
    assert model.config.picture_tokens == {"begin": 7, "end": 8, "unconditional": 9, "first": TEXT["vocab_size"] - 24}
    recipe = fastdecode.recipe(model, "text-to-image")
    inputs = recipe.inputs(tokenizer, "w20")
    found = fastdecode.generate(model, **inputs, **recipe.options, seed=2)
    [[picture]] = fastdecode.to_documents(model, tokenizer, found, start=inputs["input_ids"].shape[1])
    assert picture.size == (16, 16)
    without, _ = fastdecode.load(folder)
    ids = torch.tensor([[1, 20]])
    assert fastdecode.generate(without, ids, max_new_tokens=3, do_sample=False).shape == (1, 5)
    with pytest.raises(ValueError, match=r"no VQ decoder.*load the checkpoint with fastdecode\.load, and give Meta's"):
        fastdecode.generate(without, **inputs, **recipe.options)
    state = torch.load(vqgan)["state_dict"]
    torch.save({"state_dict": {k: v for k, v in state.items() if "quant_conv" not in k}}, vqgan)
    with pytest.raises(ValueError, match=r"vqgan= lacks 4 weights of the VQ-GAN \(post_quant_conv\.bias"):
        fastdecode.load(folder, vqgan=vqgan)
    assert original.config.vocab_size == TEXT["vocab_size"]


def test_a_liquid_without_its_tokens(tmp_path: Path):
    _, _, folder = liquid(tmp_path / "liquid")
    word_tokenizer(TEXT["vocab_size"] - 24, {"<pad>": 0}, {}, pad_token="<pad>").save_pretrained(folder)
    with pytest.raises(ValueError, match="the tokenizer has no <boi>, <eoi>, <unconditional>, which Liquid's has"):
        fastdecode.load(folder)


def test_missing_weights_are_named(tmp_path: Path):
    folder = saved(tmp_path / "janus", tiny_janus(), janus_processor())
    weights = load_file(folder / "model.safetensors")
    name = next(key for key in weights if "generation_head.vision_head.bias" in key)
    del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"is incomplete: it lacks 1 weights of the model \(model\.generation_head"):
        fastdecode.load(folder)
