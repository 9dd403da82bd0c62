"""How the tokens of a picture are laid out: its size, its rows, what ends a row, and what stands before and after."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any, NamedTuple

from fastdecode.ops.scalars import shown, whole_number


def tokens_of(name: str, tokens: Any) -> tuple[int, ...]:
    """``tokens`` as a tuple. ``ValueError`` unless they are integers of at least 0, which a bool is not."""
    if isinstance(tokens, (str, bytes)) or not isinstance(tokens, Iterable):
        raise ValueError(f"{name}: {shown(tokens)} are no tokens; give a list of integers")
    if getattr(tokens, "ndim", 1) != 1:
        raise ValueError(f"{name} have the shape {tuple(getattr(tokens, 'shape', ()))}; give a flat list of integers")
    found = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)
    for token in found:
        if isinstance(token, bool) or not isinstance(token, Integral) or token < 0:
            raise ValueError(f"{name} have {shown(token)}: a token is an integer of at least 0")
    return tuple(map(int, found))


def at_least(least: int, name: str, value: Any) -> int:
    """``value`` as an int. ``ValueError`` unless it is a whole number of ``least`` or more."""
    found = whole_number(name, value)
    if found < least:
        raise ValueError(f"{name} = {shown(found)}: must be at least {least}")
    return found


@dataclass(frozen=True)
class SizeTokens:
    """Tokens that tell the size of a picture, one for its rows and one for its columns: ``first + n`` means ``n *
    unit`` rows (or columns) of image tokens. There are ``count`` of them. ``ValueError`` for a negative ``first``, and
    for a ``unit`` or ``count`` below 1.
    """

    first: int
    unit: int
    count: int

    def __post_init__(self) -> None:
        for name, least in (("first", 0), ("unit", 1), ("count", 1)):
            object.__setattr__(self, name, at_least(least, f"{name} of SizeTokens", getattr(self, name)))

    @property
    def all(self) -> frozenset[int]:
        return frozenset(range(self.first, self.first + self.count))

    def of(self, rows: int, columns: int) -> tuple[int, int]:
        """The two tokens. ``ValueError`` if there is no token for a number."""
        for what, number in (("rows", rows), ("columns", columns)):
            if number % self.unit or not 0 < number // self.unit < self.count:
                most = self.unit * (self.count - 1)
                raise ValueError(f"{number} {what}: give a multiple of {self.unit} from {self.unit} to {most}")
        return self.first + rows // self.unit, self.first + columns // self.unit


@dataclass(frozen=True)
class Layout:
    """The tokens of a picture between its begin and its end: ``before``; then ``rows`` of ``columns`` image tokens,
    each closed by ``row_end`` (-1: by nothing); then ``after``.

    ``ValueError`` unless there is a row and a column (or neither, for a model without pictures), and for what is no
    token.
    """

    rows: int
    columns: int
    row_end: int = -1
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("rows", 0), ("columns", 0), ("row_end", -1)):
            object.__setattr__(self, name, at_least(least, f"{name} of a Layout", getattr(self, name)))
        for name in ("before", "after"):
            object.__setattr__(self, name, tokens_of(f"{name} of a Layout", getattr(self, name)))
        if (self.rows == 0) != (self.columns == 0):
            raise ValueError(f"a Layout of {self.rows} rows and {self.columns} columns has no image token: give both")

    @cached_property
    def forced(self) -> tuple[int, ...]:
        """By place: the token that comes there; -1 for an image token."""
        row = (-1,) * self.columns + ((self.row_end,) if self.row_end >= 0 else ())
        return (*self.before, *row * self.rows, *self.after)

    @cached_property
    def separators(self) -> frozenset[int]:
        """The tokens that are not image tokens."""
        return frozenset((*self.before, *self.after, *((self.row_end,) if self.row_end >= 0 and self.rows else ())))

    @property
    def row_length(self) -> int:
        """The tokens of a row, its end included."""
        return self.columns + (self.row_end >= 0)

    @property
    def length(self) -> int:
        """All tokens. A number also where there are too many to be listed, or for ``len``."""
        return len(self.before) + self.rows * self.row_length + len(self.after)

    def __len__(self) -> int:
        return self.length

    def lines(self, tokens: Sequence[int]) -> list[Sequence[int]] | None:
        """The rows of a picture, without their ends, of its ``tokens`` between ``before`` and ``after``; None if they
        are not of one length. Where a token ends the rows there may be any number of any length.
        """
        end = self.row_end
        if end < 0:
            width, height = self.columns, self.rows
        elif end not in tokens:
            return None
        else:
            width = list(tokens).index(end)
            height = len(tokens) // (width + 1)
        step = width + (end >= 0)
        if width == 0 or len(tokens) != height * step:
            return None
        if end >= 0 and any(tokens[place] != end for place in range(width, len(tokens), step)):
            return None
        return [tokens[place : place + width] for place in range(0, len(tokens), step)]


class Grid(NamedTuple):
    """A whole picture: its codes, row by row."""

    rows: int
    columns: int
    codes: tuple[int, ...]
