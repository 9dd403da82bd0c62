"""Decoding kernels and a drop-in ``generate()`` for models that write text and draw images as one token stream.

Names are imported when they are first used, so that ``import fastdecode`` is quick and ``fastdecode env`` can tell
what is wrong with a broken installation.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fastdecode import ops
    from fastdecode.build_info import get_include, get_library
    from fastdecode.decoder.classes import Nest
    from fastdecode.engine.events import Finished, PictureBegun, PictureDone, PicturePart, TextDelta, Tokens
    from fastdecode.generation.api import custom_generate, explain, generate, new_pool
    from fastdecode.generation.best_of import Best, best_of
    from fastdecode.generation.enabling import disable, enable
    from fastdecode.generation.engine import Engine, EngineStatistics, stream
    from fastdecode.generation.handle import Handle, RequestFailed
    from fastdecode.guidance import Guidance, Stream
    from fastdecode.kv.page_pool import PagePool, PoolExhausted
    from fastdecode.kv.transformers_cache import PagedCache
    from fastdecode.layout import Grid, Layout, SizeTokens
    from fastdecode.models.documents import to_documents
    from fastdecode.models.families import register
    from fastdecode.models.family import Family
    from fastdecode.models.loading import load
    from fastdecode.models.quantise import quantise
    from fastdecode.models.recipe import Recipe
    from fastdecode.models.recipes import recipe
    from fastdecode.schedule import Schedule
    from fastdecode.vocabulary import Vocabulary

_HOMES = {
    "Best": "fastdecode.generation.best_of",
    "best_of": "fastdecode.generation.best_of",
    "custom_generate": "fastdecode.generation.api",
    "disable": "fastdecode.generation.enabling",
    "enable": "fastdecode.generation.enabling",
    "Engine": "fastdecode.generation.engine",
    "EngineStatistics": "fastdecode.generation.engine",
    "explain": "fastdecode.generation.api",
    "Family": "fastdecode.models.family",
    "Finished": "fastdecode.engine.events",
    "generate": "fastdecode.generation.api",
    "Grid": "fastdecode.layout",
    "get_include": "fastdecode.build_info",
    "get_library": "fastdecode.build_info",
    "Guidance": "fastdecode.guidance",
    "Handle": "fastdecode.generation.handle",
    "Layout": "fastdecode.layout",
    "load": "fastdecode.models.loading",
    "Nest": "fastdecode.decoder.classes",
    "new_pool": "fastdecode.generation.api",
    "PagedCache": "fastdecode.kv.transformers_cache",
    "PagePool": "fastdecode.kv.page_pool",
    "PictureBegun": "fastdecode.engine.events",
    "PictureDone": "fastdecode.engine.events",
    "PicturePart": "fastdecode.engine.events",
    "PoolExhausted": "fastdecode.kv.page_pool",
    "quantise": "fastdecode.models.quantise",
    "Recipe": "fastdecode.models.recipe",
    "recipe": "fastdecode.models.recipes",
    "register": "fastdecode.models.families",
    "RequestFailed": "fastdecode.generation.handle",
    "Schedule": "fastdecode.schedule",
    "SizeTokens": "fastdecode.layout",
    "Stream": "fastdecode.guidance",
    "stream": "fastdecode.generation.engine",
    "TextDelta": "fastdecode.engine.events",
    "to_documents": "fastdecode.models.documents",
    "Tokens": "fastdecode.engine.events",
    "Vocabulary": "fastdecode.vocabulary",
}

__all__ = [
    "Best",
    "Engine",
    "EngineStatistics",
    "Family",
    "Finished",
    "Grid",
    "Guidance",
    "Handle",
    "Layout",
    "Nest",
    "PagePool",
    "PagedCache",
    "PictureBegun",
    "PictureDone",
    "PicturePart",
    "PoolExhausted",
    "Recipe",
    "RequestFailed",
    "Schedule",
    "SizeTokens",
    "Stream",
    "TextDelta",
    "Tokens",
    "Vocabulary",
    "__version__",
    "best_of",
    "custom_generate",
    "disable",
    "enable",
    "explain",
    "generate",
    "get_include",
    "get_library",
    "load",
    "new_pool",
    "ops",
    "quantise",
    "recipe",
    "register",
    "stream",
    "to_documents",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES or name == "ops":
        try:
            home = import_module(_HOMES.get(name, "fastdecode.ops"))
        except ImportError as error:
            from fastdecode.extras import missing_package

            raise missing_package(f"fastdecode.{name}", error) from error
        if name != "ops":
            globals()[name] = getattr(home, name)
        return globals()[name]
    raise AttributeError(f"module 'fastdecode' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
