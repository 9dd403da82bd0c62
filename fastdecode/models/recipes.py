"""`recipe` finds what is usual for a task of a model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from fastdecode.models.families import family_of, supported, text_vocabulary_of
from fastdecode.models.pictures import picture_tokens
from fastdecode.models.recipe import TASKS, Bound, Recipe
from fastdecode.ops.scalars import shown


def recipe(model: Any, task: str) -> Recipe:
    """The prompt format and the options of a task, as the model's own code has them.

        model   one that `generate` takes
        task    "text-to-image", "interleaved", "edit", "caption", "chat" or "infill"

    ``ValueError`` for another task, and for one that the model was not trained for. Fine-tunes are told apart by the
    name of their checkpoint.
    """
    model = supported(model)
    family = family_of(model)
    if not isinstance(task, str) or task not in TASKS:
        raise ValueError(f"task={shown(task)} is unknown; choose one of {', '.join(TASKS)}")
    known = family.recipes(model)
    if task not in known:
        name = next((found.family for found in known.values()), family.name)
        trained = f"it was trained for {', '.join(known)}" if known else "no task of it is known"
        raise ValueError(f"{name} has no recipe for {task!r}: {trained}")
    read = None if family.picture_tokens is None else partial(picture_tokens, model)
    return replace(known[task], bound=Bound(text_vocabulary_of(model), read))
