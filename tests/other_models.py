"""Tiny random models of transformers whose layers fastdecode does not know."""

from __future__ import annotations

from typing import Any

import torch
import transformers

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 160,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
HEADS = {"num_key_value_heads": 4}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
OF_GPT2 = {"n_positions": 160, "n_embd": 32, "n_layer": 2, "n_head": 4}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
DEEPSEEK = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 24}

OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {"sliding_window": 8}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {"head_dim": 8, **WINDOWS}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {"head_dim": 8, **WINDOWS}),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {}),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", {}),
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", {}),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", {"sliding_window": 8}),
    "granite": ("GraniteConfig", "GraniteForCausalLM", {"logits_scaling": 2.0}),
    "cohere": ("CohereConfig", "CohereForCausalLM", {}),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", {"no_rope_layers": [1, 0]}),
    "glm4": ("Glm4Config", "Glm4ForCausalLM", {"head_dim": 8}),
    "falcon": ("FalconConfig", "FalconForCausalLM", {"alibi": False}),
    "falcon with alibi": ("FalconConfig", "FalconForCausalLM", {"alibi": True, "multi_query": False}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", OF_GPT2),
    "opt": ("OPTConfig", "OPTForCausalLM", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": ("BloomConfig", "BloomForCausalLM", {"n_layer": 2, "n_head": 4}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", EXPERTS),
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM", {"head_dim": 8, **EXPERTS, **WINDOWS}),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM", MLA | HEADS | DEEPSEEK | {"first_k_dense_replace": 1}),
}


@torch.no_grad()
def other_model(name: str, seed: int = 0, **more: Any) -> Any:
    """A model of `OTHERS` in eval mode, float32. ``more``: of its config."""
    config, model, own = OTHERS[name]
    torch.manual_seed(seed)
    made = getattr(transformers, model)(getattr(transformers, config)(**(SIZES | own | more))).eval()
    for parameter in made.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return made
