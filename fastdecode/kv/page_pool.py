"""Memory for keys and values in pages of equal size, each with a count of its owners.

A page holds the keys and values of ``page_slots`` consecutive tokens in every layer. Only a page's only owner writes to
it, unless all owners have agreed on what is written.

An exception may interrupt a method between any two of its instructions, as when a signal handler raises
KeyboardInterrupt. Pages are then lost, or counted wrongly, until `PagePool.recover` is called with the holder they were
taken for. The order of the writes in `PagePool.take`, `PagePool.release` and `PagePool._grow` makes that possible.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from fastdecode.ops.huge_pages import ASKED_FROM, empty

PAGE_SLOTS = 32


class PoolExhausted(RuntimeError):
    """A pool with a limit has fewer free pages than were asked for. The pool was not changed."""


@dataclass(frozen=True)
class PoolStatistics:
    """How full a pool is.

    Numbers of pages: ``capacity`` have memory; ``used`` have an owner; ``shared`` have several owners; ``peak`` is the
    highest ``used`` so far; ``free`` may still be taken (None: no limit). Bytes are those of all layers together.
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
            f"{self.used} pages of {self.page_slots} tokens used ({self.shared} shared, {self.peak} at peak, {free}); "
            f"{self.bytes / 1e6:.1f} MB taken so far, {self.bytes_used / 1e6:.1f} MB of them used"
        )


def _memory(count: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """``count`` tensors whose contents are undefined; on a CPU in huge pages, where the reads of scattered keys and
    values are faster.
    """
    if device.type != "cpu":
        return [torch.empty(shape, dtype=dtype, device=device) for _ in range(count)]
    try:
        return empty([shape] * count, [dtype] * count)
    except MemoryError as error:
        size = math.prod(shape) * dtype.itemsize
        raise MemoryError(
            f"{shape[0]} pages of {shape[2]} tokens take {size / 1e9:,.1f} GB for each layer's keys, and as much for "
            "its values, which this machine does not give: ask for fewer or smaller pages"
        ) from error


def _check_whole(name: str, value: Any) -> None:
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, Integral)):
        raise TypeError(f"{name} is {value!r}: give a whole number")


def _check_count(name: str, value: Any) -> None:
    _check_whole(name, value)
    if value < 0:
        raise ValueError(f"{name} is {value}: give a whole number of at least 0")


def _listed(pages: Any) -> list[int]:
    if isinstance(pages, (str, bytes)) or not isinstance(pages, Iterable):
        raise TypeError(f"pages is {pages!r}: give a list of pages")
    return list(pages)


class PagePool:
    """``keys`` and ``values``: per layer, (capacity, kv_heads, page_slots, head_dim) on ``device``, never initialised.

    `take` and `allocate` may replace these tensors by larger ones and copy what is in them; the two lists stay the same
    objects. A larger tensor has at least half again as many pages as before, or as many as `expect` announced, and
    never more than ``pages``. The tensors are inference tensors: write to them in inference mode only.

    A page may be taken for a *holder*, any object that a weak reference can refer to. The pages of a holder become free
    when nothing refers to the holder any more, or when `recover` is called with it.

    ``lock``, re-entrant: held by whoever reads or writes pages, or calls a method here, while other threads may do so.
    A holder may be dropped by any thread without it. No method needs it where one thread uses the pool.

    ``page_bytes``: the bytes of one page, its keys and values in all layers.

    ``captured``: CUDA graphs and the like that know the tensors by their addresses. The pool empties the list when it
    replaces the tensors.

    ValueError for sizes below 1.
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
        sizes: dict[str, Any] = {"layers": layers, "kv_heads": kv_heads, "head_dim": head_dim, "page_slots": page_slots}
        for name, size in (sizes if pages is None else sizes | {"pages": pages}).items():
            if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
                raise ValueError(f"{name} is {size!r}; a pool of pages needs at least 1, a whole number")
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(f"dtype is {dtype!r}; a pool of pages needs a floating dtype, such as torch.float32")
        try:
            device = torch.device(device)
            empty = torch.empty((0, kv_heads, page_slots, head_dim), dtype=dtype, device=device)
        except (RuntimeError, AssertionError, TypeError) as error:
            raise ValueError(f"device is {device!r}, which torch cannot use here: {error}") from error
        if device.type == "meta":
            raise ValueError("device is meta, where tensors have no values; a pool of pages needs a device with memory")
        self.limit, self.page_slots = pages, page_slots
        self.lock = threading.RLock()
        self.capacity = self.peak = 0
        self._shape = (kv_heads, page_slots, head_dim)
        self.keys: list[Tensor] = [empty] * layers
        self.values: list[Tensor] = [empty] * layers
        self.page_bytes = 2 * layers * kv_heads * page_slots * head_dim * empty.element_size()
        self.captured: list[Any] = []
        self._expected = self._shared = 0
        self._owners: list[int] = []
        self._holders: list[weakref.ref[Any] | None] = []  # only means something for a page with an owner
        self._free: list[int] = []  # the next page to take is the last
        self._references: dict[int, weakref.ref[Any]] = {}  # by id() of the holder
        self._dropped: list[weakref.ref[Any]] = []  # of holders that are gone, until their pages are recovered

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a PagePool cannot be copied or pickled, since others own its pages: make one with new_pool")

    # --- how full it is -----------------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Pages with an owner."""
        self._recover_dropped()
        return self.capacity - len(self._free)

    @property
    def shared(self) -> int:
        """Pages with more than one owner."""
        self._recover_dropped()
        return self._shared

    @property
    def free(self) -> int | None:
        """Pages that may still be taken, whether they have memory yet or not; None without a limit."""
        return None if self.limit is None else self.limit - self.used

    @property
    def bytes(self) -> int:
        """Memory of all pages, used or not."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    @property
    def bytes_used(self) -> int:
        """Memory of the pages with an owner."""
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
        """The number of owners of ``page``; 0 if it is free or there is no such page."""
        _check_whole("page", page)
        self._recover_dropped()
        return self._owners[page] if 0 <= page < self.capacity else 0

    def is_shared(self, page: int) -> bool:
        """Whether ``page`` has more than one owner. ValueError if it has none."""
        self._check_used(page)
        return self._owners[page] > 1

    def take(self, count: int, holder: Any = None) -> list[int]:
        """``count`` free pages, each now with one owner, taken for ``holder`` (None: nobody can `recover` them).

        PoolExhausted, before any change, if fewer are free. ValueError for a negative number.
        """
        _check_whole("count", count)
        if count < 0:
            raise ValueError(f"cannot take {count} pages; the number must not be negative")
        used = self.used
        if self.limit is not None and count > self.limit - used:
            raise PoolExhausted(
                f"the KV pool needs {count} page{'s' * (count != 1)}, {self.limit - used} of its {self.limit} are free"
            )
        reference = None if holder is None else self._reference(holder)  # before any change that it lets us undo
        if count > len(self._free):
            self._grow(used + count)
        first = len(self._free) - count
        pages = self._free[first:][::-1]
        # A page leaves the list of free ones last. Until then any other `take` may have it, and overwrites the rest.
        for page in pages:
            self._holders[page] = reference
        for page in pages:
            self._owners[page] = 1
        del self._free[first:]
        self.peak = max(self.peak, self.capacity - len(self._free))
        return pages

    def expect(self, pages: int) -> None:
        """Announce that about ``pages`` more pages will be taken. The next time the pool needs memory it gets enough
        for all of them at once, within the limit, instead of growing and copying several times.
        """
        _check_count("pages", pages)
        self._expected = self.used + pages

    def reserve(self, pages: int) -> None:
        """Have memory for at least so many pages, or for as many as the limit lets. On a CPU the system gives memory
        only as it is written to.
        """
        _check_count("pages", pages)
        pages = pages if self.limit is None else min(pages, self.limit)
        if self.capacity < pages:
            self._grow(pages)

    def allocate(self) -> None:
        """Get memory for all pages up to the limit, so that no tensor is replaced later. Nothing without a limit."""
        if self.limit is not None and self.capacity < self.limit:
            self._grow(self.limit)

    def share(self, pages: Iterable[int]) -> None:
        """Add one owner to each page (two to a page that is named twice). ValueError, before any change, for a free
        page.
        """
        pages = _listed(pages)
        for page in pages:
            self._check_used(page)
        for page in pages:
            self._owners[page] += 1
            self._shared += self._owners[page] == 2

    def release(self, pages: Iterable[int]) -> list[int]:
        """Take one owner from each page (two from a page that is named twice). Returns the pages that became free.

        ValueError, before any change, if a page has fewer owners than that.
        """
        fewer = Counter(_listed(pages))
        for page, times in fewer.items():
            self._check_used(page)
            if times > self._owners[page]:
                raise ValueError(f"page {page} is released {times} times at once; its owners are {self._owners[page]}")
        freed = []
        for page, times in fewer.items():
            before = self._owners[page]
            self._owners[page] = before - times
            self._shared -= before > 1 >= before - times
            if before == times:
                freed.append(page)
        self._free += freed  # only now, when they have no owner, may others take them
        return freed

    def recover(self, holder: Any) -> None:
        """Free all pages that were taken for ``holder``, however many owners they have, and put the pool in order after
        a call for it that was interrupted. Pages of other holders, and of none, stay. May be called again at any time.
        """
        reference = self._references.get(id(holder))
        self._recover(reference if reference is not None and reference() is holder else None)

    def _reference(self, holder: Any) -> weakref.ref[Any]:
        """The reference that stands for ``holder`` in ``_holders``. It is put into ``_dropped`` when the holder is
        gone, by C code alone, so that neither an exception nor another thread can come in between.
        """
        reference = self._references.get(id(holder))
        if reference is None or reference() is not holder:
            reference = self._references[id(holder)] = weakref.ref(holder, self._dropped.append)
        return reference

    def _recover_dropped(self) -> None:
        if not self._dropped:
            return
        with self.lock:
            while self._dropped:
                reference = self._dropped[0]
                self._recover(reference)
                for key in [key for key, value in self._references.items() if value is reference]:
                    del self._references[key]
                if self._dropped and self._dropped[0] is reference:
                    del self._dropped[0]

    def _recover(self, reference: weakref.ref[Any] | None) -> None:
        owners, holders = self._owners, self._holders
        if reference is not None:
            for page in [page for page, its in enumerate(holders) if its is reference]:
                owners[page] = 0  # first: after an interruption here the page is still found by its holder
                holders[page] = None
        # A page in the list is free even if `take` has begun to give it away. So is one without an owner that `release`
        # or `_grow` has not put there yet.
        free = dict.fromkeys(self._free)
        for page in free:
            owners[page] = 0
        free.update(dict.fromkeys(page for page in range(self.capacity) if owners[page] == 0))
        self._free = list(free)
        self._shared = sum(count > 1 for count in owners)

    def _check_used(self, page: int) -> None:
        _check_whole("page", page)
        if not 0 <= page < self.capacity:
            raise ValueError(f"there is no page {page}: the KV pool has {self.capacity}, counted from 0")
        if self._owners[page] == 0:
            raise ValueError(f"page {page} is free; only a page that was taken and not released can be used")

    # --- storage ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def copy(self, source: int, target: int) -> None:
        """Copy keys and values of page ``source`` to page ``target`` in all layers. ValueError if either is free."""
        self._check_used(source)
        self._check_used(target)
        for stored in (*self.keys, *self.values):
            stored[target].copy_(stored[source])

    @torch.inference_mode()
    def _grow(self, needed: int) -> None:
        """Get memory for at least ``needed`` pages, at most ``limit``. Tensors are replaced one by one, so that only
        one of them is in memory twice; on a CPU small ones together, so that they lie in huge pages.

        If memory runs out on the way, some tensors are larger than ``capacity`` says; the next call replaces the rest.
        """
        self.captured.clear()
        capacity = max(needed, self._expected, -(-self.capacity * 3 // 2))
        if self.limit is not None:
            capacity = min(capacity, self.limit)
        shape, like = (capacity, *self._shape), self.keys[0]
        short = [(its, i) for its in (self.keys, self.values) for i, old in enumerate(its) if len(old) < capacity]
        together = max(len(short), 1) if math.prod(shape) * like.dtype.itemsize < ASKED_FROM else 1
        for some in (short[i : i + together] for i in range(0, len(short), together)):
            for (stored, layer), new in zip(some, _memory(len(some), shape, like.dtype, like.device), strict=True):
                new[: self.capacity] = stored[layer][: self.capacity]
                stored[layer] = new
        self._owners += [0] * (capacity - len(self._owners))
        self._holders += [None] * (capacity - len(self._holders))
        added = range(capacity - 1, self.capacity - 1, -1)
        self.capacity = capacity
        self._free[:0] = added
