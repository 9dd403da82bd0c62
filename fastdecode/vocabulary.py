"""What a vocabulary means: which tokens are text, which are pictures, and how the tokens of a picture are laid out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple


@dataclass(frozen=True)
class SizeTokens:
    """Tokens that tell the size of a picture, one for its rows and one for its columns: ``first + n`` means ``n *
    unit`` rows (or columns) of image tokens. There are ``count`` of them.
    """

    first: int
    unit: int
    count: int

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
    """

    rows: int
    columns: int
    row_end: int = -1
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @cached_property
    def forced(self) -> tuple[int, ...]:
        """By place: the token that comes there; -1 for an image token."""
        row = (-1,) * self.columns + ((self.row_end,) if self.row_end >= 0 else ())
        return (*self.before, *row * self.rows, *self.after)

    @cached_property
    def separators(self) -> frozenset[int]:
        """The tokens that are not image tokens."""
        return frozenset(self.forced) - {-1}

    @property
    def row_length(self) -> int:
        """The tokens of a row, its end included."""
        return self.columns + (self.row_end >= 0)

    def __len__(self) -> int:
        return len(self.forced)


class Grid(NamedTuple):
    """A whole picture: its codes, row by row."""

    rows: int
    columns: int
    codes: tuple[int, ...]


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of one checkpoint.

    size             number of tokens
    code_ids         code_ids[c] is the token of codebook entry c; empty for a model that writes text only
    begin_image      the token before a picture; -1: none
    end_image        the token behind it
    placeholder      what stands for the tokens of a picture in a prompt
    image_length     number of tokens of a picture, without its begin and end
    context          maximum length of a sequence
    layout           which of these tokens are image tokens; None: all of them, in a square if they make one
    size_tokens      the tokens with which a picture of another size begins
    sizes            (rows, columns) that the model was trained to draw; None: only that of ``layout``
    any_size         whether it draws pictures of any size that fits the context
    cell             width and height in pixels of an image token
    bans_images      whether the text-only mode bans image tokens, as transformers does for this model
    cannot_draw      why the modes that draw are refused; empty if they are not
    draws_alone      why only image-only draws, and no mode with text between pictures; empty if they all do
    unconditional    what guidance without a negative prompt subtracts: see `fastdecode.guidance.usual_stream`
    problem          what is missing for pictures; its image tokens are then other_image_ids
    """

    size: int
    code_ids: tuple[int, ...]
    begin_image: int
    end_image: int
    placeholder: int
    image_length: int
    context: int
    bos: int | None = None
    pad: int | None = None
    cannot_draw: str = ""
    other_image_ids: tuple[int, ...] = ()
    problem: str | None = None
    layout: Layout | None = None
    size_tokens: SizeTokens | None = None
    sizes: frozenset[tuple[int, int]] | None = None
    any_size: bool = False
    draws_alone: str = ""
    unconditional: str | tuple[int, ...] = "unconditional"
    cell: int = 16
    bans_images: bool = True

    def __post_init__(self) -> None:
        if self.layout is not None and len(self.layout) != self.image_length:
            raise ValueError(f"image_length={self.image_length}, but the layout has {len(self.layout)} tokens")

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.size, self.begin_image, self.code_ids, self.layout, self.cannot_draw, self.problem))

    @property
    def has_pictures(self) -> bool:
        return bool(self.code_ids)

    @cached_property
    def image_ids(self) -> frozenset[int]:
        return frozenset(self.code_ids or self.other_image_ids)

    @cached_property
    def picture(self) -> Layout:
        """The layout of a picture."""
        if self.layout is not None:
            return self.layout
        side = math.isqrt(self.image_length)
        square = side * side == self.image_length
        return Layout(side, side) if square else Layout(1, self.image_length)

    @property
    def pixels(self) -> str:
        """Width and height of a picture, as people write them."""
        return f"{self.picture.columns * self.cell}x{self.picture.rows * self.cell}"

    @cached_property
    def block_ids(self) -> frozenset[int]:
        """All tokens that come within pictures of any size: image tokens, ends of rows, sizes."""
        sizes = self.size_tokens.all if self.size_tokens else frozenset[int]()
        return self.image_ids | self.picture.separators | sizes

    @cached_property
    def id_to_code(self) -> dict[int, int]:
        """The inverse of ``code_ids``: the codebook entry of each image token. The order need not be the same."""
        return {i: code for code, i in enumerate(self.code_ids)}

    def sized(self, width: int, height: int) -> Vocabulary:
        """As `resized`, for a size in pixels. ``ValueError`` unless both are multiples of ``cell``."""
        cell = self.cell
        if width % cell or height % cell:
            near = f"{max(1, round(width / cell)) * cell}x{max(1, round(height / cell)) * cell}"
            raise ValueError(
                f"image_size={width}x{height}: width and height must be multiples of {cell} pixels, such as {near}"
            )
        return self.resized(height // cell, width // cell)

    def resized(self, rows: int, columns: int) -> Vocabulary:
        """The same vocabulary for pictures of ``rows`` of ``columns`` image tokens. ``ValueError`` for a size that the
        model cannot draw.
        """
        now = self.picture
        if (rows, columns) == (now.rows, now.columns):
            return self
        if self.any_size:
            self._check_any(rows, columns)
        elif self.sizes is None or (rows, columns) not in self.sizes:
            raise ValueError(self._refusal(rows, columns))
        before = self.size_tokens.of(rows, columns) if self.size_tokens else now.before
        layout = replace(now, rows=rows, columns=columns, before=before)
        return replace(self, layout=layout, image_length=len(layout))

    def _check_any(self, rows: int, columns: int) -> None:
        length = len(replace(self.picture, rows=max(1, rows), columns=max(1, columns))) + 2
        if min(rows, columns) < 1 or length > self.context:
            raise ValueError(
                f"a picture of {columns * self.cell}x{rows * self.cell} pixels takes {length} tokens, and the context "
                f"of this checkpoint is {self.context}: give a smaller one, of at least {self.cell}x{self.cell}"
            )

    def _refusal(self, rows: int, columns: int) -> str:
        cell = self.cell
        wanted = f"this model draws no pictures of {columns * cell}x{rows * cell} pixels (width x height)"
        if self.sizes is None:
            return f"{wanted}: only of {self.pixels}"

        def distance(size: tuple[int, int]) -> tuple[float, int]:
            return abs(math.log(size[0] * columns / (size[1] * rows))), abs(size[0] * size[1] - rows * columns)

        near = sorted(self.sizes, key=distance)[:3]
        return f"{wanted}; near to it are {', '.join(f'{c * cell}x{r * cell}' for r, c in near)}"

    def grid(self, block: Sequence[int]) -> Grid | None:
        """The picture whose tokens between begin and end are ``block``; None unless they make a whole one. Where tokens
        tell the rows, it may have any size.
        """
        layout = self.picture
        first, last = len(layout.before), len(block) - len(layout.after)
        if tuple(block[last:]) != layout.after or last <= first:
            return None
        lines = _lines(block[first:last], layout)
        if lines is None or not all(token in self.id_to_code for line in lines for token in line):
            return None
        rows, columns = len(lines), len(lines[0])
        try:
            before = self.size_tokens.of(rows, columns) if self.size_tokens else layout.before
        except ValueError:
            return None
        if tuple(block[:first]) != before:
            return None
        return Grid(rows, columns, tuple(self.id_to_code[token] for line in lines for token in line))

    def fits(self, begun: Sequence[int]) -> bool:
        """Whether ``begun`` are the first tokens of a picture of this size, its begin left out."""
        forced = self.picture.forced
        pairs = zip(begun, forced, strict=False)
        right = all(token in self.image_ids if wanted < 0 else token == wanted for token, wanted in pairs)
        return right and len(begun) <= len(forced)


def _lines(tokens: Sequence[int], layout: Layout) -> list[Sequence[int]] | None:
    """The rows of a picture; None if they are not of one length."""
    end = layout.row_end
    if end < 0:
        width, height = layout.columns, layout.rows
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
