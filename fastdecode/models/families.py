"""The families that there are, and which of them a model belongs to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastdecode.decoder.classes import NESTS, Nest, inner_of, known_classes, text_config
from fastdecode.decoder.others import check_supported, traits_of
from fastdecode.decoder.wrappers import unwrapped
from fastdecode.models.chameleon import CHAMELEON
from fastdecode.models.emu3 import EMU3
from fastdecode.models.family import Family
from fastdecode.models.glm_image import GLM_IMAGE
from fastdecode.models.janus import JANUS
from fastdecode.models.liquid import LIQUID
from fastdecode.models.lumina import LUMINA
from fastdecode.models.text import TEXT, without_pictures
from fastdecode.vocabulary import Vocabulary
from fastdecode.wording import kind_of

FAMILIES = [LUMINA, CHAMELEON, JANUS, EMU3, LIQUID, GLM_IMAGE, TEXT]
"""The first whose ``matches`` is true is a model's family."""


def supported(model: Any) -> Any:
    """The model inside `torch.compile`'s and PEFT's wrappers, or ``model`` itself. ``TypeError`` or ``ValueError`` if
    it is not one that can be decoded.
    """
    model = unwrapped(model)
    check_supported(model)
    return model


def family_of(model: Any) -> Family:
    """The family of ``model``. TypeError for a model that cannot be decoded."""
    check_supported(model)
    return next(family for family in FAMILIES if family.matches(model))


def register(family: Family, nest: Nest | None = None) -> None:
    """Add a family of models, before those that there are. A family of the same name is replaced.

        family   how its models read and draw pictures; see `fastdecode.models.family.Family`
        nest     for models with a language model inside, of a class that fastdecode decodes: where it is

    ``TypeError`` for what is not a `Family`, or not a `fastdecode.Nest`.
    """
    if not isinstance(family, Family):
        raise TypeError(f"register takes a fastdecode.Family, not {kind_of(family)}")
    if nest is not None and not isinstance(nest, Nest):
        raise TypeError(f"nest of register is {kind_of(nest)}: give a fastdecode.Nest")
    FAMILIES[:] = [family, *(known for known in FAMILIES if known.name != family.name)]
    if nest is not None:
        NESTS[:] = [nest, *(known for known in NESTS if known.model is not nest.model)]


def vocabulary_of(model: Any) -> Vocabulary:
    """The tokens of ``model``. ``ValueError`` names what is missing for pictures, or wrong."""
    _check_rows(model)
    family, count = family_of(model), token_count(model)
    found = family.vocabulary(model)
    if not isinstance(found, Vocabulary):
        raise ValueError(
            f"vocabulary of the family {family.name} returned {kind_of(found)}: it must return a fastdecode.Vocabulary"
        )
    if found.size != count:
        raise ValueError(
            f"vocabulary of the family {family.name} returned one of {found.size} tokens for a model that has {count}: "
            f"its size must be {count}"
        )
    return found


def token_count(model: Any) -> int:
    """The number of tokens: the language model's, and behind them image tokens with a head of their own."""
    known, size = known_classes(model), int(text_config(model).vocab_size)
    if known is None:
        return max(size, traits_of(model).outputs)
    return size + (0 if known.own_tokens is None else known.own_tokens.count(model))


def _check_rows(model: Any) -> None:
    """``ValueError`` unless the language model has embeddings and logits of as many tokens as its config says. Models
    of other layers may have others, as GLM-Image's head of image tokens.
    """
    if known_classes(model) is None:
        return
    inner = inner_of(model)
    size = inner.config.vocab_size
    embedded = getattr(getattr(inner, "embed_tokens", None), "num_embeddings", size)
    scored = getattr(getattr(model, "lm_head", None), "out_features", size)
    if embedded < size or scored != size:
        raise ValueError(
            f"config.vocab_size is {size}, but the model has embeddings of {embedded} tokens and logits of {scored}: "
            "set it to their number, or resize both with model.resize_token_embeddings"
        )


def text_vocabulary_of(model: Any) -> Vocabulary:
    """As `vocabulary_of`, for calls that write text only: what is missing for pictures is told by ``problem``."""
    _check_rows(model)
    try:
        return vocabulary_of(model)
    except ValueError as error:
        known, size = without_pictures(model), token_count(model)
        images = tuple(range(known.size, size)) if size > known.size else _image_tokens(model, size)
        return replace(known, size=size, other_image_ids=images, problem=str(error))


def _image_tokens(model: Any, size: int) -> tuple[int, ...]:
    """The image tokens that a model's vocabulary_map names, where its vocabulary cannot be read."""
    mapping = getattr(getattr(model, "model", None), "vocabulary_mapping", None)
    try:
        found = () if mapping is None else mapping.image_tokens
    except (AttributeError, TypeError, ValueError):  # of a map that is itself what cannot be read
        return ()
    return tuple({token: None for token in found if type(token) is int and 0 <= token < size})
