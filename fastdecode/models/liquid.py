"""Liquid: Gemma with image tokens behind the tokens of its tokenizer; Chameleon's VQ-GAN reads and paints.

The checkpoint has neither the VQ-GAN nor, in its config, the tokens that begin and end a picture. `fastdecode.load`
adds both: the modules as ``model.vqmodel``, the tokens as ``model.config.picture_tokens``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import GemmaForCausalLM
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from fastdecode.layout import Grid, Layout
from fastdecode.models.checkpoint import DecoderWeights
from fastdecode.models.family import Family
from fastdecode.models.painting import painted
from fastdecode.models.pixels import as_pixels, squared
from fastdecode.models.recipe import Recipe, by_task
from fastdecode.models.text import without_pictures
from fastdecode.models.vocabulary_map import check_token
from fastdecode.models.vq_decoder import VQDecoder, decode_codes, latent_side
from fastdecode.ops.scalars import shown
from fastdecode.vocabulary import Vocabulary
from fastdecode.wording import kind_of

BEGIN, END, UNCONDITIONAL = "<boi>", "<eoi>", "<unconditional>"
NAMED = ("begin", "end", "unconditional", "first")
"""What ``picture_tokens`` of the config names."""

CODES, GEMMA = 8192, 256_000
"""The entries of the codebook, and the tokens of Gemma's tokenizer."""

ADVICE = "load the checkpoint with fastdecode.load, and give Meta's vqgan.ckpt with vqgan=PATH"


def is_liquid(config: Mapping[str, Any]) -> bool:
    """Whether the config of a Gemma is that of a Liquid, which has image tokens behind Gemma's own."""
    return config.get("model_type") == "gemma" and (
        config.get("vocab_size") == GEMMA + CODES or config.get("picture_tokens") is not None
    )


def name_tokens(model: Any, tokenizer: Any) -> None:
    """Write into ``model.config`` which tokens begin and end a picture, and which stands for no prompt. ``ValueError``
    if the tokenizer lacks one.
    """
    known = tokenizer.get_vocab()
    absent = [name for name in (BEGIN, END, UNCONDITIONAL) if name not in known]
    if absent:
        raise ValueError(f"the tokenizer has no {', '.join(absent)}, which Liquid's has: give the tokenizer of Liquid")
    model.config.picture_tokens = {
        "begin": known[BEGIN],
        "end": known[END],
        "unconditional": known[UNCONDITIONAL],
        "first": len(tokenizer),
    }


def vocabulary(model: Any) -> Vocabulary:
    """Gemma's tokens, and from ``picture_tokens["first"]`` on a token for each entry of the codebook. ``ValueError``
    names what is missing, or wrong.
    """
    config, known = model.config, without_pictures(model)
    tokens, vq = _picture_tokens(config), vq_config(config)
    side, first = latent_side(vq), tokens["first"]
    if known.size - first < vq.num_embeddings:
        raise ValueError(
            f"the checkpoint has {known.size} tokens, and the first image token is {first}: there must be one "
            f"for each of the {vq.num_embeddings} entries of the codebook"
        )
    return Vocabulary(
        size=known.size,
        code_ids=tuple(range(first, first + vq.num_embeddings)),
        begin_image=tokens["begin"],
        end_image=tokens["end"],
        placeholder=-1,
        image_length=side * side,
        context=known.context,
        bos=known.bos,
        pad=known.pad,
        layout=Layout(side, side),
        cell=vq.resolution // side,
        bans_images=False,
        unconditional=tuple(t for t in (known.bos, tokens["unconditional"]) if t is not None),
    )


def _picture_tokens(config: Any) -> Mapping[str, int]:
    """``config.picture_tokens``. ``ValueError`` unless it names all four."""
    tokens = getattr(config, "picture_tokens", None)
    if tokens is None:
        raise ValueError(
            "model.config.picture_tokens is missing, which says what begins and ends a picture: load the checkpoint "
            "with fastdecode.load"
        )
    absent = [name for name in NAMED if name not in tokens] if isinstance(tokens, Mapping) else list(NAMED)
    if absent:
        raise ValueError(
            f"model.config.picture_tokens is {shown(tokens)}, without {', '.join(absent)}: load the checkpoint with "
            f"fastdecode.load, or set a dict of tokens with {', '.join(NAMED)}"
        )
    for name in NAMED:
        check_token(f"model.config.picture_tokens[{name!r}] is", tokens[name], config.vocab_size)
    return tokens


def vq_config(config: Any) -> ChameleonVQVAEConfig:
    """The shape of the VQ-GAN: that of Chameleon, unless ``config.vq_config`` says another. ``ValueError`` if that is
    no such config.
    """
    given = getattr(config, "vq_config", None)
    if isinstance(given, Mapping):
        try:
            return ChameleonVQVAEConfig(**given)
        except Exception as error:
            raise ValueError(
                f"model.config.vq_config makes no ChameleonVQVAEConfig ({type(error).__name__}: {error})"
            ) from error
    if given is not None and not isinstance(given, ChameleonVQVAEConfig):
        raise ValueError(f"model.config.vq_config is {kind_of(given)}: it must be a dict, or a ChameleonVQVAEConfig")
    return given or ChameleonVQVAEConfig()


def attach_vqgan(model: Any, weights: DecoderWeights) -> None:
    """Add the VQ-GAN as ``model.vqmodel``. ``ValueError`` names weights that are missing."""
    config = vq_config(model.config)
    vqmodel, decoder = ChameleonVQVAE(config), VQDecoder(config)
    parts: tuple[tuple[nn.Module, Mapping[str, Tensor]], ...] = (
        (vqmodel, weights.encoder),
        (decoder, weights.decoder),
    )
    for module, stored in parts:
        wanted = module.state_dict()
        absent = sorted(key for key in wanted if key not in stored)
        if absent:
            raise ValueError(f"vqgan= lacks {len(absent)} weights of the VQ-GAN ({', '.join(absent[:3])}, …)")
        module.load_state_dict({key: stored[key] for key in wanted})
    decoder.remember(vqmodel, weights.before)
    vqmodel.decoder = decoder
    model.vqmodel = vqmodel.to(model.device).eval().requires_grad_(False)


def missing_keys(model: Any) -> list[str]:
    """The names of the VQ-GAN's weights if there are none."""
    if isinstance(getattr(model, "vqmodel", None), nn.Module):
        return []
    with torch.device("meta"):
        return [f"vqmodel.decoder.{key}" for key in VQDecoder(vq_config(model.config)).state_dict()]


def paint(model: Any, grids: Sequence[Grid]) -> list[Image.Image]:
    """Paint each grid of codes by the VQ decoder, in float32."""
    return painted(grids, model.vqmodel.post_quant_conv.weight.device, partial(decode_codes, model.vqmodel))


@torch.no_grad()
def encode(model: Any, pixels: Tensor) -> Tensor:
    """The image tokens (n, image_length) int64 of pixels (n, 3, H, W) float in [-1, 1]. Liquid reads a picture as the
    tokens of its square, between `BEGIN` and `END`.
    """
    codes = model.vqmodel.encode(pixels.to(model.vqmodel.post_quant_conv.weight), return_dict=True).image_tokens
    return codes.view(len(pixels), -1).long() + model.config.picture_tokens["first"]


DRAWING = "FoundationVision/Liquid, evaluation/inference_t2i.py"
READING = "FoundationVision/Liquid, evaluation/inference_i2t.py"
EDGE = (122, 116, 104)
"""The colour with which Liquid makes a picture a square."""


def recipes(model: Any) -> dict[str, Recipe]:
    """By task."""
    drawn = {
        "multimodal_generation_mode": "image-only",
        "do_sample": True,
        "guidance": 7.0,
        "image": {"temperature": 0.99, "top_k": 4096, "top_p": 0.96},
    }
    said = {"multimodal_generation_mode": "text-only", "do_sample": False, "max_new_tokens": 1024}
    asked = "<start_of_turn>user\n<image>\n{text}<end_of_turn>\n<start_of_turn>model\n"
    found = [
        Recipe.of("Liquid", "text-to-image", "{text} Generate an image based on this description.", drawn, DRAWING),
        Recipe.of("Liquid", "caption", asked, said, READING),
        Recipe.of("Liquid", "chat", asked.replace("<image>\n", ""), said, READING),
    ]
    return by_task(found)


def picture_tokens(model: Any, picture: Image.Image) -> list[int]:
    """The tokens of a picture, begin and end included."""
    missing = missing_keys(model)
    if missing:
        raise ValueError(f"this model has no VQ-GAN to read pictures with: {ADVICE}")
    known = vocabulary(model)
    pixels = as_pixels(squared(picture, vq_config(model.config).resolution, EDGE))
    return [known.begin_image, *encode(model, pixels)[0].tolist(), known.end_image]


def _matches(model: Any) -> bool:
    return isinstance(model, GemmaForCausalLM) and is_liquid(model.config.to_dict())


LIQUID = Family(
    "Liquid",
    _matches,
    vocabulary,
    paint=paint,
    missing=missing_keys,
    advice=f"For pictures, {ADVICE}",
    recipes=recipes,
    picture_tokens=picture_tokens,
)
