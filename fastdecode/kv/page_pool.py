"""Memory for keys and values in pages of equal size, each with a count of its owners.

A page holds the keys and values of ``page_slots`` consecutive ids in every layer. Who writes to a page must be its only
owner, or know that the others expect it.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

PAGE_SLOTS = 32

SYSTEM_PAGE = 4096


class PoolExhausted(RuntimeError):
    """A pool with a limit has fewer free pages than were asked for; nothing was changed."""


@dataclass(frozen=True)
class PoolStatistics:
    """How full a pool is. Pages: ``capacity`` have memory, ``used`` an owner, ``shared`` several; ``peak`` is the most
    that were ever used at once, ``free`` what may still be taken (None: no limit). Bytes count all layers.
    """

    page_slots: int
    capacity: int
    used: int
    free: int | None
    peak: int
    shared: int
    page_bytes: int
    bytes: int
    bytes_used: int

    def __str__(self) -> str:
        free = "no limit" if self.free is None else f"{self.free} free"
        return (
            f"{self.used} pages of {self.page_slots} slots used ({self.shared} shared, {self.peak} at peak, {free}), "
            f"{self.bytes_used / 1e6:.1f} of {self.bytes / 1e6:.1f} MB"
        )


def _memory(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor that was never written to. On a CPU numpy gets the memory, which asks for huge pages: as keys and values
    lie scattered, these are found faster, and the system hands them out four times as fast.
    """
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    memory = torch.from_numpy(np.empty(size + SYSTEM_PAGE, np.uint8))
    begin = -memory.data_ptr() % SYSTEM_PAGE
    return memory[begin : begin + size].view(dtype).view(shape)


class PagePool:
    """``keys`` and ``values``: per layer, (capacity, kv_heads, page_slots, head_dim) on ``device``, never initialised.

    `take` may replace these tensors by larger ones (the lists stay), at least half again as large, or as large as was
    `expect`-ed, and never of more than ``pages`` pages; so may `allocate`. What is in them is kept. They are inference
    tensors: they can be written to in inference mode only. Raises ValueError for sizes below 1.
    """

    @torch.inference_mode()
    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        pages: int | None = None,
        page_slots: int = PAGE_SLOTS,
    ) -> None:
        sizes = {"layers": layers, "kv_heads": kv_heads, "head_dim": head_dim, "page_slots": page_slots}
        for name, size in (sizes if pages is None else sizes | {"pages": pages}).items():
            if size < 1:
                raise ValueError(f"{name} is {size}; a pool of pages needs at least 1")
        self.limit, self.page_slots = pages, page_slots
        self.lock = threading.RLock()
        self.capacity = self.peak = self.shared = 0
        self._shape = (kv_heads, page_slots, head_dim)
        empty = torch.empty((0, *self._shape), dtype=dtype, device=device)
        self.keys: list[Tensor] = [empty] * layers
        self.values: list[Tensor] = [empty] * layers
        self.page_bytes = 2 * layers * kv_heads * page_slots * head_dim * empty.element_size()
        self.known: list[Any] = []  # what knows this memory by its address: emptied when there is other memory
        self._expected = 0
        self._owners: list[int] = []
        self._free: list[int] = []  # the next page to take is the last

    # --- how full it is -----------------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Pages with an owner."""
        return self.capacity - len(self._free)

    @property
    def free(self) -> int | None:
        """Pages that may still be taken, with memory or not; None where there is no limit."""
        return None if self.limit is None else self.limit - self.used

    @property
    def bytes(self) -> int:
        """Memory held, used or not."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    @property
    def bytes_used(self) -> int:
        return self.used * self.page_bytes

    def statistics(self) -> PoolStatistics:
        return PoolStatistics(
            page_slots=self.page_slots,
            capacity=self.capacity,
            used=self.used,
            free=self.free,
            peak=self.peak,
            shared=self.shared,
            page_bytes=self.page_bytes,
            bytes=self.bytes,
            bytes_used=self.bytes_used,
        )

    # --- owners -------------------------------------------------------------------------------------------------

    def owners(self, page: int) -> int:
        """How many own ``page``; 0 if it is free or there is no such page."""
        return self._owners[page] if 0 <= page < self.capacity else 0

    def is_shared(self, page: int) -> bool:
        """Whether ``page`` has more than one owner. ValueError if it has none."""
        self._check_used(page)
        return self._owners[page] > 1

    def take(self, count: int) -> list[int]:
        """``count`` free pages, each now with one owner. PoolExhausted, before any change, if there are fewer."""
        if count < 0:
            raise ValueError(f"cannot take {count} pages; the number must not be negative")
        if self.limit is not None and count > self.limit - self.used:
            raise PoolExhausted(
                f"the KV pool needs {count} page{'s' * (count != 1)}, "
                f"{self.limit - self.used} of its {self.limit} are free"
            )
        if count > len(self._free):
            self._grow(self.used + count)
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._owners[page] = 1
        self.peak = max(self.peak, self.used)
        return pages

    def expect(self, pages: int) -> None:
        """Have memory for so many pages more than are used now when the next ones are lacking, so that it need not be
        got, and what is in use copied, bit by bit. A limit stays.
        """
        self._expected = self.used + pages

    def allocate(self) -> None:
        """Have memory for as many pages as the limit lets, if there is one: after that no tensor is replaced."""
        if self.limit is not None and self.capacity < self.limit:
            self._grow(self.limit)

    def share(self, pages: Iterable[int]) -> None:
        """One more owner for each page (two more if it is named twice). ValueError, before any change, if one is
        free.
        """
        pages = list(pages)
        for page in pages:
            self._check_used(page)
        for page in pages:
            self._owners[page] += 1
            self.shared += self._owners[page] == 2

    def release(self, pages: Iterable[int]) -> list[int]:
        """One owner less for each page (two less if it is named twice); returns the pages that are free now.

        ValueError, before any change, if a page has fewer owners than that.
        """
        fewer = Counter(pages)
        for page, times in fewer.items():
            self._check_used(page)
            if times > self._owners[page]:
                raise ValueError(f"page {page} is released {times} times at once; its owners are {self._owners[page]}")
        freed = []
        for page, times in fewer.items():
            before = self._owners[page]
            self._owners[page] = before - times
            self.shared -= before > 1 >= before - times
            if before == times:
                freed.append(page)
        self._free += freed
        return freed

    def _check_used(self, page: int) -> None:
        if not 0 <= page < self.capacity:
            raise ValueError(f"there is no page {page}: the KV pool has {self.capacity}, counted from 0")
        if self._owners[page] == 0:
            raise ValueError(f"page {page} is free; only a page that was taken and not released can be used")

    # --- storage ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def copy(self, source: int, target: int) -> None:
        """Copy keys and values of page ``source`` to page ``target``, in all layers. ValueError if either is free."""
        self._check_used(source)
        self._check_used(target)
        for stored in (*self.keys, *self.values):
            stored[target].copy_(stored[source])

    @torch.inference_mode()
    def _grow(self, needed: int) -> None:
        """Memory for at least ``needed`` pages, at most ``limit``; one tensor at a time, so that little is held twice.

        Where memory runs out on the way some tensors are larger than ``capacity`` says; the next call goes on.
        """
        self.known.clear()
        capacity = max(needed, self._expected, -(-self.capacity * 3 // 2))
        if self.limit is not None:
            capacity = min(capacity, self.limit)
        for stored in (self.keys, self.values):
            for layer, old in enumerate(stored):
                if len(old) < capacity:
                    new = _memory((capacity, *self._shape), old.dtype, old.device)
                    new[: self.capacity] = old[: self.capacity]
                    stored[layer] = new
        self._owners += [0] * (capacity - self.capacity)
        self._free = [*range(capacity - 1, self.capacity - 1, -1), *self._free]
        self.capacity = capacity
