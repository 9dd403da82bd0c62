"""The cache against a list of rows, under random adding, growing, forking, cutting and removing in a pool too small."""

import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch

from fastdecode.kv.kv_cache import StreamCache
from fastdecode.kv.page_pool import PagePool, PoolExhausted

LAYERS, HEADS, DIM = 2, 2, 3


def new_cache(pages: int | None = None, page_slots: int = 4) -> StreamCache:
    return StreamCache(PagePool(LAYERS, HEADS, DIM, torch.float32, "cpu", pages=pages, page_slots=page_slots))


@torch.inference_mode()
def write(cache: StreamCache, row: int, at: int, values: torch.Tensor) -> None:
    """Store an id's ``values`` (layers, heads, dim), found through the table; as its values their negatives."""
    page, slot = int(cache.table[row, at // cache.pool.page_slots]), at % cache.pool.page_slots
    for layer in range(LAYERS):
        cache.keys[layer][page, :, slot] = values[layer]
        cache.values[layer][page, :, slot] = -values[layer]


@torch.inference_mode()
def stored(cache: StreamCache, row: int) -> torch.Tensor:
    """What ``row`` holds, (length, layers, heads, dim), read through the table."""
    pages, length = cache.table[row].long(), int(cache.lengths[row])
    read = []
    for both in (cache.keys, cache.values):
        layers = torch.stack([layer[pages] for layer in both])  # (layers, width, heads, slots, dim)
        read.append(layers.permute(1, 3, 0, 2, 4).reshape(-1, LAYERS, HEADS, DIM)[:length])
    assert torch.equal(read[0], -read[1])
    return read[0]


def everything(cache: StreamCache) -> tuple:
    """All that a refused call must leave alone, but for memory put by."""

    def tree(node) -> tuple:
        return node.ids, node.page, [(ids, tree(child)) for ids, child in node.children.items()]

    pool, prompts = cache.pool, cache._prompts
    storage = [*pool.keys, *pool.values, cache.table, cache.lengths]
    return (
        pool.statistics(),
        (list(pool._owners), list(pool._free)),
        (tree(prompts.root), {page: id(node) for page, node in prompts.nodes.items()}),
        [(id(row), row.number, row.start, list(row.pages)) for row in cache._rows],
        (cache.rows, cache.longest, cache._steps, cache._settled),
        {step: list(map(id, rows)) for step, rows in cache._due.items()},
        [(tensor.shape, tensor.nan_to_num(1e9).flatten().tolist()) for tensor in storage],
    )


def refused(cache: StreamCache, call: Callable[[], object]) -> bool:
    """Whether ``call`` finds too few pages; then nothing is changed."""
    before = everything(cache)
    try:
        call()
    except PoolExhausted:
        assert everything(cache) == before
        return True
    return False


class Model:
    """What a cache should hold: by row, the keys of its ids. Those of a prompt follow from the prompt."""

    def __init__(self, seed: int, page_slots: int, pages: int | None) -> None:
        self.rng, self.cache = random.Random(seed), new_cache(pages, page_slots)
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

    def add(self) -> None:
        cache, prompts = self.cache, [self.prompt() for _ in range(self.rng.randint(0, 4))]
        used, slots = {page for row in range(cache.rows) for page in cache.pages(row)}, cache.pool.page_slots
        result: list = []
        if refused(cache, lambda: result.extend(cache.add(prompts))):
            self.counts["add refused"] += 1
            return
        rows, known = result
        assert rows == slice(len(self.rows), len(self.rows) + len(prompts))
        for row, prompt, count in zip(range(rows.start, rows.stop), prompts, known, strict=True):
            assert count == len(prompt) or (count < len(prompt) and count % slots == 0)
            self.rows.append(self.content(prompt))
            pages = cache.pages(row)
            for at in range(count, len(prompt)):
                assert pages[at // slots] not in used  # nobody's before this call, nor an earlier row's of it
                write(cache, row, at, self.rows[-1][at])
            used |= set(pages)
            self.counts["shared"] += count > 0
            self.counts["shared in part"] += count == len(prompt) and count % slots > 0

    def step(self) -> None:
        cache, slots = self.cache, self.cache.pool.page_slots
        for _ in range(self.rng.choice([1, 1, 3])):
            ahead = self.rng.choice([1, 1, 1, 2, 7])
            if refused(cache, lambda ahead=ahead: cache.make_room(ahead)):
                self.counts["step refused"] += 1
                return
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
            assert self.cache.remove(row) == len(self.rows) - 1
            last = self.rows.pop()
            if row < len(self.rows):
                self.rows[row] = last

    def clear(self) -> None:
        self.cache.clear()
        self.rows.clear()
        assert self.cache.pool.used == 0

    @torch.inference_mode()
    def poison(self) -> None:
        """What nobody owns, and what lies behind every row's ids, becomes NaN."""
        cache, pool = self.cache, self.cache.pool
        seen = Counter[int]()  # slots of a page that some row sees, or that wait for an equal prompt
        for row, content in enumerate(self.rows):
            for place, page in enumerate(cache.pages(row)):
                seen[page] = max(seen[page], min(len(content) - place * pool.page_slots, pool.page_slots))
        for page, node in cache._prompts.nodes.items():
            seen[page] = max(seen[page], len(node.ids))
        for page in range(pool.capacity):
            for layer in (*pool.keys, *pool.values):
                layer[page, :, seen[page] :] = float("nan")

    def check(self) -> None:
        cache, pool = self.cache, self.cache.pool
        lengths, held = [len(row) for row in self.rows], [cache.pages(row) for row in range(cache.rows)]
        assert cache.rows == len(self.rows)
        assert cache.lengths.tolist() == [cache.length(row) for row in range(cache.rows)] == lengths
        assert cache.longest == max(lengths, default=0)
        assert (cache.lengths.dtype, cache.table.dtype) == (torch.int64, torch.int32)
        assert cache.table.shape == (cache.rows, max(map(len, held), default=0))
        assert cache.table.tolist() == [pages + [0] * (cache.table.shape[1] - len(pages)) for pages in held]
        assert cache.table.stride(1) == 1
        assert cache.table.numel() == 0 or cache.table.max() < pool.capacity
        for length, pages in zip(lengths, held, strict=True):
            assert 0 <= len(pages) - -(-length // pool.page_slots) <= -(-7 // pool.page_slots)
        owners = Counter(page for pages in held for page in pages)
        assert {page: pool.owners(page) for page in range(pool.capacity) if pool.owners(page)} == owners
        assert pool.used == len(owners)
        assert cache._prompts.nodes.keys() <= owners.keys()
        for row, content in enumerate(self.rows):
            expected = torch.stack(content) if content else torch.zeros(0, LAYERS, HEADS, DIM)
            assert torch.equal(stored(cache, row), expected)


@pytest.mark.parametrize(("page_slots", "pages"), [(1, 40), (2, 20), (4, 12), (4, None), (32, 5)])
@pytest.mark.parametrize("seed", range(4))
def test_against_a_list_of_rows(seed: int, page_slots: int, pages: int | None):
    model = Model(seed, page_slots, pages)
    calls = [model.add, model.step, model.room, model.fork, model.truncate, model.remove, model.clear]
    for _ in range(600):
        call = model.rng.choices(calls, weights=[6, 10, 1, 3, 3, 9, 0.2])[0]
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
    assert model.cache.pool.used == model.cache.pool.shared == model.cache.longest == 0


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
    assert (cache.table == cache.table[0]).all()
    assert cache.add([range(100)])[1] == [100]
    assert cache.pool.used == 4
    cache.make_room()  # nine rows, nine last pages
    assert cache.pool.used == 3 + 9
    assert len(set(cache.table[:, 3].tolist())) == 9


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
        ("abcdefgh", "efgh", 0),  # equal ids behind others have other keys
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


def test_ids_of_equal_hash_are_told_apart():
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


def test_pages_may_be_cut_to_equal_ids():
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


def test_prompts_that_are_not_ids_change_nothing():
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

        table = cache.table
        costs.append(python_calls(step))
        assert cache.table is table
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
    with pytest.raises(IndexError, match=f"row {row} is not live: the cache has 2 rows"):
        getattr(cache, name)(row, *([0] if name == "truncate" else []))
    assert everything(cache) == before


@pytest.mark.parametrize("length", [-1, 4])
@pytest.mark.parametrize("name", ["fork", "truncate"])
def test_a_length_that_a_row_has_not_is_refused(name: str, length: int):
    cache = new_cache()
    cache.add([[1, 2, 3]])
    before = everything(cache)
    with pytest.raises(ValueError, match=f"row 0 cannot be cut to {length} ids: it has 3, so 0 to 3 are possible"):
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
    assert (cache.rows, cache.longest, cache.table.shape) == (0, 0, (0, 0))
    assert cache.add([]) == (slice(0, 0), [])


def test_tensors_are_changed_outside_inference_mode():
    cache = new_cache()
    assert not torch.is_inference_mode_enabled()
    cache.add([[1, 2, 3], [1, 2]])
    cache.make_room()
    cache.grow()
    cache.truncate(cache.fork(0), 1)
    assert cache.lengths.is_inference()
    assert cache.table.is_inference()
    cache.remove(0)
    cache.clear()
