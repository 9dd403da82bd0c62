"""The streams of a sequence whose guidance changes with the position: their weights, and when each is needed."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastdecode.schedule import Schedule

NEVER = sys.maxsize


class Course:
    """The weights of a sequence's streams at every position of a picture, or of its text.

    ``streams``: tokens of the streams besides the full sequence, those that are needed first before the others.
    ``weights`` (positions, 1 + streams) float64: the full sequence's first; behind the last position its row holds.

    With ``skips`` a stream is *needed* from the first position at which its weight is not 0 to the last one, and a
    stream that is needed nowhere is left out. Without, all are needed everywhere. ``ValueError`` if all weights of a
    position are 0.
    """

    def __init__(
        self,
        streams: Sequence[tuple[int, ...]],
        weights: Sequence[float | Schedule],
        length: int,
        *,
        skips: bool,
    ) -> None:
        columns = [w.values(length) if isinstance(w, Schedule) else (w,) * length for w in weights]
        table = np.array(columns, dtype=np.float64).T
        empty = np.flatnonzero((table == 0.0).all(1))
        if len(empty):
            raise ValueError(
                f"the weights of this Guidance cancel to 0 at position {empty[0]}, since some of its streams are equal "
                "(or have weight 0): nothing is left to draw from"
            )
        self.length = length
        self._spans: list[tuple[int, int]] = []  # of the positions at which each stream is needed
        order: list[int] = []
        for k in range(len(streams)):
            places = np.flatnonzero(table[:, 1 + k]).tolist()
            if skips and not places:
                continue
            held = not skips or places[-1] == length - 1
            order.append(k)
            self._spans.append((places[0] if skips else 0, NEVER if held else places[-1] + 1))
        by_start = sorted(range(len(order)), key=lambda i: self._spans[i][0])
        self._spans = [self._spans[i] for i in by_start]
        self.streams = [streams[order[i]] for i in by_start]
        self.weights = table[:, [0, *(1 + order[i] for i in by_start)]]

    def needed(self, position: int) -> tuple[int, ...]:
        """The numbers of the streams that are needed at ``position``."""
        return tuple(k for k, (first, end) in enumerate(self._spans) if first <= position < end)

    def coming(self, position: int) -> list[int]:
        """The numbers of the streams that are needed only after ``position``."""
        return [k for k, (first, _) in enumerate(self._spans) if first > position]

    def next_change(self, position: int) -> int | None:
        """The next position at which other streams are needed."""
        return min((place for span in self._spans for place in span if position < place < NEVER), default=None)

    def weights_at(self, position: int, needed: Sequence[int]) -> list[float]:
        """The weights of the full sequence and of the streams ``needed``."""
        row: list[float] = self.weights[min(position, self.length - 1)].tolist()
        return [row[0], *(row[1 + k] for k in needed)]

    def weights_from(self, position: int, steps: int, needed: Sequence[int]) -> Tensor:
        """(steps, 1 + needed) float32: the weights at ``steps`` positions from ``position`` on."""
        places = np.minimum(np.arange(position, position + steps), self.length - 1)
        columns = [0, *(1 + k for k in needed)]
        return torch.from_numpy(self.weights[places][:, columns].astype(np.float32))

    def span(self, number: int) -> tuple[int, int]:
        """The positions ``[first, end)`` of a picture at which a stream is needed."""
        first, end = self._spans[number]
        return first, min(end, self.length)
