"""Tiny random models of the families that are not Chameleons: Janus, Emu3, LLaVA, Gemma with Liquid's vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from models_for_tests import drawing_model, tiny_model, tiny_processor, tiny_tokenizer, vq_config
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    CLIPVisionConfig,
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3Processor,
    GemmaConfig,
    GemmaForCausalLM,
    GlmImageConfig,
    GlmImageForConditionalGeneration,
    GlmImageProcessor,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE
from transformers.models.emu3.configuration_emu3 import Emu3TextConfig, Emu3VQVAEConfig
from transformers.models.emu3.image_processing_emu3 import Emu3ImageProcessor
from transformers.models.glm_image.image_processing_pil_glm_image import GlmImageImageProcessorPil
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from fastdecode.models.checkpoint import DecoderWeights
from fastdecode.models.liquid import attach_vqgan
from fastdecode.models.vq_decoder import VQDecoder

TEXT: dict[str, Any] = {
    "vocab_size": 331,
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 320,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LUMINA_TARGET = 24  # pixels: 6 x 6 image tokens of 4 pixels
JANUS_CODES, JANUS_SIDE, JANUS_BEGIN, JANUS_END, JANUS_PLACEHOLDER = 48, 4, 6, 7, 5

LUMINA_NAMES = tuple(f"<reserved{number:05d}>" for number in range(8799, 8799 + 18))


@torch.no_grad()
def filled(model: Any, std: float = 0.15) -> Any:
    """``model`` in eval mode; matrices are random, norms of the language model differ from 1."""
    for name, weights in model.named_parameters():
        if weights.ndim > 1:
            torch.nn.init.normal_(weights, std=std)
        elif "layernorm" in name:
            torch.nn.init.normal_(weights, 1.0, std)
    return model.eval()


def tiny_janus(seed: int = 0, **text: Any) -> JanusForConditionalGeneration:
    torch.manual_seed(seed)
    vision = JanusVisionConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8 * JANUS_SIDE,
        patch_size=8,
        projection_dim=64,
        num_image_tokens=JANUS_SIDE**2,
    )
    vq = JanusVQVAEConfig(
        num_embeddings=JANUS_CODES,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 2],
        num_res_blocks=1,
        projection_dim=64,
        image_token_embed_dim=64,
    )
    config = JanusConfig(
        text_config=LlamaConfig(**(TEXT | text)), vision_config=vision, vq_config=vq, image_token_id=JANUS_PLACEHOLDER
    )
    model = filled(JanusForConditionalGeneration(config))
    model.generation_config.generation_kwargs = {"boi_token_id": JANUS_BEGIN}
    return model


def emu3_vocabulary(codes: int = 40, first: int = 250) -> dict[str, int]:
    """A map as the converted checkpoints have it: names of image tokens sort as their codes do."""
    names = ["<|extra_203|>", "<|extra_204|>", "<|endoftext|>", "<image>"]
    names += ["<|image start|>", "<|image end|>", "<|image token|>", "<|extra_200|>", "<|extra_201|>"]
    ids = {name: i for i, name in enumerate(names)}
    return ids | {f"<|visual token {code:06d}|>": first + code for code in range(codes)}


def tiny_emu3(seed: int = 0, codes: int = 40, **text: Any) -> Emu3ForConditionalGeneration:
    torch.manual_seed(seed)
    vq = Emu3VQVAEConfig(
        codebook_size=codes,
        embed_dim=4,
        latent_channels=4,
        base_channels=32,
        channel_multiplier=[1, 1, 1, 1],
        num_res_blocks=1,
        attn_resolutions=[3],
        hidden_size=32,
        num_attention_heads=1,
    )
    settings = TEXT | {"pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1} | text
    config = Emu3Config(vq_config=vq, text_config=Emu3TextConfig(**settings), vocabulary_map=emu3_vocabulary(codes))
    return filled(Emu3ForConditionalGeneration(config))


def tiny_lumina(seed: int = 0, **settings: Any) -> Any:
    """A drawing model whose checkpoint calls itself a Lumina-mGPT; see `LUMINA_TARGET`."""
    model = drawing_model(seed, **({"context": 320, "extra": LUMINA_NAMES} | settings))
    model.config.name_or_path = f"Lumina-mGPT-7B-{LUMINA_TARGET}"
    return model


LIQUID = {"begin": 7, "end": 8, "unconditional": 9, "first": 300}


def tiny_liquid(seed: int = 0, **text: Any) -> GemmaForCausalLM:
    """A Gemma with 24 image tokens, from token 300 on, and a VQ-GAN for pictures of 16 x 16 pixels."""
    torch.manual_seed(seed)
    vq = vq_config(16, 24)
    settings = TEXT | {"head_dim": 16, "vq_config": vq.to_dict(), "picture_tokens": LIQUID} | text
    model = filled(GemmaForCausalLM(GemmaConfig(**settings)))
    encoder, decoder = ChameleonVQVAE(vq), VQDecoder(vq)
    torch.nn.init.normal_(encoder.quantize.embedding.weight)
    attach_vqgan(model, DecoderWeights(decoder.state_dict(), {}, encoder.state_dict()))
    return model


GLM_PAD, GLM_IMAGE_TOKEN, GLM_BEGIN, GLM_END, GLM_OUTPUTS = 300, 301, 128, 129, 140


def tiny_glm_image(seed: int = 0, **text: Any) -> Any:
    """Heads of 128 features and sections of the rotary embedding as in the checkpoint; 128 codes."""
    torch.manual_seed(seed)
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [8, 12, 12]}
    settings = {
        "vocab_size": 331,
        "vision_vocab_size": GLM_OUTPUTS,
        "hidden_size": 256,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 400,
        "pad_token_id": GLM_PAD,
        "eos_token_id": GLM_END,
        "rope_parameters": rope,
    }
    config = GlmImageConfig(
        text_config=settings | text,
        vision_config={"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "image_size": 32},
        vq_config={"embed_dim": 16, "num_embeddings": GLM_BEGIN, "latent_channels": 32},
        image_token_id=GLM_IMAGE_TOKEN,
        image_start_token_id=GLM_BEGIN,
        image_end_token_id=GLM_END,
    )
    return filled(GlmImageForConditionalGeneration(config))


def tiny_llava(kind: str, text: str = "llama", seed: int = 0) -> Any:
    """``kind``: "llava" or "llava_next"; ``text``: "llama", "mistral" or "qwen2"."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    language = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}[text](**TEXT)
    configs = {"llava": LlavaConfig, "llava_next": LlavaNextConfig}
    models = {"llava": LlavaForConditionalGeneration, "llava_next": LlavaNextForConditionalGeneration}
    config = configs[kind](vision_config=vision, text_config=language, image_token_index=5, image_token_id=5)
    return filled(models[kind](config))


def chameleon(name: str = "") -> tuple[Any, Any]:
    """A Chameleon whose checkpoint has this name, and its processor."""
    model = tiny_model(context=200)
    model.config.name_or_path = name
    return model, tiny_processor()


def lumina_model(name: str = f"Lumina-mGPT-7B-{LUMINA_TARGET}") -> tuple[Any, Any]:
    """A Lumina-mGPT whose checkpoint has this name, and its processor."""
    model = tiny_lumina(context=800)
    model.config.name_or_path = name
    processor = tiny_processor()
    processor.tokenizer = tiny_tokenizer(model.config.vocabulary_map)
    return model, processor


# --- checkpoints in folders -------------------------------------------------------------------------------------


def saved(folder: Path, model: Any, processor: Any) -> Path:
    """The folder with the model and its processor in it, as they are published."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def taming(path: Path, vqmodel: Any) -> Path:
    """Meta's file: the VQ-GAN's weights, encoder and decoder, under taming's names."""
    state = {key: value.clone() for key, value in vqmodel.state_dict().items()}
    torch.save({"state_dict": state | {"loss.logvar": torch.zeros(1)}}, path)
    return path


def saved_liquid(folder: Path) -> tuple[Path, Path]:
    """A Liquid's folder, without its VQ-GAN, and Meta's file, which has it."""
    model = tiny_liquid()
    vqgan = taming(folder / "vqgan.ckpt", model.vqmodel)
    del model.vqmodel
    size = TEXT["vocab_size"] - 24
    model.config.picture_tokens = {**LIQUID, "first": size}
    return saved(folder / "liquid", model, liquid_tokenizer(size)), vqgan


# --- processors -------------------------------------------------------------------------------------------------


def word_tokenizer(size: int, special: dict[str, int], named: dict[str, str], **more: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of ``size`` tokens: ``special`` names, and words w0, w1, … on all other tokens. ``named``: attributes
    such as image_token.
    """
    taken = {token: name for name, token in special.items()}
    names = {taken.get(token, f"w{token}"): token for token in range(size)}
    tokens = Tokenizer(WordLevel(names, unk_token="w10"))
    tokens.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, extra_special_tokens=named, unk_token="w10", **more)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.padding_side = "left"
    return tokenizer


def janus_processor() -> JanusProcessor:
    special = {
        "<pad>": 0,
        "<bos>": 1,
        "<eos>": 2,
        "<image_placeholder>": JANUS_PLACEHOLDER,
        "<begin_of_image>": JANUS_BEGIN,
        "<end_of_image>": JANUS_END,
    }
    named = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = word_tokenizer(TEXT["vocab_size"], special, named, pad_token="<pad>", eos_token="<eos>")
    pictures = JanusImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return JanusProcessor(pictures, tokenizer, num_image_tokens=JANUS_SIDE**2)


def glm_image_processor() -> GlmImageProcessor:
    special = {"<pad>": GLM_PAD, "<image>": GLM_IMAGE_TOKEN, "<sop>": 302, "<eop>": 303, "<begin>": GLM_BEGIN}
    special |= {str(number): 310 + number for number in range(20)}
    named = {"image_token": "<image>", "grid_bos_token": "<sop>", "grid_eos_token": "<eop>"}
    tokenizer = word_tokenizer(331, special, named, pad_token="<pad>", bos_token="<begin>")
    shown = "{% for m in messages %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endfor %}"
    return GlmImageProcessor(GlmImageImageProcessorPil(), tokenizer, chat_template=shown)


def emu3_processor() -> Emu3Processor:
    special = {name: token for name, token in emu3_vocabulary().items() if "visual" not in name}
    named = {
        "image_token": "<image>",
        "boi_token": "<|image start|>",
        "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>",
        "eof_token": "<|extra_201|>",
    }
    marks = {"bos_token": "<|extra_203|>", "eos_token": "<|extra_204|>", "pad_token": "<|endoftext|>"}
    tokenizer = word_tokenizer(TEXT["vocab_size"], special, named, **marks)
    pictures = Emu3ImageProcessor(min_pixels=16 * 16, max_pixels=64 * 64, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return Emu3Processor(pictures, tokenizer)


def liquid_tokenizer(size: int = TEXT["vocab_size"]) -> PreTrainedTokenizerFast:
    special = {
        "<pad>": 0,
        "<bos>": 1,
        "<eos>": 2,
        "<boi>": LIQUID["begin"],
        "<eoi>": LIQUID["end"],
        "<unconditional>": LIQUID["unconditional"],
    }
    return word_tokenizer(size, special, {}, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
