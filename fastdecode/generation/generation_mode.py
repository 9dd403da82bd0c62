"""generation_mode="image" or "text", as the ``generate`` of a model like Janus takes it, in terms of `generate`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from fastdecode.decoder.wrappers import unwrapped
from fastdecode.engine.sequence import Sequence
from fastdecode.generation.logits_processors import TRANSFORMERS_TOP_K
from fastdecode.generation.option_kinds import NUMBERS, check_negative_prompt, check_number
from fastdecode.generation.prepared import Prepared
from fastdecode.generation.validation import LENGTHS, option, set_option
from fastdecode.models.families import family_of
from fastdecode.models.family import Family
from fastdecode.ops.scalars import shown

logger = logging.get_logger(__name__)

NAME, MODE = "generation_mode", "multimodal_generation_mode"
SCALE = 5.0
"""The guidance scale of pictures where none is given: that of transformers' own loop for Janus."""

GUIDES_TEXT = ("guidance_scale", "negative_prompt_ids", "negative_prompt_attention_mask")
"""What guides text in other models, and nothing in the text of a model whose class has a ``generate`` of its own."""

STOPS = ("stopping_criteria", "stop_strings", "max_time")
"""Options that could end a picture before it is whole."""


def read_generation_mode(model: Any, options: dict[str, Any], given: dict[str, Any]) -> bool:
    """Take generation_mode out of the ``options`` of a model whose class knows it, or of its generation_config, and
    return whether it is "image": then the call returns codes alone (see `only_codes`). ``given``, fastdecode's own
    options, gets the mode that it means. "image" takes the defaults of transformers' own loop for pictures.

    In text that loop ignores guidance_scale; so does this, which the log says where the call has one. ``ValueError``
    for another value, for a mode that says something else, and for what could end a picture early.
    """
    family = _family(model)
    if family is None or not family.own_generate:
        return False
    config = options.get("generation_config")
    asked = [(options.pop(NAME, None), given.get(MODE))]
    asked += [
        (getattr(source, NAME, None), getattr(source, MODE, None)) for source in (config, model.generation_config)
    ]
    wanted, mode = next((pair for pair in asked if pair != (None, None)), (None, None))
    if wanted not in (None, "text", "image"):
        raise ValueError(f"generation_mode={shown(wanted)}: give 'text' or 'image'")
    meant = mode if wanted is None else {"text": "text-only", "image": "image-only"}[wanted]
    if mode not in (None, meant):
        raise ValueError(f"generation_mode={wanted!r} and multimodal_generation_mode={mode!r} were given: give one")
    given[MODE] = meant
    if wanted == "image":
        _follow_its_defaults(model, options, given)
    elif meant in (None, "text-only"):
        _leave_text_unguided(options)
    return wanted == "image"


def _follow_its_defaults(model: Any, options: dict[str, Any], given: dict[str, Any]) -> None:
    """The top_k and the guidance that transformers' own loop takes for pictures where none are given. The length is
    always that of the picture.
    """
    for name in STOPS:
        value = option(model, options, name)
        if value is not None and not (name == "stopping_criteria" and isinstance(value, list) and not value):
            raise ValueError(
                f"{name} could end the picture early, and generation_mode='image' returns the codes of a whole one: "
                "leave it out, or take tokens with multimodal_generation_mode='image-only'"
            )
    config = options.get("generation_config")
    for name in sorted(LENGTHS):
        if options.pop(name, getattr(config, name, None)) is not None:
            logger.warning_once(
                f"{name} has no effect: generation_mode='image' returns the codes of one whole picture, as in "
                "transformers"
            )
    if option(model, options, "top_k") is None:
        set_option(options, "top_k", TRANSFORMERS_TOP_K)
    if _own_option(model, options, given, "guidance") is None and option(model, options, "guidance_scale") is None:
        logger.warning_once(f"guidance_scale is not given: pictures are guided with {SCALE:g}, as in transformers")
        given["guidance"] = SCALE


def _leave_text_unguided(options: dict[str, Any]) -> None:
    """Ignore what transformers' own loop ignores in text, and say so once where the call gave it."""
    config = options.get("generation_config")
    scale = options.get("guidance_scale", getattr(config, "guidance_scale", None))
    check_number("guidance_scale", scale, *NUMBERS["guidance_scale"])
    check_negative_prompt(*(options.get(name) for name in GUIDES_TEXT[1:]))
    if scale not in (None, 1) or options.get("negative_prompt_ids") is not None:
        logger.warning_once(
            "guidance_scale and negative_prompt_ids have no effect in text, as in this model's own generate: "
            "guidance= guides text"
        )
    for name in GUIDES_TEXT:
        options.pop(name, None)
    set_option(options, "guidance_scale", 1.0)


def _own_option(model: Any, options: dict[str, Any], given: dict[str, Any], name: str) -> Any:
    """One of fastdecode's own options, which may also stand in the call's generation_config or the model's."""
    found = given.get(name)
    for config in (options.get("generation_config"), model.generation_config):
        found = getattr(config, name, None) if found is None else found
    return found


def _family(model: Any) -> Family | None:
    try:
        return family_of(unwrapped(model))
    except (TypeError, ValueError):  # what cannot be decoded is refused later, with its reason
        return None


def check_begins(call: Prepared) -> None:
    """``ValueError`` unless every prompt ends in a picture that has begun."""
    for number, s in enumerate(call.sequences):
        if s.image_start < 0:
            begin = call.vocabulary.begin_image
            raise ValueError(
                f"prompt {number // (call.config.num_return_sequences or 1)} does not end in token {begin}, which "
                "begins a picture, and generation_mode='image' draws right behind the prompt: make it with "
                "processor(…, generation_mode='image'), or choose multimodal_generation_mode='image-only', which "
                "writes that token"
            )


def only_codes(output: Any, call: Prepared) -> Any:
    """The result of generation_mode="image", made of that of `generate`: the codes (sequences, codes) int64 of whole
    pictures, those that a prompt began with included.

    Scores and logits are (sequences, codes of the codebook), one for each new code. (transformers' own loop returns
    those of the last step as scores, and its hidden state as logits.)
    """
    codes = torch.tensor([_codes(s) for s in call.sequences], dtype=torch.long, device=call.device)
    if isinstance(output, Tensor):
        return codes
    output.sequences = codes
    new = max(len(s.generated) for s in call.sequences) - 1  # the last one is the end of image
    columns = torch.tensor(call.vocabulary.code_ids)
    for name in ("scores", "logits"):
        kept = getattr(output, name)
        if kept is not None:
            setattr(output, name, tuple(step[:, columns.to(step.device)] for step in kept[:new]))
    return output


def _codes(s: Sequence) -> list[int]:
    """The codes of the picture that ``s`` ends in."""
    begin = len(s.tokens) - 1 - s.tokens[::-1].index(s.vocabulary.begin_image)
    known = s.vocabulary.id_to_code
    return [known[token] for token in s.tokens[begin:] if token in known]
