"""The columns of a job's rows: which there are, and what a cell of each holds."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from fastdecode.generation.generate_options import GenerateOptions
from fastdecode.guidance import Guidance
from fastdecode.ops.scalars import shown
from fastdecode.wording import kind_of

OWN = ("id", "prompt", "pictures", "seed")
"""What a row is. Further columns are options, or carried along."""

SHORT = {"mode": "multimodal_generation_mode"}
"""Other names of options, as the command and the server have them."""

NOT_FOR_ROWS = {
    "num_return_sequences": "write as many rows, with ids of their own",
    "deterministic": "it holds for the whole job, as --deterministic",
    "kv_pool": "the job's engine has pages of its own",
    "progress": "the job shows one bar for all its rows",
    "fallback": "the job's engine decodes every row itself",
    "generation_config": "write its entries as columns",
}


@cache
def option_names() -> frozenset[str]:
    """The names of columns that are options: task, and those of `fastdecode.generate`."""
    from transformers import GenerationConfig

    theirs = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    ours = set(GenerateOptions.__dataclass_fields__)
    return frozenset((theirs | ours | set(SHORT) | {"task"}) - set(OWN) - set(NOT_FOR_ROWS) - {"transformers_version"})


def check_columns(names: Iterable[str], where: str) -> None:
    """``ValueError`` for a column that no row may have, and for one whose name looks like a misspelt one. ``where``
    begins the message.
    """
    known = [*OWN, *sorted(option_names())]
    for name in names:
        if name in NOT_FOR_ROWS:
            raise ValueError(f"{where}: a row cannot set {name}: {NOT_FOR_ROWS[name]}")
        if name in known:
            continue
        near = difflib.get_close_matches(name.strip().lower().replace("-", "_"), known, 1, 0.8)
        if near:
            raise ValueError(
                f"{where}: the column {shown(name)} looks like {near[0]!r} misspelt: write that, or give the column "
                "another name; columns that are no options are carried along"
            )


def value_of_text(name: str, text: str) -> Any:
    """What a cell of CSV holds: text in the columns that are text, else JSON where it is that. Empty: None."""
    if text == "":
        return "" if name == "prompt" else None
    if name in ("id", "prompt") or name not in (*OWN, *option_names()):
        return text
    if text in ("True", "False"):  # as pandas writes them
        return text == "True"
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def options_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options among the columns of a row, sorted by name, as `fastdecode.generate` takes them; and its task.
    ``ValueError`` for a value that cannot be read, and for an option that is given by two names.
    """
    found: dict[str, Any] = {}
    for column in sorted(values):
        value = values[column]
        if column not in option_names() or _empty(value):
            continue
        name = SHORT.get(column, column)
        if name in found:
            raise ValueError(f"{column} is another name of {name}: give one of them")
        found[name] = _READ.get(name, _as_it_is)(value)
    return found


def _empty(value: Any) -> bool:
    """Whether it is a struct without values, as Parquet has it in rows that do not give it."""
    return isinstance(value, Mapping) and bool(value) and all(each is None for each in value.values())


def _as_it_is(value: Any) -> Any:
    return value


def _guidance(value: Any) -> Any:
    if isinstance(value, Mapping) and set(value) == {"text", "image"}:
        return Guidance.instruct(value["text"], value["image"])
    if value == "none":
        return Guidance.none()
    if value == "instruct":
        return Guidance.instruct()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    raise ValueError(
        f'guidance is {shown(value)}: give a number such as 3.0, "none", "instruct", or the two scales of instruct, '
        '{"text": 3.0, "image": 1.2}'
    )


def _size(value: Any) -> tuple[int, int]:
    sides = value.replace("×", "x").split("x") if isinstance(value, str) else value
    try:
        width, height = (_whole(side) for side in sides)
    except (TypeError, ValueError):
        raise ValueError(
            f'image_size is {shown(value)}: give width and height in pixels, such as "768x512" or [768, 512]'
        ) from None
    return width, height


def _whole(side: Any) -> int:
    """``ValueError`` or ``TypeError`` for what is no whole number above 0. Parquet may hold it as a float."""
    if isinstance(side, bool) or (isinstance(side, float) and not side.is_integer()) or int(side) < 1:
        raise ValueError(side)
    return int(side)


def _parameters(value: Any) -> Any:
    """Those that are set: in Parquet every row has all fields."""
    if not isinstance(value, Mapping):
        raise ValueError(
            f'text and image are {{"temperature": 0.7, "top_p": 0.9}} or the like, and {kind_of(value)} was given'
        )
    return {name: each for name, each in value.items() if each is not None}


_READ = {"guidance": _guidance, "image_size": _size, "text": _parameters, "image": _parameters}
