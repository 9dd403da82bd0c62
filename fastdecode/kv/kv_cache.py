"""The keys and values of all sequences that are being decoded, in pages of a pool. Equal beginnings share pages.

Each sequence is a row. Rows are numbered ``[0, rows)``, without gaps: when a row is removed, the last row takes its
number. A row stores its tokens ``[0, length)``: token ``i`` is in slot ``i % page_slots`` of page
``page_table[row, i // page_slots]``. Slots after that are never attended.

Nothing is written to a page that several rows share: `StreamCache.make_room` first gives a row a page of its own for
its next token. One exception: rows that came in the same `StreamCache.add` may share pages that are not written yet.

A page that holds the beginning of a prompt can stay when its last row leaves (it is *retained*), for later prompts that
begin alike.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastdecode.kv.page_pool import PagePool
from fastdecode.kv.prompt_tree import Node, PromptTree


class _Row:
    """``start``: the row's length minus the cache's count of steps, so that a step need not change it. ``number``: -1
    after the row was removed. ``found``: how many of its first pages were in the cache before the row.
    """

    __slots__ = ("found", "number", "pages", "start")

    def __init__(self, number: int, pages: list[int], start: int, found: int) -> None:
        self.number, self.pages, self.start, self.found = number, pages, start, found


class _Plan(NamedTuple):
    """What `StreamCache.make_room` has to do for ``rows``.

    ``stay``: pages that will be written to by their only owner, and from which slot on. ``leave``: rows, and which of
    their pages they must copy because others share it. ``extend``: rows, and how many pages they need besides.
    ``width``: the most pages of a row that gets longer.
    """

    rows: list[_Row]
    stay: list[tuple[int, int]]
    leave: list[tuple[_Row, int]]
    extend: list[tuple[_Row, int]]
    width: int

    @property
    def pages(self) -> int:
        return len(self.leave) + sum(count for _, count in self.extend)


class StreamCache:
    """Rows of keys and values in pages of ``pool``. Other caches may use the same pool, but no page of this one.

    ``lengths`` (rows,) int64: tokens stored per row. ``page_table`` (rows, width) int32, ``stride(1) == 1``: the
    pages of each row, and 0 after its last one; width is the most pages of any row. Both are inference tensors on the
    pool's device, and views of larger tensors that later calls change or replace: read the attributes anew after
    every call. ``longest``: the greatest length. ``keys``, ``values``: the pool's lists.

    A step is `make_room`, then keys and values written at ``lengths``, then `grow`.

    ``retain``: the most pages that stay after their last row left, because a later prompt may begin with the same
    tokens. None: as many as the pool has room for; a pool without a limit then grows without end. The least recently
    used page goes first, when there are more than ``retain``, and when a call here needs pages that the pool has not.
    A call of another cache does not make them go: `reclaim` does. ValueError for a negative number, TypeError for
    anything but an integer or None.

    The pages are freed when the cache is dropped. After an exception that interrupted a call (KeyboardInterrupt) only
    `clear` may be called. One thread at a time; where others use the pool, every call is made under ``pool.lock``.
    """

    @torch.inference_mode()
    def __init__(self, pool: PagePool, retain: int | None = 0) -> None:
        if retain is not None and (isinstance(retain, bool) or not isinstance(retain, int)):
            raise TypeError(f"retain is {retain!r}; it must be a number of pages, or None for no bound")
        if retain is not None and retain < 0:
            raise ValueError(f"retain is {retain}; it must be a number of pages from 0, or None for no bound")
        self.pool, self.keys, self.values = pool, pool.keys, pool.values
        self.most_retained = retain
        device = pool.keys[0].device
        self._lengths = torch.zeros(0, dtype=torch.long, device=device)
        self._page_table = torch.zeros((0, 0), dtype=torch.int32, device=device)
        self._forget_all()

    def _forget_all(self) -> None:
        self._rows: list[_Row] = []
        self._prompts = PromptTree(self.pool.page_slots)
        # Pages whose only owner is the cache, the least recently used first. As a row leaves, its last page is put here
        # first, so a page always comes after all pages below it in the tree: the first one has none below it.
        self._retained: OrderedDict[int, None] = OrderedDict()
        self._steps = 0
        self._due: dict[int, list[_Row]] = {}  # by count of steps: rows whose last page is full by then
        self._first_due = 0
        self._settled = True  # every row can be written to until it is due
        self._measure()

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self._rows)

    @property
    def retained(self) -> int:
        """Pages that no row uses, kept for later prompts."""
        return len(self._retained)

    @property
    def available(self) -> int | None:
        """Pages that rows may still take: those free in the pool and the retained ones. None without a limit."""
        free = self.pool.free
        return None if free is None else free + len(self._retained)

    def length(self, row: int) -> int:
        """Tokens stored of ``row``, without a wait for the device. IndexError if there is no such row."""
        return self._row(row).start + self._steps

    def identity(self, row: int) -> object:
        """An object that is this row's alone as long as the row is here, whatever its number becomes. IndexError if
        there is no such row.
        """
        return self._row(row)

    def pages(self, row: int) -> list[int]:
        """The pages of ``row``, first to last. IndexError if there is no such row."""
        return list(self._row(row).pages)

    def known(self, prompt: Sequence[int]) -> int:
        """How many leading tokens of ``prompt`` have their keys and values here, so that `add` would share them."""
        return self._prompts.known(prompt)

    def pages_missing(self, prompts: Sequence[Sequence[int]]) -> int:
        """How many of the `available` pages ``add(prompts)`` would take now: new pages, and retained ones that it would
        share. Nothing is changed.
        """
        made: list[Node] = []
        try:
            paths = [self._prompts.follow(tuple(prompt), made)[0] for prompt in prompts]
            return len(made) + len({node.page for path in paths for node in path} & self._retained.keys())
        finally:
            self._prompts.drop(reversed(made))

    def pages_for_steps(self, steps: int = 1) -> int:
        """How many of the `available` pages ``make_room(steps)`` would take now. Nothing is changed."""
        end = self._steps + steps
        return 0 if self._settled and end <= self._first_due else self._plan(end).pages

    # --- rows ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def add(self, prompts: Sequence[Sequence[int]]) -> tuple[slice, list[int]]:
        """Append one row per prompt (tokens; may be empty). PoolExhausted, with all rows as they were, if pages are
        missing even without the retained ones.

        Returns the rows and, for each, how many leading tokens have keys and values in its pages already, or get them
        from an earlier row of this call. The caller writes those of all other tokens, for all rows, before any of them
        is attended. If that fails, the caller gives these rows up by ``remove(row, retain=False)`` before any other
        call.
        """
        wanted = [tuple(prompt) for prompt in prompts]
        first = self.rows
        made: list[Node] = []
        reused: list[int] = []
        try:
            paths = [self._prompts.follow(prompt, made) for prompt in wanted]
            self._reserve(first + len(wanted), max((len(path) for path, _ in paths), default=0))
            nodes = dict.fromkeys(node for path, _ in paths for node in path)
            reused = [node.page for node in nodes if node.page in self._retained]
            for page in reused:  # the first row that shares a retained page becomes its owner in place of the cache
                del self._retained[page]
            taken = self._take(len(made))
        except BaseException:
            self._prompts.drop(reversed(made))
            self._retained.update(dict.fromkeys(reversed(reused)))
            raise
        found = [sum(node.page >= 0 for node in path) for path, _ in paths]
        self._prompts.place(made, taken)
        pages = [[node.page for node in path] for path, _ in paths]
        owners = Counter(page for row in pages for page in row)
        owners.subtract(taken)  # these have one owner already
        owners.subtract(reused)
        self.pool.share(owners.elements())
        for prompt, own, old in zip(wanted, pages, found, strict=True):
            self._rows.append(_Row(self.rows, own, len(prompt) - self._steps, old))
        if wanted:
            width = self._page_table.shape[1]
            table = torch.tensor([row + [0] * (width - len(row)) for row in pages], dtype=torch.int32)
            self._page_table[first : self.rows] = table.view(len(pages), width)
            self._lengths[first : self.rows] = torch.tensor([len(prompt) for prompt in wanted])
            self._settled = False
        self._measure()
        return slice(first, self.rows), [known for _, known in paths]

    @torch.inference_mode()
    def fork(self, row: int, length: int | None = None) -> int:
        """Append a row with the first ``length`` tokens of ``row`` (default: all), in the same pages; its number.

        IndexError if there is no such row, ValueError if it has fewer tokens.
        """
        source = self._row(row)
        length = self._check_length(row, length)
        self._reserve(self.rows + 1, 0)
        number, pages = self.rows, source.pages[: self._pages_of(length)]
        self.pool.share(pages)
        self._rows.append(_Row(number, pages, length - self._steps, len(pages)))
        self._page_table[number, : len(pages)] = self._page_table[row, : len(pages)]
        self._page_table[number, len(pages) :] = 0
        self._lengths[number] = length
        self._settled = False
        self._measure()
        return number

    @torch.inference_mode()
    def truncate(self, row: int, length: int) -> None:
        """Drop the tokens of ``row`` from ``length`` on, and the pages that held nothing else.

        IndexError if there is no such row, ValueError if it has fewer tokens.
        """
        cut = self._row(row)
        length = self._check_length(row, length)
        dropped = cut.pages[self._pages_of(length) :]
        del cut.pages[self._pages_of(length) :]
        cut.start = length - self._steps
        self._settled = False
        self._release(dropped)
        self._page_table[row, len(cut.pages) :] = 0
        self._lengths[row] = length
        self._measure()

    @torch.inference_mode()
    def remove(self, row: int, retain: bool = True) -> int:
        """Give up ``row``. The last row takes its number; returns the number that this row had (``row`` itself if it
        was the last).

        Pages of its prompt that no other row uses may be retained. ``retain=False``, for a row whose prompt was not
        written completely: the pages that `add` took for it are not, neither now nor when the last of the rows that
        share them leaves. Pages that were in the cache before that `add` may still be.

        IndexError if there is no such row.
        """
        gone, last = self._row(row), self._rows.pop()
        moved, gone.number = last.number, -1
        if last is not gone:
            self._rows[row], last.number = last, row
            self._page_table[row] = self._page_table[moved]
            self._lengths[row] = self._lengths[moved]
        if not retain:
            for page in gone.pages[gone.found :]:
                if page in self._prompts.nodes:
                    self._prompts.nodes[page].retainable = False
        self._release(gone.pages)
        self._measure()
        return moved

    def remember(self, row: int, tokens: Sequence[int]) -> None:
        """Let later prompts find the whole pages of ``tokens``, which are the first that ``row`` holds, generated ones
        too: they are retained when the row leaves. Nothing where no pages are retained. IndexError if there is no such
        row; that they are the row's tokens is not checked.
        """
        kept = self._row(row)
        if self.most_retained != 0:
            self._prompts.extend(tuple(tokens[: self.length(row)]), kept.pages)

    @torch.inference_mode()
    def clear(self) -> None:
        """Remove all rows and free all pages, retained ones too. Also right after a call that was interrupted anywhere
        by an exception, this one included.
        """
        self._forget_all()
        self.pool.recover(self)

    # --- a step -------------------------------------------------------------------------------------------------

    def make_room(self, steps: int = 1) -> None:
        """Make the next ``steps`` slots of every row, from ``lengths`` on, its own to write to: with new pages where
        the last one gets full, with a copy of the last one where it is shared. PoolExhausted, with all rows as they
        were, if pages are missing even without the retained ones.
        """
        if not self._settled or self._steps + steps > self._first_due:
            self._make_room(self._steps + steps)

    @torch.inference_mode()
    def _make_room(self, end: int) -> None:
        plan, slots = self._plan(end), self.pool.page_slots
        self._reserve(self.rows, plan.width)
        taken = iter(self._take(plan.pages))
        for page, slot in plan.stay:
            self._trim(page, slot)
        changes, copies = [], []
        for row, place in plan.leave:
            page = next(taken)
            copies.append((row.pages[place], page))
            changes.append((row.number, place, page))
            row.pages[place] = page
        for row, count in plan.extend:
            for _ in range(count):
                page = next(taken)
                changes.append((row.number, len(row.pages), page))
                row.pages.append(page)
        if not self._settled:
            self._due, self._settled = {}, True
        for due in [due for due in self._due if due < end]:
            del self._due[due]
        for row in plan.rows:
            self._due.setdefault(len(row.pages) * slots - row.start, []).append(row)
        self._first_due = min(self._due, default=self._steps)
        self.pool.release(source for source, _ in copies)  # each keeps another row
        for source, target in copies:
            self.pool.copy(source, target)
        if changes:
            numbers, places, pages = torch.tensor(changes, device=self._page_table.device).T
            self._page_table[numbers, places] = pages.int()
            self._show(max(self.page_table.shape[1], plan.width))

    def grow(self, steps: int = 1) -> None:
        """Count ``steps`` more tokens in every row. Their keys and values were written from ``lengths`` on, after
        `make_room`; RuntimeError without it.
        """
        if not self._rows:
            return
        if not self._settled or self._steps + steps > self._first_due:
            tokens = "one more token" if steps == 1 else f"{steps} more tokens"
            raise RuntimeError(f"the rows have no room for {tokens}; call make_room before their keys are written")
        if torch.is_inference_mode_enabled():  # entering it takes longer than the addition
            self.lengths.add_(steps)
        else:
            with torch.inference_mode():
                self.lengths.add_(steps)
        self._steps += steps
        self.longest += steps

    def _plan(self, end: int) -> _Plan:
        rows = self._rows
        if self._settled:
            rows = [row for due, full in self._due.items() if due < end for row in full if row.number >= 0]
        plan = _Plan(rows, [], [], [], 0)
        leaving: Counter[int] = Counter()
        width = 0
        for row in rows:
            place, slot = divmod(row.start + self._steps, self.pool.page_slots)
            if place < len(row.pages):
                page = row.pages[place]
                if self.pool.owners(page) - leaving[page] > 1:
                    leaving[page] += 1
                    plan.leave.append((row, place))
                else:
                    plan.stay.append((page, slot))
            pages = self._pages_of(row.start + end)
            if pages > len(row.pages):
                plan.extend.append((row, pages - len(row.pages)))
                width = max(width, pages)
        return plan._replace(width=width)

    # --- retained pages -----------------------------------------------------------------------------------------

    def drop_retained(self) -> None:
        """Free all retained pages."""
        self._evict(len(self._retained))

    def reclaim(self, pages: int) -> None:
        """Free retained pages, the least recently used first, until ``pages`` are free in the pool, or none is
        retained. Nothing where the pool has no limit.
        """
        free = self.pool.free
        if free is not None and free < pages:
            self._evict(min(pages - free, len(self._retained)))

    def _take(self, count: int) -> list[int]:
        self.reclaim(count)
        return self.pool.take(count, self)

    def _evict(self, count: int) -> None:
        pages = [self._retained.popitem(last=False)[0] for _ in range(count)]
        self._prompts.drop([self._prompts.nodes[page] for page in pages])
        self.pool.release(pages)

    def _release(self, pages: list[int]) -> None:
        """Take one owner from ``pages``, which a row has in this order; retain them, or forget what was in them."""
        kept = []
        if self.most_retained != 0:
            for page in pages:
                node = self._prompts.nodes.get(page)
                if node is None or not node.retainable:
                    break
                if self.pool.owners(page) == 1:
                    kept.append(page)
        self._retained.update(dict.fromkeys(reversed(kept)))  # the cache is now the owner in place of the row
        freed = self.pool.release(page for page in pages if page not in self._retained)
        for page in reversed(freed):  # a node after those below it
            node = self._prompts.nodes.get(page)
            if node is not None:
                self._drop_below(node)
                self._prompts.drop([node])
        if self.most_retained is not None:
            self._evict(max(0, len(self._retained) - self.most_retained))

    def _drop_below(self, node: Node) -> None:
        """Free the retained pages below ``node``, whose tokens are about to go. (A row that used a page below would own
        that of ``node`` as well.)
        """
        below = self._prompts.below(node)
        if not below:
            return
        self._prompts.drop(below)
        for child in below:
            del self._retained[child.page]
        self.pool.release(child.page for child in below)

    def _trim(self, page: int, length: int) -> None:
        """Forget the tokens of ``page`` from slot ``length`` on: its only owner is about to overwrite them."""
        node = self._prompts.nodes.get(page)
        if node is not None and len(node.tokens) > length:
            self._drop_below(node)
            self._prompts.trim(node, length)

    # --- within -------------------------------------------------------------------------------------------------

    def _row(self, row: int) -> _Row:
        if not 0 <= row < self.rows:
            raise IndexError(f"there is no row {row}: the cache has {self.rows} rows, counted from 0")
        return self._rows[row]

    def _check_length(self, row: int, length: int | None) -> int:
        have = self.length(row)
        if length is None:
            return have
        if not 0 <= length <= have:
            raise ValueError(f"row {row} cannot be cut to {length} tokens: it has {have}, so 0 to {have} are possible")
        return length

    def _pages_of(self, length: int) -> int:
        return -(-length // self.pool.page_slots)

    def _reserve(self, rows: int, width: int) -> None:
        """Get memory for a page table of ``rows`` rows and ``width`` pages each; half again as much as before if it
        grows.
        """
        have = len(self._lengths)
        if rows > have:
            lengths = self._lengths.new_zeros(max(rows, have * 3 // 2))
            lengths[:have] = self._lengths
            self._lengths = lengths
        have, have_width = self._page_table.shape
        if rows > have or width > have_width:
            rows = max(rows, have * 3 // 2) if rows > have else have
            width = max(width, have_width * 3 // 2) if width > have_width else have_width
            table = self._page_table.new_zeros((rows, width))
            table[:have, :have_width] = self._page_table
            self._page_table = table
            self._show(self.page_table.shape[1])

    def _measure(self) -> None:
        """Find the greatest length and the most pages of a row anew, after rows came, went or were cut."""
        self.longest = max((row.start for row in self._rows), default=-self._steps) + self._steps
        self._show(max((len(row.pages) for row in self._rows), default=0))

    def _show(self, width: int = 0) -> None:
        self.lengths = self._lengths[: self.rows]
        self.page_table = self._page_table[: self.rows, :width]
