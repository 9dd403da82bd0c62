"""The requests of ``fastdecode generate``: its prompts and options, submitted to an engine."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastdecode.cli.arguments import Refused, check_device, check_is_chameleon
from fastdecode.cli.decode_options import MODE, chosen_options, parse_guidance, sampling_options
from fastdecode.cli.document import Wanted

if TYPE_CHECKING:
    from PIL import Image

    from fastdecode.generation.engine import Engine
    from fastdecode.generation.handle import Handle
    from fastdecode.models.recipe import Recipe

MAX_ROWS = 64
"""Streams that are decoded at once; further prompts wait."""


def load_engine(args: argparse.Namespace) -> Engine:
    """An engine of the model that ``args`` name. `Refused` before it is read if there is no such device."""
    from fastdecode.generation.by_recipe import check_served
    from fastdecode.generation.engine import Engine
    from fastdecode.models.loading import load
    from fastdecode.models.pictures import check_can_draw

    check_device(args.device)
    dtype = None if args.dtype == "auto" else args.dtype
    model, processor = load(args.model, dtype=dtype, device=args.device, vqgan=args.vqgan, weights=args.weights)
    if args.task is None:
        check_is_chameleon(model, args.model)
    if mode_of(args, recipe_of(model, args)) != "text-only":
        check_can_draw(model)
    check_served(model)
    return Engine(model, processor, max_rows=MAX_ROWS)


def recipe_of(model: Any, args: argparse.Namespace) -> Recipe | None:
    """The recipe of ``args.task``; None without one. ValueError for a task that the model was not trained for."""
    from fastdecode.models.recipes import recipe

    return None if args.task is None else recipe(model, args.task, like=args.like)


def mode_of(args: argparse.Namespace, recipe: Recipe | None) -> str:
    """The mode that the documents are made in."""
    usual = MODE if recipe is None else recipe.options.get("multimodal_generation_mode", "text-only")
    mode: str = args.mode or usual
    return mode


def submit(engine: Engine, todo: Sequence[Wanted], pictures: Sequence[Image.Image], args: argparse.Namespace) -> str:
    """Submit all documents. Returns the recipe and the explanation of the first if they were asked for, else "".

    ValueError, which names the prompt where there are several, for one that cannot be decoded.
    """
    from fastdecode.generation.api import explain

    recipe = recipe_of(engine.model, args)
    explained = ""
    for n, document in enumerate(todo):
        try:
            if recipe is None:
                inputs, options = _plain(engine, document.prompt, pictures, args)
            else:
                inputs, options = _by_recipe(engine, recipe, document.prompt, pictures, args)
            own = {**options, "seed": document.seed}
            if args.explain and n == 0:
                parts = [] if recipe is None else [f"recipe of {recipe}"]
                explained = "\n\n".join([*parts, str(explain(engine.model, **inputs, **own))])
            document.handle = engine.submit(inputs, **own)
            document.how = how(document.handle, options, len(pictures), args)
        except (ValueError, TypeError, RuntimeError) as error:
            if len({each.prompt for each in todo}) == 1:
                raise
            raise Refused(f"prompt {n // args.num + 1}: {error}") from error
    return explained


def _plain(
    engine: Engine, prompt: str, pictures: Sequence[Image.Image], args: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The prompt and the options of a request without a task: those of the command."""
    from fastdecode.models.pictures import with_placeholders

    text, mode = with_placeholders(prompt, len(pictures), "--image"), mode_of(args, None)
    inputs = engine.processor(
        text=text,
        images=list(pictures) or None,
        return_tensors="pt",
        return_for_text_completion=args.completion,
    ).to(engine.model.device)
    scale = parse_guidance(args.guidance, draws=mode != "text-only")
    options: dict[str, Any] = {"multimodal_generation_mode": mode, "guidance": scale, **sampling_options(args)}
    if args.max_new_tokens is not None:
        options["max_new_tokens"] = args.max_new_tokens
    elif mode != "image-only":
        length = inputs["input_ids"].shape[1]
        options["max_new_tokens"] = max(1, engine.model.config.max_position_embeddings - length)
    return dict(inputs), options


def _by_recipe(
    engine: Engine, recipe: Recipe, prompt: str, pictures: Sequence[Image.Image], args: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The prompt and the options of a task, with the options that were given in place of the recipe's."""
    from fastdecode.generation.by_recipe import request_by_recipe

    given = chosen_options(args, mode_of(args, recipe))
    inputs, options = request_by_recipe(recipe, engine.processor, prompt, list(pictures), args.image_size, given)
    device = engine.model.device
    return {name: value.to(device) if hasattr(value, "to") else value for name, value in inputs.items()}, options


def how(handle: Handle, options: Mapping[str, Any], pictures: int, args: argparse.Namespace) -> dict[str, Any]:
    """What the metadata of a picture says of how it was made: the guidance that was used, as Python, whatever made it;
    the options; the weights; and the number of pictures in the prompt.
    """
    from fastdecode import __version__
    from fastdecode.generation.explanation import small_kinds
    from fastdecode.models.recipe_words import as_python

    prepared = handle._prepared
    others = {name: value for name, value in options.items() if name not in ("guidance", "guidance_scale")}
    sizes = {} if args.image_size is None else {"image_size": list(args.image_size)}
    return {
        "model": args.model,
        "task": args.task,
        "guidance": as_python(prepared.sequences[0].guidance),
        **others,
        **sizes,
        "prompt_pictures": pictures,
        "dtype": str(prepared.model.dtype).removeprefix("torch."),
        "weights": ", ".join(small_kinds(prepared.model)) or None,
        "fastdecode": __version__,
    }
