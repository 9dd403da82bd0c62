"""Text models like Llama: the C++ step gives the tokens and logits of transformers; and unsupported models."""

import random
import re

import pytest
import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import fastdecode
from fastdecode.decoder import Decoder
from fastdecode.decoder.classes import classes_of
from fastdecode.decoder.support import unsupported_reason
from fastdecode.generation.returned_cache import FIELD
from fastdecode.models.families import vocabulary_of

LLAMA = (LlamaConfig, LlamaForCausalLM)
FAMILIES = {
    "llama": LLAMA,
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "gemma": (GemmaConfig, GemmaForCausalLM),
}
VARIANTS = {
    "one head of keys": {"num_key_value_heads": 1},
    "as many heads of keys": {"num_key_value_heads": 4},
    "wide heads": {"head_dim": 24},
    "heads of 256": {"head_dim": 256, "num_key_value_heads": 4},
    "gelu": {"hidden_act": "gelu"},
    "gelu by tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "tied embeddings": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    "dynamic rope": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    "another epsilon": {"rms_norm_eps": 1e-3},
}
CONTEXT, VOCAB = 320, 331


def text_model(family: str, seed: int = 0, **more):
    config, model = FAMILIES[family]
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 88,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": CONTEXT,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "sliding_window": None,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(seed)
    made = model(config(**(settings | more))).eval()
    around = classes_of(made).norm_offset
    for name, weights in made.named_parameters():
        torch.nn.init.normal_(weights, mean=1.0 - around if "norm" in name else 0.0, std=0.15)
    return made


def batch(seed: int, lengths: list[int]) -> dict[str, torch.Tensor]:
    """Prompts of ids, padded on the left."""
    rng = random.Random(seed)
    width = max(lengths)
    ids = [[0] * (width - n) + [rng.randrange(3, VOCAB) for _ in range(n)] for n in lengths]
    return {"input_ids": torch.tensor(ids), "attention_mask": (torch.tensor(ids) != 0).long()}


@pytest.mark.parametrize("variant", ["plain", *VARIANTS])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_of_long_runs(family: str, variant: str):
    model = text_model(family, len(variant), **VARIANTS.get(variant, {}))
    assert Decoder(model).uses_cpu_step
    options = {"max_new_tokens": 200, "min_new_tokens": 200, "do_sample": False}
    inputs = batch(len(variant), [40, 1, 9, 9])
    if variant == "dynamic rope":  # transformers' table is that of the longest row, for all of a batch
        inputs = {name: rows[:1] for name, rows in inputs.items()}
    found = fastdecode.generate(model, **inputs, **options)
    assert found.shape == (len(inputs["input_ids"]), 240)
    assert torch.equal(found, model.generate(**inputs, **options))


@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_of_text_is_that_of_transformers(family: str):
    model = text_model(family, 3)
    options = {**batch(3, [12, 12]), "max_new_tokens": 40, "do_sample": False, "guidance_scale": 2.5}
    assert torch.equal(fastdecode.generate(model, **options), model.generate(**options))


def logits_of(model, rows: list[list[int]], steps: int) -> torch.Tensor:
    """(steps, rows, vocab) float64 after feeding every row's last ids one by one."""
    decoder = Decoder(model)
    cache = decoder.new_cache()
    decoder.prefill(cache, [row[:-steps] for row in rows])
    found = []
    for i in range(-steps, 0):
        found.append(decoder.logits(decoder.step(cache, torch.tensor([row[i] for row in rows]))).double())
    return torch.stack(found)


@torch.inference_mode()
def theirs(model, rows: list[list[int]], steps: int) -> torch.Tensor:
    return torch.stack([model(torch.tensor([row])).logits[0, -steps:].double() for row in rows], 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_against_transformers(family: str):
    model, steps = text_model(family, 4, num_hidden_layers=3), 5
    rng = random.Random(4)
    rows = [[rng.randrange(3, VOCAB) for _ in range(n)] for n in (9, 50, 20)]
    exact = theirs(model.double(), rows, steps)
    single = model.float()
    expected, scale = theirs(single, rows, steps), exact.abs().max()
    assert (logits_of(single, rows, steps) - expected).abs().max() <= 1e-5 * scale
    low = model.bfloat16()
    errors = [
        (found - exact).square().mean().sqrt() for found in (logits_of(low, rows, steps), theirs(low, rows, steps))
    ]
    assert errors[0] <= errors[1]


@pytest.mark.parametrize("family", ["qwen3", "gemma"])
def test_a_draw_is_the_same_alone_and_in_a_batch(family: str):
    model = text_model(family, 5)
    inputs = batch(5, [30, 3, 12])
    options = {"max_new_tokens": 20, "do_sample": True, "top_p": 0.9, "deterministic": True}
    together = fastdecode.generate(model, **inputs, seed=[1, 2, 3], **options)
    for i, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
        alone = fastdecode.generate(model, ids[mask != 0][None], seed=i + 1, **options)
        new = alone[0, int(mask.sum()) :]
        assert torch.equal(new, together[i, 30 : 30 + len(new)])


def test_what_is_not_plain_takes_pytorchs_step_with_the_same_tokens():
    model = text_model("qwen3", 6)
    model.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: output * 0.5)
    assert unsupported_reason(model) == "layers.1: mlp is not a plain Qwen3MLP, or has hooks"
    options = {**batch(6, [9, 4]), "max_new_tokens": 30, "do_sample": False}
    assert torch.equal(fastdecode.generate(model, **options), model.generate(**options))
    assert "layers.1: mlp is not a plain Qwen3MLP" in str(fastdecode.explain(model, **options))


@pytest.mark.parametrize("name", ["q_norm", "k_norm"])
def test_norms_of_heads_of_another_kind(name: str):
    model = text_model("qwen3")
    setattr(model.model.layers[0].self_attn, name, torch.nn.RMSNorm(16))
    assert unsupported_reason(model) == f"layers.0: self_attn.{name} is not a plain Qwen3RMSNorm, or has hooks"
    model = text_model("qwen3")
    getattr(model.model.layers[1].self_attn, name).variance_epsilon = 1e-2
    assert unsupported_reason(model) == f"layers.1: self_attn.{name} has another epsilon than the first"
    model = text_model("llama")
    setattr(model.model.layers[1].self_attn, name, torch.nn.RMSNorm(16))
    assert (
        unsupported_reason(model) == "layers.1: self_attn has norms of queries and keys that a LlamaAttention has not"
    )


def test_transformers_own_loop_over_pages():
    model = text_model("llama", 7)
    options = {**batch(7, [9, 4]), "max_new_tokens": 20, "do_sample": False, "num_beams": 2}
    cache = fastdecode.PagedCache(fastdecode.new_pool(model))
    assert torch.equal(model.generate(**options, **{FIELD: cache}), model.generate(**options))


def test_the_vocabulary_has_no_pictures():
    vocabulary = vocabulary_of(text_model("mistral"))
    assert not vocabulary.has_pictures
    assert (vocabulary.size, vocabulary.context, vocabulary.bos, vocabulary.pad) == (VOCAB, CONTEXT, 1, 0)
    explained = fastdecode.explain(text_model("mistral"), torch.tensor([[4, 5]]), max_new_tokens=3)
    assert explained.allowed["text"] == VOCAB
    assert not explained.can_draw
    assert "pictures          none: a model of text" in str(explained)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multimodal_generation_mode": "image-only"}, "'image-only': this model writes text only"),
        ({"multimodal_generation_mode": "unrestricted"}, "'unrestricted': this model writes text only"),
        ({"pixel_values": torch.zeros(1, 3, 8, 8)}, "pixel_values were given, but LlamaForCausalLM reads and writes"),
        ({"text": {"top_q": 1}}, "text['top_q'] is not a sampling parameter"),
        ({"max_new_tokens": 3, "num_beams": 2}, "num_beams=2 asks for beam search"),
    ],
    ids=str,
)
def test_refusals(options: dict, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        fastdecode.generate(text_model("llama"), torch.tensor([[4, 5]]), **options, fallback="error")


@pytest.mark.parametrize("layers", ["all", "some"])
def test_layers_that_see_a_window_are_decoded_by_the_models_own_forward(layers: str):
    if layers == "all":
        model = text_model("mistral", sliding_window=8)
    else:
        model = text_model("qwen3", use_sliding_window=True, max_window_layers=1, sliding_window=8)
    options = {**batch(8, [30, 5, 9]), "max_new_tokens": 40, "do_sample": False}
    expected = model.generate(**options)
    assert torch.equal(fastdecode.generate(model, **options), expected)
    assert "because its layers see the last 8 tokens only" in str(fastdecode.explain(model, **options))
    whole = text_model("mistral" if layers == "all" else "qwen3")
    assert not torch.equal(fastdecode.generate(whole, **options), expected)


def test_a_window_that_no_sequence_leaves_needs_no_forward():
    wide = text_model("mistral", sliding_window=CONTEXT)
    ids = torch.tensor([[4, 5]])
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(fastdecode.generate(wide, ids, **options), wide.generate(ids, **options))
    assert "own forward" not in str(fastdecode.explain(wide, ids, **options))


def test_what_is_no_model_that_writes_is_refused_by_name():
    model = text_model("llama").model
    with pytest.raises(TypeError, match=r"^fastdecode decodes models of transformers that write .*got LlamaModel$"):
        fastdecode.generate(model, torch.tensor([[4, 5]]), max_new_tokens=3)
    with pytest.raises(TypeError, match=r"^fastdecode knows the layers of .*GemmaForCausalLM; got LlamaModel$"):
        classes_of(model)
