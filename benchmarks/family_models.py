"""Random models of the families that are not Chameleons, of the real sizes, for benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    Emu3Config,
    Emu3ForConditionalGeneration,
    GemmaConfig,
    GemmaForCausalLM,
    JanusConfig,
    JanusForConditionalGeneration,
    LlamaConfig,
)
from transformers.models.emu3.configuration_emu3 import Emu3TextConfig, Emu3VQVAEConfig
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig

from fastdecode.models.move_weights import move_weights

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


@dataclass(frozen=True)
class Shape:
    """``side``: rows and columns of a picture. ``layers``: of the language model; None: all. ``small``: float32 and few
    features, to compare tokens.
    """

    side: int = 8
    layers: int | None = None
    small: bool = False
    device: str = "cpu"


def _made(kind: Any, config: Any, shape: Shape) -> Any:
    """A model in eval mode, in bfloat16 unless it is small; matrices are normal numbers, norms are as they are."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = kind(config)
    model = model.to(torch.float32 if shape.small else torch.bfloat16).to_empty(device=shape.device).eval()
    for name, weights in model.named_parameters():
        if weights.ndim > 1:
            torch.nn.init.normal_(weights, std=0.15 if shape.small else 0.02)
        else:
            torch.nn.init.constant_(weights, float("norm" in name and kind is not GemmaForCausalLM))
    inner = getattr(model.model, "language_model", getattr(model.model, "text_model", model.model))
    if kind is GemmaForCausalLM:
        inner.embed_tokens.embed_scale.fill_(config.hidden_size**0.5)  # not among the parameters
    inner.rotary_emb = type(inner.rotary_emb)(inner.config).to(shape.device)
    if not shape.small:
        move_weights(model.parameters())  # as `fastdecode.load` does; both sides read them
    return model


def _sizes(sizes: dict[str, int], shape: Shape) -> dict[str, int]:
    if shape.small:
        return SMALL
    return sizes if shape.layers is None else {**sizes, "num_hidden_layers": shape.layers}


def janus_model(shape: Shape) -> Any:
    """Janus-Pro-1B. What reads and paints pictures is small: it takes no part."""
    sizes = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16}
    sizes, small = _sizes(sizes, shape), shape.small
    text = LlamaConfig(
        vocab_size=1000 if small else 102400,
        num_key_value_heads=sizes["num_attention_heads"],
        max_position_embeddings=16384,
        pad_token_id=2,
        bos_token_id=0,
        eos_token_id=1,
        **sizes,
    )
    hidden = sizes["hidden_size"]
    vision = JanusVisionConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16 * shape.side,
        projection_dim=hidden,
        num_image_tokens=shape.side**2,
    )
    vq = JanusVQVAEConfig(
        num_embeddings=256 if small else 16384,
        base_channels=32,
        channel_multiplier=[1, 1],
        num_res_blocks=1,
        projection_dim=hidden,
        image_token_embed_dim=hidden,
    )
    config = JanusConfig(
        text_config=text, vision_config=vision, vq_config=vq, image_token_id=9, tie_word_embeddings=False
    )
    model = _made(JanusForConditionalGeneration, config, shape)
    model.generation_config.update(pad_token_id=2, bos_token_id=0, eos_token_id=1, guidance_scale=5.0)
    model.generation_config.generation_kwargs = {"boi_token_id": 3}
    return model


def emu3_model(shape: Shape) -> Any:
    """Emu3. What reads and paints pictures is small."""
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 32}
    sizes, small = _sizes(sizes, shape), shape.small
    vocab, codes = (1500, 256) if small else (184622, 32768)
    names = ["<bos>", "<eos>", "<pad>", "<image>", "<|image start|>", "<|image end|>", "<|image token|>"]
    names += ["<|extra_200|>", "<|extra_201|>"]
    known = {name: i for i, name in enumerate(names)}
    known |= {f"<|visual token {code:06d}|>": vocab - codes + code for code in range(codes)}
    text = Emu3TextConfig(
        vocab_size=vocab,
        num_key_value_heads=2 if small else 8,
        max_position_embeddings=9216,
        pad_token_id=2,
        bos_token_id=0,
        eos_token_id=1,
        **sizes,
    )
    vq = Emu3VQVAEConfig(codebook_size=codes, base_channels=32, hidden_size=32, num_res_blocks=1, attn_resolutions=[3])
    config = Emu3Config(vq_config=vq, text_config=text, vocabulary_map=known, tie_word_embeddings=False)
    model = _made(Emu3ForConditionalGeneration, config, shape)
    model.generation_config.update(pad_token_id=2, bos_token_id=0, eos_token_id=1)
    return model


def liquid_model(shape: Shape) -> Any:
    """Liquid: Gemma-7B with image tokens."""
    sizes = {"hidden_size": 3072, "intermediate_size": 24576, "num_attention_heads": 16, "num_hidden_layers": 28}
    sizes, small = _sizes(sizes, shape), shape.small
    first, codes = (1000, 256) if small else (256000, 8192)
    vq = {
        "resolution": 2 * shape.side,
        "channel_multiplier": [1, 1],
        "num_embeddings": codes,
        "base_channels": 32,
        "attn_resolutions": None,
    }
    config = GemmaConfig(
        vocab_size=first + codes,
        num_key_value_heads=sizes["num_attention_heads"],
        head_dim=16 if small else 256,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
        vq_config=vq,
        picture_tokens={"begin": 7, "end": 8, "unconditional": 9, "first": first},
        **sizes,
    )
    model = _made(GemmaForCausalLM, config, shape)
    model.vqmodel = torch.nn.Module()  # pictures are not painted here
    return model
