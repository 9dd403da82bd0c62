"""A request by recipe: the recipe's prompt and options, and the caller's options in place of the recipe's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastdecode.generation.prompts import text_inputs
from fastdecode.guidance import Guidance
from fastdecode.models.families import family_of
from fastdecode.models.recipe import Recipe
from fastdecode.models.recipes import recipe

SAMPLING = ("text", "image")
SHAPES = ("temperature", "top_k", "top_p", "min_p")
"""The parameters that act on sampled tokens alone."""

NEGATIVE = ("negative_prompt_ids", "negative_prompt_attention_mask")
UNUSED = {"text-only": ("image", "guidance", "guidance_scale"), "image-only": ("text", "max_new_tokens")}
"""By mode: the options of a recipe that have no effect in it, or are refused."""


def check_served(model: Any) -> None:
    """``ValueError`` for a model that the command and the server do not take: no engine places its tokens."""
    family = family_of(model)
    if family.told_sizes is not None:
        raise ValueError(f"{family.name} needs image_grid_thw, which an engine does not take: call fastdecode.generate")


def request_of(
    model: Any,
    processor: Any,
    text: str,
    images: Any,
    options: Mapping[str, Any],
    *,
    task: str | None,
    like: str | None = None,
    image_size: Any = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The prompt and the options of a request, two parts of the arguments of `fastdecode.generate`: with a ``task`` as
    `request_by_recipe`, else the text as it is. Errors as of these and of `fastdecode.recipe`.
    """
    if task is not None:
        return request_by_recipe(recipe(model, task, like=like), processor, text, images, image_size, options)
    given = dict(options) if image_size is None else {**options, "image_size": image_size}
    return text_inputs(model, processor, text, images, given), given


def request_by_recipe(
    recipe: Recipe, processor: Any, text: str, images: Any, image_size: Any, given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the prompt is, and with which options: two parts of the arguments of `fastdecode.generate`.

        given   options of `fastdecode.generate` that the caller chose. ``text`` and ``image`` replace the recipe's
                parameters one by one; a guidance of 1 or None turns guidance off

    The length is the recipe's, as far as the context has room. Errors as of `Recipe.inputs`.
    """
    inputs = recipe.inputs(processor, text, images, image_size)
    options = dict(recipe.options) | {name: value for name, value in given.items() if name not in SAMPLING}
    length = inputs.pop("max_new_tokens", None)  # of a recipe whose prompt says how much follows
    if length is not None:
        options.setdefault("max_new_tokens", length)
    mode = options.get("multimodal_generation_mode", "text-only")
    for name in SAMPLING:
        if name in given:
            chosen, usual = given[name] or {}, dict(recipe.options.get(name) or {})
            if "do_sample" not in chosen and any(chosen.get(part) is not None for part in SHAPES):
                usual.pop("do_sample", None)  # who chooses a temperature wants to sample
                options["do_sample"] = options.get("do_sample") or True
            options[name] = {**usual, **chosen}
    for name in UNUSED.get(mode, ()):
        if name not in given:
            options.pop(name, None)
    if "guidance" in given:
        _replace_guidance(inputs, options, given["guidance"])
    if mode == "text-only" and "guidance" not in given:
        for name in ("guidance", *NEGATIVE):
            inputs.pop(name, None)
    if mode != "image-only" and "max_new_tokens" not in given:
        room = max(1, recipe.vocabulary.context - inputs["input_ids"].shape[1])
        options["max_new_tokens"] = min(options.get("max_new_tokens", room), room)
    return inputs, options


def _replace_guidance(inputs: dict[str, Any], options: dict[str, Any], chosen: Any) -> None:
    """A number takes the place of the recipe's scale, and leaves its negative prompt; other guidance replaces both."""
    inputs.pop("guidance", None)
    scaled = "guidance_scale" in options and isinstance(chosen, (int, float)) and chosen != 1
    if scaled:
        options["guidance_scale"] = float(chosen)
        del options["guidance"]
        return
    options.pop("guidance_scale", None)
    for name in NEGATIVE:
        inputs.pop(name, None)
    options["guidance"] = Guidance.none() if chosen is None else chosen
