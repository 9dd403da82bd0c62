"""The values of a recipe's options as Python that makes them."""

from __future__ import annotations

import math
from typing import Any

from fastdecode.guidance import FULL, IMAGES, UNCONDITIONAL, Guidance, Stream
from fastdecode.schedule import Schedule


def as_python(value: Any) -> str:
    """A Python expression that makes ``value``, as short as there is one."""
    if not isinstance(value, Guidance):
        return repr(value)
    numbers, everywhere = [_number(weight) for weight in value.weights], ", everywhere=True" if value.everywhere else ""
    short = value.contrast is None and value.text_weights is None
    if short and not value.scheduled and math.isclose(sum(numbers), 1.0, abs_tol=1e-9):
        if value == Guidance.none():
            return "Guidance.none()"
        if value.streams == (FULL, UNCONDITIONAL):
            return f"Guidance.two_way({numbers[0]!r}{everywhere})"
        if len(numbers) == 2 and value.streams[1] == Stream("prompt", value.streams[1].ids or (0,)):
            return f"Guidance.two_way({numbers[0]!r}, {list(value.streams[1].ids)!r}{everywhere})"
        if value.streams == (FULL, IMAGES, UNCONDITIONAL):
            return f"Guidance.instruct(text={numbers[0]!r}, image={_number(sum(numbers[:2]))!r}{everywhere})"
    streams, weights = _tuple([_stream(stream) for stream in value.streams]), _tuple([repr(n) for n in numbers])
    more = "" if value.contrast is None else f", contrast={tuple(value.contrast)!r}"
    if value.text_weights is not None:
        more += f", text_weights={_tuple([repr(_number(weight)) for weight in value.text_weights])}"
    return f"Guidance({streams}, {weights}{everywhere}{more})"


def _tuple(parts: list[str]) -> str:
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"


def _number(weight: float | Schedule) -> Any:
    """A weight without the noise of its last digits: 1.2, where 3.0 - 1.8 is 1.2000000000000002."""
    return weight if isinstance(weight, Schedule) else float(f"{weight:.12g}")


def _stream(stream: Stream) -> str:
    more = f", {stream.ids!r}" if stream.ids else ""
    for name in ("history", "bos"):
        more += "" if getattr(stream, name) else f", {name}=False"
    return f"Stream({stream.kind!r}{more})"
