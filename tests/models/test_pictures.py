"""Pictures on their way into models: what is said to models that read none, or read them otherwise."""

import pytest
import torch
from family_models import TEXT, filled, tiny_emu3, tiny_janus, tiny_liquid, tiny_llava
from models_for_tests import picture, tiny_model, vocabulary_map
from transformers import LlamaConfig, LlamaForCausalLM

import fastdecode
from fastdecode.models.families import vocabulary_of
from fastdecode.models.pictures import check_placeholders, pixel_tensor, why_no_pixels

VECTORS = "does not say which token stands for a picture: its own generate takes pictures"
TOKENS = r"Liquid reads pictures as tokens of the prompt: give what fastdecode.recipe\(model, task\).inputs\(processor"


class Words:
    """A tokenizer that takes anything, as tokenizers of transformers do."""

    def __call__(self, text, **options):
        return {"input_ids": torch.tensor([[1, 20]])}

    def decode(self, tokens, **options) -> str:
        return " ".join(map(str, tokens))


def broken():
    model = tiny_model()
    model.config.vocabulary_map = {name: token for name, token in vocabulary_map().items() if name != "<image>"}
    return model


def nameless():
    model = tiny_llava("llava")
    model.config.image_token_id = None
    return model


REASONS = {
    "llama": (lambda: filled(LlamaForCausalLM(LlamaConfig(**TEXT))), "LlamaForCausalLM reads and writes text only"),
    "nameless": (nameless, f"this LlavaForConditionalGeneration {VECTORS}"),
    "liquid": (tiny_liquid, TOKENS),
    "broken": (broken, "config.vocabulary_map of this checkpoint has no <image>"),
}


@pytest.mark.parametrize("case", [case for case in REASONS if case != "liquid"])  # it reads PIL pictures
def test_an_engine_says_why_a_model_is_given_no_pictures(case: str):
    make, reason = REASONS[case]
    with fastdecode.Engine(make(), Words()) as engine:
        with pytest.raises(ValueError, match=f"images were given, but {reason}"):
            engine.submit("what is it?", images=[picture(0)])
        assert engine.submit("what is it?", max_new_tokens=2, do_sample=False).result().shape[-1] == 4


@pytest.mark.parametrize("case", ["llama", "liquid"])
def test_pixels_for_models_that_read_none(case: str):
    make, reason = REASONS[case]
    with pytest.raises(ValueError, match=f"pixel_values were given, but {reason}"):
        pixel_tensor(make(), torch.zeros(1, 3, 8, 8))


def test_models_that_read_pixels_have_no_reason():
    for model in (tiny_model(), tiny_emu3(), tiny_janus(), tiny_llava("llava")):
        assert why_no_pixels(model) == ""


def test_placeholders_of_models_without_them():
    ids = torch.tensor([[1, 20]])
    with pytest.raises(ValueError, match="2 pictures were given, but prompts of this model have no placeholder for"):
        check_placeholders(ids, [16, 16], vocabulary_of(tiny_liquid()))
    with pytest.raises(ValueError, match="2 pictures were given, but this model reads and writes text only"):
        check_placeholders(ids, [16, 16], vocabulary_of(tiny_llava("llava")))
    check_placeholders(ids, [], vocabulary_of(tiny_liquid()))
