"""Llamas with random weights in `SIZES`: in transformers, and the same weights as a GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.models import SIZES as CHAMELEONS
from benchmarks.models import STD, Size

SIZES = {name: CHAMELEONS[name] for name in ("289M", "7B-2", "7B")}
SIZES["tiny"] = Size(64, 2, 96, 4, torch.bfloat16, vocab=512, context=256, kv_heads=2)
"""``tiny`` is for tests."""

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Modules of a layer of transformers, and llama.cpp's names of their weights."""


@torch.no_grad()
def random_llama(size: str, layers: int | None = None, seed: int = 0) -> LlamaForCausalLM:
    """A Llama of that size in eval mode: matrices normal with standard deviation `STD`, norms 1. ``layers``: how many
    instead of the size's.
    """
    shape = SIZES[size]
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=layers or shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads or shape.heads,
        max_position_embeddings=shape.context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=None,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(shape.dtype)
    model.to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    torch.manual_seed(seed)
    for weights in model.parameters():
        if weights.ndim > 1:
            weights.normal_(0, STD)
        else:
            weights.fill_(1.0)
    return model.eval().requires_grad_(False)


def _in_pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of queries or keys in llama.cpp's order: it rotates neighbours, transformers both halves of a head."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_gguf(model: LlamaForCausalLM, kind: str, path: Path) -> int:
    """Write ``model``, its matrices as ``kind`` ("BF16", "Q8_0", "Q4_0"), without a tokenizer. Returns the bytes of the
    weights that a token needs: all but the embedding. ``ImportError`` without the package gguf.
    """
    import gguf

    config: Any = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    read = 0

    def add(name: str, weight: torch.Tensor) -> None:
        nonlocal read
        numbers, stored = weight.float().numpy(), gguf.GGMLQuantizationType.F32
        if weight.ndim > 1:
            stored = gguf.GGMLQuantizationType[kind]
            numbers = gguf.quants.quantize(np.ascontiguousarray(numbers), stored)
        writer.add_tensor(f"{name}.weight", numbers, raw_dtype=stored)
        read += numbers.nbytes if name != "token_embd" else 0

    add("token_embd", model.model.embed_tokens.weight)
    for number, layer in enumerate(model.model.layers):
        for theirs, name in NAMES.items():
            weight = layer.get_submodule(theirs).weight
            if name in ("attn_q", "attn_k"):
                weight = _in_pairs(
                    weight, config.num_attention_heads if name == "attn_q" else config.num_key_value_heads
                )
            add(f"blk.{number}.{name}", weight)
    add("output_norm", model.model.norm.weight)
    add("output", model.lm_head.weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read
