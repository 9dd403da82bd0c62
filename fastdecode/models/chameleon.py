"""What the package reads from a Chameleon checkpoint: its vocabulary, its pictures, and which weights are missing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fastdecode.decoder.family import CHAMELEON, family_of
from fastdecode.decoder.wrappers import unwrapped
from fastdecode.models.vq_decoder import VQDecoder, decode_codes, latent_side
from fastdecode.wording import kind_of

BEGIN_IMAGE, END_IMAGE, PLACEHOLDER = "<racm3:break>", "<eoss>", "<image>"

LUMINA = (
    "fastdecode does not draw with Lumina-mGPT yet: its pictures begin with two size tokens and every row of them ends "
    "with a token of its own"
)


def supported(model: Any) -> Any:
    """The model inside `torch.compile`'s and PEFT's wrappers, or ``model`` itself. ``TypeError`` or ``ValueError`` if
    it is not one that can be decoded.
    """
    model = unwrapped(model)
    family_of(model)
    return model


def is_lumina(config: Mapping[str, Any], name: str = "") -> bool:
    """Whether a Chameleon's ``config`` is that of a Lumina-mGPT. Its vocabulary and layers are those of Chameleon, so
    that only names tell: of its class, of a setting of its training, and of the checkpoint.
    """
    trained = any("XLLMX" in kind for kind in config.get("architectures") or []) or "z_loss_weight" in config
    return trained or re.search(r"lumina[-_]?mgpt", name, re.IGNORECASE) is not None


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of one checkpoint, read from its ``vocabulary_map`` and shapes.

    ``code_ids[c]`` is the token of codebook entry ``c``; ``image_length`` is the number of tokens in a picture, without
    its begin and end tokens; ``context`` is the maximum length of a sequence. ``bos`` is None if there is no ``<s>``.
    A text model has no ``code_ids``, and its ``begin_image``, ``end_image`` and ``placeholder`` are -1. So has a
    Chameleon whose vocabulary has a ``problem``; its image tokens are ``other_image_ids``. ``cannot_draw``: why the
    modes that draw are refused; empty if they are not.
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
    cannot_draw: str = ""
    other_image_ids: tuple[int, ...] = ()
    problem: str | None = None

    @classmethod
    def of_text(cls, model: Any) -> Vocabulary:
        """As `of`, for calls that write text only: what is missing for pictures is told by ``problem``."""
        try:
            return cls.of(model)
        except ValueError as error:
            images = tuple(model.model.vocabulary_mapping.image_tokens)
            return replace(cls._without_pictures(model.config), other_image_ids=images, problem=str(error))

    @classmethod
    def of(cls, model: Any) -> Vocabulary:
        """Read ``model.config``. ``ValueError`` names what is missing from it."""
        family, config = family_of(model), model.config
        if family is not CHAMELEON:
            return cls._without_pictures(config)
        ids: dict[str, int] = config.vocabulary_map or {}
        absent = [name for name in (BEGIN_IMAGE, END_IMAGE, PLACEHOLDER) if name not in ids]
        if absent:
            raise ValueError(
                f"config.vocabulary_map of this checkpoint has no {', '.join(absent)}: it must map every token of "
                f"the tokenizer to its id (it has {len(ids)} entries)"
            )
        mapping = model.model.vocabulary_mapping
        if mapping not in _checked:
            _check_tokens(ids, config.vocab_size)
            _checked.add(mapping)
        codes = mapping.img2bpe
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
            cannot_draw=LUMINA if is_lumina(vars(config), config.name_or_path) else "",
        )

    @classmethod
    def _without_pictures(cls, config: Any) -> Vocabulary:
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

    @property
    def has_pictures(self) -> bool:
        return bool(self.code_ids)

    @cached_property
    def image_ids(self) -> frozenset[int]:
        return frozenset(self.code_ids or self.other_image_ids)

    @cached_property
    def id_to_code(self) -> dict[int, int]:
        """The inverse of ``code_ids``: the codebook entry of each image token. The order need not be the same."""
        return {i: code for code, i in enumerate(self.code_ids)}


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
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < size:
            raise ValueError(
                f"config.vocabulary_map gives {name} the token {token!r}, which is not a token of this checkpoint: "
                f"config.vocab_size is {size}, so tokens are 0 to {size - 1}"
            )
        if len(names[token]) > 1:
            raise ValueError(
                f"config.vocabulary_map gives {' and '.join(names[token][:3])} the same token {token}: each image "
                "token and each marker of a picture needs its own"
            )


def pixel_tensor(model: Any, pixel_values: Any) -> Tensor:
    """Pixels as a tensor. ``ValueError`` unless they are a dense tensor, or a numpy array, of finite floats. Their
    shape is left to `check_pixels`.
    """
    if family_of(model) is not CHAMELEON:
        raise ValueError(f"pixel_values were given, but {type(model).__name__} reads and writes text only")
    wanted = f"(pictures, {', '.join(map(str, _picture_shape(model)))}) float, as its processor makes them"
    if isinstance(pixel_values, np.ndarray) and pixel_values.dtype.kind in "fiub":
        pixel_values = torch.from_numpy(np.array(pixel_values))
    if not isinstance(pixel_values, Tensor):
        raise ValueError(f"pixel_values is {kind_of(pixel_values)}; this checkpoint takes {wanted} from PIL pictures")
    if pixel_values.is_meta or pixel_values.layout is not torch.strided:
        kind = "on the meta device, without values" if pixel_values.is_meta else "sparse"
        raise ValueError(f"pixel_values is {kind}; this checkpoint takes dense {wanted}")
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values is {tuple(pixel_values.shape)} {str(pixel_values.dtype).removeprefix('torch.')}; this "
            f"checkpoint takes {wanted}"
        )
    if not pixel_values.numel():
        raise ValueError("pixel_values holds no picture: leave it out")
    if not pixel_values.isfinite().all():
        picture = int(pixel_values.isfinite().logical_not().nonzero()[0, 0]) if pixel_values.ndim else 0
        raise ValueError(f"pixel_values of picture {picture} are not all finite: they hold NaN or infinity")
    return pixel_values


def check_pixels(model: Any, pixel_values: Any) -> Tensor:
    """Move pixels ``(n, 3, H, W)`` float to the VQ encoder's dtype and device. A numpy array will do.

    ``ValueError`` for another kind, dtype or shape, and for pixels that are NaN or infinite.
    """
    pixels, shape = pixel_tensor(model, pixel_values), _picture_shape(model)
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
            f"pictures of {vocabulary.image_length}), but pixel_values holds {pictures} pictures: give one picture "
            "for each <image> in the text, all through the processor"
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
            f"this model has no VQ decoder, so its picture tokens cannot become pictures: {len(missing)} weights are "
            f"missing ({missing[0]}, {missing[1]}, … {missing[-1]}). Text works without them. from_pretrained of "
            "transformers drops them: load the checkpoint with fastdecode.load. If the checkpoint lacks them too (the "
            "Anole and AA-Chameleon conversions have them), give fastdecode.load Meta's vqgan.ckpt with vqgan=PATH"
        )


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


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """Convert pixels ``(n, 3, H, W)`` float in [-1, 1] (clamped) to RGB pictures."""
    grey = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return [Image.fromarray(p) for p in grey.permute(0, 2, 3, 1).cpu().numpy()]


def decode_pictures(model: Any, blocks: Sequence[Sequence[int]], vocabulary: Vocabulary) -> list[Image.Image]:
    """Decode blocks of ``image_length`` image tokens each to RGB pictures.

    One at a time: several in one pass are rounded otherwise, and a picture must not depend on its neighbours.
    """
    if not blocks:
        return []
    check_can_draw(model)
    _check_not_offloaded(model.model.vqmodel)
    vqmodel = model.model.vqmodel
    codes = torch.tensor([[vocabulary.id_to_code[i] for i in block] for block in blocks])
    codes = codes.to(vqmodel.post_quant_conv.weight.device)
    return [picture for one in codes.split(1) for picture in to_pictures(decode_codes(vqmodel, one))]
