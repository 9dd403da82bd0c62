"""Checks of the options of `generate`. Each raises an error that names the option. They change nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from fastdecode.decoder import BaseDecoder
from fastdecode.decoder.support import unsupported_reason
from fastdecode.engine.sequence import Sequence
from fastdecode.generation.unsupported import Unsupported
from fastdecode.grammar import Grammar
from fastdecode.guidance import Guidance
from fastdecode.kv.page_pool import PagePool
from fastdecode.models.chameleon import Vocabulary, check_picture_count, check_pixels, pixel_tensor

CACHES = ("cache", "past_key_values", "cache_params")
"""What transformers' versions call a cache that the caller gives or gets."""

UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "num_beams": (1, "beam search"),
    "assistant_model": (None, "assisted decoding"),
    "prompt_lookup_num_tokens": (None, "prompt lookup decoding"),
    "assistant_early_exit": (None, "assisted decoding"),
    "use_mtp": (None, "multi-token prediction"),
    "watermarking_config": (None, "watermarking"),
    "dola_layers": (None, "DoLa decoding"),
    "penalty_alpha": (None, "contrastive search"),
    "constraints": (None, "constrained beam search"),
    "force_words_ids": (None, "constrained beam search"),
    "token_healing": (False, "token healing"),
    "cache_implementation": (None, "a choice of cache"),
    "prefill_chunk_size": (None, "chunked prefill"),
    "compile_config": (None, "compilation"),
    "output_attentions": (False, "returning attentions"),
    "output_hidden_states": (False, "returning hidden states"),
    "inputs_embeds": (None, "prompts given as embeddings"),
    **{name: (None, "filling a cache, or continuing from it") for name in CACHES},
    "is_assistant": (False, "drafting for another model"),
    "synced_gpus": (False, "synchronised decoding"),
    "custom_generate": (None, "another decoding loop"),
}
"""Options that fastdecode's loop does not have: the value they must have, and what they ask for."""

FORWARD = frozenset(
    (
        *("input_ids", "attention_mask", "position_ids", "pixel_values", "mm_encoder_outputs", "use_cache"),
        *("logits_to_keep", "cache_position", "return_dict", "output_attentions", "output_hidden_states"),
        *CACHES,
    )
)
"""Arguments of a model's forward that are read, checked elsewhere, or without effect on the tokens."""


DRAWING_MODES = ("image-only", "interleaved-text-image")
"""The modes that ask for pictures; ``unrestricted`` only allows them."""

LENGTHS = frozenset({"max_length", "max_new_tokens"})


def option(model: Any, options: Mapping[str, Any], name: str) -> Any:
    """The value of ``name``: from the call, else its generation_config, else the model's; None if none sets it."""
    found = options.get(name)
    for config in (options.get("generation_config"), model.generation_config):
        found = getattr(config, name, None) if found is None else found
    return found


def chosen_options(model: Any, options: Mapping[str, Any]) -> frozenset[str]:
    """The names of the options that are set: in the call, its generation_config or the model's."""
    names = {key for key, value in options.items() if value is not None}
    for config in (options.get("generation_config"), model.generation_config):
        if config is not None:
            names |= {key for key, value in config.to_dict().items() if value is not None}
    return frozenset(names)


def set_default_length(model: Any, mode: str | None, options: dict[str, Any]) -> None:
    """Give ``image-only`` without a length room for one picture, so that transformers does not warn about it. In the
    generation_config where there is one: transformers warns about a call that has both.
    """
    if mode == "image-only" and not chosen_options(model, options) & LENGTHS:
        set_option(options, "max_new_tokens", Vocabulary.of(model).image_length + 2)


def set_option(options: dict[str, Any], name: str, value: Any) -> None:
    """Set an option of transformers: where there is a generation_config in a copy of that, as transformers warns of
    options beside one.
    """
    config = options.get("generation_config")
    if config is None:
        options[name] = value
        return
    options.pop(name, None)
    options["generation_config"] = copy.deepcopy(config)
    setattr(options["generation_config"], name, value)


def check_config(config: Any) -> None:
    """``ValueError`` unless ``config`` is None or a `GenerationConfig`."""
    if config is not None and not isinstance(config, GenerationConfig):
        raise ValueError(
            f"generation_config is a {type(config).__name__}: give a transformers.GenerationConfig, or its entries as "
            "arguments of the call"
        )


def check_options(model: Any, options: Mapping[str, Any], *, made_by_transformers: bool = False) -> None:
    """`Unsupported` that names the first option of a call, or of its generation_config, that fastdecode's loop does
    not have. ``made_by_transformers``: an empty cache is not the caller's, and means nothing.
    """
    for name, (neutral, what) in UNSUPPORTED.items():
        value = option(model, options, name)
        if value is None or value is neutral or value == neutral:
            continue
        if name == "cache_implementation" and value == "dynamic":  # what transformers takes by itself
            continue
        if name in CACHES and made_by_transformers and getattr(value, "get_seq_length", lambda: 1)() == 0:
            continue
        shown = value if isinstance(value, (int, float, str, bool)) else type(value).__name__
        raise Unsupported(
            f"{name}={shown!r} asks for {what}, which fastdecode does not support",
            "leave it out" + (f" (or {name}={neutral!r})" if neutral is not None else ""),
        )
    scale = option(model, options, "guidance_scale")
    if options.get("negative_prompt_ids") is not None and scale in (None, 1):
        raise Unsupported(
            f"negative_prompt_ids was given with guidance_scale={scale!r}: it has an effect only with another scale "
            "than 1",
            "give one, such as guidance_scale=3.0",
        )


def check_forward(model_kwargs: Mapping[str, Any]) -> None:
    """`Unsupported` that names an argument of the model's own forward which would have an effect there."""
    for name, value in model_kwargs.items():
        if value is not None and name not in FORWARD:
            raise Unsupported(
                f"{name} is an argument of the model's own forward, which fastdecode does not call", "leave it out"
            )


def check_prompt(model: Any, input_ids: Tensor | None, options: Mapping[str, Any], *, text_only: bool) -> None:
    """``ValueError`` if the tokens, the mask and the pictures of a call do not fit together; `Unsupported` if
    transformers would accept them. Without any prompt transformers begins with the beginning of sequence, in text.
    """
    mask, pixels = options.get("attention_mask"), options.get("pixel_values")
    if input_ids is None:
        if text_only and pixels is None and mask is None:
            return
        raise ValueError("no prompt: give input_ids (batch, length), as the processor returns them")
    vocabulary = Vocabulary.of_text(model) if text_only else Vocabulary.of(model)
    check_ids(input_ids, mask, vocabulary)
    if text_only:
        check_right_padding(mask)
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
        check_picture_count(input_ids, 0 if pixels is None else len(pixels), vocabulary)


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
            f"the prompt is a {type(input_ids).__name__}; it must be input_ids (batch, length), an integer tensor: "
            "pass what the processor returns as **inputs"
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
            f"attention_mask is a {type(mask).__name__}; it must be a tensor {tuple(input_ids.shape)}, as input_ids: "
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


def check_room(ids: list[int], limit: int, state: int, grammar: Grammar) -> None:
    """``ValueError`` if a mode that draws has no room for one whole picture."""
    if grammar.mode not in DRAWING_MODES:
        return
    needed = grammar.remaining(state) or grammar.block_length
    if len(ids) + needed > limit:
        raise ValueError(
            f"no room for one picture: the prompt has {len(ids)} tokens and may grow to {limit}, but the picture takes "
            f"{needed} more; set max_new_tokens to at least {needed}, or shorten the prompt if the context is full"
        )


def check_stream_tokens(guidance: Guidance, vocabulary: Vocabulary) -> None:
    """``ValueError`` if a stream has a token that the checkpoint has not, or leaves no room in the context."""
    for stream in guidance.streams:
        if len(stream.ids) >= vocabulary.context:
            raise ValueError(
                f"a stream of kind 'prompt' (or negative_prompt_ids) has {len(stream.ids)} tokens, and the context of "
                f"this checkpoint is {vocabulary.context}: nothing can follow it; give a shorter one"
            )
        for token in stream.ids:
            if not 0 <= token < vocabulary.size:
                raise ValueError(
                    f"a stream of kind 'prompt' (or negative_prompt_ids) has token {token}, which is not a token of "
                    f"this checkpoint (0 to {vocabulary.size - 1})"
                )


def check_stream_room(s: Sequence) -> None:
    """``ValueError`` if a guidance stream has no room in the context for what the sequence is about to write."""
    if s.guidance.everywhere:
        more, what = 1, "the next token"
    else:
        more, what = max(0, s.grammar.remaining(s.state) - 2) or s.grammar.image_length, "a picture"
    for tokens in s.streams_planned()[0][1:]:
        if len(tokens) + more > s.vocabulary.context:
            raise ValueError(
                f"a guidance stream of {s.name} has {len(tokens)} tokens, and {what} takes {more} more, but the "
                f"context of this checkpoint is {s.vocabulary.context}: give shorter ids of its Stream"
            )


def check_deterministic(decoder: BaseDecoder) -> None:
    """``ValueError`` if the model cannot be decoded deterministically."""
    if decoder.deterministic and not decoder.uses_cpu_step:
        why = f"its own forward is called, because {decoder.forward_reason}"
        if decoder.forward_reason is None:
            why = str(unsupported_reason(decoder.model))
        raise ValueError(f"deterministic=True needs steps of the C++ library, and this model has none: {why}")


def check_pool(decoder: BaseDecoder, pool: Any) -> None:
    """``ValueError`` unless ``pool`` is None or a pool for this model."""
    if pool is None:
        return
    if not isinstance(pool, PagePool):
        raise ValueError(f"kv_pool is a {type(pool).__name__}: it must be what fastdecode.new_pool(model) returns")
    decoder.new_cache(pool)


def check_fits(
    sequences: Iterable[Sequence], pool: PagePool | None, whose: str = "kv_pool", name: str | None = None
) -> None:
    """``ValueError`` if a sequence can never fit into the pool's pages, even alone. It counts the minimum that will be
    stored: the prompt and a picture that is certain to follow, in all streams.
    """
    if pool is None or pool.limit is None:
        return
    slots = pool.page_slots
    for s in sequences:
        remaining = s.grammar.remaining(s.state)
        wanted = s.mode in DRAWING_MODES and remaining == 0
        streams = s.streams_planned()[0] if remaining or wanted else s.streams_now()
        # A picture stores all image tokens except the last, and not its end; planned streams contain its begin.
        more = s.grammar.image_length if wanted else max(0, remaining - 2)
        stored = len(s.tokens) + more
        parts = ""
        if stored > s.prompt_length:
            parts = f" ({s.prompt_length} of the prompt and {stored - s.prompt_length} of the picture that follows)"
        alone = -(-stored // slots)
        pages = pages_of([(stream[:-1], len(streams[0]) - len(s.tokens) + more) for stream in streams], slots)
        if alone > pool.limit or pages > pool.limit:
            what = f"its {stored} tokens{parts} alone take {alone} pages of {slots}"
            if alone <= pool.limit:
                what = f"the {len(streams)} streams of its {stored} tokens{parts} take {pages} pages of {slots}"
            raise ValueError(f"{name or s.name} can never fit: {what}, and {whose} has {pool.limit}")


def pages_of(streams: Iterable[tuple[tuple[int, ...], int]], slots: int) -> int:
    """The pages of streams, each a prompt and a number of further tokens. Equal beginnings share whole pages."""
    pages: dict[tuple[int, tuple[int, ...]], int] = {}
    own = 0
    for prompt, more in streams:
        page, whole = -1, len(prompt) // slots
        for start in range(0, whole * slots, slots):
            page = pages.setdefault((page, prompt[start : start + slots]), len(pages))
        own += -(-(len(prompt) + more) // slots) - whole
    return len(pages) + own
