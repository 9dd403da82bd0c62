"""Pages of keys and values as a ``Cache`` of transformers, for a model's own forward and generate."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from fastdecode.kv.kv_cache import StreamCache
from fastdecode.kv.page_pool import PagePool
from fastdecode.wording import kind_of


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


class _SharedRows:
    """The rows of a `PagedCache`, which its layers share. Refers to neither, so that the pages are free as soon as the
    cache is dropped, without the garbage collector.
    """

    def __init__(self, pool: PagePool) -> None:
        self.cache = StreamCache(pool)

    def extend(self, length: int, keys: Tensor, values: Tensor) -> int:
        """Make room for the tokens of ``keys`` and ``values`` after the first ``length``; the length with them.

        ValueError for tensors that do not suit the pool or the rows, PoolExhausted if pages are missing; both before
        any change.
        """
        cache, pool = self.cache, self.cache.pool
        _, kv_heads, _, head_dim = pool.keys[0].shape
        for name, given in (("key_states", keys), ("value_states", values)):
            shape = (given.shape[0], kv_heads, keys.shape[2], head_dim)
            if given.shape != shape or given.dtype != pool.keys[0].dtype or given.device != pool.keys[0].device:
                what = f"{shape} {pool.keys[0].dtype} on {pool.keys[0].device}"
                raise ValueError(f"{name} is {tuple(given.shape)} {given.dtype} on {given.device}: must be {what}")
        if cache.rows not in (0, len(keys)):
            raise ValueError(f"key_states has {len(keys)} rows, and this cache {cache.rows}")
        if cache.rows == 0:
            cache.add([()] * len(keys))
        end, before = length + keys.shape[2], cache.longest
        try:
            while cache.longest < end:
                cache.make_room()
                cache.grow()
        except BaseException:
            for row in range(cache.rows):
                cache.truncate(row, before)
            raise
        return end

    def choose(self, wanted: Sequence[int]) -> None:
        """Replace all rows by the rows ``wanted``, in that order; a row may be wanted several times.

        IndexError, before any change, if there is no such row.
        """
        cache, have = self.cache, self.cache.rows
        for row in wanted:
            cache.length(row)
        # A removed row leaves its number to the last one: the copies are made in the order which that undoes.
        kept = min(have, len(wanted))
        for row in (*wanted[kept:], *reversed(wanted[:kept])):
            cache.fork(row)
        for row in range(kept):
            cache.remove(row)
        while cache.rows > len(wanted):
            cache.remove(cache.rows - 1)


class PagedLayer(CacheLayerMixin):
    """One layer of a `PagedCache`. ``length``: tokens of every row that are stored in this layer.

    Every method holds the pool's lock while it reads or writes pages.
    """

    is_croppable = True

    def __init__(self, rows: _SharedRows, number: int) -> None:
        super().__init__()
        self.rows, self.number, self.length = rows, number, 0
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the pool gets its memory when pages are taken."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store ``key_states`` and ``value_states`` (rows, kv_heads, new, head_dim) after what is stored.

        Returns copies of all keys and values of the layer, (rows, kv_heads, length, head_dim). ValueError for tensors
        whose shape, dtype or device is not the pool's, or for another number of rows; PoolExhausted if pages are
        missing. Both come before any change.
        """
        with self.rows.cache.pool.lock:
            return self._update(key_states, value_states)

    def _update(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        begin, self.length = self.length, self.rows.extend(self.length, key_states, value_states)
        cache, pool = self.rows.cache, self.rows.cache.pool
        slots = pool.page_slots
        places = torch.arange(begin, self.length, device=cache.page_table.device)
        pages = cache.page_table[:, places // slots].long()
        with torch.inference_mode():
            for stored, new in ((pool.keys, key_states), (pool.values, value_states)):
                stored[self.number][pages, :, places % slots] = new.detach().transpose(1, 2)
        pages = cache.page_table[:, : -(-self.length // slots)].long()
        found = []
        for stored in (pool.keys, pool.values):
            taken = stored[self.number][pages].transpose(1, 2).flatten(2, 3)
            found.append(taken[:, :, : self.length])
        return found[0], found[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        """What earlier versions of transformers call `get_max_length`."""
        return -1

    def reset(self) -> None:
        """Remove all rows and free their pages."""
        self.length = 0
        with self.rows.cache.pool.lock:
            self.rows.cache.clear()

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last ``-tokens_to_remove`` tokens of every row. ValueError for a number above 0."""
        if not _is_whole(tokens_to_remove):
            raise TypeError(f"crop({tokens_to_remove!r}): give a negative whole number, of tokens to remove")
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): give a negative number, of tokens to remove")
        self.length = max(0, self.length + tokens_to_remove)
        cache = self.rows.cache
        with cache.pool.lock:
            for row in range(cache.rows):
                if cache.length(row) > self.length:
                    cache.truncate(row, self.length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if not _is_whole(repeats) or repeats < 1:
            raise ValueError(f"batch_repeat_interleave({repeats!r}): give a whole number of at least 1")
        rows = range(self.rows.cache.rows)
        self._choose([row for row in rows for _ in range(repeats)])

    def batch_select_indices(self, indices: Tensor) -> None:
        if not isinstance(indices, Tensor) or indices.ndim != 1 or indices.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"the rows to choose are {indices!r}: give a tensor of row numbers, (rows,) int64")
        self._choose(indices.tolist())

    def _choose(self, wanted: list[int]) -> None:
        if self.number == 0:  # all layers have the same rows, and transformers calls every layer
            with self.rows.cache.pool.lock:
                self.rows.choose(wanted)


class PagedCache(Cache):
    """Keys and values in pages of ``pool`` (`fastdecode.new_pool`), for ``model(..., cache=…)`` and transformers' own
    ``model.generate(..., cache=…)``; before transformers 5.24 the argument is ``past_key_values``. Rows that are
    repeated or reordered share pages, and the pool's limit holds: PoolExhausted if it is reached.

    The pages are free again after `reset`, and as soon as nothing refers to the cache. Several threads may use one
    pool, each through a cache of its own.
    """

    def __init__(self, pool: PagePool) -> None:
        if not isinstance(pool, PagePool):
            raise TypeError(f"pool is {kind_of(pool)}: give what fastdecode.new_pool(model) returns")
        rows = _SharedRows(pool)
        self.rows = rows.cache
        super().__init__(layers=[PagedLayer(rows, number) for number in range(len(pool.keys))])

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a PagedCache cannot be copied or pickled, since its pages are of its pool: make another")

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As `PagedLayer.update`, for the layer ``layer_idx``. IndexError if there is no such layer."""
        if not 0 <= layer_idx < len(self.layers):
            raise IndexError(f"there is no layer {layer_idx}: the pool has {len(self.layers)}, counted from 0")
        found: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return found
