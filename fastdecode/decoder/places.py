"""Where the tokens of pictures are placed by a model with positions of three axes: time, row and column.

A prompt has positions 0, 1, 2, … on all three. What follows is pictures, of sizes that the call tells: each token is at
its row and column, counted from where the picture begins. The next picture begins behind the longer side of the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

Shape = tuple[int, int]

PLACED_MODELS = tuple(
    getattr(transformers, name) for name in ("GlmImageForConditionalGeneration",) if hasattr(transformers, name)
)
"""The classes of such models. transformers 5.24, models/glm_image: ``get_rope_index``."""


def places_after(start: int, sizes: Sequence[Shape]) -> Tensor:
    """The positions (3, tokens + 1) int64 of pictures of ``sizes`` (rows, columns), and of the token behind them."""
    found = []
    for rows, columns in sizes:
        row, column = torch.arange(rows, device="cpu"), torch.arange(columns, device="cpu")
        grid = torch.stack(torch.meshgrid(row, column, indexing="ij")).flatten(1)
        found.append(start + torch.cat((torch.zeros_like(grid[:1]), grid)))
        start += max(rows, columns)
    return torch.cat([*found, torch.full((3, 1), start, device="cpu")], 1)


class Places:
    """The sizes of the pictures that follow the prompts of a call, and the positions of their tokens.

    A prompt that it was not told of is text: its tokens have positions 0, 1, 2, … whatever follows.
    """

    def __init__(self) -> None:
        self._told: dict[tuple[int, ...], tuple[Shape, ...]] = {}
        self._rows: dict[Any, tuple[int, Tensor]] = {}

    def tell(self, prompt: Sequence[int], sizes: Sequence[Shape]) -> None:
        """``sizes``, (rows, columns), of the pictures after ``prompt``, in order. ValueError for two kinds of them."""
        if self._told.setdefault(tuple(prompt), tuple(sizes)) != tuple(sizes):
            raise ValueError("two equal prompts have different image_grid_thw: write the sizes into the prompts too")

    def begin(self, row: Any, tokens: Sequence[int]) -> None:
        """Remember a row of ``tokens``: a prompt without its last token, or a prompt and what follows."""
        given = tuple(tokens)
        fitting = [p for p in self._told if len(given) >= len(p) - 1 and p[: len(given)] == given[: len(p)]]
        if fitting:
            prompt = max(fitting, key=len)
            self._rows[row] = len(prompt), places_after(len(prompt), self._told[prompt])

    def keep(self, rows: Sequence[Any]) -> None:
        """Forget all rows but these."""
        self._rows = {row: self._rows[row] for row in rows if row in self._rows}

    def positions(self, rows: Sequence[Any], counted: Tensor) -> Tensor:
        """(3, rows, new) int64 of tokens that are ``counted`` (rows, new) from the beginning of their rows."""
        found = counted[None].repeat(3, 1, 1)
        for number, row in enumerate(rows):
            if row in self._rows:
                start, places = self._rows[row]
                after = (counted[number] - start).clamp(min=0, max=places.shape[1] - 1)
                found[:, number] = torch.where(
                    counted[number] < start, counted[number], places.to(counted.device)[:, after]
                )
        return found
