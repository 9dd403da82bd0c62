"""Models of text alone: everything that the decoder knows and no other family claims."""

from __future__ import annotations

from typing import Any

from fastdecode.decoder.classes import inner_of
from fastdecode.models.family import Family
from fastdecode.models.recipe import Recipe, by_task
from fastdecode.vocabulary import Vocabulary


def without_pictures(model: Any) -> Vocabulary:
    """The vocabulary of a model that writes text only."""
    config = inner_of(model).config
    return Vocabulary(
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


def recipes(model: Any) -> dict[str, Recipe]:
    """By task."""
    options = {"multimodal_generation_mode": "text-only", "max_new_tokens": 512}
    source = "the tokenizer's chat template"
    return by_task([Recipe.of(type(model).__name__, "chat", "{text}", options, source, chat=True)])


TEXT = Family("text", lambda model: True, without_pictures, recipes=recipes)
