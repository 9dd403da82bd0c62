"""`recipe` finds what is usual for a task of a model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from fastdecode.models import chameleon_recipes
from fastdecode.models.families import family_of, supported, text_vocabulary_of
from fastdecode.models.pictures import picture_tokens
from fastdecode.models.recipe import TASKS, Bound, Recipe
from fastdecode.ops.scalars import shown


def recipe(model: Any, task: str, *, like: str | None = None) -> Recipe:
    """The prompt format and the options of a task, as the model's own code has them.

        model   one that `generate` takes
        task    "text-to-image", "interleaved", "edit", "caption", "chat" or "infill"
        like    which Chameleon the model is: "Chameleon", "Anole", "AA-Chameleon", "Thinking with generated images" or
                "blocks". Default: the name of its checkpoint tells; if it does not, "Chameleon", which is logged once

    ``ValueError`` for another task, for one that the model was not trained for, and for another ``like``.
    """
    model = supported(model)
    family = family_of(model)
    if not isinstance(task, str) or task not in TASKS:
        raise ValueError(f"task={shown(task)} is unknown; choose one of {', '.join(TASKS)}")
    check_like(model, like)
    known = family.recipes(model) if like is None else chameleon_recipes.recipes(model, like)
    if task not in known:
        name = next((found.family for found in known.values()), family.name)
        trained = f"it was trained for {', '.join(known)}" if known else "no task of it is known"
        raise ValueError(f"{name} has no recipe for {task!r}: {trained}")
    read = None if family.picture_tokens is None else partial(picture_tokens, model)
    return replace(known[task], bound=Bound(text_vocabulary_of(model), read))


def check_like(model: Any, like: Any) -> None:
    """``ValueError`` unless ``like`` is None, or names a Chameleon and ``model`` is one."""
    if like is None:
        return
    names, family = chameleon_recipes.NAMES, family_of(model)
    if not isinstance(like, str) or like not in names:
        raise ValueError(f"like={shown(like)}: choose one of {', '.join(names)}")
    if family.recipes is not chameleon_recipes.recipes:
        raise ValueError(
            f"like={like!r} names a Chameleon, and this model is of the family {family.name}: leave it out"
        )
