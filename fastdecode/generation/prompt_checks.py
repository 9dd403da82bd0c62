"""Checks of a call's tokens, mask, positions and pictures. They change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastdecode.decoder.own_tokens import OwnParts
from fastdecode.decoder.wrappers import unwrapped
from fastdecode.generation.unsupported import Unsupported
from fastdecode.models.families import family_of, text_vocabulary_of
from fastdecode.models.pictures import (
    check_picture_count,
    check_pixels,
    check_placeholders,
    lengths_of,
    pixel_tensor,
    placeholder_of,
    reads_vectors,
    why_no_pixels,
)
from fastdecode.vocabulary import Vocabulary
from fastdecode.wording import kind_of


def check_prompt(
    model: Any, vocabulary: Vocabulary, input_ids: Tensor | None, options: Mapping[str, Any], *, text_only: bool
) -> None:
    """``ValueError`` if the tokens, the mask and the pictures of a call do not fit together; `Unsupported` if
    transformers would accept them. Without any prompt transformers begins with the beginning of sequence, in text.
    """
    mask, pixels = options.get("attention_mask"), options.get("pixel_values")
    if input_ids is None:
        if text_only and pixels is None and mask is None:
            return
        raise ValueError("no prompt: give input_ids (batch, length), as the processor returns them")
    check_ids(input_ids, mask, vocabulary)
    if text_only:
        check_right_padding(mask)
    if (pixels is not None or options.get("mm_encoder_outputs")) and reads_vectors(model):
        return check_vectors(model, pixels, text_only)
    if pixels is not None:
        if text_only and vocabulary.problem is not None:
            raise Unsupported(vocabulary.problem, "mend the checkpoint")
        pixels = pixel_tensor(model, pixels)
        try:
            check_pixels(model, pixels)
        except ValueError as error:
            channels = model.model.vqmodel.config.in_channels if text_only and vocabulary.has_pictures else 0
            reason, _, advice = str(error).partition("; ")
            if advice and channels and _is_pictures(pixels, channels):
                raise Unsupported(reason, advice) from None  # transformers takes pictures of any size
            raise
    if pixels is None and text_only and not options.get("mm_encoder_outputs"):
        check_no_placeholders(input_ids, vocabulary)
    elif pixels is not None or not options.get("mm_encoder_outputs"):
        lengths = [] if pixels is None else lengths_of(model, pixels, options.get("image_sizes"))
        check_placeholders(input_ids, lengths, vocabulary)


def check_vectors(model: Any, pixels: Any, text_only: bool) -> None:
    """``ValueError`` unless ``pixels`` are pictures for a model that reads vectors; `Unsupported` where fastdecode does
    not read them.
    """
    kind, family = type(model).__name__, family_of(model)
    if family.told_sizes is not None:
        raise Unsupported(f"fastdecode draws with {family.name} from texts alone", "give no pictures")
    if not text_only:
        draws = text_vocabulary_of(model).has_pictures
        what = "draws after text alone" if draws else "draws nothing"
        raise Unsupported(f"{kind} reads pictures as vectors, and {what}", "choose 'text-only'")
    if pixels is None:
        raise Unsupported(f"mm_encoder_outputs of {kind} are not supported by fastdecode", "give pixel_values")
    if placeholder_of(model) is None:
        raise Unsupported(why_no_pixels(model), "give text alone")
    pixel_tensor(model, pixels)


def _is_pictures(pixels: Any, channels: int) -> bool:
    dense = isinstance(pixels, Tensor) and pixels.layout is torch.strided and not pixels.is_meta
    return dense and pixels.is_floating_point() and pixels.ndim == 4 and pixels.shape[1] == channels


def check_no_placeholders(input_ids: Tensor, vocabulary: Vocabulary) -> None:
    """`Unsupported` if the prompt has ``<image>`` placeholders, and no picture was given. transformers reads them as
    tokens like any other.
    """
    try:
        check_picture_count(input_ids, 0, vocabulary)
    except ValueError as error:
        raise Unsupported(*str(error).split(": ", 1)) from None


def check_ids(input_ids: Tensor, mask: Tensor | None, vocabulary: Vocabulary) -> None:
    """``ValueError`` unless ``input_ids`` and ``mask`` (or None) are prompts that can be continued; `Unsupported` if
    only transformers can.
    """
    if not isinstance(input_ids, Tensor):
        raise ValueError(
            f"the prompt is of type {type(input_ids).__name__}; it must be input_ids (batch, length), an integer "
            "tensor: pass what the processor returns as **inputs"
        )
    if input_ids.ndim != 2 or input_ids.is_floating_point() or input_ids.numel() == 0:
        raise ValueError(
            f"input_ids is {tuple(input_ids.shape)} {input_ids.dtype}; it must be (batch, length) integers, at least "
            "one of each prompt"
        )
    outside = (input_ids < 0) | (input_ids >= vocabulary.size)
    if outside.any():
        row, column = outside.nonzero()[0].tolist()
        raise ValueError(
            f"input_ids[{row}, {column}] = {int(input_ids[row, column])} is not a token of this checkpoint "
            f"(0 to {vocabulary.size - 1})"
        )
    if mask is not None and not isinstance(mask, Tensor):
        raise ValueError(
            f"attention_mask is {kind_of(mask)}; it must be a tensor {tuple(input_ids.shape)}, as input_ids: "
            "the processor returns both with return_tensors='pt'"
        )
    if mask is not None and mask.shape != input_ids.shape:
        raise ValueError(f"attention_mask is {tuple(mask.shape)}; it must be {tuple(input_ids.shape)}, as input_ids")
    if mask is not None and ((mask != 0) & (mask != 1)).any():
        row, column = ((mask != 0) & (mask != 1)).nonzero()[0].tolist()
        raise ValueError(
            f"attention_mask[{row}, {column}] = {mask[row, column].item()}; it must be 1 for a token of the prompt and "
            "0 for padding"
        )
    lengths = (torch.ones_like(input_ids) if mask is None else mask != 0).sum(1)
    longest, shortest = int(lengths.max()), int(lengths.argmin())
    if longest >= vocabulary.context:
        raise Unsupported(
            f"the prompt is {longest} tokens long, and the context of this checkpoint is {vocabulary.context}: nothing "
            "can follow it",
            "shorten the text or give fewer pictures",
        )
    if not lengths[shortest]:
        raise Unsupported(f"attention_mask leaves nothing of prompt {shortest}", "every prompt needs a token")


def check_read_elsewhere(model: Any, input_ids: Any, error: Unsupported) -> None:
    """``ValueError`` if a call is to be handed over and its prompt has image tokens which the model's own forward does
    not take, since they have embeddings of their own. ``error``: why it is handed over.
    """
    try:
        own = OwnParts.of(unwrapped(model))
    except (TypeError, ValueError):  # not a model that has such tokens
        return
    two = isinstance(input_ids, Tensor) and input_ids.ndim == 2
    if own is not None and two and (input_ids >= own.first).any():
        row, column = (input_ids >= own.first).nonzero()[0].tolist()
        raise ValueError(
            f"{error}; transformers' own loop cannot decode this call either, because input_ids[{row}, {column}] = "
            f"{int(input_ids[row, column])} is an image token, which it does not read"
        )


def check_right_padding(mask: Tensor | None) -> None:
    """`Unsupported` if a prompt is padded on the right. transformers continues such a prompt after its padding."""
    if mask is not None and (mask[:, -1] == 0).any():
        row = int((mask[:, -1] == 0).nonzero()[0])
        raise Unsupported(
            f"attention_mask pads prompt {row} on the right, and fastdecode continues a prompt where it ends, not "
            "after its padding",
            "pad on the left, as with padding_side='left' of the tokenizer",
        )


def check_positions(positions: Tensor | None, input_ids: Tensor, mask: Tensor | None) -> None:
    """`Unsupported` unless ``positions`` count the tokens that are not padding, as transformers and the loop do.
    ``ValueError`` for a shape that does not fit ``input_ids``.
    """
    if positions is None:
        return
    if positions.ndim == 2 and any(n not in (1, m) for n, m in zip(positions.shape, input_ids.shape, strict=True)):
        raise ValueError(
            f"position_ids is {tuple(positions.shape)}; it must be {tuple(input_ids.shape)}, as input_ids, or left out"
        )
    kept = torch.ones_like(input_ids) if mask is None else mask != 0
    if positions.ndim != 2 or (positions - kept.cumsum(1) + 1)[kept != 0].any():
        raise Unsupported(
            "position_ids other than 0, 1, 2, … of each prompt's tokens are not supported by fastdecode",
            "leave them out",
        )
