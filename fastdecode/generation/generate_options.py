"""The options of `generate` that transformers does not have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

from fastdecode.generation.option_kinds import check_own
from fastdecode.guidance import Guidance
from fastdecode.kv.page_pool import PagePool
from fastdecode.schedule import Schedule


@dataclass(frozen=True)
class GenerateOptions:
    """The options of `generate` that transformers does not have; see `generate`. None: not given."""

    multimodal_generation_mode: str | None = None
    guidance: Guidance | Schedule | float | None = None
    text: Mapping[str, Any] | None = None
    image: Mapping[str, Any] | None = None
    image_size: tuple[int, int] | Sequence[tuple[int, int]] | None = None
    seed: int | Iterable[int] | None = None
    progress: bool | None = None
    deterministic: bool | None = None
    kv_pool: PagePool | None = None
    fallback: str | None = None

    @classmethod
    def found(cls, model: Any, config: GenerationConfig | None, given: Mapping[str, Any]) -> GenerateOptions:
        """The options that are set: in the call (``given``), else as attributes of its generation_config, else of the
        model's. ``ValueError`` for a kv_pool in a generation_config, which transformers would copy.
        """
        values = {name: given.get(name) for name in cls.__dataclass_fields__}
        for where, source in (("generation_config", config), ("model.generation_config", model.generation_config)):
            if getattr(source, "kv_pool", None) is not None:
                raise ValueError(f"{where} has a kv_pool, which cannot be copied as configs are: give it to the call")
            for name, value in values.items():
                values[name] = getattr(source, name, None) if value is None else value
        return cls(**values)

    @property
    def text_only(self) -> bool:
        return self.multimodal_generation_mode in (None, "text-only")

    @property
    def lost_elsewhere(self) -> list[str]:
        """The names of the options that are set and would have no effect in transformers' own loop."""
        ours = ("guidance", "text", "image", "image_size", "seed", "progress", "deterministic", "kv_pool")
        return [name for name in ours if getattr(self, name) is not None and getattr(self, name) is not False]

    def __post_init__(self) -> None:
        check_own(self)
