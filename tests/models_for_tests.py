"""Tiny random Chameleons with a whole vocabulary, and their processor."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonImageProcessor,
    ChameleonProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig

from fastdecode.models.chameleon import attach_decoder
from fastdecode.models.families import vocabulary_of
from fastdecode.models.vq_decoder import VQDecoder
from fastdecode.vocabulary import Vocabulary

CODES = 24
BOS, PAD, EOS, UNK = 0, 1, 2, 3
WORDS = tuple(f"w{i}" for i in range(20))
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
MARKERS = ("<eoss>", "<racm3:break>", "<reserved08706>", "<image>")


def image_name(code: int) -> str:
    return "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z"


def vocabulary_map(codes: int = CODES, words: int = len(WORDS), scattered: bool = False) -> dict[str, int]:
    """Names to tokens. ``scattered``: image tokens lie anywhere behind the first four, and not in the codes' order."""
    ids = {name: i for i, name in enumerate(SPECIAL)}
    rest = [*map(image_name, range(codes)), *MARKERS, *(f"w{i}" for i in range(words))]
    if scattered:
        random.Random(0).shuffle(rest)
    return ids | {name: len(ids) + i for i, name in enumerate(rest)}


def vq_config(resolution: int = 8, codes: int = CODES, **more) -> ChameleonVQVAEConfig:
    settings = {
        "embed_dim": 8,
        "latent_channels": 8,
        "base_channels": 32,
        "channel_multiplier": [1, 2, 2],
        "num_res_blocks": 1,
        "attn_resolutions": None,
    }
    return ChameleonVQVAEConfig(resolution=resolution, num_embeddings=codes, **(settings | more))


def tiny_config(
    *,
    swin_norm: bool = False,
    kv_heads: int = 4,
    bias: bool = False,
    scattered: bool = False,
    resolution: int = 8,
    context: int = 160,
    layers: int = 2,
    codes: int = CODES,
    words: int = len(WORDS),
    sizes: dict[str, int] | None = None,
    extra: Sequence[str] = (),
    **more,
) -> ChameleonConfig:
    names = vocabulary_map(codes, words, scattered)
    names |= {name: len(names) + i for i, name in enumerate(extra)}
    return ChameleonConfig(
        vocab_size=len(names),
        **{"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, **(sizes or {})},
        num_hidden_layers=layers,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        swin_norm=swin_norm,
        attention_bias=bias,
        mlp_bias=bias,
        bos_token_id=PAD,  # as the real checkpoints' configs have it
        pad_token_id=PAD,
        eos_token_id=EOS,
        vq_config=vq_config(resolution, codes).to_dict(),  # versions before 5.17 take no object
        vocabulary_map=names,
        **more,
    )


@torch.no_grad()
def tiny_model(seed: int = 0, *, draws: bool = True, cls=ChameleonForConditionalGeneration, **settings):
    """A random model in eval mode whose logits are far apart, every norm with weights of its own.

    ``draws``: with a random VQ decoder. ``settings`` are those of `tiny_config`.
    """
    torch.manual_seed(seed)
    model = cls(tiny_config(**settings)).eval()
    for name, weights in model.named_parameters():
        if name.startswith("model.vqmodel"):
            continue
        spread = {"lm_head.weight": 0.8, "model.embed_tokens.weight": 1.0}.get(name, 0.3)
        torch.nn.init.normal_(weights, 1.0 if "norm" in name and name.endswith("weight") else 0.0, spread)
    torch.nn.init.normal_(model.model.vqmodel.quantize.embedding.weight)
    if draws:
        attach_decoder(model, VQDecoder(model.config.vq_config).state_dict())
    return model


@torch.no_grad()
def drawing_model(seed: int, **settings):
    """A model that writes four words and begins pictures about as often."""
    model = tiny_model(seed, words=4, **settings)
    v = vocabulary_of(model)
    head = model.lm_head.weight
    head[[i for i in range(v.size) if i not in v.image_ids]] *= 0.25
    head[EOS] = 0.0
    head[v.begin_image] *= 3.0
    return model


def tiny_tokenizer(names: dict[str, int] | None = None) -> PreTrainedTokenizerFast:
    tokens = Tokenizer(WordLevel(names or vocabulary_map(), unk_token="<unk>"))
    tokens.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKERS), "sep_token": "<reserved08706>"})
    tokenizer.padding_side = "left"
    return tokenizer


def tiny_processor(resolution: int = 8) -> ChameleonProcessor:
    size = {"shortest_edge": resolution}
    crop = {"height": resolution, "width": resolution}
    pictures = ChameleonImageProcessor(size=size, crop_size=crop)
    length = (resolution // 4) ** 2
    return ChameleonProcessor(pictures, tiny_tokenizer(), image_seq_length=length)


def picture(seed: int, resolution: int = 8) -> Image.Image:
    pixels = random.Random(seed).randbytes(resolution * resolution * 3)
    return Image.frombytes("RGB", (resolution, resolution), pixels)


def pixels(seed: int, count: int, resolution: int = 8) -> torch.Tensor:
    """(count, 3, resolution, resolution) float32 in [-1, 1]."""
    return torch.rand((count, 3, resolution, resolution), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def text_ids(model, seed: int, count: int) -> list[int]:
    """``count`` random words."""
    names = model.config.vocabulary_map
    return random.Random(seed).choices([names[w] for w in WORDS if w in names], k=count)


def placeholder_block(vocabulary: Vocabulary) -> list[int]:
    """A picture of a prompt, as the processor writes it."""
    return [vocabulary.begin_image, *[vocabulary.placeholder] * vocabulary.image_length, vocabulary.end_image]


def padded(prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` of left-padded prompts."""
    width = max(map(len, prompts))
    ids = torch.tensor([[*[PAD] * (width - len(p)), *p] for p in prompts])
    mask = torch.tensor([[*[0] * (width - len(p)), *[1] * len(p)] for p in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def whole_logits(model, ids: Sequence[int]) -> torch.Tensor:
    """Logits (length, vocab) float32 of one sequence, by the model's own layers, image tokens unmasked."""
    with torch.no_grad():
        return model.lm_head(model.model(torch.tensor([list(ids)])).last_hidden_state)[0].float()
