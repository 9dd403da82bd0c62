"""Pages of keys and values as a ``Cache`` of transformers: for a model's own forward and generate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from fastdecode.kv.kv_cache import StreamCache
from fastdecode.kv.page_pool import PagePool


class PagedLayer(CacheLayerMixin):
    """One layer of a `PagedCache`; ``length`` ids of every row are stored in it."""

    is_croppable = True

    def __init__(self, cache: PagedCache, number: int) -> None:
        super().__init__()
        self.cache, self.number, self.length = cache, number, 0
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the pool has its memory, or takes it as pages are taken."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store ``key_states`` and ``value_states`` (rows, kv_heads, new, head_dim) behind what is there.

        Returns all of the layer's, (rows, kv_heads, length, head_dim), copied together. Raises ValueError for tensors
        that are not the pool's or another number of rows, ``PoolExhausted`` if pages are lacking; both before any
        change.
        """
        begin, self.length = self.length, self.cache.hold(self, key_states, value_states)
        rows, pool = self.cache.rows, self.cache.rows.pool
        slots = pool.page_slots
        places = torch.arange(begin, self.length, device=rows.table.device)
        pages = rows.table[:, places // slots].long()
        with torch.inference_mode():
            for stored, new in ((pool.keys, key_states), (pool.values, value_states)):
                stored[self.number][pages, :, places % slots] = new.detach().transpose(1, 2)
        table = rows.table[:, : -(-self.length // slots)].long()
        found = []
        for stored in (pool.keys, pool.values):
            taken = stored[self.number][table].transpose(1, 2).flatten(2, 3)
            found.append(taken[:, :, : self.length])
        return found[0], found[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.length = 0
        self.cache.rows.clear()

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last ``-tokens_to_remove`` ids. ValueError for a number above 0."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): give a negative number, of ids to remove")
        self.length = max(0, self.length + tokens_to_remove)
        for row in range(self.cache.rows.rows):
            if self.cache.rows.length(row) > self.length:
                self.cache.rows.truncate(row, self.length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = range(self.cache.rows.rows)
        self._choose([row for row in rows for _ in range(repeats)])

    def batch_select_indices(self, indices: Tensor) -> None:
        self._choose(indices.tolist())

    def _choose(self, wanted: list[int]) -> None:
        if self.number == 0:  # rows are those of all layers
            self.cache.choose(wanted)


class PagedCache(Cache):
    """Keys and values in pages of ``pool`` (`fastdecode.new_pool`), for ``model(..., past_key_values=…)`` and
    transformers' own ``model.generate(..., past_key_values=…)``: rows that are repeated or reordered share pages, and
    the pool's bound holds. Give the pages back with `reset`, or by letting go of the cache.
    """

    def __init__(self, pool: PagePool) -> None:
        self.rows = StreamCache(pool)
        super().__init__(layers=[PagedLayer(self, number) for number in range(len(pool.keys))])

    def __del__(self) -> None:
        if hasattr(self, "rows"):
            self.rows.clear()

    def hold(self, layer: PagedLayer, keys: Tensor, values: Tensor) -> int:
        """Pages for the ids of ``keys`` and ``values`` behind those of ``layer``; the length that it has then."""
        pool = self.rows.pool
        _, kv_heads, _, head_dim = pool.keys[0].shape
        for name, given in (("key_states", keys), ("value_states", values)):
            shape = (given.shape[0], kv_heads, keys.shape[2], head_dim)
            if given.shape != shape or given.dtype != pool.keys[0].dtype or given.device != pool.keys[0].device:
                what = f"{shape} {pool.keys[0].dtype} on {pool.keys[0].device}"
                raise ValueError(f"{name} is {tuple(given.shape)} {given.dtype} on {given.device}: must be {what}")
        if self.rows.rows not in (0, len(keys)):
            raise ValueError(f"key_states has {len(keys)} rows, and this cache {self.rows.rows}")
        if self.rows.rows == 0:
            self.rows.add([()] * len(keys))
        length, held = layer.length + keys.shape[2], self.rows.longest
        try:
            while self.rows.longest < length:
                self.rows.make_room()
                self.rows.grow()
        except BaseException:
            for row in range(self.rows.rows):
                self.rows.truncate(row, held)
            raise
        return length

    def choose(self, wanted: Sequence[int]) -> None:
        """The rows ``wanted``, in that order and as often, in place of all. IndexError for one that is not there."""
        rows, have = self.rows, self.rows.rows
        for row in wanted:
            rows.length(row)
        # Rows that are given up get the last one's number: copies are made in the order which that undoes.
        kept = min(have, len(wanted))
        for row in (*wanted[kept:], *reversed(wanted[:kept])):
            rows.fork(row)
        for row in range(kept):
            rows.remove(row)
        while rows.rows > len(wanted):
            rows.remove(rows.rows - 1)
