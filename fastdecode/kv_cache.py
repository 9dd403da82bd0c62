"""Keys and values of the live streams: one row each, every row with its own length, no padding inside a row.

Rows ``[0, rows)`` are live and packed: a row that is given up is filled by the last one, so that a step runs on a
plain slice of the storage. A row's slots ``[0, length)`` are valid; what lies behind them is never attended.
"""

from __future__ import annotations

import torch
from torch import Tensor

SLOT_STEP = 128
"""Slots are added in multiples of this, and at least half again as many as there are."""


class StreamCache:
    """KV storage of ``layers`` layers, each ``(capacity, kv_heads, slots, head_dim)``.

    ``lengths`` (rows,) int64 on ``device``: ids whose keys and values are stored, per live row. All of it are inference
    tensors, as the decoder's: they can be written to in inference mode only.
    """

    def __init__(self, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows = 0
        self.longest = 0
        self.lengths = torch.zeros(0, dtype=torch.long, device=device)
        self._shape = (kv_heads, head_dim)
        empty = torch.empty((0, kv_heads, 0, head_dim), dtype=dtype, device=device)
        self.keys = [empty] * layers
        self.values = [empty] * layers

    @property
    def slots(self) -> int:
        return self.keys[0].shape[2]

    @property
    def bytes(self) -> int:
        """Memory held, used or not."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    @torch.inference_mode()
    def reserve(self, rows: int, slots: int) -> None:
        """Make room for ``rows`` rows of ``slots`` ids; keeps what is stored."""
        have_rows, _, have_slots, _ = self.keys[0].shape
        if rows <= have_rows and slots <= have_slots:
            return
        rows = max(rows, have_rows)
        if slots > have_slots:
            slots = -(-max(slots, have_slots * 3 // 2) // SLOT_STEP) * SLOT_STEP
        slots = max(slots, have_slots)
        for stored in (self.keys, self.values):
            for layer, old in enumerate(stored):
                new = old.new_zeros((rows, self._shape[0], slots, self._shape[1]))
                new[: self.rows, :, : self.longest] = old[: self.rows, :, : self.longest]
                stored[layer] = new

    @torch.inference_mode()
    def add(self, lengths: Tensor) -> slice:
        """Append rows whose prefilled ``lengths`` (n,) int64 are given; returns where they are.

        Their keys and values are written by the caller, through ``keys`` and ``values``.
        """
        first = self.rows
        longest = max(self.longest, int(lengths.max()) if len(lengths) else 0)
        self.reserve(first + len(lengths), longest + 1)
        self.rows += len(lengths)
        self.longest = longest
        self.lengths = torch.cat([self.lengths, lengths])
        return slice(first, self.rows)

    @torch.inference_mode()
    def remove(self, row: int) -> int:
        """Give up ``row``. The last row takes its place; returns the row that moved (``row`` itself if it was last)."""
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} is not live: the cache has {self.rows} rows")
        last = self.rows - 1
        if row != last:
            length = int(self.lengths[last])
            for stored in (self.keys, self.values):
                for layer in stored:
                    layer[row, :, :length] = layer[last, :, :length]
            self.lengths[row] = self.lengths[last]
        self.rows = last
        self.lengths = self.lengths[:last].clone()
        self.longest = int(self.lengths.max()) if last else 0
        return last

    @torch.inference_mode()
    def places(self) -> Tensor:
        """Where the next id of every live row goes in a layer's storage seen as (slots of all heads, head_dim)."""
        kv_heads = self._shape[0]
        heads = torch.arange(self.rows * kv_heads, device=self.lengths.device) * self.slots
        return heads + self.lengths.repeat_interleave(kv_heads)

    def write(self, layer: int, places: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store one id per live row, ``k`` and ``v`` (rows, kv_heads, head_dim), at `places`.

        Returns the layer's keys and values up to and with it, (rows, kv_heads, longest + 1, head_dim).
        """
        seen = []
        for stored, new in ((self.keys[layer], k), (self.values[layer], v)):
            stored.view(-1, self._shape[1]).index_copy_(0, places, new.reshape(-1, self._shape[1]))
            seen.append(stored[: self.rows, :, : self.longest + 1])
        return seen[0], seen[1]

    def grow(self) -> None:
        """One more id in every live row (its keys and values were written at ``lengths``)."""
        self.lengths += 1
        self.longest += self.rows > 0
