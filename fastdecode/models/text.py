"""Models of text alone: everything that the decoder knows and no other family claims."""

from __future__ import annotations

from typing import Any

from fastdecode.decoder.family import inner_of
from fastdecode.models.family import Family
from fastdecode.models.vocabulary import Vocabulary


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


TEXT = Family("text", lambda model: True, without_pictures)
