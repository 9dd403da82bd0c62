"""Tiny random models of text whose matrices can have any width."""

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

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "gemma": (GemmaConfig, GemmaForCausalLM),
}


@torch.no_grad()
def text_model(family: str, seed: int = 0, **more):
    config, model = FAMILIES[family]
    settings = {
        "vocab_size": 90,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "sliding_window": None,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(seed)
    made = model(config(**(settings | more))).eval()
    for name, weights in made.named_parameters():
        torch.nn.init.normal_(weights, float("norm" in name and family != "gemma"), 0.15)
    return made
