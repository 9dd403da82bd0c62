"""Configs of checkpoints that name wrong tokens: drawing is refused with the name, and text goes on."""

import re

import pytest
import torch
from family_models import JANUS_PLACEHOLDER, tiny_emu3, tiny_janus, tiny_liquid, tiny_lumina

import fastdecode
from fastdecode.models.families import text_vocabulary_of, vocabulary_of
from fastdecode.models.janus import name_begin

PICTURE = {"multimodal_generation_mode": "image-only", "do_sample": False}


def picture_tokens(value):
    def change(model):
        model.config.picture_tokens = value

    return tiny_liquid, change


def vq_config(value):
    def change(model):
        model.config.vq_config = value

    return tiny_liquid, change


def janus_begin(value):
    def change(model):
        model.generation_config.generation_kwargs = value

    return tiny_janus, change


def janus_end(value):
    def change(model):
        model.config.text_config.eos_token_id = value

    return tiny_janus, change


def janus_placeholder(value):
    def change(model):
        model.config.image_token_id = value

    return tiny_janus, change


def named(make, name: str, token):
    def change(model):
        model.config.vocabulary_map[name] = token

    return make, change


def mapped(make, value):
    def change(model):
        model.config.vocabulary_map = value

    return make, change


ODD = {
    "one token of a Liquid": (
        *picture_tokens({"begin": 7}),
        "model.config.picture_tokens is {'begin': 7}, without end, unconditional, first: load the checkpoint with",
    ),
    "a list of tokens": (*picture_tokens([7, 8]), "model.config.picture_tokens is [7, 8], without begin, end"),
    "a begin that is a str": (
        *picture_tokens({"begin": "x", "end": 8, "unconditional": 9, "first": 300}),
        "model.config.picture_tokens['begin'] is 'x', which is not a token of this checkpoint: its tokens are 0 to 330",
    ),
    "a first below 0": (
        *picture_tokens({"begin": 7, "end": 8, "unconditional": 9, "first": -3}),
        "model.config.picture_tokens['first'] is -3, which is not a token of this checkpoint: its tokens are 0 to 330",
    ),
    "a first too near to the end": (
        *picture_tokens({"begin": 7, "end": 8, "unconditional": 9, "first": 310}),
        "the checkpoint has 331 tokens, and the first image token is 310: there must be one for each of the 24",
    ),
    "an unknown setting of the VQ-GAN": (
        *vq_config({"resolution": "x"}),
        "model.config.vq_config makes no ChameleonVQVAEConfig",
    ),
    "a VQ-GAN that is a str": (*vq_config("x"), "model.config.vq_config is a str: it must be a dict"),
    "a begin outside": (
        *janus_begin({"boi_token_id": 99999}),
        "boi_token_id of model.generation_config is 99999, which is not a token of this checkpoint: its tokens",
    ),
    "a begin among image tokens": (
        *janus_begin({"boi_token_id": 340}),
        "model.generation_config is 340, which is not a",
    ),
    "a begin in words": (*janus_begin({"boi_token_id": "x"}), "boi_token_id of model.generation_config is 'x', which"),
    "a begin that is True": (
        *janus_begin({"boi_token_id": True}),
        "model.generation_config is True, which is not a tok",
    ),
    "settings in a list": (
        *janus_begin(["boi"]),
        "model.generation_config.generation_kwargs is a list: it must be a dict",
    ),
    "no end": (
        *janus_end([]),
        "config.text_config.eos_token_id of this checkpoint is []: it must be the end of sequence",
    ),
    "an end outside": (
        *janus_end([99999, 2]),
        "config.text_config.eos_token_id is 99999, which is not a token of this",
    ),
    "an end below 0": (
        *janus_end(-1),
        "config.text_config.eos_token_id is -1, which is not a token of this checkpoint",
    ),
    "no placeholder": (*janus_placeholder(999), "placeholder of a Vocabulary is 999: its 379 tokens are 0 to 378"),
    "an end of image in words": (
        *named(tiny_emu3, "<|image end|>", "x"),
        "config.vocabulary_map gives <|image end|> the token 'x', which is not a token of this checkpoint: its",
    ),
    "a row end outside": (
        *named(tiny_emu3, "<|extra_200|>", 99999),
        "config.vocabulary_map gives <|extra_200|> the token 99999",
    ),
    "a row end that is an image token": (
        *named(tiny_emu3, "<|extra_200|>", 260),
        "code_ids and row_end of the layout of a Vocabulary have the same token 260",
    ),
    "an end that is the begin": (
        *named(tiny_emu3, "<|image end|>", 6),
        "begin_image and end_image of a Vocabulary have the same token 6",
    ),
    "an image token without a number": (
        *named(tiny_emu3, "<|visual token x|>", 8),
        "config.vocabulary_map names image tokens that cannot be read",
    ),
    "sizes outside": (
        *named(tiny_lumina, "<reserved08800>", 99999),
        "config.vocabulary_map gives <reserved08800> the token 99999",
    ),
    "no map": (*mapped(tiny_emu3, {}), "config.vocabulary_map of this checkpoint has no <image>, <|image token|>"),
}


@pytest.mark.parametrize("case", ODD)
def test_drawing_names_what_is_wrong_and_text_goes_on(case: str):
    make, change, message = ODD[case]
    model = make()
    ids = torch.tensor([[1, 30, 20]])
    wanted = model.generate(ids, max_new_tokens=3, do_sample=False, eos_token_id=2, pad_token_id=0)
    change(model)
    with pytest.raises(ValueError, match=re.escape(message)):
        fastdecode.generate(model, ids, **PICTURE)
    assert text_vocabulary_of(model).problem is not None
    found = fastdecode.generate(model, ids, max_new_tokens=3, do_sample=False, eos_token_id=2, pad_token_id=0)
    assert found.shape == wanted.shape
    if make is not tiny_emu3:  # a whole Emu3 does not ban image tokens in text; this one does
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("size", [200, 324, 400])
@pytest.mark.parametrize("options", [PICTURE, {"max_new_tokens": 3}], ids=["picture", "text"])
def test_a_vocab_size_that_is_not_that_of_the_weights(size: int, options: dict):
    model = tiny_liquid()
    model.config.vocab_size = size
    message = f"config.vocab_size is {size}, but the model has embeddings of 331 tokens and logits of 331: set it to"
    with pytest.raises(ValueError, match=message):
        fastdecode.generate(model, torch.tensor([[1, 30, 7]]), **options)


def test_a_processor_of_another_model_names_no_begin():
    model = tiny_janus()
    model.generation_config.generation_kwargs = ["boi"]
    with pytest.raises(ValueError, match="generation_kwargs is a list: it must be a dict"):
        name_begin(model, None)
    assert vocabulary_of(tiny_janus()).placeholder == JANUS_PLACEHOLDER
