"""What the package reads from a Chameleon checkpoint: its vocabulary, its pictures, and which weights are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakSet

import torch
from PIL import Image
from torch import Tensor, nn

from fastdecode.decoder.family import CHAMELEON, family_of
from fastdecode.models.vq_decoder import BEFORE, VQDecoder, decode_codes, latent_side

BEGIN_IMAGE, END_IMAGE, PLACEHOLDER = "<racm3:break>", "<eoss>", "<image>"


def check_family(model: Any) -> None:
    """``TypeError`` or ``ValueError`` for a model that `family_of` does not accept."""
    family_of(model)


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of one checkpoint, read from its ``vocabulary_map`` and shapes.

    ``code_ids[c]`` is the token of codebook entry ``c``; ``image_length`` is the number of tokens in a picture, without
    its begin and end tokens; ``context`` is the maximum length of a sequence. ``bos`` is None if there is no ``<s>``.
    A text model has no ``code_ids``, and its ``begin_image``, ``end_image`` and ``placeholder`` are -1.
    """

    size: int
    code_ids: tuple[int, ...]
    begin_image: int
    end_image: int
    placeholder: int
    image_length: int
    context: int
    bos: int | None = None
    pad: int | None = None

    @classmethod
    def of(cls, model: Any) -> Vocabulary:
        """Read ``model.config``. ``ValueError`` names what is missing from it."""
        family, config = family_of(model), model.config
        if family is not CHAMELEON:
            return cls(
                size=config.vocab_size,
                code_ids=(),
                begin_image=-1,
                end_image=-1,
                placeholder=-1,
                image_length=0,
                context=config.max_position_embeddings,
                bos=config.bos_token_id,
                pad=config.pad_token_id,
            )
        ids: dict[str, int] = config.vocabulary_map or {}
        absent = [name for name in (BEGIN_IMAGE, END_IMAGE, PLACEHOLDER) if name not in ids]
        if absent:
            raise ValueError(
                f"config.vocabulary_map of this checkpoint has no {', '.join(absent)}: it must map every token of "
                f"the tokenizer to its id (it has {len(ids)} entries)"
            )
        _check_distinct(model.model.vocabulary_mapping, ids, config.vocab_size)
        codes = model.model.vocabulary_mapping.img2bpe
        count = config.vq_config.num_embeddings
        if sorted(codes) != list(range(count)):
            raise ValueError(
                f"config.vocabulary_map names {len(codes)} image tokens (IMGIMG…Z), but the codebook has {count} "
                "entries: each entry needs its own"
            )
        return cls(
            size=config.vocab_size,
            code_ids=tuple(codes[c] for c in range(count)),
            begin_image=ids[BEGIN_IMAGE],
            end_image=ids[END_IMAGE],
            placeholder=ids[PLACEHOLDER],
            image_length=latent_side(config.vq_config) ** 2,
            context=config.max_position_embeddings,
            bos=ids.get("<s>"),
            pad=ids.get("<pad>"),
        )

    @property
    def has_pictures(self) -> bool:
        return bool(self.code_ids)

    @cached_property
    def image_ids(self) -> frozenset[int]:
        return frozenset(self.code_ids)

    @cached_property
    def id_to_code(self) -> dict[int, int]:
        """The inverse of ``code_ids``: the codebook entry of each image token. The order need not be the same."""
        return {i: code for code, i in enumerate(self.code_ids)}


_distinct: WeakSet[Any] = WeakSet()
"""Mappings of models that `_check_distinct` accepted; it takes milliseconds."""


def _check_distinct(mapping: Any, ids: dict[str, int], size: int) -> None:
    """``ValueError`` if an image token or a marker has no token of its own in ``vocabulary_map``."""
    if mapping in _distinct:
        return
    names: dict[int, list[str]] = {}
    for name, token in ids.items():
        names.setdefault(token, []).append(name)
    for name, token in ids.items():
        if not name.startswith("IMGIMG") and name not in (BEGIN_IMAGE, END_IMAGE, PLACEHOLDER):
            continue
        if len(names[token]) > 1:
            raise ValueError(
                f"config.vocabulary_map of this checkpoint gives token {token} to {' and '.join(names[token][:3])}: "
                "each image token and each marker of a picture needs a token of its own"
            )
        if not isinstance(token, int) or not 0 <= token < size:
            raise ValueError(
                f"config.vocabulary_map of this checkpoint gives {token!r} to {name}, but the model has tokens "
                f"0 to {size - 1}"
            )
    _distinct.add(mapping)


def check_pixels(model: Any, pixel_values: Tensor) -> Tensor:
    """Move pixels ``(n, 3, H, W)`` float to the VQ encoder's dtype and device. ``ValueError`` for a wrong shape."""
    if family_of(model) is not CHAMELEON:
        raise ValueError(f"pixel_values were given, but {type(model).__name__} reads and writes text only")
    vision, config = model.model.vqmodel, model.config.vq_config
    shape = (config.in_channels, config.resolution, config.resolution)
    if pixel_values.ndim != 4 or pixel_values.shape[1:] != shape:
        raise ValueError(
            f"pixel_values is {tuple(pixel_values.shape)}; this checkpoint takes (pictures, "
            f"{', '.join(map(str, shape))}), as its processor makes them"
        )
    weight = vision.quant_conv.weight
    return pixel_values.to(weight.device, weight.dtype)


def encode_pictures(model: Any, pixel_values: Tensor) -> Tensor:
    """Encode pixels ``(n, 3, H, W)`` float to image tokens ``(n, image_length)`` int64, on the model's device."""
    return model.model.get_image_tokens(check_pixels(model, pixel_values)).long()


def fill_placeholders(input_ids: Tensor, image_ids: Tensor | None, vocabulary: Vocabulary) -> Tensor:
    """Replace ``<image>`` placeholders in ``input_ids`` (batch, length) with ``image_ids`` (n, image_length), in order.

    ``ValueError`` if the pictures do not fill the placeholders exactly. Returns a new tensor.
    """
    check_picture_count(input_ids, 0 if image_ids is None else len(image_ids), vocabulary)
    if image_ids is None:
        return input_ids
    here = input_ids == vocabulary.placeholder
    return input_ids.masked_scatter(here, image_ids.to(input_ids.device))


def with_placeholders(text: str, pictures: int, given_as: str) -> str:
    """``text`` with an ``<image>`` for each of so many ``pictures``; without any they go before the text.

    ``ValueError`` if it has another number of them. ``given_as``: the option that had the pictures.
    """
    if pictures and PLACEHOLDER not in text:
        return PLACEHOLDER * pictures + text
    if text.count(PLACEHOLDER) != pictures:
        raise ValueError(
            f"the prompt has {text.count(PLACEHOLDER)} {PLACEHOLDER}, but {pictures} pictures were given with "
            f"{given_as}: give one for each"
        )
    return text


def check_picture_count(input_ids: Tensor, pictures: int, vocabulary: Vocabulary) -> None:
    """``ValueError`` unless ``input_ids`` holds ``image_length`` placeholders for each of ``pictures``."""
    if not vocabulary.has_pictures:
        if pictures:
            raise ValueError(f"{pictures} pictures were given, but this model reads and writes text only")
        return
    wanted = int((input_ids == vocabulary.placeholder).sum())
    if wanted != pictures * vocabulary.image_length:
        raise ValueError(
            f"the prompt has {wanted} <image> placeholder tokens (room for {wanted / vocabulary.image_length:g} "
            f"pictures of {vocabulary.image_length}), but pixel_values holds {pictures} pictures: give one picture for "
            "each <image> in the text, all through the processor"
        )


# --- drawing ----------------------------------------------------------------------------------------------------


def missing_decoder_keys(model: Any) -> list[str]:
    """The names of the VQ decoder's weights that ``model`` lacks; empty if it can draw."""
    if family_of(model) is not CHAMELEON:
        raise ValueError(f"{type(model).__name__} writes text only")
    if isinstance(getattr(model.model.vqmodel, "decoder", None), nn.Module):
        return []
    with torch.device("meta"):
        decoder = VQDecoder(model.config.vq_config)
    return [f"model.vqmodel.decoder.{key}" for key in decoder.state_dict()]


def check_can_draw(model: Any) -> None:
    """``ValueError`` that names the missing weights if ``model`` has no VQ decoder."""
    missing = missing_decoder_keys(model)
    if missing:
        raise ValueError(
            f"this checkpoint has no VQ decoder, so its picture tokens cannot become pictures: {len(missing)} weights "
            f"are missing ({missing[0]}, {missing[1]}, … {missing[-1]}). Text works without them. Use a checkpoint "
            "that carries them (the Anole and AA-Chameleon conversions do) through fastdecode.load, or give "
            "fastdecode.load Meta's vqgan.ckpt with vqgan=PATH"
        )


def attach_decoder(model: Any, weights: dict[str, Tensor], before: Mapping[str, Tensor] | None = None) -> None:
    """Add a VQ decoder with ``weights`` to ``model.model.vqmodel``. Keys are taming's names, relative to the decoder.

    The decoder is float32 whatever the model's dtype. ``before``: the weights `fastdecode.models.vq_decoder.BEFORE` as
    the checkpoint has them; those that are left out are taken from the model.

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
    decoder.load_state_dict(weights)
    vqmodel = model.model.vqmodel
    own = dict(vqmodel.named_parameters())
    decoder.keep_before({name: own[name] for name in BEFORE} | dict(before or {}))
    vqmodel.decoder = decoder.to(vqmodel.post_quant_conv.weight.device).eval().requires_grad_(False)


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """Convert pixels ``(n, 3, H, W)`` float in [-1, 1] (clamped) to RGB pictures."""
    grey = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return [Image.fromarray(p) for p in grey.permute(0, 2, 3, 1).cpu().numpy()]


def decode_pictures(model: Any, blocks: Sequence[Sequence[int]], vocabulary: Vocabulary) -> list[Image.Image]:
    """Decode blocks of ``image_length`` image tokens each to RGB pictures, in one pass of the VQ decoder."""
    if not blocks:
        return []
    check_can_draw(model)
    codes = torch.tensor([[vocabulary.id_to_code[i] for i in block] for block in blocks])
    vqmodel = model.model.vqmodel
    return to_pictures(decode_codes(vqmodel, codes.to(vqmodel.decoder.conv_out.weight.device)))
