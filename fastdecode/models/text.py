"""Models of text: everything that a decoder decodes and no other family claims."""

from __future__ import annotations

from typing import Any

from fastdecode.decoder.classes import known_classes, text_config
from fastdecode.decoder.others import long_rope_context, traits_of
from fastdecode.models.family import Family
from fastdecode.models.recipe import Recipe, by_task
from fastdecode.vocabulary import Vocabulary

NO_LIMIT = 2**31 - 1


def without_pictures(model: Any) -> Vocabulary:
    """The vocabulary of a model that writes text only."""
    config = text_config(model)
    return Vocabulary(
        size=config.vocab_size
        if known_classes(model) is not None
        else max(config.vocab_size, traits_of(model).outputs),
        code_ids=(),
        begin_image=-1,
        end_image=-1,
        placeholder=-1,
        image_length=0,
        context=_context(model, config),
        bos=_one(getattr(config, "bos_token_id", None)),
        pad=_one(getattr(config, "pad_token_id", None)),
    )


def _context(model: Any, config: Any) -> int:
    """The most tokens of a sequence; `NO_LIMIT` for a model without positions."""
    most: int | None = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    if known_classes(model) is None:
        most = long_rope_context(config) or most
    return NO_LIMIT if most is None else most


def _one(token: int | list[int] | None) -> int | None:
    return token[0] if isinstance(token, (list, tuple)) else token


def recipes(model: Any) -> dict[str, Recipe]:
    """By task."""
    options = {"multimodal_generation_mode": "text-only", "max_new_tokens": 512}
    source = "the tokenizer's chat template"
    return by_task([Recipe.of(type(model).__name__, "chat", "{text}", options, source, chat=True)])


TEXT = Family("text", lambda model: True, without_pictures, recipes=recipes)
