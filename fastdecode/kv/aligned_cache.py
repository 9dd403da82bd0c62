"""The pages of a `StreamCache` as a ``Cache`` of transformers, in the order of a batch of its own ``generate``.

Rows of different lengths end in the same column: shorter ones begin with padding, which a mask (rows, width) tells. So
a model can be called that computes its own masks, windows and biases from that mask, whatever its layers are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from fastdecode.kv.kv_cache import StreamCache


class LayerSizes(NamedTuple):
    """What a layer gives its cache: keys (rows, kv_heads, new, key_dim), values (rows, kv_heads, new, value_dim)."""

    kv_heads: int
    key_dim: int
    value_dim: int


class AlignedCall:
    """Where the tokens of a call go. All tensors are on the pool's device.

        positions  (rows, new) int64: of each token in its row; the last column holds each row's newest token
        real       (rows, new) bool: False for padding
        stored     (rows, new) bool: tokens that have a slot; the others are attended in this call only
        pages      (rows, n) int64: of each row
        slots      the number of slots of a page

    ``width``: the number of keys of the longest row. ``mask`` (rows, width) int64: 0 for padding, as transformers has
    it. ``newest``: by layer, the keys and values (rows, kv_heads, dim) of the last column, as they came.
    """

    def __init__(self, positions: Tensor, real: Tensor, stored: Tensor, pages: Tensor, slots: int) -> None:
        self.shape, self.width, self.real = tuple(positions.shape), int(positions[:, -1].max()) + 1, real
        self.newest: dict[int, tuple[Tensor, Tensor]] = {}
        lengths = positions[:, -1:] + 1
        here = torch.arange(self.width, device=pages.device) - (self.width - lengths)  # positions, below 0 for padding
        self.mask = (here >= 0).long()
        before = lengths - real.sum(1, keepdim=True)
        self.blank = (here < 0) | (here >= before)
        places = here.clamp(min=0)
        found = pages.gather(1, (places // slots).clamp(max=max(0, pages.shape[1] - 1))) if pages.shape[1] else places
        self.read = (found.masked_fill(self.blank, 0), places % slots)
        self.stored = stored.nonzero(as_tuple=True)
        at = positions[self.stored]
        self.written = (pages[self.stored[0], at // slots], at % slots)


class AlignedCache(Cache):
    """For one call of a model's forward. ``sizes``: by ``layer_idx``, of the layers that may update it, once each. The
    first has the pool's first memory, and so on.
    """

    def __init__(self, cache: StreamCache, call: AlignedCall, sizes: dict[int, LayerSizes]) -> None:
        super().__init__(layers=[])
        self.pages, self.call, self.sizes = cache, call, sizes
        self._places = {number: i for i, number in enumerate(sizes)}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the real ones of ``key_states`` and ``value_states``, see `LayerSizes`.

        Returns all of each row, (rows, kv_heads, width, dim), zero where there is none, with the dtype and on the
        device of what was given. ValueError for a ``layer_idx`` that no layer has, and for other shapes; RuntimeError
        for a second call.
        """
        call, place = self.call, self._places.get(layer_idx)
        if place is None:
            raise ValueError(f"there is no layer with layer_idx={layer_idx} in this model")
        kv_heads, key_dim, value_dim = self.sizes[layer_idx]
        for name, given, dim in (("keys", key_states, key_dim), ("values", value_states, value_dim)):
            shape = (call.shape[0], kv_heads, call.shape[1], dim)
            if given.shape != shape:
                raise ValueError(
                    f"layer {layer_idx} gives its cache {name} of {tuple(given.shape)}; it gave {shape} at first"
                )
        if place in call.newest:
            raise RuntimeError(f"layer {layer_idx} gives its cache keys twice in one forward pass")
        call.newest[place] = (key_states[:, :, -1], value_states[:, :, -1])
        pool = self.pages.pool
        return self._exchange(pool.keys[place], key_states), self._exchange(pool.values[place], value_states)

    def _exchange(self, memory: Tensor, new: Tensor) -> Tensor:
        """Store what is to be stored of ``new``, and return the whole rows."""
        call, (_, heads, columns, dim) = self.call, new.shape
        memory = memory[:, :heads, :, :dim]
        tokens = new.detach().transpose(1, 2)
        with torch.inference_mode():  # first, as other rows of this call may share these pages
            row, column = (index.to(new.device) for index in call.stored)
            memory[call.written[0], :, call.written[1]] = tokens[row, column].to(memory.device, memory.dtype)
        pages, slots = (index[:, None] for index in call.read)
        found = memory[pages, torch.arange(heads, device=memory.device)[:, None], slots]
        found = found.masked_fill(call.blank[:, None, :, None], 0.0).to(new.device, new.dtype)
        last = found[:, :, call.width - columns :]
        last[:] = torch.where(call.real.to(new.device)[:, None, :, None], new.detach(), last)
        return found

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.call.width, 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.call.width - self.call.shape[1]

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1
