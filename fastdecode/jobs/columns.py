"""The columns of a job's input: which there are, and what a cell of each holds."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from fastdecode.wording import kind_of

OWN = ("id", "prompt", "pictures", "seed")
"""What a row is. Further columns are options, or carried along."""

REQUEST = ("task", "image_size", "mode")
"""Options that say how the prompt is written, and the short name of multimodal_generation_mode."""

GUIDANCE_NAMES = ("none", "instruct")
NOT_FOR_ROWS = {
    "num_return_sequences": "write as many rows, with ids of their own",
    "deterministic": "it is for the whole job: give --deterministic or --no-deterministic",
    "kv_pool": "the job's engine has pages of its own",
    "progress": "the job shows one bar for all its rows",
    "fallback": "a job's engine decodes every row itself",
    "generation_config": "write its entries as columns",
}


@cache
def options() -> frozenset[str]:
    """The names of the columns that are options of `fastdecode.generate`."""
    from transformers import GenerationConfig

    from fastdecode.generation.generate_options import GenerateOptions

    theirs = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    return frozenset(
        (theirs | set(GenerateOptions.__dataclass_fields__) | set(REQUEST)) - set(OWN) - {"transformers_version"}
    )


def check_columns(names: Iterable[str], where: str) -> None:
    """``ValueError`` for a column that no row may have, and for one whose name looks like a misspelt one."""
    known = [*OWN, *sorted(options())]
    for name in names:
        if name in NOT_FOR_ROWS:
            raise ValueError(f"{where} has {name!r}, which a row cannot set: {NOT_FOR_ROWS[name]}")
        if name in known:
            continue
        near = difflib.get_close_matches(name.strip().lower().replace("-", "_"), known, 1, 0.8)
        if near:
            raise ValueError(
                f"{where} has {name!r}, which looks like {near[0]!r} misspelt: write that, or give the column another "
                "name; columns that are no options are carried along"
            )


def value_of_text(name: str, text: str) -> Any:
    """The value of a cell of CSV: text in the columns that are text, else JSON where it is that. Empty: None."""
    if text == "":
        return "" if name == "prompt" else None
    if name in ("id", "prompt") or name not in (*OWN, *options()):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def option_of(name: str, value: Any) -> Any:
    """The value of an option, as `fastdecode.generate` takes it. ``ValueError`` if it cannot be one."""
    if name == "guidance":
        return _guidance(value)
    if name == "image_size":
        return _size(value)
    if name in ("text", "image") and isinstance(value, Mapping):
        return {key: each for key, each in value.items() if each is not None}  # Parquet has every field in every row
    return value


def _guidance(value: Any) -> Any:
    from fastdecode.guidance import Guidance

    if isinstance(value, Mapping) and set(value) == {"text", "image"}:
        return Guidance.instruct(value["text"], value["image"])
    if isinstance(value, str):
        if value == "none":
            return Guidance.none()
        if value == "instruct":
            return Guidance.instruct()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    raise ValueError(
        f'guidance is {value!r}: give a number such as 3.0, "none", "instruct", or the two scales of instruct, '
        '{"text": 3.0, "image": 1.2}'
    )


def _size(value: Any) -> tuple[int, int]:
    if isinstance(value, str):
        value = value.replace("×", "x").split("x")
    try:
        width, height = (int(side) for side in value)
    except (TypeError, ValueError):
        raise ValueError(
            f'image_size is {value!r}, {kind_of(value)}: give width and height, such as "768x512" or [768, 512]'
        ) from None
    return width, height
