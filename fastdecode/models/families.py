"""The families that there are, and which of them a model belongs to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastdecode.decoder.classes import NESTS, Nest, known_classes, text_config
from fastdecode.decoder.others import check_supported
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

    ``TypeError`` for what is not a `Family`.
    """
    if not isinstance(family, Family):
        raise TypeError(f"register takes a fastdecode.Family, not {kind_of(family)}")
    FAMILIES[:] = [family, *(known for known in FAMILIES if known.name != family.name)]
    if nest is not None:
        NESTS[:] = [nest, *(known for known in NESTS if known.model is not nest.model)]


def vocabulary_of(model: Any) -> Vocabulary:
    """The tokens of ``model``. ``ValueError`` names what is missing for pictures."""
    return family_of(model).vocabulary(model)


def token_count(model: Any) -> int:
    """The number of tokens: the language model's, and behind them image tokens with a head of their own."""
    known = known_classes(model)
    own = None if known is None else known.own_tokens
    return int(text_config(model).vocab_size) + (0 if own is None else own.count(model))


def text_vocabulary_of(model: Any) -> Vocabulary:
    """As `vocabulary_of`, for calls that write text only: what is missing for pictures is told by ``problem``."""
    try:
        return vocabulary_of(model)
    except ValueError as error:
        known, size = without_pictures(model), token_count(model)
        if size > known.size:
            return replace(known, size=size, other_image_ids=tuple(range(known.size, size)), problem=str(error))
        mapping = getattr(model.model, "vocabulary_mapping", None)
        images = () if mapping is None else tuple(mapping.image_tokens)
        return replace(known, other_image_ids=images, problem=str(error))
