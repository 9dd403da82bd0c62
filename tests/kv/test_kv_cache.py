"""The cache against a list of rows: random adding, growing, forking, cutting and removing in a small pool."""

import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from models_for_tests import tiny_model

from fastdecode.decoder import Decoder
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


@pytest.mark.parametrize(
    ("page_slots", "pages", "retain"),
    [
        (1, 40, 0),
        (2, 20, 0),
        (4, 12, 0),
        (4, None, 0),
        (32, 5, 0),
        (1, 40, None),
        (2, 20, 6),
        (4, 12, None),
        (4, 12, 1),
        (3, None, 9),
        (3, None, None),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_against_a_list_of_rows(seed: int, page_slots: int, pages: int | None, retain: int | None):
    model = Model(seed, page_slots, pages, retain)
    calls = [model.add, model.step, model.room, model.fork, model.truncate, model.remove, model.clear, model.fail]
    calls += [model.drop, model.reclaim]
    for _ in range(600):
        call = model.rng.choices(calls, weights=[6, 10, 1, 3, 3, 9, 0.2, 1, 0.1, 0.2])[0]
        (call if len(model.rows) < 20 else model.remove)()
        model.check()
        model.poison()
    for name in ["shared", "steps", *(["shared in part"] if page_slots > 1 else [])]:
        assert model.counts[name] > 20
    assert model.counts["several steps"] > 2
    if pages:
        assert model.counts["add refused"] > 2
        assert model.counts["step refused"] > 5
    while model.rows:
        model.remove()
        model.check()
    assert model.counts["most retained"] >= (3 if retain is None else retain)
    model.drop()
    model.check()
    assert model.cache.pool.used == model.cache.pool.shared == model.cache.longest == 0
    assert not model.cache._prompts.root.children


@pytest.mark.parametrize("page_slots", [1, 3, 32])
def test_rows_leave_in_the_course_of_long_runs(page_slots: int):
    model = Model(0, page_slots, None)
    for _ in range(8):
        while len(model.rows) < 8:
            model.add()
        for _ in range(20):
            model.rng.choice([model.step, model.step, model.step, model.remove])()
            model.check()
            model.poison()


def test_two_caches_may_use_one_pool():
    first = Model(0, 2, 24)
    second = Model(1, 2, None)
    second.cache = StreamCache(first.cache.pool)
    for number in range(400):
        model, other = (first, second) if number % 2 else (second, first)
        model.rng.choice([model.add, model.step, model.fork, model.truncate, model.remove, model.remove])()
        for row, content in enumerate(other.rows):
            assert len(content) == 0 or torch.equal(stored(other.cache, row), torch.stack(content))
    assert first.counts["step refused"] + second.counts["step refused"] > 0
    first.cache.clear()
    second.cache.clear()
    assert first.cache.pool.used == 0


def test_ten_thousand_steps_need_no_more_memory_than_a_few():
    cache, rng, capacity = new_cache(), random.Random(0), 0
    for step in range(10_000):
        while cache.rows < 6:
            cache.add([[rng.randint(0, 1) for _ in range(rng.randint(0, 20))]])
        cache.make_room()
        cache.grow()
        for row in reversed(range(cache.rows)):
            if cache.length(row) >= 40:
                cache.remove(row)
        if step == 1000:
            capacity = cache.pool.capacity
    assert cache.pool.capacity == capacity <= 6 * 10 * 3 // 2
    assert len(cache._due) <= 4
    assert sum(map(len, cache._due.values())) <= 6 + 6 * 4
    cache.clear()
    assert cache.pool.used == 0
    assert not cache._prompts.nodes
    assert not cache._prompts.root.children


# --- sharing ----------------------------------------------------------------------------------------------------


def test_equal_prompts_use_the_pages_of_one():
    cache = new_cache(page_slots=32)
    rows, known = cache.add([range(100)] * 8)
    assert (rows, known) == (slice(0, 8), [0] + [100] * 7)
    assert cache.pool.used == cache.pool.shared == 4
    assert (cache.page_table == cache.page_table[0]).all()
    assert cache.add([range(100)])[1] == [100]
    assert cache.pool.used == 4
    cache.make_room()  # nine rows, nine last pages
    assert cache.pool.used == 3 + 9
    assert len(set(cache.page_table[:, 3].tolist())) == 9


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("first", "second", "known"),
    [
        ("abcdefgh", "abcdefgh", 8),
        ("abcdefgh", "abcd", 4),
        ("abcdefgh", "abcdef", 6),  # a part of a full page
        ("abcdefg", "abcdef", 6),  # a part of a part
        ("abcdef", "abcdef", 6),
        ("abcdef", "abcdefg", 4),  # slot 6 is written by the second row only
        ("abcdef", "abcdefgh", 4),
        ("abcdefgh", "abcdxfgh", 4),
        ("abcdefgh", "xbcdefgh", 0),
        ("abcdefgh", "efgh", 0),  # equal tokens after others have other keys
        ("abcdabcd", "abcdabcdabcd", 8),
        ("abcdefgh", "", 0),
        ("", "", 0),
        ("ab", "a", 1),
        ("a", "ab", 0),
    ],
)
def test_how_much_of_a_prompt_is_known(first: str, second: str, known: int, together: bool):
    cache = new_cache(page_slots=4)
    prompts = [list(map(ord, first)), list(map(ord, second))]
    calls = [prompts] if together else [prompts[:1], prompts[1:]]
    found = [known for call in calls for known in cache.add(call)[1]]
    assert found == [0, known]
    fresh = -(-len(second) // 4) - -(-known // 4)
    assert cache.pool.used == -(-len(first) // 4) + fresh


def test_tokens_of_equal_hash_are_told_apart():
    cache = new_cache(page_slots=1)
    assert hash((-1,)) == hash((-2,))
    assert cache.add([[-1], [-2]])[1] == [0, 0]


def test_what_a_row_appended_is_not_taken_for_a_prompt():
    cache = new_cache(page_slots=4)
    cache.add([[1, 2]])
    cache.make_room()
    cache.grow()
    assert cache.add([[1, 2, 3], [1, 2]])[1] == [0, 2]


def test_a_slot_overwritten_is_no_longer_known():
    cache = new_cache(page_slots=4)
    cache.add([[1, 2, 3, 4, 5]])
    cache.truncate(0, 2)
    assert cache.add([[1, 2, 3, 4]])[1] == [4]  # still there
    cache.remove(1)
    cache.make_room()
    assert cache.add([[1, 2, 3]])[1] == [0]
    cache.remove(1)
    assert cache.add([[1, 2]])[1] == [2]


def test_pages_may_be_cut_to_equal_tokens():
    cache = new_cache(page_slots=4)
    cache.add([[1, 2, 3, 4], [1, 2, 5, 6]])
    for row in range(2):
        cache.truncate(row, 2)
    cache.make_room()
    assert cache.add([[1, 2, 3], [1, 2, 5], [1]])[1] == [0, 0, 1]
    while cache.rows:
        cache.remove(0)
    assert cache.pool.used == 0
    assert not cache._prompts.root.children


def test_nothing_is_known_of_pages_given_up():
    cache = new_cache(page_slots=4)
    cache.add([range(9), range(9)])
    cache.remove(0)
    assert cache.add([range(9)])[1] == [9]
    cache.remove(0)
    cache.remove(0)
    assert cache.pool.used == 0
    assert cache.add([range(9)])[1] == [0]
    cache.clear()
    assert cache.add([range(9)])[1] == [0]


def test_a_refused_prompt_is_not_known_later():
    cache = new_cache(pages=3, page_slots=4)
    cache.add([range(4)])
    with pytest.raises(PoolExhausted, match="the KV pool needs 3 pages, 2 of its 3 are free"):
        cache.add([[9, 9], range(12)])
    assert cache.add([[9, 9], range(8)])[1] == [0, 4]


def test_prompts_that_are_not_tokens_change_nothing():
    cache = new_cache()
    cache.add([range(5)])
    before = everything(cache)
    with pytest.raises(TypeError):
        cache.add([range(7), [[1]], range(2)])  # type: ignore[list-item]
    assert everything(cache) == before


def test_one_of_the_owners_writes_where_it_is_and_the_others_copy():
    cache = new_cache(pages=5, page_slots=4)
    cache.add([range(6)] * 4)
    for at in range(6):
        write(cache, 0, at, torch.full((LAYERS, HEADS, DIM), float(at)))
    cache.make_room()  # one page for each of three
    assert (cache.pool.used, cache.pool.shared) == (5, 1)
    for row in range(4):
        write(cache, row, 6, torch.full((LAYERS, HEADS, DIM), float(row)))
    cache.grow()
    for row in range(4):
        assert stored(cache, row)[:, 0, 0, 0].tolist() == [*range(6), row]


def test_a_row_beyond_a_shared_page_keeps_it():
    cache = new_cache(page_slots=4)
    cache.add([range(8), range(3)])
    first = cache.pages(0)
    cache.make_room()
    assert cache.pages(0)[:2] == first
    assert cache.pages(1) != first[:1]


def test_storage_that_moves_keeps_what_rows_hold():
    model = Model(0, 4, None)
    model.prompts = [tuple(range(14))]
    capacities = set()
    for _ in range(25):
        model.add()
        model.step()
        model.check()
        capacities.add(model.cache.pool.capacity)
    assert len(capacities) > 5
    assert model.cache.keys is model.cache.pool.keys


# --- cost -------------------------------------------------------------------------------------------------------


def python_calls(call: Callable[[], object]) -> int:
    count = 0

    def profile(frame, event, arg) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


def test_a_step_within_pages_costs_the_same_for_any_number_of_rows():
    costs = []
    for rows in (2, 50, 400):
        cache = new_cache(page_slots=32)
        cache.add([[row, *range(70)] for row in range(rows)])
        cache.make_room()
        cache.grow()

        def step(cache: StreamCache = cache) -> None:
            cache.make_room()
            cache.grow()

        table = cache.page_table
        costs.append(python_calls(step))
        assert cache.page_table is table
    assert costs[0] == costs[1] == costs[2] < 30


def test_only_rows_at_the_end_of_a_page_are_looked_at():
    costs = []
    for rows in (2, 50, 400):
        cache = new_cache(page_slots=32)
        cache.add([[0] * 31, *([row, *range(70)] for row in range(rows))])
        cache.make_room()
        cache.grow()
        used = cache.pool.used
        costs.append(python_calls(cache.make_room))
        assert cache.pool.used == used + 1
    assert costs[0] == costs[1] == costs[2]


# --- bad calls --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [-1, 2])
@pytest.mark.parametrize("name", ["remove", "fork", "length", "pages", "truncate"])
def test_a_row_that_is_not_live_is_refused(name: str, row: int):
    cache = new_cache()
    cache.add([[1], [2]])
    before = everything(cache)
    with pytest.raises(IndexError, match=f"there is no row {row}: the cache has 2 rows"):
        getattr(cache, name)(row, *([0] if name == "truncate" else []))
    assert everything(cache) == before


@pytest.mark.parametrize("length", [-1, 4])
@pytest.mark.parametrize("name", ["fork", "truncate"])
def test_a_length_that_a_row_has_not_is_refused(name: str, length: int):
    cache = new_cache()
    cache.add([[1, 2, 3]])
    before = everything(cache)
    with pytest.raises(ValueError, match=f"row 0 cannot be cut to {length} tokens: it has 3, so 0 to 3 are possible"):
        getattr(cache, name)(0, length)
    assert everything(cache) == before


@pytest.mark.parametrize("change", ["add", "fork", "truncate", "step"])
def test_rows_without_room_cannot_grow(change: str):
    cache = new_cache(page_slots=4)
    cache.add([[1, 2, 3]])
    cache.make_room()
    if change == "add":
        cache.add([[1]])
    elif change == "fork":
        cache.fork(0)
    elif change == "truncate":
        cache.truncate(0, 1)
    else:
        cache.grow()
    before = everything(cache)
    with pytest.raises(RuntimeError, match="call make_room before"):
        cache.grow()
    assert everything(cache) == before
    cache.make_room()
    cache.grow()


def test_a_cache_without_rows_takes_steps():
    cache = new_cache()
    cache.make_room()
    cache.grow()
    assert (cache.rows, cache.longest, cache.page_table.shape) == (0, 0, (0, 0))
    assert cache.add([]) == (slice(0, 0), [])


def test_tensors_are_changed_outside_inference_mode():
    cache = new_cache()
    assert not torch.is_inference_mode_enabled()
    cache.add([[1, 2, 3], [1, 2]])
    cache.make_room()
    cache.grow()
    cache.truncate(cache.fork(0), 1)
    assert cache.lengths.is_inference()
    assert cache.page_table.is_inference()
    cache.remove(0)
    cache.clear()


# --- retained pages ---------------------------------------------------------------------------------------------


def leave(cache: StreamCache, *prompts: str) -> None:
    """Rows of ``prompts`` that come and go, one after the other."""
    for prompt in prompts:
        cache.add([list(map(ord, prompt))])
        cache.remove(cache.rows - 1)


def known(cache: StreamCache, *prompts: str) -> list[int]:
    return [cache.known(list(map(ord, prompt))) for prompt in prompts]


def test_a_prompt_is_known_after_its_row_left():
    cache = new_cache(page_slots=4, retain=None)
    cache.add([range(6)])
    keys = [torch.full((LAYERS, HEADS, DIM), float(at)) for at in range(9)]
    for at in range(6):
        write(cache, 0, at, keys[at])
    for at in range(6, 9):  # generated: the rest of the prompt's last page, and one more page
        cache.make_room()
        write(cache, 0, at, keys[at])
        cache.grow()
    cache.remove(0)
    assert (cache.rows, cache.retained, cache.pool.used) == (0, 2, 2)
    assert (cache.known(range(6)), cache.known(range(7)), cache.known([0, 1]), cache.known([1])) == (6, 4, 2, 0)
    assert cache.pages_missing([range(6)]) == 2  # no new page, and two retained ones
    assert cache.pages_missing([range(6), range(6), range(9)]) == 2 + 2
    assert cache.add([range(6)])[1] == [6]
    assert (cache.retained, cache.pool.used, cache.pool.shared) == (0, 2, 0)
    assert torch.equal(stored(cache, 0), torch.stack(keys[:6]))
    cache.make_room()
    assert cache.pool.used == 2  # the last page is the row's own: no copy
    cache.remove(0)
    assert cache.retained == 2


def test_without_retain_nothing_stays():
    cache = new_cache(page_slots=4)
    leave(cache, "abcdef")
    assert (cache.retained, cache.pool.used, known(cache, "abcdef")) == (0, 0, [0])


def test_the_least_recently_used_page_goes_first_and_leaves_before_their_parents():
    cache = new_cache(page_slots=1, retain=4)
    leave(cache, "abc", "x")
    assert known(cache, "abc", "x") == [3, 1]
    leave(cache, "y")
    assert known(cache, "abc", "x", "y") == [2, 1, 1]
    leave(cache, "a", "z")  # "a" is used again; "b", the oldest leaf, goes
    assert known(cache, "abc", "x", "y", "z") == [1, 1, 1, 1]
    leave(cache, "z", "ab")
    assert known(cache, "abc", "x", "y", "z") == [2, 0, 1, 1]
    leave(cache, "12345")
    assert (known(cache, "12345", "abc"), cache.retained) == ([4, 0], 4)


def test_pages_that_are_needed_are_taken_from_the_retained_ones():
    cache = new_cache(pages=4, page_slots=1, retain=None)
    leave(cache, "abc")
    assert (cache.pool.free, cache.available, cache.retained) == (1, 4, 3)
    cache.add([[1]])
    cache.make_room()
    assert (cache.pool.free, cache.available, cache.retained, known(cache, "abc")) == (0, 2, 2, [2])
    cache.grow()
    assert cache.pages_for_steps(2) == 2
    cache.make_room(2)
    assert (cache.available, cache.retained) == (0, 0)
    with pytest.raises(PoolExhausted):
        cache.make_room(3)
    assert new_cache().available is None


def test_a_prompt_does_not_lose_the_pages_that_it_shares():
    cache = new_cache(pages=4, page_slots=1, retain=None)
    leave(cache, "xy", "ab")  # "xy" is older
    assert cache.pages_missing([list(map(ord, "abcd"))]) == 4
    assert cache.add([list(map(ord, "abcd"))])[1] == [2]
    cache.remove(0)
    before = list(cache._retained)
    assert cache.pages_missing([list(map(ord, "abcde"))]) == 5
    with pytest.raises(PoolExhausted, match="the KV pool needs 1 page, 0 of its 4 are free"):
        cache.add([list(map(ord, "abcde"))])
    assert (list(cache._retained), known(cache, "abcde"), cache.rows) == (before, [4], 0)


def test_a_page_is_shared_by_the_first_row_in_place_of_the_cache():
    cache = new_cache(page_slots=4, retain=None)
    leave(cache, "abcdef")
    assert cache.add([list(map(ord, "abcdef"))] * 2)[1] == [6, 6]
    assert (cache.pool.used, cache.pool.shared, cache.retained) == (2, 2, 0)
    cache.remove(1)
    assert (cache.pool.shared, cache.retained) == (0, 0)
    cache.remove(0)
    assert (cache.pool.used, cache.retained) == (2, 2)


def test_what_is_overwritten_goes_with_all_that_came_after_it():
    cache = new_cache(page_slots=4, retain=None)
    leave(cache, "abcdefghijkl", "abcdefgh1234")
    cache.add([list(map(ord, "abcdef"))])  # a part of the second page, which it then writes to
    assert cache.retained == 2
    cache.make_room()
    assert (cache.retained, cache.pool.used) == (0, 2)
    assert known(cache, "abcdefghijkl", "abcdef") == [4, 6]


def test_pages_that_are_cut_off_stay_known():
    cache = new_cache(page_slots=4, retain=None)
    cache.add([range(10)])
    cache.truncate(0, 4)
    assert (cache.retained, cache.known(range(10))) == (2, 10)
    cache.make_room()
    assert cache.known(range(10)) == 10
    cache.remove(0)
    assert (cache.retained, cache.pool.used) == (3, 3)


@pytest.mark.parametrize("order", ["forwards", "backwards"])
def test_pages_that_were_never_written_are_not_retained(order: str):
    cache = new_cache(page_slots=2, retain=None)
    leave(cache, "abcd")
    prompts = [list(map(ord, prompt)) for prompt in ("abcdef", "abcdefgh", "abx")]
    rows, counts = cache.add(prompts)
    assert counts == [4, 6, 2]
    for row in [0, 0, 0] if order == "forwards" else reversed(range(rows.start, rows.stop)):
        cache.remove(row, retain=False)
    assert known(cache, "abcdefgh", "abx") == [4, 2]
    assert (cache.retained, cache.pool.used) == (2, 2)


def test_a_page_that_one_row_gave_up_unwritten_is_not_retained_by_the_next():
    cache = new_cache(page_slots=2, retain=None)
    cache.add([[1, 2, 3, 4], [1, 2, 3, 4, 5]])
    cache.remove(0, retain=False)
    cache.remove(0)
    assert (cache.retained, cache.pool.used, cache.known([1, 2])) == (0, 0, 0)


def test_a_page_that_may_not_stay_takes_those_below_it_along():
    cache = new_cache(page_slots=2, retain=None)
    cache.add([[1, 2]])
    cache.add([[1, 2, 3, 4, 5]])
    cache.remove(1)
    assert (cache.retained, cache.pool.used) == (2, 3)
    cache.remove(0, retain=False)
    assert (cache.retained, cache.pool.used, cache.known([1, 2])) == (0, 0, 0)


def test_a_failed_prefill_leaves_nothing_unwritten():
    model = tiny_model(1)
    decoder = Decoder(model)
    cache = StreamCache(decoder.new_pool(page_slots=4), retain=None)
    decoder.prefill(cache, [range(5, 15)])
    cache.remove(0)

    def fail(*args, **kwargs):
        raise RuntimeError("a layer's own")

    assert cache.known(range(5, 30)) == 8
    original, decoder.rope = decoder.rope, fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="a layer's own"):
        decoder.prefill(cache, [range(5, 30), [5, 6, 7]])
    decoder.rope = original  # type: ignore[method-assign]
    assert (cache.rows, cache.known(range(5, 30)), cache.retained) == (0, 8, 3)
    tokens = torch.tensor([1])
    decoder.prefill(cache, [range(5, 30)])
    fresh = decoder.new_cache()
    decoder.prefill(fresh, [range(5, 30)])
    torch.testing.assert_close(decoder.step(cache, tokens), decoder.step(fresh, tokens))


def test_retained_pages_are_dropped_or_cleared():
    cache = new_cache(page_slots=2, retain=None)
    leave(cache, "abcd")
    cache.add([list(map(ord, "xyz"))])
    cache.drop_retained()
    assert (cache.retained, cache.pool.used, known(cache, "abcd", "xyz")) == (0, 2, [0, 3])
    leave(cache, "abcd")
    cache.clear()
    assert (cache.retained, cache.pool.used, known(cache, "abcd", "xyz")) == (0, 0, [0, 0])


def test_a_number_of_pages_that_cannot_be_is_refused():
    pool = new_cache().pool
    with pytest.raises(ValueError, match="retain is -1; it must be a number of pages from 0, or None"):
        StreamCache(pool, retain=-1)
    for retain in (True, 1.5, "all"):
        with pytest.raises(TypeError, match=re.escape(f"retain is {retain!r}; it must be a number of pages, or None")):
            StreamCache(pool, retain=retain)  # type: ignore[arg-type]
