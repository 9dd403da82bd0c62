"""Emu3: pictures of any size in rows that a token ends, after "height*width" in the prompt; its own MoVQGAN paints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor
from transformers import Emu3ForConditionalGeneration

from fastdecode.layout import Grid, Layout
from fastdecode.models.family import Family
from fastdecode.models.painting import decoded, painted
from fastdecode.models.recipe import Recipe, by_task
from fastdecode.models.vocabulary_map import code_ids, named_tokens
from fastdecode.ops.scalars import shown
from fastdecode.vocabulary import Vocabulary

PLACEHOLDER, START, BEGIN_IMAGE, END_IMAGE = "<image>", "<|image start|>", "<|image token|>", "<|image end|>"
ROW_END, FRAME_END = "<|extra_200|>", "<|extra_201|>"
SIDE = 90
"""Rows and columns of a picture of 720x720 pixels, the size that Emu3's processor asks for by itself."""


def vocabulary(model: Any) -> Vocabulary:
    """Read ``model.config.vocabulary_map``. ``ValueError`` names what is missing from it, or wrong."""
    config, text = model.config, model.config.text_config
    ids = named_tokens(config, (PLACEHOLDER, BEGIN_IMAGE, END_IMAGE, ROW_END, FRAME_END), text.vocab_size)
    layout = Layout(SIDE, SIDE, ids[ROW_END], after=(ids[FRAME_END],))
    return Vocabulary(
        size=text.vocab_size,
        code_ids=code_ids(model.model.vocabulary_mapping, config.vq_config.codebook_size, "<|visual token 000000|>"),
        begin_image=ids[BEGIN_IMAGE],
        end_image=ids[END_IMAGE],
        placeholder=ids[PLACEHOLDER],
        image_length=len(layout),
        context=text.max_position_embeddings,
        bos=text.bos_token_id,
        pad=text.pad_token_id,
        layout=layout,
        any_size=True,
        cell=2 ** (len(config.vq_config.channel_multiplier) - 1),
        bans_images=False,
        draws_alone="Emu3 draws one picture to a prompt that ends with its size",
    )


_spelled: WeakKeyDictionary[Any, dict[int, str]] = WeakKeyDictionary()
"""The tokens that spell sizes, by the model's vocabulary: it has 184,622 names to look through."""


def size_in_prompt(model: Any, ids: Sequence[int]) -> tuple[int, int] | None:
    """Rows and columns that a prompt asks for, in "height*width" between the begin of image and its last token; None if
    it does not, or if the vocabulary_map does not spell it.
    """
    mapping, known = model.model.vocabulary_mapping, model.config.vocabulary_map
    begin, start = known.get(BEGIN_IMAGE), known.get(START)
    if mapping not in _spelled:
        _spelled[mapping] = {token: name for name, token in known.items() if re.fullmatch(r"[0-9*]+", name)}
    places = [place for place, token in enumerate(ids) if token == begin]
    text = ""
    for token in reversed(ids[: places[-1]] if places else []):
        if token == start:
            found = re.fullmatch(r"([0-9]{1,6})\*([0-9]{1,6})", text)
            return None if found is None else (int(found[1]), int(found[2]))
        if token not in _spelled[mapping]:
            return None
        text = _spelled[mapping][token] + text
    return None


def check_pixels(model: Any, pixels: Tensor) -> Tensor:
    """Move pixels ``(n, 3, H, W)`` float to the encoder's dtype and device. ``ValueError`` for another shape."""
    weight, config = model.model.vqmodel.quantize.embedding.weight, model.config.vq_config
    if pixels.ndim != 4 or pixels.shape[1] != config.in_channels:
        raise ValueError(
            f"pixel_values is {tuple(pixels.shape)}; this checkpoint takes (pictures, {config.in_channels}, height, "
            "width), as its processor makes them"
        )
    return pixels.to(weight.device, weight.dtype)


def lengths(model: Any, pixels: Tensor, sizes: Any) -> list[int]:
    """The numbers of placeholders of pictures of ``sizes`` (pictures, 2): height and width in pixels."""
    factor = model.model.vqmodel.vision_spatial_factor
    return [(height // factor) * (width // factor + 1) for height, width in _sizes(model, pixels, sizes)]


def _sizes(model: Any, pixels: Tensor, sizes: Any) -> list[tuple[int, int]]:
    """Height and width of each picture. ``ValueError`` for another kind or number of them, and for pictures that are
    larger than ``pixels``, or smaller than an image token.
    """
    wanted = (
        f"they must be ({len(pixels)}, 2) integers, height and width of each picture in pixel_values, as the processor "
        "returns them"
    )
    if sizes is None:
        raise ValueError(f"pixel_values were given without image_sizes; {wanted}")
    try:
        found = torch.as_tensor(sizes)
        given = found.tolist()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"image_sizes are {shown(sizes)}; {wanted}") from None
    if found.shape != (len(pixels), 2) or found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        kind = str(found.dtype).removeprefix("torch.")
        raise ValueError(f"image_sizes are {tuple(found.shape)} {kind}; {wanted}")
    factor, (high, wide) = model.model.vqmodel.vision_spatial_factor, pixels.shape[2:]
    for number, (height, width) in enumerate(given):
        if not (factor <= height <= high and factor <= width <= wide):
            raise ValueError(
                f"image_sizes says {height} x {width} (height, width) of picture {number}, and pixel_values has "
                f"{high} x {wide} pixels of it: give what the processor returns, at least {factor} x {factor}"
            )
    return [(height, width) for height, width in given]


def read(model: Any, pixels: Tensor, sizes: Any) -> list[Tensor]:
    """The tokens of pictures, rows with their ends, as transformers puts them into a prompt."""
    given = torch.tensor(_sizes(model, pixels, sizes))
    with torch.no_grad():
        encoded = model.model.vqmodel.encode(pixels, given, return_dict=True)
    return features(model, encoded)


def features(model: Any, encoded: Any) -> list[Tensor]:
    """The same of what transformers has encoded."""
    mapping = model.model.vocabulary_mapping
    return [mapping.convert_img2bpe(codes).flatten().long() for codes in encoded.image_tokens]


def paint(model: Any, grids: Sequence[Grid]) -> list[Image.Image]:
    """Paint each grid of codes by the model's own decoder, in float32."""
    vqmodel = model.model.vqmodel
    return painted(grids, vqmodel.quantize.embedding.weight.device, decoded(vqmodel), rounded=False)


SCRIPT = "baaivision/Emu3, image_generation.py"
CHAT = "baaivision/Emu3, multimodal_understanding.py"
PRAISE = " masterpiece, film grained, best quality."
AGAINST = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, "
    "low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."
)


def recipes(model: Any) -> dict[str, Recipe]:
    """By task. A checkpoint whose name has Gen draws, and one whose name has Chat answers."""
    drawn = {
        "multimodal_generation_mode": "image-only",
        "do_sample": True,
        "guidance_scale": 3.0,
        "image": {"top_k": 2048, "temperature": 1.0},
    }
    said = {"multimodal_generation_mode": "text-only", "do_sample": False, "max_new_tokens": 1024}
    size, plain = {"return_for_image_generation": True}, {"return_for_image_generation": False}
    asked = "You are a helpful assistant. USER: <image>{text}. ASSISTANT:"
    found = [
        Recipe.of("Emu3", "text-to-image", "{text}" + PRAISE, drawn, SCRIPT, processor=size, negative=AGAINST),
        Recipe.of("Emu3", "caption", asked, said, CHAT, processor=plain),
        Recipe.of("Emu3", "chat", asked.replace("<image>", ""), said, CHAT, processor=plain),
    ]
    name = model.config.name_or_path
    wanted = {"Emu3-Gen": ("text-to-image",), "Emu3-Chat": ("caption", "chat")}
    tasks = next((tasks for part, tasks in wanted.items() if part in name), None)
    return by_task(recipe for recipe in found if tasks is None or recipe.task in tasks)


EMU3 = Family(
    "Emu3",
    lambda model: isinstance(model, Emu3ForConditionalGeneration),
    vocabulary,
    paint=paint,
    pixels=check_pixels,
    lengths=lengths,
    read=read,
    features=features,
    recipes=recipes,
    size_in_prompt=size_in_prompt,
)
