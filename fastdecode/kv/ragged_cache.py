"""The pages of a `StreamCache` as a ``Cache`` of transformers, for one call of a model's forward over ragged rows.

Other than in `PagedCache`, each row has a length and positions of its own, and the rows of a call need not be all of
the cache. The call's tokens are padded on the left: the last column holds the newest token of each row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from fastdecode.kv.kv_cache import StreamCache


@dataclass
class RaggedCall:
    """Where the tokens of a call go. All tensors are on the pool's device.

        positions  (rows, new) int64: of each token in its row
        real       (rows, new) bool: False for padding
        stored     (rows, new) bool: tokens that have a slot; the others are attended in this call only
        starts     (rows,) int64: the tokens before these are in the pages
        pages      (rows, n) int64: of each row
        width      the number of keys that are attended to: more than any position

    ``newest``: by layer, the keys and values (rows, kv_heads, head_dim) of the last column, as they came.
    """

    positions: Tensor
    real: Tensor
    stored: Tensor
    starts: Tensor
    pages: Tensor
    width: int
    newest: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


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
        _, kv_heads, slots, head_dim = pool.keys[0].shape
        shape = (call.positions.shape[0], kv_heads, call.positions.shape[1], head_dim)
        for name, given in (("keys", key_states), ("values", value_states)):
            if given.shape != shape:
                raise ValueError(
                    f"layer {self.number} gives its cache {name} of {tuple(given.shape)}; this model's have {shape}"
                )
        if self.number in call.newest:
            raise RuntimeError(
                f"layer {self.number} gives its cache keys twice in one forward pass; they can be stored once only"
            )
        call.newest[self.number] = (key_states[:, :, -1], value_states[:, :, -1])
        here = call.positions[call.stored]
        pages, slot = call.pages.gather(1, call.positions.where(call.stored, 0) // slots)[call.stored], here % slots
        keys = self._exchange(pool.keys[self.number], key_states, pages, slot)
        return keys, self._exchange(pool.values[self.number], value_states, pages, slot)

    def _exchange(self, memory: Tensor, new: Tensor, pages: Tensor, slot: Tensor) -> Tensor:
        call = self.call
        tokens = new.detach().transpose(1, 2)
        with torch.inference_mode():
            memory[pages, :, slot] = tokens[call.stored.to(new.device)].to(memory.device, memory.dtype)
        slots = memory.shape[2]
        taken = memory[call.pages[:, : -(-call.width // slots)]].transpose(1, 2).flatten(2, 3)[:, :, : call.width]
        known = torch.arange(taken.shape[2], device=taken.device) < call.starts[:, None]
        whole = new.new_zeros((*new.shape[:2], call.width, new.shape[3]))
        # Other slots may hold NaN, which zero weights would not remove.
        whole[:, :, : taken.shape[2]] = taken.masked_fill_(~known[:, None, :, None], 0.0).to(new.device, new.dtype)
        rows, columns = call.real.nonzero(as_tuple=True)
        rows, columns, places = (t.to(new.device) for t in (rows, columns, call.positions[call.real]))
        whole[rows, :, places] = tokens[rows, columns]
        return whole

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.call.width, 0

    def get_seq_length(self) -> int:
        return self.call.width - self.call.positions.shape[1]

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
