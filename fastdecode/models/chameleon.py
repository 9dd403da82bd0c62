"""Chameleon, and its fine-tunes that keep its pictures: Anole, AA-Chameleon, Thinking with generated images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from PIL import Image
from torch import Tensor, nn

from fastdecode.decoder.classes import CHAMELEON as LAYERS
from fastdecode.decoder.classes import known_classes
from fastdecode.layout import Grid
from fastdecode.models.chameleon_recipes import recipes
from fastdecode.models.family import Family
from fastdecode.models.painting import painted
from fastdecode.models.vocabulary_map import check_token, code_ids, named_tokens
from fastdecode.models.vq_decoder import VQDecoder, decode_codes, latent_side
from fastdecode.vocabulary import Vocabulary

BEGIN_IMAGE, END_IMAGE, PLACEHOLDER = "<racm3:break>", "<eoss>", "<image>"


def vocabulary(model: Any) -> Vocabulary:
    """Read ``model.config``. ``ValueError`` names what is missing from it."""
    config = model.config
    ids = named_tokens(config, (BEGIN_IMAGE, END_IMAGE, PLACEHOLDER), config.vocab_size)
    mapping = model.model.vocabulary_mapping
    if mapping not in _checked:
        _check_tokens(ids, config.vocab_size)
        _checked.add(mapping)
    return Vocabulary(
        size=config.vocab_size,
        code_ids=code_ids(mapping, config.vq_config.num_embeddings, "IMGIMG…Z"),
        begin_image=ids[BEGIN_IMAGE],
        end_image=ids[END_IMAGE],
        placeholder=ids[PLACEHOLDER],
        image_length=latent_side(config.vq_config) ** 2,
        cell=config.vq_config.resolution // latent_side(config.vq_config),
        context=config.max_position_embeddings,
        bos=ids.get("<s>"),
        pad=ids.get("<pad>"),
    )


_checked: WeakSet[Any] = WeakSet()
"""Vocabularies of models whose tokens were checked: it takes milliseconds."""


def _check_tokens(ids: Mapping[str, int], size: int) -> None:
    """``ValueError`` if a token of pictures lies outside the vocabulary, or if another name shares it."""
    names: dict[int, list[str]] = {}
    for name, token in ids.items():
        names.setdefault(token, []).append(name)
    for name, token in ids.items():
        if not name.startswith("IMGIMG") and name not in (BEGIN_IMAGE, END_IMAGE, PLACEHOLDER):
            continue
        check_token(f"config.vocabulary_map gives {name} the token", token, size)
        if len(names[token]) > 1:
            raise ValueError(
                f"config.vocabulary_map gives {' and '.join(names[token][:3])} the same token {token}: each image "
                "token and each marker of a picture needs its own"
            )


def check_pixels(model: Any, pixels: Tensor) -> Tensor:
    """Move pixels ``(n, 3, H, W)`` float to the VQ encoder's dtype and device. ``ValueError`` for another shape."""
    shape = _picture_shape(model)
    if pixels.ndim != 4 or pixels.shape[1:] != shape:
        raise ValueError(
            f"pixel_values is {tuple(pixels.shape)}; this checkpoint takes (pictures, "
            f"{', '.join(map(str, shape))}), as its processor makes them"
        )
    vision = model.model.vqmodel
    _check_not_offloaded(vision)
    weight = vision.quant_conv.weight
    return pixels.to(weight.device, weight.dtype)


def _picture_shape(model: Any) -> tuple[int, int, int]:
    config = model.config.vq_config
    return config.in_channels, config.resolution, config.resolution


def _check_not_offloaded(vision: Any) -> None:
    """``ValueError`` if weights of the VQ model are offloaded: its codebook is read outside of the module that has it,
    where accelerate does not bring it back.
    """
    if any(parameter.device.type == "meta" for parameter in vision.parameters()):
        raise ValueError(
            "the weights of model.model.vqmodel are offloaded, so pictures can neither be read nor painted: load the "
            "model with a device_map that gives model.vqmodel a device"
        )


def lengths(model: Any, pixels: Tensor, sizes: Any) -> list[int]:
    """The numbers of placeholders of pictures."""
    return [latent_side(model.config.vq_config) ** 2] * len(pixels)


def read(model: Any, pixels: Tensor, sizes: Any) -> list[Tensor]:
    """Encode pixels ``(n, 3, H, W)`` float to image tokens ``(image_length,)`` int64 each, on the model's device."""
    return list(model.model.get_image_tokens(pixels).long())


def features(model: Any, encoded: Any) -> list[Tensor]:
    """The image tokens of what transformers has encoded."""
    codes = encoded.image_tokens.view(-1, latent_side(model.config.vq_config) ** 2)
    return list(model.model.vocabulary_mapping.convert_img2bpe(codes).long())


# --- drawing ----------------------------------------------------------------------------------------------------


def missing_keys(model: Any) -> list[str]:
    """The names of the VQ decoder's weights that ``model`` lacks; empty if it can draw."""
    if isinstance(getattr(model.model.vqmodel, "decoder", None), nn.Module):
        return []
    with torch.device("meta"):
        decoder = VQDecoder(model.config.vq_config)
    return [f"model.vqmodel.decoder.{key}" for key in decoder.state_dict()]


def fill_encoder(model: Any, missing: set[str], weights: Mapping[str, Tensor]) -> set[str]:
    """Give the VQ model's ``missing`` weights (names in ``model``) the values of Meta's file. Returns those it has.

    ``ValueError`` for a wrong shape; the model is not changed then.
    """
    prefix = "model.vqmodel."
    found = {name: weights[name.removeprefix(prefix)] for name in missing if name.removeprefix(prefix) in weights}
    for name, value in found.items():
        wanted = tuple(model.get_parameter(name).shape)
        if tuple(value.shape) != wanted:
            raise ValueError(f"vqgan= has {name} of {tuple(value.shape)}; config.vq_config asks for {wanted}")
    with torch.no_grad():
        for name, value in found.items():
            model.get_parameter(name).copy_(value)
    return set(found)


def attach_decoder(model: Any, weights: Mapping[str, Tensor], originals: Mapping[str, Tensor] | None = None) -> None:
    """Add a VQ decoder with ``weights`` to ``model.model.vqmodel``. Keys are taming's names, relative to the decoder.
    ``originals``: see `VQDecoder.remember`.

    ``ValueError`` names missing or unexpected keys, or a wrong shape; the model is not changed then.
    """
    decoder = VQDecoder(model.config.vq_config)
    wanted = {key: tuple(value.shape) for key, value in decoder.state_dict().items()}
    missing = sorted(set(wanted) - set(weights))
    extra = sorted(set(weights) - set(wanted))
    if missing or extra:
        raise ValueError(
            f"the VQ decoder's weights do not fit config.vq_config: missing {missing[:4] or 'none'} "
            f"({len(missing)} in all), unexpected {extra[:4] or 'none'} ({len(extra)} in all)"
        )
    for key, shape in wanted.items():
        if tuple(weights[key].shape) != shape:
            raise ValueError(
                f"VQ decoder weight {key} is {tuple(weights[key].shape)}; config.vq_config asks for {shape}"
            )
    decoder.load_state_dict(dict(weights))
    vqmodel = model.model.vqmodel
    decoder.remember(vqmodel, originals or {})
    vqmodel.decoder = decoder.to(vqmodel.post_quant_conv.weight.device).eval().requires_grad_(False)


def paint(model: Any, grids: Sequence[Grid]) -> list[Image.Image]:
    """Paint each grid of codes by the VQ decoder, which takes any number of rows and columns."""
    vqmodel = model.model.vqmodel
    _check_not_offloaded(vqmodel)
    return painted(grids, vqmodel.post_quant_conv.weight.device, partial(decode_codes, vqmodel))


CHAMELEON = Family(
    "Chameleon",
    lambda model: known_classes(model) is LAYERS,
    vocabulary,
    paint=paint,
    missing=missing_keys,
    advice=(
        "from_pretrained of transformers drops them: load the checkpoint with fastdecode.load. If the checkpoint lacks "
        "them too (the Anole and AA-Chameleon conversions have them), give fastdecode.load Meta's vqgan.ckpt with "
        "vqgan=PATH"
    ),
    pixels=check_pixels,
    lengths=lengths,
    read=read,
    features=features,
    recipes=recipes,
)
