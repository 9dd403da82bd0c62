"""A small cache, what it holds, and a model of it: a list of rows that is changed as the cache is."""

import random
from collections import Counter
from collections.abc import Callable, Sequence

import torch

from fastdecode.kv.kv_cache import StreamCache
from fastdecode.kv.page_pool import PagePool, PoolExhausted

LAYERS, HEADS, DIM = 2, 2, 3


def new_cache(pages: int | None = None, page_slots: int = 4, retain: int | None = 0) -> StreamCache:
    return StreamCache(PagePool(LAYERS, HEADS, DIM, torch.float32, "cpu", pages=pages, page_slots=page_slots), retain)


@torch.inference_mode()
def write(cache: StreamCache, row: int, at: int, values: torch.Tensor) -> None:
    """Store a token's ``values`` (layers, heads, dim), found through the page table; as its values their negatives."""
    page, slot = int(cache.page_table[row, at // cache.pool.page_slots]), at % cache.pool.page_slots
    for layer in range(LAYERS):
        cache.keys[layer][page, :, slot] = values[layer]
        cache.values[layer][page, :, slot] = -values[layer]


@torch.inference_mode()
def stored(cache: StreamCache, row: int) -> torch.Tensor:
    """What ``row`` holds, (length, layers, heads, dim), read through the page table."""
    pages, length = cache.page_table[row].long(), int(cache.lengths[row])
    read = []
    for both in (cache.keys, cache.values):
        layers = torch.stack([layer[pages] for layer in both])  # (layers, width, heads, slots, dim)
        read.append(layers.permute(1, 3, 0, 2, 4).reshape(-1, LAYERS, HEADS, DIM)[:length])
    assert torch.equal(read[0], -read[1])
    return read[0]


def rows_of(cache: StreamCache) -> tuple:
    """All that a refused call must leave alone, where pages are retained."""
    rows = [(id(row), row.number, row.start, row.found, list(row.pages)) for row in cache._rows]
    owners = [[cache.pool.owners(page) for page in row.pages] for row in cache._rows]
    tables = [cache.page_table.tolist(), cache.lengths.tolist(), cache.longest, cache._steps, cache._settled]
    return rows, owners, tables, [stored(cache, row).numpy().tobytes() for row in range(cache.rows)]


def everything(cache: StreamCache) -> tuple:
    """All that a refused call must leave alone where none are, but for memory put by."""
    storage = [*cache.keys, *cache.values, cache.page_table, cache.lengths]
    return state(cache), [(tensor.shape, tensor.numpy().tobytes()) for tensor in storage]


def state(cache: StreamCache) -> tuple:
    """`everything` but what is in tensors."""

    def tree(node) -> tuple:
        return node.tokens, node.page, [(tokens, tree(child)) for tokens, child in node.children.items()]

    pool, prompts = cache.pool, cache._prompts
    return (
        pool.statistics(),
        (list(pool._owners), list(pool._free)),
        (tree(prompts.root), {page: id(node) for page, node in prompts.nodes.items()}),
        [(id(row), row.number, row.start, row.found, list(row.pages)) for row in cache._rows],
        list(cache._retained),
        (cache.rows, cache.longest, cache._steps, cache._settled),
        {step: list(map(id, rows)) for step, rows in cache._due.items()},
    )


def refused(cache: StreamCache, call: Callable[[], object]) -> bool:
    """Whether ``call`` finds too few pages; then nothing is changed."""
    look = everything if cache.most_retained == 0 else rows_of
    before = look(cache)
    try:
        call()
    except PoolExhausted:
        assert look(cache) == before
        return True
    return False


class Model:
    """What a cache should hold: by row, the keys of its tokens. Those of a prompt follow from the prompt."""

    def __init__(self, seed: int, page_slots: int, pages: int | None, retain: int | None = 0) -> None:
        self.rng, self.cache = random.Random(seed), new_cache(pages, page_slots, retain)
        self.drawn = torch.Generator().manual_seed(seed)
        self.rows: list[list[torch.Tensor]] = []
        self.prompts: list[tuple[int, ...]] = [()]
        self.meanings: dict[tuple[int, ...], torch.Tensor] = {}
        self.counts: Counter[str] = Counter()

    def fresh(self) -> torch.Tensor:
        return torch.randn((LAYERS, HEADS, DIM), generator=self.drawn)

    def prompt(self) -> tuple[int, ...]:
        """Often one seen before, or its beginning, or its beginning and more."""
        base = self.rng.choice(self.prompts[-6:])
        kept = base[: self.rng.choice([len(base), self.rng.randint(0, len(base))])]
        more = self.rng.choice([0, 0, 0, 1, 2, 5]) if len(kept) < 14 else 0
        self.prompts.append(kept + tuple(self.rng.randint(0, 1) for _ in range(more)))
        return self.prompts[-1]

    def content(self, prompt: Sequence[int]) -> list[torch.Tensor]:
        return [self.meanings.setdefault(tuple(prompt[: i + 1]), self.fresh()) for i in range(len(prompt))]

    def add(self, fail: bool = False) -> None:
        """Rows of prompts; with ``fail`` only some of what has to be written is, and the rows are given up."""
        cache, prompts = self.cache, [self.prompt() for _ in range(self.rng.randint(0, 4))]
        used, slots = {page for row in range(cache.rows) for page in cache.pages(row)}, cache.pool.page_slots
        used |= {page for prompt in prompts for page in self.found(prompt)}
        before, available = state(cache), cache.available
        missing, there = cache.pages_missing(prompts), [cache.known(prompt) for prompt in prompts]
        assert state(cache) == before
        result: list = []
        if refused(cache, lambda: result.extend(cache.add(prompts))):
            self.counts["add refused"] += 1
            assert available is not None
            assert missing > available
            shared = {page for prompt in prompts for page in self.found(prompt)}
            assert cache._retained.keys() <= shared
            return
        rows, known = result
        assert available is None or cache.available == available - missing
        assert cache.available is None or cache.available >= 0
        assert rows == slice(len(self.rows), len(self.rows) + len(prompts))
        assert known[:1] == there[:1]
        for row, prompt, count, first in zip(range(rows.start, rows.stop), prompts, known, there, strict=True):
            assert first <= count
            assert count == len(prompt) or (count < len(prompt) and count % slots == 0)
            self.rows.append(self.content(prompt))
            pages = cache.pages(row)
            for at in range(count, len(prompt)):
                assert pages[at // slots] not in used  # nobody's before this call, nor an earlier row's of it
                if not fail or self.rng.random() < 0.5:
                    write(cache, row, at, self.rows[-1][at])
            used |= set(pages)
            self.counts["shared"] += count > 0
            self.counts["shared in part"] += count == len(prompt) and count % slots > 0
        if fail:
            del self.rows[rows.start :]
            for row in reversed(range(rows.start, rows.stop)):
                cache.remove(row, retain=False)
            assert [cache.known(prompt) for prompt in prompts] == there or cache.most_retained is not None

    def fail(self) -> None:
        """A prefill that is broken off."""
        self.add(fail=True)

    def found(self, prompt: tuple[int, ...]) -> list[int]:
        """The pages of what is known of ``prompt``."""
        cache, node, pages = self.cache, self.cache._prompts.root, []
        for begin in range(0, cache.known(prompt), cache.pool.page_slots):
            found = cache._prompts._find(node, prompt[begin : begin + cache.pool.page_slots])
            assert found is not None
            node = found
            pages.append(node.page)
        return pages

    def step(self) -> None:
        cache, slots = self.cache, self.cache.pool.page_slots
        for _ in range(self.rng.choice([1, 1, 3])):
            ahead = self.rng.choice([1, 1, 1, 2, 7])
            before, available = state(cache), cache.available
            missing = cache.pages_for_steps(ahead)
            assert state(cache) == before
            if refused(cache, lambda ahead=ahead: cache.make_room(ahead)):
                self.counts["step refused"] += 1
                assert available is not None
                assert missing > available
                assert cache.retained == 0
                return
            assert available is None or cache.available == available - missing
            assert cache.pages_for_steps(ahead) == 0
            room = everything(cache)
            cache.make_room(self.rng.randint(1, ahead))
            assert everything(cache) == room
            places = set()
            new = [[self.fresh() for _ in range(ahead)] for _ in self.rows]
            for row, content in enumerate(self.rows):
                for at, key in enumerate(new[row], len(content)):
                    assert cache.pool.owners(cache.pages(row)[at // slots]) == 1
                    places.add((cache.pages(row)[at // slots], at % slots))
                    write(cache, row, at, key)
            assert len(places) == ahead * len(self.rows)
            kept = self.rng.randint(1, ahead)  # of those written
            cache.grow(kept)
            for content, keys in zip(self.rows, new, strict=True):
                content += keys[:kept]
            self.counts["steps"] += bool(self.rows)
            self.counts["several steps"] += bool(self.rows) and kept > 1

    def room(self) -> None:
        """A step that is broken off before anything is written."""
        refused(self.cache, lambda: self.cache.make_room(self.rng.choice([1, 5])))

    def fork(self) -> None:
        if self.rows:
            row = self.rng.randrange(len(self.rows))
            length = self.rng.choice([None, self.rng.randint(0, len(self.rows[row]))])
            used = self.cache.pool.used
            assert self.cache.fork(row, length) == len(self.rows)
            assert self.cache.pool.used == used
            self.rows.append(self.rows[row][:length])

    def truncate(self) -> None:
        if self.rows:
            row = self.rng.randrange(len(self.rows))
            length = self.rng.randint(0, len(self.rows[row]))
            self.cache.truncate(row, length)
            del self.rows[row][length:]
            assert len(self.cache.pages(row)) == -(-length // self.cache.pool.page_slots)

    def remove(self) -> None:
        if self.rows:
            row = self.rng.randrange(len(self.rows))
            retain = self.rng.random() < 0.9
            assert self.cache.remove(row, retain) == len(self.rows) - 1
            last = self.rows.pop()
            if row < len(self.rows):
                self.rows[row] = last

    def drop(self) -> None:
        self.cache.drop_retained()
        assert self.cache.retained == 0

    def reclaim(self) -> None:
        cache, pages = self.cache, self.rng.randint(0, 8)
        free, retained = cache.pool.free, list(cache._retained)
        cache.reclaim(pages)
        gone = 0 if free is None else min(max(0, pages - free), len(retained))
        assert list(cache._retained) == retained[gone:]

    def clear(self) -> None:
        self.cache.clear()
        self.rows.clear()
        assert self.cache.pool.used == 0

    @torch.inference_mode()
    def poison(self) -> None:
        """What nobody owns, and what lies behind every row's tokens, becomes NaN."""
        cache, pool = self.cache, self.cache.pool
        seen = Counter[int]()  # slots of a page that some row sees, or that wait for an equal prompt
        for row, content in enumerate(self.rows):
            for place, page in enumerate(cache.pages(row)):
                seen[page] = max(seen[page], min(len(content) - place * pool.page_slots, pool.page_slots))
        for page, node in cache._prompts.nodes.items():
            seen[page] = max(seen[page], len(node.tokens))
        first = torch.tensor([seen[page] for page in range(pool.capacity)], dtype=torch.long)
        unseen = torch.arange(pool.page_slots) >= first[:, None]
        for layer in (*pool.keys, *pool.values):
            layer[: pool.capacity].masked_fill_(unseen[:, None, :, None], float("nan"))

    def check(self) -> None:
        cache, pool = self.cache, self.cache.pool
        lengths, held = [len(row) for row in self.rows], [cache.pages(row) for row in range(cache.rows)]
        assert cache.rows == len(self.rows)
        assert cache.lengths.tolist() == [cache.length(row) for row in range(cache.rows)] == lengths
        assert cache.longest == max(lengths, default=0)
        assert (cache.lengths.dtype, cache.page_table.dtype) == (torch.int64, torch.int32)
        assert cache.page_table.shape == (cache.rows, max(map(len, held), default=0))
        assert cache.page_table.tolist() == [pages + [0] * (cache.page_table.shape[1] - len(pages)) for pages in held]
        assert cache.page_table.stride(1) == 1
        assert cache.page_table.numel() == 0 or cache.page_table.max() < pool.capacity
        for length, pages in zip(lengths, held, strict=True):
            assert 0 <= len(pages) - -(-length // pool.page_slots) <= -(-7 // pool.page_slots)
        owners = Counter(page for pages in held for page in pages)
        assert not owners.keys() & cache._retained.keys()
        owners.update(cache._retained.keys())
        assert {page: pool.owners(page) for page in range(pool.capacity) if pool.owners(page)} == owners
        assert pool.used == len(owners)
        assert cache._prompts.nodes.keys() <= owners.keys()
        assert (
            cache.retained
            == len(cache._retained)
            <= (pool.used if cache.most_retained is None else cache.most_retained)
        )
        assert cache.available == (None if pool.free is None else pool.free + cache.retained)
        below: set[int] = set()  # of the retained pages before this one
        for page in cache._retained:
            node = cache._prompts.nodes[page]
            assert {child.page for child in node.children.values()} <= below
            assert node.parent is cache._prompts.root or node.parent.page in owners
            below.add(page)
        self.counts["most retained"] = max(self.counts["most retained"], cache.retained)
        for row, content in enumerate(self.rows):
            expected = torch.stack(content) if content else torch.zeros(0, LAYERS, HEADS, DIM)
            assert torch.equal(stored(cache, row), expected)
