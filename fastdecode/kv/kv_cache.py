"""Keys and values of the live streams: one row each, in pages of a pool that rows with equal beginnings share.

Rows ``[0, rows)`` are live and packed: a row that is given up leaves its number to the last one. A row's ids
``[0, length)`` are stored: id ``i`` in slot ``i % page_slots`` of page ``table[row, i // page_slots]``. What lies
behind them is never attended.

A page that rows share is not written to: `StreamCache.make_room` gives a row a page of its own for its next id. Only
the pages that `StreamCache.add` takes may be shared before their ids are stored, by rows of the same call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch

from fastdecode.kv.page_pool import PagePool

Ids = tuple[int, ...]


class _Node:
    """A page whose leading slots hold the keys and values of ``ids``, behind the pages of the nodes above.

    ``children`` by their ids; shorter ones than a page fills have no children.
    """

    __slots__ = ("children", "ids", "page", "parent")

    def __init__(self, parent: _Node | None, ids: Ids) -> None:
        self.parent, self.ids, self.page = parent, ids, -1
        self.children: dict[Ids, _Node] = {}


class _Prompts:
    """Which pages hold which beginnings of prompts: a tree, so that equal ids are found by comparing them all."""

    def __init__(self, page_slots: int) -> None:
        self.page_slots = page_slots
        self.root = _Node(None, ())
        self.nodes: dict[int, _Node] = {}

    def follow(self, prompt: Ids, made: list[_Node]) -> tuple[list[_Node], int]:
        """The nodes of ``prompt``'s pages, and how many of its ids were there already.

        The others' nodes are made, without a page, and appended to ``made``.
        """
        node, path, known = self.root, [], 0
        for start in range(0, len(prompt), self.page_slots):
            ids = prompt[start : start + self.page_slots]
            child = self._find(node, ids)
            if child is None:
                child = node.children[ids] = _Node(node, ids)
                made.append(child)
            else:
                known = start + len(ids)
            path.append(child)
            node = child
        return path, known

    def _find(self, node: _Node, ids: Ids) -> _Node | None:
        """The child of ``node`` that begins with ``ids``."""
        child = node.children.get(ids)
        if child is None and len(ids) < self.page_slots:
            child = next((c for c in node.children.values() if c.ids[: len(ids)] == ids), None)
        return child

    def place(self, nodes: list[_Node], pages: list[int]) -> None:
        """Give ``nodes``, just made, their pages."""
        for node, page in zip(nodes, pages, strict=True):
            node.page = page
            self.nodes[page] = node

    def drop(self, nodes: Iterable[_Node]) -> None:
        for node in nodes:
            assert node.parent is not None
            del node.parent.children[node.ids]
            self.nodes.pop(node.page, None)

    def forget(self, pages: Iterable[int]) -> None:
        """Drop ``pages``, which nobody owns any more. (Who owns a page owns those above it, so none below is left.)"""
        self.drop([self.nodes[page] for page in pages if page in self.nodes])

    def trim(self, page: int, length: int) -> None:
        """Keep the first ``length`` slots of ``page``: the others are about to be overwritten by their only owner."""
        node = self.nodes.get(page)
        if node is None or len(node.ids) <= length:
            return
        assert node.parent is not None
        assert not node.children
        ids, siblings = node.ids[:length], node.parent.children
        self.drop([node])
        if ids not in siblings:
            node.ids = ids
            siblings[ids] = node
            self.nodes[page] = node


class _Row:
    """``start`` is the row's length less the cache's count of steps, so that a step need not touch it; ``number`` is -1
    when the row is given up.
    """

    __slots__ = ("number", "pages", "start")

    def __init__(self, number: int, pages: list[int], start: int) -> None:
        self.number, self.pages, self.start = number, pages, start


class StreamCache:
    """Rows of ids' keys and values in pages of ``pool``. Other caches may use the pool, but not this one's pages.

    ``lengths`` (rows,) int64: ids stored, per row. ``table`` (rows, width) int32, ``stride(1) == 1``: the rows' pages;
    0 behind a row's last one; width is the most pages of a row. Both are on the pool's device, inference tensors as its
    storage is, and views of larger tensors that later calls change or replace: ask again after every call.
    ``longest``: the greatest length. ``keys``, ``values``: the pool's lists.

    A step is `make_room`, keys and values written at ``lengths``, then `grow`. Not for several threads at once.
    """

    @torch.inference_mode()
    def __init__(self, pool: PagePool, retain: int | None = 0) -> None:
        self.retain = 0
        self.pool, self.keys, self.values = pool, pool.keys, pool.values
        self.longest = 0
        self._rows: list[_Row] = []
        self._prompts = _Prompts(pool.page_slots)
        self._steps = 0
        self._due: dict[int, list[_Row]] = {}  # by count of steps: rows whose last page is full by then
        self._first_due = 0
        self._settled = True  # every row can be written to until it is due
        device = pool.keys[0].device
        self._lengths = torch.zeros(0, dtype=torch.long, device=device)
        self._table = torch.zeros((0, 0), dtype=torch.int32, device=device)
        self._show()

    @property
    def available(self) -> int | None:
        return self.pool.free

    def pages_missing(self, prompts: Sequence[Sequence[int]]) -> int:
        return sum(-(-len(p) // self.pool.page_slots) for p in prompts)

    @property
    def retained(self) -> int:
        return 0

    def drop_retained(self) -> None:
        pass

    def known(self, prompt: Sequence[int]) -> int:
        return 0

    @property
    def rows(self) -> int:
        """Live rows."""
        return len(self._rows)

    def length(self, row: int) -> int:
        """Ids stored of ``row``, without a look at the device. IndexError if it is not live."""
        return self._row(row).start + self._steps

    def pages(self, row: int) -> list[int]:
        """The pages of ``row``, first to last. IndexError if it is not live."""
        return list(self._row(row).pages)

    # --- rows ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def add(self, prompts: Sequence[Sequence[int]]) -> tuple[slice, list[int]]:
        """Append a row per prompt (ids; may be empty). PoolExhausted, before any change, if pages are lacking.

        Returns the rows and, for each, how many leading ids have keys and values in pages already, or get them from an
        earlier row of this call. The caller writes those of all other ids, all rows' before any is attended; should
        that fail, these rows must be given up with nothing added in between.
        """
        wanted = [tuple(prompt) for prompt in prompts]
        first = self.rows
        made: list[_Node] = []
        try:
            found = [self._prompts.follow(prompt, made) for prompt in wanted]
            self._reserve(first + len(wanted), max((len(path) for path, _ in found), default=0))
            taken = self.pool.take(len(made))
        except BaseException:
            self._prompts.drop(reversed(made))
            raise
        self._prompts.place(made, taken)
        pages = [[node.page for node in path] for path, _ in found]
        held = Counter(page for row in pages for page in row)
        held.subtract(taken)  # taking made an owner
        self.pool.share(held.elements())
        for prompt, own in zip(wanted, pages, strict=True):
            self._rows.append(_Row(self.rows, own, len(prompt) - self._steps))
        if wanted:
            width = self._table.shape[1]
            table = torch.tensor([row + [0] * (width - len(row)) for row in pages], dtype=torch.int32)
            self._table[first : self.rows] = table.view(len(pages), width)
            self._lengths[first : self.rows] = torch.tensor([len(prompt) for prompt in wanted])
            self._settled = False
        self._measure()
        return slice(first, self.rows), [known for _, known in found]

    @torch.inference_mode()
    def fork(self, row: int, length: int | None = None) -> int:
        """A new last row with the first ``length`` ids of ``row`` (default: all), in the same pages; its number.

        IndexError if the row is not live, ValueError if it has fewer ids.
        """
        source = self._row(row)
        length = self._check_length(row, length)
        self._reserve(self.rows + 1, 0)
        number, pages = self.rows, source.pages[: self._pages_of(length)]
        self.pool.share(pages)
        self._rows.append(_Row(number, pages, length - self._steps))
        self._table[number, : len(pages)] = self._table[row, : len(pages)]
        self._table[number, len(pages) :] = 0
        self._lengths[number] = length
        self._settled = False
        self._measure()
        return number

    @torch.inference_mode()
    def truncate(self, row: int, length: int) -> None:
        """Drop the ids of ``row`` from ``length`` on, and the pages that held nothing else.

        IndexError if the row is not live, ValueError if it has fewer ids.
        """
        kept = self._row(row)
        length = self._check_length(row, length)
        dropped = kept.pages[self._pages_of(length) :]
        del kept.pages[self._pages_of(length) :]
        kept.start = length - self._steps
        self._settled = False
        self._release(dropped)
        self._table[row, len(kept.pages) :] = 0
        self._lengths[row] = length
        self._measure()

    @torch.inference_mode()
    def remove(self, row: int) -> int:
        """Give up ``row``. The last row takes its number; returns the row that moved (``row`` itself if it was last).

        IndexError if it is not live.
        """
        gone, last = self._row(row), self._rows.pop()
        moved, gone.number = last.number, -1
        if last is not gone:
            self._rows[row], last.number = last, row
            self._table[row] = self._table[moved]
            self._lengths[row] = self._lengths[moved]
        self._release(gone.pages)
        self._measure()
        return moved

    @torch.inference_mode()
    def clear(self) -> None:
        """Give up all rows."""
        rows, self._rows = self._rows, []
        self._due, self._settled = {}, True
        self._prompts = _Prompts(self.pool.page_slots)
        self.pool.release(page for row in rows for page in row.pages)
        self._measure()

    # --- a step -------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def make_room(self, steps: int = 1) -> None:
        """Let so many slots of every row, from ``lengths`` on, be written to: new pages where the last gets full, a
        copy of the last where it is shared. PoolExhausted, before any change, if pages are lacking.
        """
        end = self._steps + steps
        if self._settled and end <= self._first_due:
            return
        rows = self._rows
        if self._settled:
            rows = [row for due, full in self._due.items() if due < end for row in full if row.number >= 0]
        slots = self.pool.page_slots
        leaving: Counter[int] = Counter()
        stay: list[tuple[int, int]] = []  # a page that is written to, from which slot on
        leave: list[tuple[_Row, int]] = []
        extend: list[tuple[_Row, int]] = []
        width = 0
        for row in rows:
            place, slot = divmod(row.start + self._steps, slots)
            if place < len(row.pages):
                page = row.pages[place]
                if self.pool.owners(page) - leaving[page] > 1:
                    leaving[page] += 1
                    leave.append((row, place))
                else:
                    stay.append((page, slot))
            pages = self._pages_of(row.start + end)
            if pages > len(row.pages):
                extend.append((row, pages - len(row.pages)))
                width = max(width, pages)
        self._reserve(self.rows, width)
        taken = iter(self.pool.take(len(leave) + sum(count for _, count in extend)))
        for page, slot in stay:
            self._prompts.trim(page, slot)
        changes, copies = [], []
        for row, place in leave:
            page = next(taken)
            copies.append((row.pages[place], page))
            changes.append((row.number, place, page))
            row.pages[place] = page
        for row, count in extend:
            for _ in range(count):
                page = next(taken)
                changes.append((row.number, len(row.pages), page))
                row.pages.append(page)
        if not self._settled:
            self._due, self._settled = {}, True
        for due in [due for due in self._due if due < end]:
            del self._due[due]
        for row in rows:
            self._due.setdefault(len(row.pages) * slots - row.start, []).append(row)
        self._first_due = min(self._due, default=self._steps)
        self.pool.release(source for source, _ in copies)  # another row keeps each
        for source, target in copies:
            self.pool.copy(source, target)
        if changes:
            numbers, places, pages = torch.tensor(changes, device=self._table.device).T
            self._table[numbers, places] = pages.int()
            self._show(max(self.table.shape[1], width))

    @torch.inference_mode()
    def grow(self, steps: int = 1) -> None:
        """So many more ids in every row: their keys and values were written from ``lengths`` on, after `make_room`."""
        if not self._rows:
            return
        if not self._settled or self._steps + steps > self._first_due:
            ids = "one more id" if steps == 1 else f"{steps} more ids"
            raise RuntimeError(f"the rows have no room for {ids}; call make_room before their keys are written")
        self.lengths += steps
        self._steps += steps
        self.longest += steps

    # --- within -------------------------------------------------------------------------------------------------

    def _row(self, row: int) -> _Row:
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} is not live: the cache has {self.rows} rows")
        return self._rows[row]

    def _check_length(self, row: int, length: int | None) -> int:
        have = self.length(row)
        if length is None:
            return have
        if not 0 <= length <= have:
            raise ValueError(f"row {row} cannot be cut to {length} ids: it has {have}, so 0 to {have} are possible")
        return length

    def _pages_of(self, length: int) -> int:
        return -(-length // self.pool.page_slots)

    def _release(self, pages: Iterable[int]) -> None:
        self._prompts.forget(self.pool.release(pages))

    def _reserve(self, rows: int, width: int) -> None:
        """Memory for a table of ``rows`` rows and ``width`` pages each, half again as much as there was if it grows."""
        have_rows, have_width = self._table.shape
        if rows > have_rows:
            rows = max(rows, have_rows * 3 // 2)
            lengths = self._lengths.new_zeros(rows)
            lengths[:have_rows] = self._lengths
            self._lengths = lengths
        if width > have_width:
            width = max(width, have_width * 3 // 2)
        if rows > have_rows or width > have_width:
            table = self._table.new_zeros((max(rows, have_rows), max(width, have_width)))
            table[:have_rows, :have_width] = self._table
            self._table = table
            self._show(self.table.shape[1])

    def _measure(self) -> None:
        """Find the longest row and the most pages anew, after rows came, went or were cut."""
        self.longest = max((row.start for row in self._rows), default=-self._steps) + self._steps
        self._show(max((len(row.pages) for row in self._rows), default=0))

    def _show(self, width: int = 0) -> None:
        self.lengths = self._lengths[: self.rows]
        self.table = self._table[: self.rows, :width]
