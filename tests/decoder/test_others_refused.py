"""Models that cannot be decoded are refused by name, in one sentence."""

import re

import pytest
import torch
import transformers
from other_models import SIZES, other_model
from transformers import GPT2LMHeadModel

import fastdecode


class Deaf(GPT2LMHeadModel):
    """It does not look at the mask."""

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return super().forward(input_ids, **kwargs)


class Odd(GPT2LMHeadModel):
    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        return {"input_ids": input_ids}


class Short(GPT2LMHeadModel):
    def forward(self, input_ids=None, attention_mask=None):
        raise AssertionError("it is not called")


class Forgetful(GPT2LMHeadModel):
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return super().forward(input_ids, attention_mask=attention_mask, use_cache=False)


class Broken(GPT2LMHeadModel):
    def forward(self, *args, **kwargs):
        raise KeyError("no such thing")


def of_gpt2(kind: type):
    return kind(other_model("gpt2").config).eval()


def of_config(model: str, config: str, **more):
    return getattr(transformers, model)(getattr(transformers, config)(**(SIZES | more))).eval()


BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_ffn_dim": 32}
JAMBA = {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "mamba_d_state": 4}

REFUSED = {
    "mamba": (lambda: of_config("MambaForCausalLM", "MambaConfig", state_size=4), "MambaForCausalLM keeps a state"),
    "rwkv": (lambda: of_config("RwkvForCausalLM", "RwkvConfig", attention_hidden_size=32), "keeps a state of the sequ"),
    "jamba": (lambda: of_config("JambaForCausalLM", "JambaConfig", **JAMBA), "JambaForCausalLM keeps a state of"),
    "bart": (
        lambda: of_config("BartForConditionalGeneration", "BartConfig", decoder_attention_heads=2, **BART),
        "BartForConditionalGeneration has an encoder and a decoder, and fastdecode decodes models that are a decoder",
    ),
    "moshi": (
        lambda: of_config("MoshiForCausalLM", "MoshiConfig", ffn_dim=48, sliding_window=8),
        "MoshiForCausalLM sees a window of keys that its cache cuts and its mask does not show",
    ),
    "bert": (
        lambda: of_config("BertLMHeadModel", "BertConfig", is_decoder=False),
        "cannot decode BertLMHeadModel, because what it says of a token depends on later tokens, or on padding",
    ),
    "bart's decoder": (
        lambda: of_config("BartForCausalLM", "BartConfig", decoder_attention_heads=2, **BART),
        "cannot decode BartForCausalLM, because what it says of a token depends on later tokens, or on padding",
    ),
    "no mask": (lambda: of_gpt2(Deaf), "cannot decode Deaf, because what it says of a token depends on"),
    "own inputs": (lambda: of_gpt2(Odd), "Odd has a prepare_inputs_for_generation of its own, which fastdecode does"),
    "no cache": (lambda: of_gpt2(Short), "the forward of Short takes no cache of keys and values, which fastdecode"),
    "cache unused": (lambda: of_gpt2(Forgetful), "cannot decode Forgetful, because it puts no keys into the cache"),
    "error": (
        lambda: of_gpt2(Broken),
        "rows of different lengths fails (KeyError: 'no such thing'): use transformers'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str):
    make, message = REFUSED[name]
    model = make()
    for call in (fastdecode.generate, fastdecode.explain):
        with pytest.raises(TypeError, match=re.escape(message)):
            call(model, torch.tensor([[4, 5]]), max_new_tokens=3)
    with pytest.raises(TypeError, match=re.escape(message)):
        fastdecode.Engine(model)


def test_pictures_as_vectors():
    text = transformers.Gemma3TextConfig(**SIZES, head_dim=8)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision | {"image_size": 8, "patch_size": 4})
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    with pytest.raises(TypeError, match=r"^Gemma3ForConditionalGeneration takes pixel_values beside tokens"):
        fastdecode.generate(model, torch.tensor([[4, 5]]), max_new_tokens=3)


def test_weights_are_not_made_smaller():
    with pytest.raises(TypeError, match=r"^fastdecode knows the layers of .*; got Olmo2ForCausalLM$"):
        fastdecode.quantise(other_model("olmo2"), "int8")
