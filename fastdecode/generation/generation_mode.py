"""generation_mode="image" or "text", as the ``generate`` of a model like Janus takes it, in terms of `generate`."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.utils import logging

from fastdecode.decoder.wrappers import unwrapped
from fastdecode.generation.logits_processors import TRANSFORMERS_TOP_K
from fastdecode.generation.prepared import Prepared
from fastdecode.generation.validation import option, set_option
from fastdecode.models.families import family_of
from fastdecode.models.family import Family
from fastdecode.ops.scalars import shown

logger = logging.get_logger(__name__)

NAME = "generation_mode"
SCALE = 5.0
"""The guidance scale of pictures where none is given: that of transformers' own loop for Janus."""


def read_generation_mode(model: Any, options: dict[str, Any], given: dict[str, Any]) -> None:
    """Take generation_mode out of the ``options`` of a model whose class knows it. ``given``, fastdecode's own options,
    gets the mode that it means. "image" takes the defaults of transformers' own loop for pictures.

    In text transformers ignores the guidance_scale of such a model's generation_config, which is that of pictures; so
    does this. ``ValueError`` for another value, and for a mode that says something else.
    """
    family = _family(model)
    if family is None or not family.own_generate:
        return
    wanted, mode = options.pop(NAME, None), _own_option(model, options, given, "multimodal_generation_mode")
    if wanted not in (None, "text", "image"):
        raise ValueError(f"generation_mode={shown(wanted)}: give 'text' or 'image'")
    meant = {"text": "text-only", "image": "image-only"}.get(wanted, mode)
    if given.get("multimodal_generation_mode") not in (None, meant):
        raise ValueError(f"generation_mode={wanted!r} and multimodal_generation_mode={mode!r} were given: give one")
    given["multimodal_generation_mode"] = meant
    if wanted == "image":
        _follow_its_defaults(model, family, options, given)
    elif meant in (None, "text-only"):
        config = options.get("generation_config")
        if options.get("guidance_scale") is None and getattr(config, "guidance_scale", None) is None:
            set_option(options, "guidance_scale", 1.0)


def _follow_its_defaults(model: Any, family: Family, options: dict[str, Any], given: dict[str, Any]) -> None:
    """The length, the top_k and the guidance that transformers' own loop takes for pictures where none are given."""
    set_option(options, "max_new_tokens", family.vocabulary(unwrapped(model)).image_length + 1)
    if option(model, options, "top_k") is None:
        set_option(options, "top_k", TRANSFORMERS_TOP_K)
    if _own_option(model, options, given, "guidance") is None and option(model, options, "guidance_scale") is None:
        logger.warning_once(f"guidance_scale is not given: pictures are guided with {SCALE:g}, as in transformers")
        given["guidance"] = SCALE


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


def only_codes(output: Any, call: Prepared) -> Any:
    """What transformers' own loop returns for generation_mode="image": the codes (sequences, n) of the pictures."""
    start, vocabulary = call.prompts.shape[1], call.vocabulary
    sequences: Tensor = output if isinstance(output, Tensor) else output.sequences
    codes = sequences[:, start : start + vocabulary.image_length] - vocabulary.code_ids[0]
    if isinstance(output, Tensor):
        return codes
    output.sequences = codes
    return output
