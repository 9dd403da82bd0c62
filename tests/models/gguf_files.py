"""Writes the language model of a transformers model as a GGUF, as llama.cpp's converter does."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind

ARCHITECTURES = {"chameleon": "chameleon", "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def interleaved(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """The converter's ``LlamaModel.permute``."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def interleaved_norm(norm: torch.Tensor, heads: int, head_dim: int) -> torch.Tensor:
    """The converter's ``ChameleonModel._reverse_hf_permute``, which takes the first head for all."""
    return norm[0].view(2, head_dim // 2).t().reshape(1, -1).repeat_interleave(heads, 0)


def tensors(model) -> dict[str, torch.Tensor]:
    """The tensors of the file in float32, by their names there."""
    config, kind = model.config, model.config.model_type
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    found = {}
    for key, value in model.state_dict().items():
        value = value.float()
        if key.startswith("model.vqmodel"):
            continue
        if not key.startswith("model.layers."):
            owner, _, own = key.rpartition(".")
            if owner == "lm_head" and config.tie_word_embeddings:
                continue
            whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
            found[f"{whole[owner]}.{own}"] = value
            continue
        _, _, number, name, part, *own = key.split(".")
        name = f"{name}.{part}" if own[1:] or f"{name}.{part}" in NAMES else name
        own = key.rpartition(".")[2]
        if name in ("self_attn.q_proj", "self_attn.k_proj") and ARCHITECTURES[kind] in ("llama", "chameleon"):
            value = interleaved(value, heads[part[0]])
        if name in ("self_attn.q_norm", "self_attn.k_norm") and kind == "chameleon":
            value = interleaved_norm(value, heads[part[0]], value.shape[1])
        found[f"blk.{number}.{NAMES[name]}.{own}"] = value
    return found


def write(
    path: Path,
    model,
    kind: Kind = Kind.Q8_0,
    *,
    architecture: str | None = None,
    kinds: dict[str, Kind] | None = None,
    settings: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    change: Callable[[dict[str, torch.Tensor]], None] = lambda found: None,
) -> Path:
    """Write a file with matrices of ``kind`` (``kinds`` for single names), after ``change`` of its tensors."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), architecture or ARCHITECTURES[config.model_type])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.model_type == "chameleon":
        writer.add_swin_norm(config.swin_norm)
    settings(writer)
    found = tensors(model)
    change(found)
    for name, value in found.items():
        matrix = value.ndim == 2 and "norm" not in name
        its = (kinds or {}).get(name, kind if matrix else Kind.F32)
        data = gguf.quants.quantize(value.numpy().astype(np.float32), its)
        writer.add_tensor(name, data, raw_dtype=its)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
