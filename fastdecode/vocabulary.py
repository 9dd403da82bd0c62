"""What a vocabulary means: which tokens are text, which are pictures, and which sizes of pictures there are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

from fastdecode.layout import Grid, Layout, SizeTokens, at_least, tokens_of
from fastdecode.ops.scalars import shown
from fastdecode.wording import kind_of

USUAL_STREAMS = ("unconditional", "bare", "blank")
"""The streams that guidance without a negative prompt may subtract: see `fastdecode.guidance.usual_stream`."""


@lru_cache(maxsize=16)  # it takes milliseconds, and a model's vocabulary is read several times in a call
def _token_set(name: str, tokens: tuple[int, ...], size: int) -> frozenset[int]:
    """``tokens`` as a set. ``ValueError`` unless each is a token of a vocabulary of ``size``, and comes once."""
    if set(map(type, tokens)) - {int}:
        tokens_of(f"{name} of a Vocabulary", tokens)
    found = frozenset(tokens)
    if found and not 0 <= min(found) <= max(found) < size:
        wrong = next(token for token in tokens if not 0 <= token < size)
        raise ValueError(f"{name} of a Vocabulary have {shown(wrong)}: {_range(size)}")
    if len(found) < len(tokens):
        [(double, _)] = Counter(tokens).most_common(1)
        raise ValueError(f"{name} of a Vocabulary have {double} twice: each image token means one thing")
    return found


def _range(size: int) -> str:
    return f"its {size} tokens are 0 to {size - 1}"


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of one checkpoint.

    size             number of tokens
    code_ids         code_ids[c] is the token of codebook entry c; empty for a model that writes text only
    begin_image      the token before a picture; -1 for a model that writes text only
    end_image        the token behind it; -1 for a model that writes text only
    placeholder      what stands for the tokens of a picture in a prompt; -1: nothing
    image_length     number of tokens of a picture, without its begin and end
    context          maximum length of a sequence
    bos, pad         begin of sequence and padding; None or -1: none
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
    image_ids        all image tokens: code_ids, or else other_image_ids
    how_to_read      how pictures come into prompts, as an advice where placeholders and pictures do not fit together

    Lists of tokens become tuples. ``ValueError`` names what is no token of the vocabulary, or means two things: the
    marks around pictures, the ends of rows and sizes differ from each other and from all image tokens.
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
    how_to_read: str = "give one picture for each <image> in the text, all through the processor"
    image_ids: frozenset[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("context", 1), ("cell", 1), ("image_length", 0)):
            self._set(name, at_least(least, f"{name} of a Vocabulary", getattr(self, name)))
        for name in ("begin_image", "end_image", "placeholder"):
            self._set(name, at_least(-1, f"{name} of a Vocabulary", getattr(self, name)))
        for name in ("bos", "pad"):
            if getattr(self, name) == -1:
                self._set(name, None)
        for name in ("code_ids", "other_image_ids"):
            if type(getattr(self, name)) is not tuple:
                self._set(name, tokens_of(f"{name} of a Vocabulary", getattr(self, name)))
        self._set("image_ids", self._image_ids())
        for name in ("cannot_draw", "draws_alone", "problem", "how_to_read"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name != "problem"):
                raise ValueError(f"{name} of a Vocabulary is {kind_of(value)}: give a str")
        for name, kind in (("layout", Layout), ("size_tokens", SizeTokens)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise ValueError(f"{name} of a Vocabulary is {kind_of(value)}: give a fastdecode.{kind.__name__}")
        if self.layout is not None and self.layout.length != self.image_length:
            raise ValueError(f"image_length={self.image_length}, but the layout has {self.layout.length} tokens")
        if self.sizes is not None:
            self._set("sizes", _pairs(self.sizes))
        if isinstance(self.unconditional, str):
            if self.unconditional not in USUAL_STREAMS:
                raise ValueError(
                    f"unconditional of a Vocabulary is {shown(self.unconditional)}: give one of "
                    f"{', '.join(USUAL_STREAMS)}, or tokens"
                )
        else:
            self._set("unconditional", tokens_of("unconditional of a Vocabulary", self.unconditional))
            if not self.unconditional:
                raise ValueError("unconditional of a Vocabulary has no token: give at least one")
        if self.code_ids:
            self._check_pictures()

    def _image_ids(self) -> frozenset[int]:
        """``code_ids``, or else ``other_image_ids``, checked."""
        name = "code_ids" if self.code_ids else "other_image_ids"
        try:
            return _token_set(name, getattr(self, name), self.size)
        except TypeError:  # what cannot be hashed is no token
            tokens_of(f"{name} of a Vocabulary", getattr(self, name))
            raise

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_pictures(self) -> None:
        """``ValueError`` unless pictures can be told from text by their tokens."""
        if not self.picture.rows:
            raise ValueError("the pictures of a Vocabulary have no image token, but it has code_ids: give a layout")
        for name in ("begin_image", "end_image"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} of a Vocabulary is -1, but it has image tokens: pictures need a token there")
        layout, sizes = self.picture, self.size_tokens
        if sizes is not None and sizes.first + sizes.count > self.size:
            raise ValueError(f"size_tokens of a Vocabulary end at {sizes.first + sizes.count - 1}: {_range(self.size)}")
        if sizes is not None and layout.before != sizes.of(layout.rows, layout.columns):
            raise ValueError(
                f"before of the layout is {layout.before}, but size_tokens of a Vocabulary are "
                f"{sizes.of(layout.rows, layout.columns)} for {layout.rows} rows of {layout.columns}"
            )
        marks = [(name, getattr(self, name)) for name in ("begin_image", "end_image", "placeholder")]
        inner = [("row_end of the layout", layout.row_end)]
        inner += [("before of the layout", token) for token in layout.before]
        inner += [("after of the layout", token) for token in layout.after]
        inner += [("size_tokens", token) for token in (sizes.all if sizes is not None else ())]
        others = [("unconditional", token) for token in self.unconditional if isinstance(token, int)]
        others += [(name, token) for name, token in (("bos", self.bos), ("pad", self.pad)) if token is not None]
        known: dict[int, str] = {}
        for name, token in [*marks, *inner, *others]:
            none = token == -1 and name in ("placeholder", "row_end of the layout")
            if not none and not 0 <= at_least(-1, f"{name} of a Vocabulary", token) < self.size:
                raise ValueError(f"{name} of a Vocabulary is {shown(token)}: {_range(self.size)}")
        for name, token in [*marks, *inner]:
            other = "code_ids" if token in self.image_ids else known.get(token, name)
            if other != name:
                raise ValueError(f"{other} and {name} of a Vocabulary have the same token {token}: each needs its own")
            if (name, token) in marks and token >= 0:
                known[token] = name

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.size, self.begin_image, self.code_ids, self.layout, self.cannot_draw, self.problem))

    @property
    def has_pictures(self) -> bool:
        return bool(self.code_ids)

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
        return self._pixels(self.picture.rows, self.picture.columns)

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
        width, height = at_least(0, "width of a picture", width), at_least(0, "height of a picture", height)
        if width % cell or height % cell:
            near = f"{_nearest(width, cell)}x{_nearest(height, cell)}"
            raise ValueError(
                f"image_size={_number(width)}x{_number(height)}: width and height must be multiples of {cell} pixels, "
                f"such as {near}"
            )
        return self.resized(height // cell, width // cell)

    def resized(self, rows: int, columns: int) -> Vocabulary:
        """The same vocabulary for pictures of ``rows`` of ``columns`` image tokens. ``ValueError`` for a size that the
        model cannot draw.
        """
        rows, columns = at_least(0, "rows of a picture", rows), at_least(0, "columns of a picture", columns)
        now = self.picture
        if (rows, columns) == (now.rows, now.columns):
            return self
        if not self.has_pictures:
            raise ValueError(f"no picture can be drawn: {self.problem or 'this model writes text only'}")
        if not rows or not columns:
            raise ValueError(
                f"a picture of {self._pixels(rows, columns)} pixels has no pixel: give at least {self._pixels(1, 1)}"
            )
        if self.any_size:
            self._check_any(rows, columns)
        elif self.sizes is None or (rows, columns) not in self.sizes:
            raise ValueError(self._refusal(rows, columns))
        before = self.size_tokens.of(rows, columns) if self.size_tokens else now.before
        layout = replace(now, rows=rows, columns=columns, before=before)
        return replace(self, layout=layout, image_length=layout.length)

    def _pixels(self, rows: int, columns: int) -> str:
        return f"{_number(columns * self.cell)}x{_number(rows * self.cell)}"

    def _check_any(self, rows: int, columns: int) -> None:
        length = replace(self.picture, rows=rows, columns=columns).length + 2
        if length > self.context:
            raise ValueError(
                f"a picture of {self._pixels(rows, columns)} pixels takes {_number(length)} tokens, and the context of "
                f"this checkpoint is {self.context}: give a smaller one, of at least {self._pixels(1, 1)}"
            )

    def _refusal(self, rows: int, columns: int) -> str:
        wanted = f"this model draws no pictures of {self._pixels(rows, columns)} pixels (width x height)"
        if self.sizes is None:
            return f"{wanted}: only of {self.pixels}"

        def distance(size: tuple[int, int]) -> tuple[float, int]:
            return abs(math.log(size[0] * columns) - math.log(size[1] * rows)), abs(size[0] * size[1] - rows * columns)

        near = sorted(self.sizes, key=distance)[:3]
        return f"{wanted}; near to it are {', '.join(self._pixels(*size) for size in near)}"

    def grid(self, block: Sequence[int]) -> Grid | None:
        """The picture whose tokens between begin and end are ``block``; None unless they make a whole one. Where tokens
        tell the rows, it may have any size.
        """
        layout = self.picture
        first, last = len(layout.before), len(block) - len(layout.after)
        if tuple(block[last:]) != layout.after or last <= first:
            return None
        lines = layout.lines(block[first:last])
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


def _number(value: int) -> str:
    """Python prints no integer of thousands of digits."""
    return str(value) if value < 10**30 else "over 10**30"


def _nearest(pixels: int, cell: int) -> str:
    """The multiple of ``cell`` that is nearest to ``pixels``, but not 0."""
    return _number(max(1, (pixels + (cell - 1) // 2) // cell) * cell)


def _pairs(sizes: Any) -> frozenset[tuple[int, int]]:
    """``sizes`` of a Vocabulary. ``ValueError`` unless they are pairs of numbers above 0."""
    if isinstance(sizes, (str, bytes)) or not isinstance(sizes, Iterable):
        raise ValueError(f"sizes of a Vocabulary are {shown(sizes)}: give (rows, columns) of each")
    found = list(sizes)
    for size in found:
        pair = isinstance(size, tuple) and len(size) == 2
        if not pair or not all(isinstance(side, int) and side > 0 for side in size):
            raise ValueError(f"sizes of a Vocabulary have {shown(size)}: give (rows, columns), both above 0")
    return frozenset(found)
