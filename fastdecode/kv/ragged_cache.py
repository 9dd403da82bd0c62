"""The pages of a `StreamCache` as a ``Cache`` of transformers, for one call of a model's forward over ragged rows.

Other than in `PagedCache`, each row has a length and positions of its own, and the rows of a call need not be all of
the cache. The call's tokens are padded on the left: the last column holds the newest token of each row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from fastdecode.kv.kv_cache import StreamCache


class RaggedCall:
    """Where the tokens of a call go. All tensors are on the pool's device.

        positions  (rows, new) int64: of each token in its row
        real       (rows, new) bool: False for padding
        stored     (rows, new) bool: tokens that have a slot; the others are attended in this call only
        pages      (rows, n) int64: of each row
        slots      the number of slots of a page

    ``width``: the number of keys that are attended to, more than any position. ``newest``: by layer, the keys and
    values (rows, kv_heads, head_dim) of the last column, as they came.
    """

    def __init__(self, positions: Tensor, real: Tensor, stored: Tensor, pages: Tensor, slots: int) -> None:
        self.shape, self.width = tuple(positions.shape), int(positions.max()) + 1
        self.newest: dict[int, tuple[Tensor, Tensor]] = {}
        self.pages = pages[:, : -(-self.width // slots)]
        self.stored = stored.nonzero(as_tuple=True)
        here = positions[self.stored]
        self.written = (pages[self.stored[0], here // slots], here % slots)
        ends = positions[:, 0] + stored.sum(1)
        keys = torch.arange(self.width, device=pages.device)
        blank = keys >= ends[:, None]
        # Slots that were not written may hold NaN, which a weight of zero would not remove.
        self.blank = blank[:, None, :, None] if blank.any() else None
        beside = (real & ~stored).nonzero(as_tuple=True)
        self.beside = (beside, positions[beside]) if len(beside[0]) else None


class _RaggedLayer(CacheLayerMixin):
    def __init__(self, cache: StreamCache, call: RaggedCall, number: int) -> None:
        super().__init__()
        self.cache, self.call, self.number = cache, call, number
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the pool has the memory."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the real ones of ``key_states`` and ``value_states`` (rows, kv_heads, new, head_dim).

        Returns all of each row, (rows, kv_heads, width, head_dim), zero where there is none, with the dtype and on the
        device of what was given. ValueError for other shapes than the pages'; RuntimeError for a second call.
        """
        call, pool = self.call, self.cache.pool
        _, kv_heads, _, head_dim = pool.keys[0].shape
        shape = (call.shape[0], kv_heads, call.shape[1], head_dim)
        for name, given in (("keys", key_states), ("values", value_states)):
            if given.shape != shape:
                raise ValueError(
                    f"layer {self.number} gives its cache {name} of {tuple(given.shape)}; this model's have {shape}"
                )
        if self.number in call.newest:
            raise RuntimeError(
                f"layer {self.number} gives its cache keys twice in one forward pass; they can be "
                "stored once only: give every layer a module and a layer_idx of its own"
            )
        call.newest[self.number] = (key_states[:, :, -1], value_states[:, :, -1])
        return self._exchange(pool.keys, key_states), self._exchange(pool.values, value_states)

    def _exchange(self, memory: list[Tensor], new: Tensor) -> Tensor:
        """Store what is to be stored of ``new``, and return the whole rows."""
        call, stored = self.call, memory[self.number]
        (rows, columns), (pages, slot) = call.stored, call.written
        tokens = new.detach().transpose(1, 2)
        with torch.inference_mode():
            stored[pages, :, slot] = tokens[rows.to(new.device), columns.to(new.device)].to(stored.device, stored.dtype)
        found = stored[call.pages].transpose(1, 2).flatten(2, 3)[:, :, : call.width]
        missing = call.width - found.shape[2]
        if missing:  # the last token of a row may have no page yet
            found = torch.nn.functional.pad(found, (0, 0, 0, missing))
        if call.blank is not None:
            found = found.masked_fill(call.blank, 0.0)
        found = found.to(new.device, new.dtype)
        if call.beside is not None:
            (rows, columns), places = call.beside
            rows, columns, places = (t.to(new.device) for t in (rows, columns, places))
            found[rows, :, places] = tokens[rows, columns]
        return found

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.call.width, 0

    def get_seq_length(self) -> int:
        return self.call.width - self.call.shape[1]

    def get_max_length(self) -> int:
        return -1


class RaggedCache(Cache):
    """For one call of a model's forward, which the layers ``numbers`` (their ``layer_idx``) may update once each."""

    def __init__(self, cache: StreamCache, call: RaggedCall, numbers: list[int]) -> None:
        self._rows = [_RaggedLayer(cache, call, i) for i in range(len(numbers))]
        super().__init__(layers=[*self._rows])
        self._places = {number: i for i, number in enumerate(numbers)}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See `_RaggedLayer.update`. ValueError for a ``layer_idx`` that no layer has."""
        place = self._places.get(layer_idx)
        if place is None:
            raise ValueError(f"there is no layer with layer_idx={layer_idx} in this model")
        return self._rows[place].update(key_states, value_states)
