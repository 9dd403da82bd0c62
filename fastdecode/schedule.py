"""Schedules: scales of guidance that change with the place in a picture.

A `Schedule` is a rule, and becomes a table of numbers when the length of a picture is known: one number for each of its
tokens. The *progress* of token i of n is i / (n - 1): 0 at the first, 1 at the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from numbers import Real
from typing import Any, cast

from fastdecode.ops.scalars import LARGEST_FLOAT, shown

MOST_RUNS = 4
"""A table with more runs of equal values than this is described by its ends."""

_PARTS = {"constant": ("value",), "linear": ("start", "end"), "cosine": ("start", "end"), "function": ("function",)}
"""The parts of kinds that have a certain number of them."""

CONSTRUCTORS = "Schedule.constant, linear, cosine, table or function"


def finite_number(name: str, value: Any) -> float:
    """``value`` as a float. ``ValueError`` unless it is a finite number in float32, which a bool is not."""
    if isinstance(value, bool) or not isinstance(value, Real) or not abs(cast(float, value)) <= LARGEST_FLOAT:
        raise ValueError(f"{name} is {shown(value)}, which is not a finite number")
    return float(value)


KEPT = 8
"""The most lengths for which a schedule keeps its weights."""


@dataclass(frozen=True, repr=False)
class Schedule:
    """A number that changes from the first token of a picture to its last; for the scales of `Guidance`.

        Schedule.linear(5.0, 2.0)                     from 5 to 2 in a straight line
        Schedule.cosine(5.0, 2.0)                     from 5 to 2 along half a cosine: slow, fast, slow
        Schedule.table([1.0] * 100 + [3.0])           value i at token i; the last value holds from there on
        Schedule.function(lambda progress: 4 - progress)   progress: 0 at the first token, 1 at the last

    Tokens count from 0 behind the begin of the picture; tokens that the model does not choose, such as ends of rows,
    count too. In text, which is guided by ``everywhere=True``, they count from the first new token, and the last one is
    the last that the call allows.

    Schedules and numbers can be added and subtracted, for the weights of a `Guidance` of your own:
    ``Guidance(streams, (s, 1 - s))``. ``ValueError`` for values that are not finite numbers.
    """

    kind: str
    parts: tuple[Any, ...]
    _tables: dict[int, tuple[float, ...]] = field(default_factory=dict, init=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in (*_PARTS, "table", "+", "-"):
            raise ValueError(f"a Schedule is not made of {shown(self.kind)}: use {CONSTRUCTORS}")
        if not isinstance(self.parts, (tuple, list)):
            raise ValueError(f"parts of a Schedule are {shown(self.parts)}: use {CONSTRUCTORS}")
        parts = tuple(self.parts)
        if self.kind == "table":
            if not parts:
                raise ValueError("values of Schedule.table: the list is empty; give at least one number")
            parts = tuple(finite_number(f"values[{i}] of Schedule.table", part) for i, part in enumerate(parts))
        elif self.kind in ("+", "-"):
            if len(parts) != 2 or not any(isinstance(part, Schedule) for part in parts):
                raise ValueError(f"a sum of Schedules has two parts, one of them a Schedule, not {shown(parts)}")
            name = "a number added to a Schedule"
            parts = tuple(part if isinstance(part, Schedule) else finite_number(name, part) for part in parts)
        else:
            names = _PARTS[self.kind]
            if len(parts) != len(names):
                raise ValueError(f"Schedule.{self.kind} takes {' and '.join(names)}, not {shown(parts)}")
            if self.kind == "function":
                _check_function(parts[0])
            else:
                named = zip(names, parts, strict=True)
                parts = tuple(finite_number(f"{name} of Schedule.{self.kind}", part) for name, part in named)
        object.__setattr__(self, "parts", parts)

    @classmethod
    def constant(cls, value: float) -> Schedule:
        """The same value everywhere, as if a number had been given."""
        return cls("constant", (value,))

    @classmethod
    def linear(cls, start: float, end: float) -> Schedule:
        """From ``start`` at the first token to ``end`` at the last, in a straight line."""
        return cls("linear", (start, end))

    @classmethod
    def cosine(cls, start: float, end: float) -> Schedule:
        """From ``start`` at the first token to ``end`` at the last, along half a cosine."""
        return cls("cosine", (start, end))

    @classmethod
    def table(cls, values: Iterable[float]) -> Schedule:
        """``values[i]`` at token i; beyond its end the last value holds."""
        return cls("table", _listed(values))

    @classmethod
    def function(cls, function: Callable[[float], float]) -> Schedule:
        """``function(progress)``, which is called once for each token of a picture, before anything is decoded."""
        return cls("function", (function,))

    def values(self, length: int) -> tuple[float, ...]:
        """Its values at the tokens of a picture of ``length`` tokens. ``ValueError`` if one is not a finite number."""
        if length not in self._tables:
            while len(self._tables) >= KEPT:
                del self._tables[next(iter(self._tables))]
            self._tables[length] = tuple(
                finite_number(f"{self!r} at token {i} of {length}", value)
                for i, value in enumerate(self._evaluated(length))
            )
        return self._tables[length]

    def _evaluated(self, length: int) -> Iterator[Any]:
        steps = [i / (length - 1) if length > 1 else 0.0 for i in range(length)]
        if self.kind == "constant":
            yield from self.parts * length
        elif self.kind == "table":
            yield from (self.parts[min(i, len(self.parts) - 1)] for i in range(length))
        elif self.kind == "function":
            yield from (_called(self.parts[0], progress) for progress in steps)
        elif self.kind in ("linear", "cosine"):
            start, end = self.parts
            for progress in steps:
                share = progress if self.kind == "linear" else (1.0 - math.cos(math.pi * progress)) / 2.0
                yield start * (1.0 - share) + end * share
        else:
            left, right = (p.values(length) if isinstance(p, Schedule) else (p,) * length for p in self.parts)
            sign = 1.0 if self.kind == "+" else -1.0
            yield from (a + sign * b for a, b in zip(left, right, strict=True))

    # --- sums ---------------------------------------------------------------------------------------------------

    def _combined(self, kind: str, left: Any, right: Any) -> Any:
        for part in (left, right):
            if isinstance(part, bool) or not isinstance(part, (Schedule, Real)):
                return NotImplemented
        if left == 0.0 and kind == "+":
            return self
        return self if right == 0.0 else Schedule(kind, (left, right))

    def __add__(self, other: float | Schedule) -> Schedule:
        return cast(Schedule, self._combined("+", self, other))

    def __radd__(self, other: float) -> Schedule:
        return cast(Schedule, self._combined("+", other, self))

    def __sub__(self, other: float | Schedule) -> Schedule:
        return cast(Schedule, self._combined("-", self, other))

    def __rsub__(self, other: float) -> Schedule:
        return cast(Schedule, self._combined("-", other, self))

    def __neg__(self) -> Schedule:
        return 0.0 - self

    # --- words --------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        if self.kind in "+-":
            return f"({self.parts[0]!r} {self.kind} {self.parts[1]!r})"
        if self.kind == "table":
            return f"Schedule.table({shown(list(self.parts))})"
        parts = [_name_of(part) if self.kind == "function" else repr(part) for part in self.parts]
        return f"Schedule.{self.kind}({', '.join(parts)})"

    @property
    def leaves(self) -> list[Schedule]:
        """The schedules that it is a sum of; itself if it is none."""
        if self.kind not in "+-":
            return [self]
        return [leaf for part in self.parts if isinstance(part, Schedule) for leaf in part.leaves]

    @property
    def words(self) -> str:
        """What it does, for `explain`."""
        if self.kind == "constant":
            return f"{self.parts[0]:g}"
        if self.kind == "linear":
            return f"{self.parts[0]:g} to {self.parts[1]:g} in a straight line"
        if self.kind == "cosine":
            return f"{self.parts[0]:g} to {self.parts[1]:g} along a cosine"
        if self.kind == "function":
            return f"the function {_name_of(self.parts[0])}"
        if self.kind == "table":
            runs = [(value, len(list(run))) for value, run in groupby(self.parts)]
            if len(runs) > MOST_RUNS:
                return f"a table of {len(self.parts)} values, {self.parts[0]:g} to {self.parts[-1]:g}"
            some = [f"{value:g} for {count} token{'s' * (count > 1)}" for value, count in runs[:-1]]
            return ", then ".join([*some, f"{runs[-1][0]:g}"])
        return " and ".join(leaf.words for leaf in self.leaves)


def _listed(values: Any) -> tuple[Any, ...]:
    """``values`` of a table, in order. ``ValueError`` for what has no order, and for more than one dimension."""
    wrong = isinstance(values, (str, bytes, set, frozenset, Mapping)) or not isinstance(values, Iterable)
    if wrong or getattr(values, "ndim", 1) != 1:
        raise ValueError(f"values of Schedule.table: {shown(values)} is no flat list of numbers")
    try:
        return tuple(values.tolist() if hasattr(values, "tolist") else values)
    except RuntimeError:  # of a sparse tensor, or of one on the meta device
        raise ValueError(f"values of Schedule.table: {shown(values)} is no list whose numbers can be read") from None


def _check_function(function: Any) -> None:
    if not callable(function) or isinstance(function, type):
        raise ValueError(
            f"function of Schedule.function is {shown(function)}: give a function from the progress, 0 to 1, to a "
            "number"
        )


def _name_of(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _called(function: Callable[[float], float], progress: float) -> Any:
    try:
        return function(progress)
    except Exception as error:
        raise ValueError(
            f"the function {_name_of(function)} of a Schedule raised {type(error).__name__} at the progress "
            f"{progress:g} ({error}): it must return a number for every progress from 0 to 1"
        ) from error


def scale_of(name: str, value: Any) -> float | Schedule:
    """A scale or weight of guidance: a `Schedule`, or a finite number, as which a constant schedule counts.
    ``ValueError`` for anything else.
    """
    if isinstance(value, Schedule):
        return cast(float, value.parts[0]) if value.kind == "constant" else value
    return finite_number(name, value)
